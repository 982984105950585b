"""RULER's prompts beside those of upstream's own scripts: the same words, the same statistics.

::

    git clone https://github.com/NVIDIA/RULER
    python -m tools.compare_ruler RULER TOKENIZER --lengths 4096 16384

Both releases of the commits that ``--ruler-release`` names are run. Two samples never have the same
random words, so each prompt is brought to a form without them (:func:`form`), which must be equal.
The numbers of units (words, lines, documents) differ by less than a step of upstream's search: this
project fills the length, upstream stops up to a step before, or two in ``fwe``. Tasks in essays are
left out: they need nltk's data and essays that have to be downloaded.

Upstream's scripts need an environment of their own::

    python -m venv ENV && ENV/bin/pip install tenacity wonderwords nltk scipy tqdm transformers
    python -m tools.compare_ruler RULER TOKENIZER --python ENV/bin/python
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from megatron_ultralong.evaluation.ruler.evaluation import RulerSamples
from megatron_ultralong.evaluation.ruler.parameters import NOISE, RELEASES, RulerConfig, family
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer

TASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe", "qa_1")
_STEPS = {"niah": 25, "vt": 10, "cwe": 20, "qa_1": 10}
"""Units by which upstream's search goes. ``fwe``: two steps of a 32nd of the length, up or down,
because all samples have the number of words that fits the first one. ``cwe``: two steps, because
the earlier release counts the answer among the prompt's tokens."""
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ENTRY = re.compile(r"(\d+)\. (.+?)(?= \d+\. |$)", re.MULTILINE)


def upstream(release: str, arguments: argparse.Namespace, folder: Path) -> Path:
    """Upstream's scripts at a commit, with stand-ins for the data that they read."""
    words = ["git", "-C", str(arguments.ruler), "archive", release, "scripts"]
    tree = subprocess.run(words, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tree)) as files:
        files.extractall(folder, filter="data")
    data = folder / "scripts" / "data" / "synthetic" / "json"
    english = {str(k): f"english{k}" for k in range(60_000)}
    (data / "english_words.json").write_text(json.dumps(english))
    (data / "squad.json").write_text(json.dumps({"data": _articles()}))
    # The early release takes one function of NeMo.
    nemo = folder / "nemo" / "collections" / "asr" / "parts" / "utils"
    nemo.mkdir(parents=True)
    (nemo / "manifest_utils.py").write_text(
        "import json\n\n\ndef read_manifest(path):\n    raise NotImplementedError\n\n\n"
        "def write_manifest(path, rows):\n"
        "    path.write_text(''.join(json.dumps(row) + chr(10) for row in rows))\n"
    )
    return folder


def _articles() -> list[dict[str, Any]]:
    """SQuAD's form, with texts that say where they are from."""
    return [
        {
            "paragraphs": [
                {
                    "context": f"Paragraph {a} {p} " + "some words of it " * 25,
                    "qas": [
                        {
                            "question": f"Which {a} {p}?",
                            "answers": [{"text": f"answer {a} {p}"}],
                            "is_impossible": False,
                        }
                    ],
                }
                for p in range(5)
            ]
        }
        for a in range(30)
    ]


def their_samples(folder: Path, task: str, length: int, arguments: argparse.Namespace) -> list[str]:
    """Prompts that upstream's script writes."""
    scripts = folder / "scripts"
    settings = yaml.safe_load((scripts / "synthetic.yaml").read_text())[task]
    constants: dict[str, Any] = {}
    exec((scripts / "data" / "synthetic" / "constants.py").read_text(), constants)
    parameters = constants["TASKS"][settings["task"]]
    flags = {
        "save_dir": folder / f"{task}-{length}",
        "save_name": "made",
        "tokenizer_path": arguments.tokenizer,
        "tokenizer_type": "hf",
        "max_seq_length": length,
        "tokens_to_generate": parameters["tokens_to_generate"],
        "num_samples": arguments.num_samples,
        **(settings["args"] or {}),
        "template": parameters["template"] + parameters["answer_prefix"],
    }
    words = [arguments.python, str(scripts / "data" / "synthetic" / f"{settings['task']}.py")]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    done = subprocess.run(
        words,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    file = folder / f"{task}-{length}" / "made" / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    return [row["input"] + row.get("answer_prefix", "") for row in rows]


def our_samples(
    folder: Path, release: Any, task: str, length: int, arguments: argparse.Namespace
) -> list[str]:
    """Prompts of this project."""
    data = folder / "scripts" / "data" / "synthetic" / "json"
    config = RulerConfig(
        lengths=(length,), tasks=(task,), ruler_release=release,
        squad=str(data / "squad.json"), english_words=str(data / "english_words.json"),
    )  # fmt: skip
    samples = RulerSamples(config, PromptTokenizer(Path(arguments.tokenizer)))
    made = []
    for index in range(arguments.num_samples):
        sample = samples.sample(task, length, index)
        turns = samples.builder(task, length, index).turns(sample.num_units)
        made.append("".join(map("".join, turns)))
    return made


def form(task: str, text: str) -> tuple[str, int]:
    """A prompt without its random words and repetitions, and its number of units."""
    if task == "fwe":
        head, rest = text.split("coded words. ")
        words, tail = rest.split("\nQuestion")
        counts = Counter(words.split(" "))
        shape = f"{counts.most_common(1)[0][0]} {min(map(len, counts))}-{max(map(len, counts))}"
        return f"{head}|{shape}|{tail}", sum(counts.values())
    if task == "cwe":
        units = 0
        for numbered in re.findall(r"often\.\n(1\. .*)\nQuestion", text):
            entries = _ENTRY.findall(numbered)
            assert [int(number) for number, _ in entries] == [*range(1, len(entries) + 1)]
            counts = Counter(word for _, word in entries)
            units = len(counts)
            kind = "english" if entries[0][1].startswith("english") else "words"
            often = max(counts.values())
            common = [*counts.values()].count(often)
            text = text.replace(numbered, f"|{kind} {common} {sorted({*counts.values()})}|", 1)
        return _ENTRY.sub(r"\1. w", text), units
    if task == "vt":
        example, question = text.rsplit("Memorize and track", 1)
        units = question.count(NOISE)
        text = re.sub(r"\b[A-Z]{5}\b", "LONGS", re.sub(r"\b(?!VAR)[A-Z]{3}\b", "SML", text))
        text = re.sub(r"\d{5}", "N", text).replace(NOISE, "noise")
        # two assignments in a line stand behind each other by chance
        lines = sorted({line.strip() for line in text.split("\n") if line.count(" = ") < 2})
        return "\n".join([f"{example.count(NOISE)} lines in the example", *lines]), units
    if task == "qa_1":
        units = len(re.findall(r"Document \d+:\nParagraph", text))
        text = re.sub(r"Document \d+:\nParagraph \d+ \d (some words of it )+(\n\n)?", "D", text)
        return re.sub(r"D+", "D", re.sub(r"Which \d+ \d", "Which", text)), units
    units = text.count("\n") - 1
    text = re.sub(_UUID, "U", re.sub(r"\b\d{7}\b", "N", text))
    text = re.sub(r"(magic \w+ for )(?:(?!mentioned|is:).)+?( is:| mentioned)", r"\1K\2", text)
    return "\n".join(sorted({*text.split("\n")})), units


def main() -> None:
    """Compare; exit status 1 where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ruler", type=Path, help="a clone of NVIDIA/RULER")
    parser.add_argument("tokenizer", type=Path, help="folder of a Hugging Face tokenizer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--num-samples", type=int, default=20)
    parser.add_argument("--python", default=sys.executable, help="runs upstream's scripts")
    arguments = parser.parse_args()
    table = Table("release", "task", "length", "units, upstream", "this project", "forms", "")
    differing = 0
    for release in RELEASES:
        with tempfile.TemporaryDirectory() as name:
            folder = upstream(release, arguments, Path(name))
            for task in arguments.tasks:
                for length in arguments.lengths:
                    expected = [
                        form(task, t) for t in their_samples(folder, task, length, arguments)
                    ]
                    actual = [
                        form(task, t) for t in our_samples(folder, release, task, length, arguments)
                    ]
                    forms = [{text for text, _ in side} for side in (expected, actual)]
                    means = [mean(units for _, units in side) for side in (expected, actual)]
                    step = _STEPS.get(task.split("_single")[0].split("_multi")[0], length // 16)
                    least = -step if task == "fwe" else -1  # 1: names of other tokens
                    is_same = forms[0] == forms[1] and least <= means[1] - means[0] < step
                    differing += not is_same
                    table.add_row(
                        release, task, str(length), f"{means[0]:.1f}", f"{means[1]:.1f}",
                        f"{len(forms[0])}, {len(forms[1])}", "same" if is_same else "other",
                    )  # fmt: skip
                    if forms[0] != forms[1]:
                        print(f"{release} {task} {length}:")
                        for side in forms:
                            print(repr(min(side))[:1500])
    Console(width=100).print(table)
    room = family("vt").tokens_to_generate
    print(f"{arguments.num_samples} samples each; an answer to vt has room for {room} tokens")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
