"""What each part of the recipe is good for: short trainings at 65,536 tokens, one thing changed.

::

    bash examples/smollm2/04_import.sh               # after steps 1 and 2: the weights, the corpus
    python examples/smollm2/ablations.py smollm2     # rows, then every arm with every seed
    python examples/smollm2/ablations.py smollm2 --only-rows    # before several processes
    python examples/smollm2/ablations.py smollm2 --share 0/2    # on the first of two GPUs
    python examples/smollm2/ablations.py smollm2 --runs short-1 short-mask-1    # these, in order
    python examples/smollm2/ablations.py smollm2 --only-table   # of what is there

All arms start from the same weights, take the same number of tokens of the same documents, and are
asked the same questions. A seed sets the order of the rows. Every arm is one process' work on one
GPU; what is finished is kept, so that the same command continues after an interruption. The
learning rate is that of docs/results.md, which was chosen for another length, on other prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_ultralong.cli import main as ultralong
from megatron_ultralong.evaluation.results.file import read_results
from megatron_ultralong.program.aside import whole

HERE = Path(__file__).parent
SEQ_LENGTH, ORIGINAL_LENGTH = 65_536, 8192
TRAIN_ITERS = 32
SEEDS = (1, 2)
EVERY = 12
"""Every so-many-th document of the corpus is used: twice the tokens that an arm takes."""
BYTES_OF_A_TOKEN = 3.4
"""Of these texts, with this tokenizer."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """What is made of the documents of the corpus, which have 118,000 tokens on average."""

    cut_every: int = 0
    """Every so-many-th one is cut at ends of lines; 0: none."""
    tokens: tuple[int, int] = (0, 0)
    """Least and greatest length of a part, roughly."""


DOCUMENTS = {
    "long": Documents(),
    "short": Documents(cut_every=1, tokens=(2000, 8000)),
    "mixed": Documents(cut_every=2, tokens=(500, 3500)),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting."""

    what: str
    flags: tuple[str, ...] = ()
    """Of `pretrain`, beside ablation.yaml."""
    separator: str = "<s>"
    first_length: int = 0
    """Rows of this length for the first half of the tokens, with the scaling that they need."""
    documents: str = "long"
    """Of DOCUMENTS."""
    length_sampling: str = "none"


ARMS = {
    "recipe": Arm("`<s>`, no mask, YaRN over dimensions with temperature, one step"),
    "separator-eos": Arm("separator: the end-of-text token", separator="eos"),
    "separator-none": Arm("separator: none", separator="none"),
    "mask": Arm("documents do not attend to each other", ("--document-mask", "block")),
    "no-temperature": Arm("YaRN without temperature", ("--attention-factor", "1")),
    "paper-yarn": Arm(
        "YaRN of the paper: over rotations, no temperature",
        ("--ramp", "rotations", "--attention-factor", "1"),
    ),
    "twice-factor": Arm("YaRN by 16, twice what the rows need", ("--rope-scaling-factor", "16")),
    "ntk": Arm("NTK-aware scaling", ("--rope-scaling", "ntk", "--attention-factor", "1")),
    "linear": Arm("linear scaling", ("--rope-scaling", "linear", "--attention-factor", "1")),
    "two-steps": Arm("two steps: 32,768 first, then 65,536", first_length=32_768),
    "short": Arm("documents of 2,000 to 8,000 tokens, else as the recipe", documents="short"),
    "short-eos": Arm(
        "the same, separator: the end-of-text token", separator="eos", documents="short"
    ),
    "short-none": Arm("the same, separator: none", separator="none", documents="short"),
    "short-mask": Arm(
        "the same, documents do not attend to each other",
        ("--document-mask", "block"),
        documents="short",
    ),
    "mixed": Arm(
        "half of the tokens in documents of 500 to 3,500, no length sampling", documents="mixed"
    ),
    "mixed-sampling": Arm(
        "the same, length sampling of the paper", documents="mixed", length_sampling="ultralong"
    ),
}
BEFORE = "before"
"""The name of the original model, which is asked the same."""


def run(*words: object) -> None:
    """A verb of the command line, in this process."""
    print("$ ultralong", *words, flush=True)
    ultralong([str(word) for word in words])


def rows(work: Path, arm: Arm, seq_length: int) -> Path:
    """The folder of an arm's rows, made if it is not there."""
    others = [arm.documents] * (arm.documents != "long")
    others += [arm.length_sampling] * (arm.length_sampling != "none")
    name = "-".join(["rows", *others, arm.separator.strip("<>"), str(seq_length)])
    folder = work / "ablations" / name
    if not folder.exists():
        corpus = some_documents(work, arm.documents)
        prepare(corpus, folder, seq_length, arm.separator, arm.length_sampling)
    return folder


def held_out_rows(work: Path) -> Path:
    """The same of the packages that no arm is trained on."""
    folder = work / "ablations" / "rows-held-out"
    if not folder.exists():
        prepare(work / "corpus" / "held_out", folder, SEQ_LENGTH, "<s>")
    return folder


def check_made_of(work: Path) -> None:
    """Arms of one WORK are of one corpus and one import of the weights; else it ends here."""
    files = (work / "corpus" / "corpus.json", work / "base" / "checksums.json")
    found = {
        str(file.relative_to(work)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.exists()
    }
    folder = work / "ablations"
    record = folder / "made_of.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        # its own name aside: shares start together, and write the same
        aside = record.with_name(f"{record.name}.{os.getpid()}")
        aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        aside.replace(record)
    before = json.loads(record.read_text(encoding="utf-8"))
    for name in sorted({*before, *found}):
        if before.get(name) != found.get(name):
            sys.exit(
                f"{work / name} is not what the arms in {folder} are made of (SHA-256 "
                f"{before.get(name, 'of none')}, now {found.get(name, 'of none')}): put it back, "
                f"or remove {folder} to run them again"
            )


def some_documents(work: Path, kind: str) -> Path:
    """A part of the corpus of step 2, of the same kinds, whole or cut."""
    folder = work / "ablations" / "-".join(["corpus", *[kind] * (kind != "long")])
    if not folder.exists():
        corpus = work / "corpus" / "train"
        files = sorted(corpus.glob("*.jsonl"))
        if not files:
            sys.exit(f"{corpus} has no .jsonl file; 02_get_corpus.sh writes them")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as aside:
            aside.mkdir()
            for file in files:
                with file.open("rb") as lines, (aside / file.name).open("wb") as some:
                    some.writelines(cut(itertools.islice(lines, 0, None, EVERY), DOCUMENTS[kind]))
    return folder


def cut(lines: Iterable[bytes], documents: Documents) -> Iterator[bytes]:
    """JSON Lines of the same texts, some in parts of random lengths."""
    lengths = random.Random(1)
    least, greatest = (round(BYTES_OF_A_TOKEN * tokens) for tokens in documents.tokens)
    for number, line in enumerate(lines):
        if not documents.cut_every or number % documents.cut_every:
            yield line
            continue
        document = json.loads(line)
        text = document["text"]
        while text:
            size = lengths.randint(least, greatest)
            end = text.rfind("\n", 0, size) + 1 or size
            yield json.dumps({**document, "text": text[:end]}).encode() + b"\n"
            text = text[end:]


def prepare(
    corpus: Path, folder: Path, seq_length: int, separator: str, length_sampling: str = "none"
) -> None:
    """Rows of a folder of JSON Lines, a source a file."""
    sources = [
        word
        for file in sorted(corpus.glob("*.jsonl"))
        for word in ("--source", f"{file.stem}={file}")
    ]
    run("prepare", *sources, "--tokenizer", folder.parent.parent / "hf", "--output", folder,
        "--seq-length", seq_length, "--separator", separator, "--length-sampling", length_sampling,
        "--valid-fraction", 0, "--seed", 1)  # fmt: skip


def first_part(folder: Path) -> Path:
    """Where the first part of an arm is trained, beside the second."""
    return folder.with_name(f"{folder.name}-first")


def train(work: Path, name: str, seed: int, folder: Path) -> None:
    """Train an arm; its first part, if it has one, is kept beside it until the second is done."""
    arm, load = ARMS[name], work / "base"
    common = ("--config", HERE / "ablation.yaml", "--seed", seed)
    iterations = TRAIN_ITERS
    if arm.first_length:
        iterations //= 2
        short, first = SEQ_LENGTH // arm.first_length, first_part(folder)
        run("pretrain", *common, "--load", load, "--save", first, "--data-path",
            rows(work, arm, arm.first_length), "--seq-length", arm.first_length,
            "--global-batch-size", short, "--train-iters", iterations, "--rope-scaling-factor",
            arm.first_length / ORIGINAL_LENGTH, *arm.flags)  # fmt: skip
        load = first
    run("pretrain", *common, "--load", load, "--save", folder, "--seq-length", SEQ_LENGTH,
        "--data-path", rows(work, arm, SEQ_LENGTH), "--train-iters", iterations,
        *arm.flags)  # fmt: skip


def evaluate(work: Path, model: str, results: Path) -> None:
    """Loss by position and passkeys of a checkpoint, ``NAME=FOLDER``, as it was just written."""
    if not (results / "loss").exists():
        run("evaluate", "loss", "--load", model, "--data-path", held_out_rows(work), "--split",
            "train", "--num-samples", 12, "--smallest-bin", ORIGINAL_LENGTH,
            "--beyond-trained-positions", "--no-verify-checksums", "--output",
            results / "loss")  # fmt: skip
    if not (results / "passkey").exists():
        run("evaluate", "passkey", "--load", model, "--lengths", SEQ_LENGTH // 2, SEQ_LENGTH,
            "--depths", *(0, 11, 22, 33, 44, 56, 67, 78, 89, 100), "--num-samples", 2,
            "--beyond-trained-positions", "--no-verify-checksums", "--output",
            results / "passkey")  # fmt: skip


def figures(results: Path) -> list[float | None]:
    """Loss inside the original context, in the last half of the row; passkeys at both lengths."""
    (loss,) = read_results(results / "loss" / "loss.json")
    found = [loss.mean_loss(0, ORIGINAL_LENGTH), loss.mean_loss(SEQ_LENGTH // 2)]
    asked = results / "passkey" / "passkey.json"
    if not asked.exists():
        return [*found, None, None]
    (passkey,) = read_results(asked)
    return [*found, *(passkey.mean(str(length)) for length in (SEQ_LENGTH // 2, SEQ_LENGTH))]


def table(work: Path, seeds: Sequence[int] = SEEDS) -> Iterator[str]:
    """A row of Markdown for each arm: the mean, and each seed's figure."""
    half = SEQ_LENGTH // 2
    yield (
        f"| arm | what | loss, first {ORIGINAL_LENGTH:,} | loss, {half:,}-{SEQ_LENGTH:,} | "
        f"passkey at {half:,}, % | passkey at {SEQ_LENGTH:,}, % |"
    )
    yield "| --- " * 6 + "|"
    results = work / "ablations" / "results"
    for name, arm in {BEFORE: Arm("the original model, not trained"), **ARMS}.items():
        ran = [results / name] if name == BEFORE else [results / f"{name}-{s}" for s in seeds]
        found = [figures(one) for one in ran if (one / "loss").exists()]
        columns = [
            _mean([one[place] for one in found], digits=3 if place < 2 else 0) for place in range(4)
        ]
        yield f"| {name} | {arm.what} | {' | '.join(columns)} |"


def _mean(values: Sequence[float | None], digits: int) -> str:
    """The mean of the seeds that ran, and each."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.{digits}f}" if known else "not run"
    each = ", ".join(f"{value:.{digits}f}" for value in known)
    return f"{statistics.fmean(known):.{digits}f} ({each})"


def run_arm(work: Path, label: str) -> None:
    """Train and ask ``NAME-SEED``, or ask the original model alone, if that is not done yet."""
    results = work / "ablations" / "results" / label
    if label == BEFORE:
        evaluate(work, f"{label}={work / 'base'}", results)
        return
    start, folder = time.monotonic(), work / "ablations" / label
    name, _, seed = label.rpartition("-")
    is_done = (results / "passkey").exists()
    if not is_done:
        train(work, name, int(seed), folder)
        evaluate(work, f"{name}={folder}", results)
    for done in (folder, first_part(folder)):  # also of one that was killed here
        shutil.rmtree(done, ignore_errors=True)
    if is_done:
        return
    print(f"== {label}: {time.monotonic() - start:.0f} s", flush=True)


def _is_run(label: str) -> bool:
    arm, _, seed = label.rpartition("-")
    return label == BEFORE or (arm in ARMS and seed.isdecimal())


def main() -> None:
    """Run what is asked and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="WORK of the numbered scripts")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--runs", nargs="+", metavar="ARM-SEED",
        help=f"instead of every arm with every seed, in this order; {BEFORE}: the original model",
    )  # fmt: skip
    parser.add_argument("--share", default="0/1", help="K/N: the K-th of N processes, on GPU K")
    parser.add_argument("--only-rows", action="store_true", help="prepare the rows; needs no GPU")
    parser.add_argument("--only-table", action="store_true", help="of the results that are there")
    arguments = parser.parse_args()
    work, share = arguments.work, re.fullmatch(r"(\d+)/(\d+)", arguments.share)
    place, shares = map(int, share.groups()) if share else (0, 0)
    if place >= shares:
        parser.error(f"--share {arguments.share}: K/N, K from 0 to N - 1, such as 0/2 and 1/2")
    if shares > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(shares)))
        if place >= len(visible.split(",")):
            parser.error(f"--share {arguments.share}: CUDA_VISIBLE_DEVICES has {visible} alone")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place]
    if not arguments.only_table:
        check_made_of(work)
    if arguments.only_rows:
        held_out_rows(work)
        for arm in ARMS.values():
            rows(work, arm, SEQ_LENGTH)
            if arm.first_length:
                rows(work, arm, arm.first_length)
        return
    every = [BEFORE, *(f"{arm}-{seed}" for seed in arguments.seeds for arm in arguments.arms)]
    runs = arguments.runs or every
    if unknown := [run for run in runs if not _is_run(run)]:
        parser.error(f"--runs {unknown[0]}: an arm and a seed, such as recipe-1; arms: {[*ARMS]}")
    if not arguments.only_table:
        for label in runs[place::shares]:
            run_arm(work, label)
    sys.stdout.write("\n".join(table(work, arguments.seeds)) + "\n")


if __name__ == "__main__":
    main()
