"""Whole documents to token ids, without BOS or EOS, special tokens in the text taken as text."""

import functools
import hashlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models

from megatron_ultralong.data.tokenize import refused_tokenizer
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.json_file import read_bounded, read_json
from megatron_ultralong.sequence.documents import document_boundaries

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a Hugging Face tokenizer folder may hold; the first is needed."""

MAX_TOKENIZER_BYTES = 40 << 20
"""Of a tokenizer.json: Llama 3's has 17 MB, Gemma 3's 33 MB; libraries take up to 30 times it."""

MAX_MODEL_BYTES = 16 << 20
"""Of a tokenizer.model: those that are known have 0.5 to 5 MB."""


class DocumentTokenizer(Protocol):
    """What an engine offers; its ids must be those of the reference tokenizer."""

    engine: str
    """Package that finds the ids."""
    file: Path
    """The file that defines the ids."""
    sha256: str
    vocab_size: int
    """Largest id + 1, added tokens included."""
    special_texts: list[str]
    added_texts: list[str]
    """Texts of tokens that were added to the vocabulary and are not special."""
    max_document_bytes: int
    """Bytes of a document that it tokenises within 2 GiB of memory."""

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of every text: no BOS, no EOS, the text of a special token in ordinary ids."""

    def encode_behind(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The same of texts that stand behind a special token."""

    def encode_separator(self, text: str) -> list[int]:
        """Ids of a text that stands alone; the text of a special token gives that token's id."""

    def spans(self, text: str, is_behind: bool) -> list[tuple[int, int]]:
        """Characters ``[start, stop)`` that each token of a text is of, in the order of its ids.

        Tokens of one character have one start; what a tokenizer leaves out is in none.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""

    def eos_text(self) -> str:
        """Text of the end-of-sequence token; InputError where none is named."""


class HuggingFaceTokenizer:
    """Any ``tokenizer.json``, or a folder that holds one.

    A batch runs on all cores (``RAYON_NUM_THREADS`` sets how many, ``TOKENIZERS_PARALLELISM=false``
    one). Tokens added as *not special* keep their ids inside a text: they are vocabulary.

    Raises:
        InputError: where the file is missing or not a tokenizer.
    """

    engine = "tokenizers"
    max_document_bytes = 8 << 20  # 90 bytes for each, 170 where each is a token

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            told = refused_tokenizer.no_tokenizer(path, "give such a file or its folder")
            raise InputError(f"--tokenizer {path} {told}")
        self._tokenizer, data = load_tokenizer(file)
        self.file = file
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_texts = [token.content for token in added if token.special]
        self.added_texts = [token.content for token in added if not token.special]

    @property
    def compose(self) -> Callable[[str], str] | None:
        """Brings a text into the form NFC, as the tokenizer does; None: it does not."""
        normalizer = self._tokenizer.normalizer
        is_composing = normalizer is not None and b'"NFC"' in normalizer.__getstate__()
        return normalizer.normalize_str if is_composing else None

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of every text, see :class:`DocumentTokenizer`."""
        return _encoded(self._tokenizer, texts)

    def encode_behind(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The same of texts behind a special token: Mistral's tokenizer puts a space before the
        first text alone.
        """
        return _encoded(self._without_first_space or self._tokenizer, texts)

    @functools.cached_property
    def _without_first_space(self) -> Tokenizer | None:
        """The tokenizer that does so nowhere; None: this one does not either."""
        first, never = (f'"prepend_scheme":"{where}"' for where in ("first", "never"))
        text = self._tokenizer.to_str()  # in a token, quotes have backslashes
        return Tokenizer.from_str(text.replace(first, never)) if first in text else None

    def encode_separator(self, text: str) -> list[int]:
        """Ids of a text alone: ``"<s>" -> [45147, 29]`` with Llama 3's vocabulary."""
        self._tokenizer.encode_special_tokens = False
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str, is_behind: bool) -> list[tuple[int, int]]:
        """Characters of each token, see :class:`DocumentTokenizer`."""
        tokenizer = (is_behind and self._without_first_space) or self._tokenizer
        tokenizer.encode_special_tokens = True
        return list(tokenizer.encode(well_formed(text), add_special_tokens=False).offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def eos_text(self) -> str:
        """The ``eos_token`` that the folder names.

        Raises:
            InputError: where it names none.
        """
        if text := named_tokens(self.file.parent).get("eos_token"):
            return text
        raise InputError(
            f"--separator eos: {self.file.parent} names no eos_token in tokenizer_config.json or "
            "special_tokens_map.json; give the token's text as --separator"
        )


def load_tokenizer(file: Path) -> tuple[Tokenizer, bytes]:
    """The tokenizer in a ``tokenizer.json``, for texts of any length, and the file's bytes.

    Raises:
        InputError: it is damaged, or larger than such a file is.
    """
    data = read_bounded(file, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except BaseException as error:
        if not refused_tokenizer.is_failure(error):
            raise
        raise InputError(refused_tokenizer.not_a_tokenizer(file, data, error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None  # merges left out at random: no two runs had the same ids
    return tokenizer, data


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    tokenizer.encode_special_tokens = True  # as text, says the library's flag
    whole = [well_formed(text) for text in texts]
    encodings = tokenizer.encode_batch_fast(whole, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]


def well_formed(text: str) -> str:
    """The text as UTF-8 can hold it, by tiktoken's rule: a lone surrogate becomes U+FFFD.

    The engines' libraries refuse such a text, each in its own way; the reader counts it as bad.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def separator_ids(tokenizer: DocumentTokenizer, separator: str) -> list[int]:
    """Ids between documents: of a text, of the tokenizer's EOS (``eos``), or none (``none``, "").

    Raises:
        InputError: where the text has no ids, or the tokenizer names no EOS.
    """
    if separator in ("", "none"):
        return []
    text = tokenizer.eos_text() if separator == "eos" else separator
    ids = tokenizer.encode_separator(text)
    if not ids:
        raise InputError(
            f"--separator {text!r} encodes to no token with {tokenizer.file}; use another text, "
            "or none for no separator"
        )
    if separator == "eos" and len(ids) > 1:
        raise InputError(
            f"--separator eos: {text!r}, the EOS of the files beside {tokenizer.file}, is no "
            f"token of it, but {len(ids)} of text: take the tokenizer.json saved with these files, "
            "or give a text as --separator"
        )
    return ids


def named_tokens(folder: Path) -> dict[str, str]:
    """Texts of special tokens by the names that files beside a tokenizer give them: ``eos_token``.

    As transformers reads them: ``special_tokens_map.json`` comes first where
    ``tokenizer_config.json`` was saved before 4.34, and has no ``added_tokens_decoder``.

    Raises:
        InputError: a file is damaged.
    """
    config, old = (side_file(folder, name) for name in TOKENIZER_FILES[1:3])
    found: dict[str, str] = {}
    for values in (old, config) if "added_tokens_decoder" in config else (config, old):
        for name, value in values.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str) and text:
                found[name] = text
    return found


def check_added_tokens(tokenizer: DocumentTokenizer) -> None:
    """Refuse a tokenizer to which a file beside it adds tokens of texts that it does not have.

    transformers looks for these in every text. Of special tokens the text is text here, and a chat
    template says itself which of them it lacks.

    Raises:
        InputError: there are some, or a file is damaged.
    """
    folder, name = tokenizer.file.parent, TOKENIZER_FILES[1]
    config = side_file(folder, name)
    added = config.get("added_tokens_decoder")
    if isinstance(added, dict):  # since 4.34
        tokens = [t for t in added.values() if isinstance(t, dict) and not t.get("special")]
        texts = [str(token.get("content")) for token in tokens]
    else:
        name = "added_tokens.json"
        named = {*named_tokens(folder).values(), *_other_special_tokens(folder)}
        texts = [text for text in side_file(folder, name) if text not in named]
    known = {*tokenizer.special_texts, *tokenizer.added_texts}
    if lost := [text for text in texts if text not in known]:
        raise InputError(
            f"{folder / name} adds {counted(len(lost), 'token')}, such as {lost[0]!r}, to "
            f"{tokenizer.file.name}, which does not have them: transformers would find them in "
            "texts, and their ids would be others. Write tokenizer.json with them: "
            + refused_tokenizer.saved_again(folder)
        )


def _other_special_tokens(folder: Path) -> list[str]:
    """Texts of special tokens that files beside a tokenizer list without a name."""
    sides = (side_file(folder, name) for name in TOKENIZER_FILES[1:3])
    keys = ("additional_special_tokens", "extra_special_tokens")
    lists = [values.get(key) for values in sides for key in keys]
    tokens = itertools.chain.from_iterable(one for one in lists if isinstance(one, list))
    return [str(token.get("content") if isinstance(token, dict) else token) for token in tokens]


def side_file(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file beside a tokenizer; empty where there is no such file.

    Raises:
        InputError: it is damaged.
    """
    file = folder / name
    return read_json(file) if file.is_file() else {}


def check_file_sizes(folder: Path) -> None:
    """Refuse a tokenizer's folder before a library reads, or we copy, files of any size from it.

    Raises:
        InputError: one of its files is larger than the largest vocabulary.
    """
    for name in (*TOKENIZER_FILES, "added_tokens.json", "vocab.json"):
        file = folder / name
        size = file.stat().st_size if file.exists() else 0
        if size > MAX_TOKENIZER_BYTES:
            raise InputError(
                f"{file} has {size:,} bytes, and a tokenizer's files have at most "
                f"{MAX_TOKENIZER_BYTES:,}: it is not such a file"
            )


def copy_tokenizer(tokenizer: DocumentTokenizer, folder: Path) -> None:
    """Copy the tokenizer's files into a new folder.

    Raises:
        InputError: the file that defines the ids is not what it was when it was read.
    """
    folder.mkdir()
    # the name under which a folder's reader looks for the file: my.model -> tokenizer.model
    name = "tokenizer.json" if tokenizer.file.suffix == ".json" else "tokenizer.model"
    shutil.copyfile(tokenizer.file, folder / name)
    if (now := hashlib.sha256((folder / name).read_bytes()).hexdigest()) != tokenizer.sha256:
        raise InputError(
            f"{tokenizer.file} has changed while it was used, from SHA-256 "
            f"{tokenizer.sha256[:12]}... to {now[:12]}...: ids may be of either; give the same "
            "command again when nothing writes to it any more"
        )
    for name in TOKENIZER_FILES[1:]:
        if (tokenizer.file.parent / name).is_file():
            shutil.copyfile(tokenizer.file.parent / name, folder / name)


TokenizerEngine = Literal["auto", "gigatoken", "reference"]
SeparatorInText = Literal["keep", "drop", "split"]
"""What is done with documents that hold the separator's ids: nothing, left out, or written in other
ids, a character at a time."""

Tokens = npt.NDArray[np.integer]


def holds_separator(tokens: Tokens, separator_ids: Sequence[int]) -> bool:
    """Whether a search for separators in this document and its own finds any but its own.

    With separator ``(8, 9)``: ``[1, 8, 9, 2]`` and ``[1, 8, 9]`` do; with ``(7, 7)`` ``[1, 7]``
    does, which with its own reads ``[1, 7, 7, 7]``.

    Args:
        tokens: a document without its separator, shape [num_tokens].
        separator_ids: the separator; an empty one is held by none.
    """
    if not separator_ids:
        return False
    closed = np.concatenate([tokens, np.asarray(separator_ids, dtype=tokens.dtype)])
    return document_boundaries(closed, separator_ids).size > 2


def split_separators(
    tokens: Tokens, separator_ids: Sequence[int], tokenizer: DocumentTokenizer
) -> npt.NDArray[np.int32]:
    """The same text in ids that hold no separator: its characters there are encoded one by one.

    So tokenizers write the text of a special token that is only text. Llama 3's ``<s>``, ids
    ``[45147, 29]``, becomes ``<``, ``s`` and ``>``.

    Raises:
        InputError: these characters have no ids of their own that are others.
    """
    width, parts, start = len(separator_ids), [], 0
    closed = np.concatenate([tokens, np.asarray(separator_ids, dtype=tokens.dtype)])
    for end in document_boundaries(closed, separator_ids)[1:-1].tolist():
        first, last = end - width, min(end, tokens.size)
        parts += [tokens[start:first], _characters(tokens[first:last].tolist(), tokenizer)]
        start = last
    split = np.concatenate([*parts, tokens[start:]]).astype(np.int32)
    if holds_separator(split, separator_ids):
        raise InputError(_message(separator_ids, tokenizer))
    return split


def _characters(ids: list[int], tokenizer: DocumentTokenizer) -> npt.NDArray[np.int32]:
    text = tokenizer.decode(ids)
    found = np.concatenate(tokenizer.encode_documents(list(text)))
    if "\N{REPLACEMENT CHARACTER}" in text or tokenizer.decode(found.tolist()) != text:
        raise InputError(_message(ids, tokenizer))
    return found


def _message(ids: Sequence[int], tokenizer: DocumentTokenizer) -> str:
    return (
        f"--separator-in-text split: a document holds {list(ids)} "
        f"({tokenizer.decode(list(ids))!r}), whose characters alone have no other ids with "
        f"{tokenizer.file}; drop such documents (--separator-in-text drop), or give another "
        "--separator"
    )
