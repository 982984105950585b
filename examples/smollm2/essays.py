"""A held-out book of the corpus as one text, for ruler.sh; without it all held-out texts.

::

    python essays.py CORPUS OUTPUT.txt
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from json_lines import with_new_file

from megatron_ultralong.program.aside import whole

BOOK = "jargon-text"
MOST_CHARACTERS = 1_500_000


def main() -> None:
    """Join the book's documents, as far as they are needed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder of step 2")
    arguments = with_new_file(parser)
    folder = arguments.corpus / "held_out"
    documents = [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").split("\n")
        if line
    ]
    if not documents:
        sys.exit(f"{folder} has no text; 02_get_corpus.sh writes it")
    book = [document for document in documents if document["package"] == BOOK]
    texts = [document["text"] for document in book or documents]
    with whole(arguments.output) as aside:
        aside.write_text("\n".join(texts)[:MOST_CHARACTERS], encoding="utf-8")


if __name__ == "__main__":
    main()
