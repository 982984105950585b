"""Which tokenizer reads the documents: the reference, or gigatoken where its ids are the same."""

import contextlib
import functools
import platform
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from megatron_ultralong import __version__
from megatron_ultralong.data.read.record import MAX_DOCUMENT_BYTES
from megatron_ultralong.data.tokenize import refused_tokenizer, tokenising, tokenizer_model
from megatron_ultralong.data.tokenize.fast_path import (
    FastPathError,
    cuts_by_letters,
    text_for_gigatoken,
)
from megatron_ultralong.data.tokenize.refused_tokenizer import NAMES
from megatron_ultralong.data.tokenize.unicode_versions import BLOCK, has_unknown
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.optional import installed_version

NEAR = 1024
"""Characters around a block of a long text that are compared with it."""

SAMPLE_CHARACTERS = 2048
"""Characters of a batch's first document that the reference reads too; a batch is a million."""

PROBES = (
    "",
    " ",
    "It's I'LL don'T we'\u017fe 'K\u212a",
    "0123456789 \u0661\u0662\u0663\u0664 1e-5 x2\u00b2",
    " \t\r\n\r \n\n  a\n \u3000\u00a0\u2028b   ",
    "end.<s>Start </s><unk><0x41>",
    "\x00\x00a\x00\x7f\ufffd\ufeff",
    "e\u0301\u0323 \u1e9b\u0323 \ufb01 \u202e\U0001f642\U0001f468\u200d\U0001f469 \u0e01\u0e33",
    "\u6f22\u5b57\u4eee\u540d \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639",
    "def f(x):\n\treturn x  # '''\n\n\n" * 3,
    " " * 1000 + "x" + "a" * 1000 + "=" * 500 + "\n" * 300,
)
"""What a run begins with: each is read by both engines before the fast one is taken."""


class FastTokenizer:
    """A reference tokenizer whose documents gigatoken reads.

    Raises:
        FastPathError: where gigatoken is missing, cannot hold this vocabulary or differs from the
            reference; the message names the reason.
    """

    engine = "gigatoken"
    max_document_bytes = MAX_DOCUMENT_BYTES

    def __init__(self, reference: tokenising.DocumentTokenizer) -> None:
        self.reference = reference
        self._encode = _backend(reference).encode
        self._has_unknown = functools.partial(has_unknown, are_signs_alike=_by_letters(reference))
        # the one vocabulary whose special tokens gigatoken cannot be kept from knowing
        is_model = isinstance(reference, tokenizer_model.SentencePieceTokenizer)
        self._not_in_text = reference.special_texts if is_model else []
        self._compose: Callable[[str], str] | None = None
        if isinstance(reference, tokenising.HuggingFaceTokenizer):
            self._compose = reference.compose
        self.file = reference.file
        self.sha256 = reference.sha256
        self.vocab_size = reference.vocab_size
        self.special_texts, self.added_texts = reference.special_texts, reference.added_texts
        self.encode_separator, self.decode = reference.encode_separator, reference.decode
        self.eos_text, self.spans = reference.eos_text, reference.spans
        special, added = reference.special_texts[:300], reference.added_texts[:300]
        among = [f"x{text}x {text} {text}{text}\n{text}1" for text in added]
        self.check([*PROBES, *special, "x".join(special), *among, "".join(added)])

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of every text, see :class:`DocumentTokenizer` of ``tokenising.py``."""
        return [self._encode_one(text) for text in texts]

    def encode_behind(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The same of texts behind a special token, by the reference where it has others there."""
        return (self.encode_documents if self._is_alike else self.reference.encode_behind)(texts)

    @functools.cached_property
    def _is_alike(self) -> bool:
        ways = self.reference.encode_documents, self.reference.encode_behind
        first, behind = (encode(["x"])[0].tolist() for encode in ways)
        return bool(first == behind)

    def _encode_one(self, text: str) -> npt.NDArray[np.int32]:
        if any(special in text for special in self._not_in_text):
            return self.reference.encode_documents([text])[0]
        if text.isascii():
            return self._ids(text)
        is_new = self._has_unknown(text)
        if is_new and self._is_other(text):
            return self.reference.encode_documents([text])[0]
        if self._compose and not is_new and not unicodedata.is_normalized("NFC", text):
            composed = self._compose(tokenising.well_formed(text))
            is_split = any(added in each for added in self.added_texts for each in (text, composed))
            if is_split or not unicodedata.is_normalized("NFC", composed):
                return self.reference.encode_documents([text])[0]
            text = composed
        return self._ids(text)

    def _ids(self, text: str) -> npt.NDArray[np.int32]:
        # as bytes: half the memory of a str inside the library
        data = tokenising.well_formed(text).encode()
        with _failing("gigatoken fails on a document"):
            ids = self._encode(data)
        return np.asarray(ids).astype(np.int32, copy=False)

    def _is_other(self, text: str) -> bool:
        """Whether the reference reads a text, which has characters of new versions of Unicode.

        The libraries know different versions: what is a letter or a mark to one of them is none to
        the other, which cuts words and joins accents there in another way. A text that is too long
        for the reference is compared around such characters.

        Raises:
            FastPathError: such a text, where the two differ.
        """
        if len(text.encode("utf-8", "surrogatepass")) <= self.reference.max_document_bytes:
            return True
        for start in range(0, len(text), BLOCK):
            part = text[max(0, start - NEAR) : start + BLOCK + NEAR]
            if self._compose or self._has_unknown(part):
                self._compare([part], [self._ids(part)])
        return False

    def check(self, texts: Sequence[str]) -> None:
        """Compare with the reference.

        Raises:
            FastPathError: at the first text whose ids differ.
        """
        self._compare(texts, self.encode_documents(texts))

    def _compare(self, texts: Sequence[str], found: Sequence[npt.NDArray[np.int32]]) -> None:
        expected = self.reference.encode_documents(texts)
        for text, a, b in zip(texts, found, expected, strict=True):
            if not np.array_equal(a, b):
                size = min(a.size, b.size)
                first = int(np.argmax(np.append(a[:size] != b[:size], True)))
                raise FastPathError(
                    f"gigatoken's ids differ from those of {self.reference.engine} at token "
                    f"{first} of the text {text[:60]!r}"
                )


def _by_letters(reference: tokenising.DocumentTokenizer) -> bool:
    """Whether symbols are cut like code points that no version of Unicode has."""
    if isinstance(reference, tokenising.HuggingFaceTokenizer):
        return cuts_by_letters(reference.file.read_text(encoding="utf-8"))
    return isinstance(reference, tokenizer_model.Llama3Tokenizer)


def _backend(reference: tokenising.DocumentTokenizer) -> Any:
    """A tokenizer of gigatoken with the reference's vocabulary, but none of its special tokens.

    gigatoken has no switch that reads special tokens as text: it must not know them. Of a
    sentencepiece model it does; documents that hold the text of one go to the reference.
    """
    try:
        import gigatoken
    except ImportError as error:
        raise FastPathError(f"gigatoken is not installed ({error})") from error
    open_json = gigatoken.Tokenizer.from_json
    with _failing("gigatoken cannot hold this vocabulary"):
        if isinstance(reference, tokenizer_model.Llama3Tokenizer):
            return open_json(reference.tokenizer_json())
        if isinstance(reference, tokenising.HuggingFaceTokenizer):
            return open_json(text_for_gigatoken(reference.file.read_text(encoding="utf-8")))
        if reference.added_texts:
            raise FastPathError(
                f"gigatoken looks for no user-defined symbols, such as {reference.added_texts[0]!r}"
            )
        return gigatoken.Tokenizer.from_sentencepiece(reference.file.read_bytes())


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Any failure of the library, a panic too, as FastPathError with what it says first."""
    try:
        yield
    except BaseException as error:
        if not refused_tokenizer.is_failure(error):
            raise
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise FastPathError(f"{what} ({line})") from error


def versions(*packages: str) -> dict[str, str]:
    """Versions of this program, of Python and of packages; of one that is not there ``missing``."""
    found = {"megatron_ultralong": __version__, "python": platform.python_version()}
    return found | {package: installed_version(package) or "missing" for package in packages}


Result = TypeVar("Result")

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


class ChosenTokenizer(NamedTuple):
    """A tokenizer and why it is this one."""

    tokenizer: tokenising.DocumentTokenizer
    """The fast one, or the reference."""
    reason: str
    """Why the reference has to read the documents; empty for the fast one."""


def open_reference(path: Path) -> tokenising.DocumentTokenizer:
    """The reference tokenizer of a file, or of a folder that holds one.

    ``tokenizer.json`` goes to tokenizers, Llama 3's ``tokenizer.model`` to tiktoken, any other
    model to sentencepiece.

    Raises:
        InputError: where there is none, or a broken one.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        file = found[0] if found else path
    if not path.exists():
        raise InputError(f"--tokenizer {missing(path)}")
    if not file.is_file():
        kept = path / "huggingface"  # of a checkpoint of this project
        if any((kept / name).is_file() for name in NAMES):
            raise InputError(f"--tokenizer {path} has no {' or '.join(NAMES)}; give {kept}")
        told = refused_tokenizer.no_tokenizer(path, "give such a file or its folder")
        raise InputError(f"--tokenizer {path} {told}")
    is_odd = path == file and file.suffix not in (".json", ".model")
    if is_odd and (where := refused_tokenizer.beside(file)):
        raise InputError(f"--tokenizer {path} is not a tokenizer{where}")
    tokenising.check_file_sizes(file.parent)
    if file.suffix == ".json":
        return tokenising.HuggingFaceTokenizer(file)
    with open(file, "rb") as opened:
        first = opened.readline(4096)
    if TIKTOKEN_LINE.fullmatch(first):
        return tokenizer_model.Llama3Tokenizer(file)
    return tokenizer_model.SentencePieceTokenizer(file)


_RARE = "\U0010fffd"
"""A character that no vocabulary has: it is for private use."""


def lost_letters(tokenizer: tokenising.DocumentTokenizer) -> str:
    """What a user must know of a tokenizer that cannot write every text; empty: it can.

    One of bytes, or with a fallback to them, writes what it does not know in several tokens. Others
    have one token for all of it, or none: no model can learn what stood there.
    """
    ids = tokenizer.encode_documents([f"a{_RARE}"])[0].tolist()
    if _RARE in tokenizer.decode(ids):
        return ""
    left = tokenizer.decode(ids[tokenizer.encode_documents(["a"])[0].size :])
    return (
        f"warning: {tokenizer.file} writes letters that it does not know as "
        f"{repr(left) if left else 'nothing'}: they are lost from the rows; a tokenizer of bytes, "
        "or with a fallback to them, writes every text"
    )


def choose_tokenizer(path: Path, engine: tokenising.TokenizerEngine) -> ChosenTokenizer:
    """The tokenizer of a file or folder under ``--tokenizer-engine``.

    ``auto`` takes the fast one where its ids are equal on probes, else the reference, and says why.

    Raises:
        InputError: as :func:`open_reference`, where a file beside it adds tokens that it does not
            have, and where gigatoken is asked for and cannot be had.
    """
    reference = open_reference(path)
    tokenising.check_added_tokens(reference)
    if engine == "reference":
        return ChosenTokenizer(reference, "asked for")
    try:
        return ChosenTokenizer(FastTokenizer(reference), "")
    except FastPathError as error:
        return _fallback(engine, reference, error)


def tokenise_by(
    chosen: ChosenTokenizer,
    engine: tokenising.TokenizerEngine,
    tokenise: Callable[[tokenising.DocumentTokenizer], Result],
) -> tuple[ChosenTokenizer, Result]:
    """What ``tokenise`` gives, and by which tokenizer: the reference where gigatoken fails.

    Raises:
        InputError: where it fails, and it alone was asked for.
    """
    try:
        return chosen, tokenise(chosen.tokenizer)
    except FastPathError as error:
        assert isinstance(chosen.tokenizer, FastTokenizer), chosen
        chosen = _fallback(engine, chosen.tokenizer.reference, error)
    return chosen, tokenise(chosen.tokenizer)


def _fallback(
    engine: tokenising.TokenizerEngine,
    reference: tokenising.DocumentTokenizer,
    error: FastPathError,
) -> ChosenTokenizer:
    if engine == "gigatoken":
        raise InputError(
            f"--tokenizer-engine gigatoken: {error}; use auto, which takes the reference then"
        ) from error
    return ChosenTokenizer(reference, str(error))
