"""What the names of files say: texts, tables that are not read, and what lies beside data."""

from __future__ import annotations

import glob
from pathlib import Path

TEXT_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "txt text md markdown mdx rst adoc asciidoc org tex latex ltx bib sty cls texi pod man "
        "html htm xhtml xml svg css scss sass less py pyi pyx pxd c h cc cpp cxx hh hpp hxx inl "
        "ipp m mm cu cuh cl java kt kts scala sc groovy gradle clj cljs cljc edn js mjs cjs jsx "
        "ts tsx vue svelte coffee go rs rb php pl pm t raku lua r rmd jl f f03 f08 f77 f90 f95 "
        "for hs lhs ml mli fs fsi fsx elm ex exs erl hrl lisp lsp el scm ss rkt sml swift dart cs "
        "vb vbs pas pp dpr ada adb ads d nim zig v sv svh vhd vhdl cr hx asm s sh bash zsh fish "
        "ksh csh tcl bat cmd ps1 psm1 awk sed sql graphql gql proto thrift idl cmake mk make "
        "ninja bzl bazel nix tf hcl dockerfile yaml yml toml ini cfg conf properties sol move "
        "cairo vy qml glsl hlsl wgsl vert frag metal lean agda thy idr sas do ado stan mojo srt "
        "vtt"
    ).split()
)
"""Suffixes of files that are one text each."""

PLAIN_SUFFIXES = frozenset((".txt", ".text", ".md", ".markdown"))
"""Those that say nothing of what the text is; a list of Python's may be JSON by chance."""

TEXT_NAMES = frozenset("makefile gnumakefile dockerfile rakefile gemfile jenkinsfile".split())
"""Names without a suffix of such files."""

UNREAD_SUFFIXES = {
    **dict.fromkeys(
        (".csv", ".tsv", ".psv"),
        "is a table of text by its suffix: write it as JSONL, for example with pandas: "
        'read_csv(...).to_json("new.jsonl", orient="records", lines=True)',
    ),
    **dict.fromkeys(
        (".arrow", ".feather", ".orc", ".avro"),
        "is a table by its suffix: write it as parquet, with pyarrow or `datasets`",
    ),
    **dict.fromkeys(
        (".lz4", ".lzma", ".lz", ".z", ".br", ".sz"),
        "is compressed by its suffix: decompress it, or write it anew with gzip, bzip2, xz or zstd",
    ),
}
"""What is wrong with files that no first bytes tell from text."""

_ABOUT = frozenset(
    "readme license licence copying notice notices changelog changes contributing code_of_conduct "
    "citation authors contributors security dataset_card datacard model_card unlicense patents "
    "third_party_notices".split()
)
"""Of texts about the data, without their suffix."""

_ABOUT_SUFFIXES = frozenset(("", ".md", ".txt", ".rst", ".html", ".pdf", ".cff", ".bib", ".adoc"))

_PROGRAMS = frozenset(
    "_success _started _committed _metadata _common_metadata thumbs.db desktop.ini ehthumbs.db "
    "dataset_info.json dataset_infos.json dataset_dict.json state.json md5sums sha1sums sha256sums "
    "sha512sums md5sum.txt sha256sum.txt checksums.txt cachedir.tag nohup.out".split()
)
"""That programs leave."""

_PROGRAM_SUFFIXES = frozenset(
    ".lock .incomplete .metadata .part .partial .crdownload .aria2 .tmp .temp .swp .swo .bak .orig "
    ".rej .crc .md5 .sha1 .sha256 .sha512 .sig .asc .torrent .pyc .pyo .log .err .done".split()
)

_FOLDERS = frozenset(("__macosx", "__pycache__", "$recycle.bin", "lost+found"))


def litter_reason(path: Path, root: str) -> str:
    """Why a file of the folder or pattern ``root`` is taken for litter; empty where it is not."""
    name = path.name.lower()
    suffix = Path(name).suffix
    if suffix in _PROGRAM_SUFFIXES or name in _PROGRAMS or name[-1:] in "~#":
        return "left there by a program"
    parts = path.parts[:-1] if glob.has_magic(root) else path.relative_to(root).parts[:-1]
    if any(part.lower() in _FOLDERS for part in parts):
        return "left there by a program"
    if Path(name).stem.replace("-", "_") in _ABOUT and suffix in _ABOUT_SUFFIXES:
        return "about the data, by its name"
    return ""
