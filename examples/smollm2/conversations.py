"""Short conversations out of the package chatterbot-corpus (BSD-3-Clause), for step 6.

::

    python conversations.py OUTPUT.jsonl

Its English dialogues of two turns or more, each behind the system turn that the model's own
chat template begins with. The package is read as an archive and not installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from corpus import fetched, wheel_members
from sources import CONVERSATIONS

from megatron_ultralong.program.aside import whole

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def main() -> None:
    """Fetch, read, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="new file")
    parser.add_argument("--packages", type=Path, help="folder to keep what is fetched in")
    arguments = parser.parse_args()
    output: Path = arguments.output
    if output.exists():
        sys.exit(f"{output} is there; name a new file, or remove it")
    packages: Path = arguments.packages or output.parent / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    archive = fetched(CONVERSATIONS, CONVERSATIONS.packages[0], packages)
    count = 0
    with whole(output) as aside, aside.open("w", encoding="utf-8") as lines:
        for _, content in wheel_members(archive, CONVERSATIONS.files):
            for messages in conversations(content):
                lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                count += 1
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
