"""What a message says of a file or folder that is not a tokenizer which this program reads."""

from pathlib import Path

from megatron_ultralong.program.inner_folders import one_inside

NAMES = ("tokenizer.json", "tokenizer.model")
"""Files that hold a tokenizer, the first one in a folder is read."""
_OTHERS = (
    *("vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model"),
)
"""Of transformers' classes in Python, which make a tokenizer of them by rules of their own."""
_SHOWN = 300
"""Characters of the library's messages."""


def no_tokenizer(folder: Path, otherwise: str, *, inside: bool = True) -> str:
    """Of a folder without one of :data:`NAMES`: what to do, ``otherwise`` if it has no other.

    Args:
        folder: that was named.
        otherwise: what to do.
        inside: whether a folder in it may be given instead; not where it is that of a model.
    """
    instead = _others(folder) or (one_inside(folder, NAMES) if inside else "")
    instead = instead or f"; {otherwise}"
    return f"has no {' or '.join(NAMES)}{instead}"


def beside(file: Path) -> str:
    """``, and tokenizer.json is beside it: give F/tokenizer.json, or its folder``; or empty."""
    found = [file.parent / name for name in NAMES if (file.parent / name).is_file()]
    if not found or file in found:
        return "" if found else _others(file.parent)
    return f", and {found[0].name} is beside it: give {found[0]}, or its folder"


def not_a_tokenizer(file: Path, data: bytes, error: BaseException) -> str:
    """Of a file of JSON, with these ``data``, that the library refuses with ``error``."""
    reason = str(error)[:_SHOWN]
    is_cut = "EOF while parsing" in reason or "unexpected end of data" in reason
    if is_cut:
        reason += "; is it cut short?"
    elif b'"vocab"' not in data:  # what the library says of other keys hides what is wrong
        reason = 'it is not written like a tokenizer.json, which has a "vocab"'
    if where := beside(file):
        return f"{file} is not a tokenizer ({reason}){where}"
    return f"{file} is not a tokenizer: {reason}"


def is_failure(error: BaseException) -> bool:
    """Whether a library raised it: a bare exception, or a panic of its Rust."""
    return isinstance(error, Exception) or is_panic(error)


def is_panic(error: BaseException) -> bool:
    """Whether a Rust library gave up: its exception derives from BaseException alone."""
    return type(error).__name__ == "PanicException"


def saved_again(folder: Path) -> str:
    """How the ``tokenizer.json`` of a folder is written as transformers reads the folder: a line.

    The files of a checkpoint of this project are sealed by checksums, and its metadata has the hash
    of its tokenizer: what it was made of is changed, and imported again.
    """
    if not _is_sealed(folder):
        return _line(str(folder))
    return (
        f"in the folder SRC that {folder.parent} was imported from, whose import is sealed by "
        f"checksums, and import that again: {_line('SRC')} && ultralong convert import SRC NEW"
    )


def _is_sealed(folder: Path) -> bool:
    """Whether it is the ``huggingface`` of a checkpoint of this project."""
    return (folder.parent / "ultralong.json").is_file() and folder.name == "huggingface"


def _line(folder: str) -> str:
    call = f"AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})"
    return f'python -c "from transformers import AutoTokenizer; {call}"'


def _others(folder: Path) -> str:
    """What to do with files that are not read; empty: there are none."""
    found = [name for name in _OTHERS if (folder / name).is_file()]
    if not found:
        return ""
    return (
        f", and {' and '.join(found)} {'are' if len(found) > 1 else 'is'} not read: write "
        f"tokenizer.json with transformers: {saved_again(folder)}"
    )
