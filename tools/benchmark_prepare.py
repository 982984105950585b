"""What `ultralong prepare` costs: speed, memory, a killed run, ids, sampling, a rank's read.

    python tools/benchmark_prepare.py gather --work DIR --corpus code=FOLDER [--corpus ...]
    python tools/benchmark_prepare.py speed|ids|sampling|kill|memory|rank --work DIR

``gather`` writes one JSONL file for each corpus, from its text files. The vocabulary is Llama 3's,
out of the package llama-models. Figures of the project: ``benchmarks/prepare.md``.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_ultralong.data.rows.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.rows.manifest import Manifest, load_manifest
from megatron_ultralong.data.rows.packed import PackedRows
from megatron_ultralong.data.rows.stored import StoredRow
from megatron_ultralong.data.tokenize.engines import FastTokenizer, open_reference
from megatron_ultralong.data.tokenize.tokenizer_model import Llama3Tokenizer
from megatron_ultralong.sequence.assignment import zigzag

TEXT_SUFFIXES = (".py", ".rst", ".txt", ".pod", ".c", ".h", ".dict", ".md", ".html")
PLAIN_BYTES = 12_000_000  # of JSONL, for the plain pipeline: half a minute


def llama3_file() -> Path:
    """Llama 3's tokenizer.model."""
    import llama_models

    return Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"


def texts_below(folder: Path) -> Iterator[str]:
    """Text files of a folder, gzip or not."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.name.removesuffix(".gz").removesuffix(".dz")
        if name.endswith(TEXT_SUFFIXES) and not path.is_symlink():
            data = path.read_bytes()
            data = gzip.decompress(data) if name != path.name else data
            text = data.decode("utf-8", "replace")
            if text.strip():
                yield text


def gather(arguments: argparse.Namespace) -> None:
    """JSONL files ``WORK/NAME.jsonl`` of the corpora."""
    for corpus in arguments.corpus:
        name, _, folder = corpus.partition("=")
        with open(arguments.work / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for text in texts_below(Path(folder)):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def command(work: Path, output: str, *flags: str, pattern: str = "*.jsonl") -> list[str]:
    """``ultralong prepare`` on the corpora in the work folder, each a source."""
    files = sorted(work.glob(pattern))
    sources = [word for file in files for word in ("--source", f"{file.stem}={file}")]
    program = [sys.executable, "-m", "megatron_ultralong", "prepare", *sources]
    return [*program, "--tokenizer", str(llama3_file()), "--output", str(work / output), *flags]


def run(words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def num_tokens(manifest: Manifest) -> int:
    """Tokens found, before sampling."""
    return sum(line.num_tokens for line in manifest.bins)


def speed(arguments: argparse.Namespace) -> None:
    """One worker end to end, and a plain pipeline of tokenizers on the first documents."""
    flags = ("--seq-length", "131072", "--length-sampling", "none")
    remove(arguments.work / "speed")
    wall, cpu = run(command(arguments.work, "speed", *flags))
    count = num_tokens(load_manifest(arguments.work / "speed"))
    print(f"prepare: {count / 1e6:.1f}M tokens, {wall:.1f} s, {cpu:.1f} s of CPU time: ")
    actual = count / cpu
    print(f"  {count / wall / 1e6:.2f} Mtokens/s, {actual / 1e6:.2f} Mtokens/s/core")
    wall, cpu, plain = plain_pipeline(arguments.work)
    print(f"tokenizers: {plain / 1e6:.2f}M tokens, {wall:.1f} s, {cpu:.1f} s of CPU time: ")
    print(f"  {plain / cpu / 1e6:.3f} Mtokens/s/core; ratio {actual / (plain / cpu):.1f}")


def plain_pipeline(work: Path) -> tuple[float, float, int]:
    """JSONL -> tokenizers, document by document -> int32 on disk; wall, CPU seconds, tokens."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    reference = open_reference(llama3_file())
    assert isinstance(reference, Llama3Tokenizer)
    tokenizer = Tokenizer.from_str(reference.tokenizer_json())
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    with open(work / "plain.bin", "wb") as output:
        for line in interleaved(work, PLAIN_BYTES):
            ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
            output.write(np.asarray(ids, dtype=np.int32).data)
            count += len(ids)
    return time.perf_counter() - wall, time.process_time() - cpu, count


def interleaved(work: Path, size: int) -> Iterator[bytes]:
    """Every n-th line of each corpus: about ``size`` bytes, without its very long documents."""
    files = sorted(work.glob("*.jsonl"))
    stride = max(sum(file.stat().st_size for file in files) // size, 1)
    for path in files:
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                if number % stride == 0 and len(line) < 4_000_000:  # 10 GB of memory, else
                    yield line


def ids(arguments: argparse.Namespace) -> None:
    """Ids of every document of the corpora, against tiktoken's."""
    reference = open_reference(llama3_file())
    fast = FastTokenizer(reference)
    for path in sorted(arguments.work.glob("*.jsonl")):
        documents = tokens = differing = 0
        with open(path, "rb") as file:
            for line in file:
                text = [json.loads(line)["text"]]
                a, b = fast.encode_documents(text)[0], reference.encode_documents(text)[0]
                documents, tokens = documents + 1, tokens + b.size
                differing += not np.array_equal(a, b)
        print(f"{path.stem}: {documents:,} documents, {tokens:,} tokens, {differing} differ")


def sampling(arguments: argparse.Namespace) -> None:
    """Shares of the sources, counts of the bins by the paper's rule; then the warning's fix."""
    way_out: list[str] = []
    while True:
        remove(arguments.work / "sampling")
        flags = ["--seq-length", "131072", "--length-sampling", "ultralong", *way_out]
        run(command(arguments.work, "sampling", *flags, "--valid-fraction", "0"))
        manifest = load_manifest(arguments.work / "sampling")
        for share in manifest.shares:
            print(f"{share.source}: share asked {share.share_asked:.3%}, found {share.share:.3%}")
        print_chi_square(manifest)
        offers = [re.search(r"--max-tokens \d+", share.warning) for share in manifest.shares]
        found = [offer.group().split() for offer in offers if offer]
        if way_out or not found:
            return
        way_out = found[0]
        print(f"again, with {' '.join(way_out)}, as the warning says:")


def print_chi_square(manifest: Manifest) -> None:
    """Documents of each source and bin against their expectation, where it can vary."""
    chi_square = cells = 0.0
    for b in manifest.bins:
        fraction = b.weight % 1
        variance = b.num_documents * fraction * (1 - fraction)
        if variance > 5:
            chi_square += (b.num_documents_sampled - b.num_documents * b.weight) ** 2 / variance
            cells += 1
    print(f"bins: chi-square {chi_square:.1f} with {cells:.0f} degrees of freedom")


def kill(arguments: argparse.Namespace) -> None:
    """Three SIGKILLs at random moments with two workers; SHA-256 against one worker's."""
    flags = ("--seq-length", "131072")
    for output in ("one", "killed"):
        remove(arguments.work / output)
    wall, _ = run(command(arguments.work, "one", *flags))
    moment = random.Random(arguments.seed)
    words = command(arguments.work, "killed", *flags, "--workers", "2")
    for _ in range(3):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        seconds = moment.uniform(0.1, 0.5) * wall
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        print(f"killed after {seconds:.1f} s: {process.wait()}")
    run(words)
    found, expected = (digests(arguments.work / name) for name in ("killed", "one"))
    print(f"{len(expected)} files, same SHA-256: {found == expected}")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def memory(arguments: argparse.Namespace) -> None:
    """Peak of each process with two workers, on 2 GB and a document of 12M tokens."""
    folder = arguments.work / "memory"
    folder.mkdir(exist_ok=True)
    write_large_corpus(arguments.work, folder / "large.jsonl")
    remove(folder / "rows")
    flags = ("--seq-length", "1048576", "--length-sampling", "ultralong", "--workers", "2")
    start = time.perf_counter()
    process = subprocess.Popen(command(folder, "rows", *flags), stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in [process.pid, *children(process.pid)]:
            peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))
        time.sleep(0.05)
    wall = time.perf_counter() - start
    manifest = load_manifest(folder / "rows")
    size = (folder / "large.jsonl").stat().st_size
    longest = max(count.min_length for count in manifest.lengths)
    print(f"{size / 1e9:.2f} GB, {num_tokens(manifest) / 1e6:.0f}M tokens, {wall:.0f} s")
    print(f"longest document: {longest:,} tokens or more")
    for pid, peak in peaks.items():
        print(f"{'main' if pid == process.pid else 'child'}: {peak / 2**20:.2f} GiB")


def write_large_corpus(work: Path, file: Path) -> None:
    """Pieces of the corpora of 500 to 400,000 characters until 2 GB, and one of 12M tokens."""
    if file.exists():
        return
    texts = []
    for path in sorted(work.glob("*.jsonl")):
        with open(path, "rb") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    longest = max(texts, key=len)
    stream = "".join(text for text in texts if text is not longest)
    generator, size, number = random.Random(1), 0, 0
    with open(file, "wb") as output:
        while size < 2e9:
            length = int(500 * 800 ** generator.random())
            start = generator.randrange(len(stream) - length)
            text = f"{number}\n{stream[start : start + length]}"
            if number == 20_000:
                text = (longest + stream)[:48_000_000]
            number += 1
            size += output.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def peak_kib(pid: int) -> int:
    """Largest resident memory so far."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def rank(arguments: argparse.Namespace) -> None:
    """A rank's read of one row at S = 4M, CP 16, from a cold and a warm page cache."""
    seq_length, size = 1 << 22, 16
    prefix = arguments.work / "rank"
    with IndexedWriter(prefix, token_dtype(128_256)) as writer:
        for seed in range(2):
            generator = np.random.default_rng(seed)
            writer.add(generator.integers(0, 128_000, seq_length, dtype=np.int32))
    for state in ("cold", "warm"):
        times, touched = [], 0
        for number in range(size):
            if state == "cold":
                with open(f"{prefix}.bin", "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            rows = PackedRows(prefix)
            start = time.perf_counter()
            chunks = zigzag(size).ranges(number, seq_length)
            tokens, labels = StoredRow(rows, 1, ()).read_chunks(chunks)
            times.append(1e3 * (time.perf_counter() - start))
            touched = max(touched, mapped_bytes(f"{prefix}.bin"))
            assert tokens.size == labels.size == seq_length // size
            del rows
        share = touched / (4 * seq_length)
        print(f"{state}: {np.median(times):.1f} ms, at most {max(times):.1f} ms; ", end="")
        print(f"{touched:,} bytes mapped of a row of {4 * seq_length:,} ({share:.2%}; 2/32: 6.25%)")


def mapped_bytes(path: str) -> int:
    """Bytes of a mapped file that this process has touched."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and not line.startswith(("VmFlags", "Rss")):
            inside = line.endswith(path)
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def remove(folder: Path) -> None:
    """Remove what an earlier run wrote."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = [gather, speed, ids, sampling, kill, memory, rank]
    parser.add_argument("verb", choices=[verb.__name__ for verb in verbs])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--corpus", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of killing")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    next(verb for verb in verbs if verb.__name__ == arguments.verb)(arguments)


if __name__ == "__main__":
    main()
