"""Short conversations out of the package chatterbot-corpus (BSD-3-Clause), for step 6.

::

    python conversations.py OUTPUT.jsonl

Its English dialogues of two turns or more, each behind the system turn that the model's own
chat template begins with. The package is read as an archive and not installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import yaml
from corpus import fetched, wheel_members
from json_lines import with_new_file, write
from sources import CONVERSATIONS

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def main() -> None:
    """Fetch, read, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--packages", type=Path, help="folder to keep what is fetched in")
    arguments = with_new_file(parser)
    output: Path = arguments.output
    packages: Path = arguments.packages or output.parent / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    archive = fetched(CONVERSATIONS, CONVERSATIONS.packages[0], packages)
    files = wheel_members(archive, CONVERSATIONS.files)
    found = ({"messages": its} for _, content in files for its in conversations(content))
    count = write(output, found)
    print(f"{count:,} conversations: {output}")


def conversations(content: bytes) -> Iterator[list[dict[str, str]]]:
    """The dialogues of a file: YAML with ``conversations``, lists of turns of two people."""
    for turns in yaml.safe_load(content)["conversations"]:
        texts = [turn.strip() for turn in turns if isinstance(turn, str)]
        if len(texts) != len(turns) or len(texts) < 2 or not all(texts):
            continue
        messages = [{"role": "system", "content": SYSTEM}]
        for place, text in enumerate(texts[: len(texts) // 2 * 2]):
            messages.append({"role": ("user", "assistant")[place % 2], "content": text})
        yield messages


if __name__ == "__main__":
    main()
