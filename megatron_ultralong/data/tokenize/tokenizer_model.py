"""A ``tokenizer.model``: Meta's Llama 3 ranks of byte strings, or a sentencepiece model."""

import base64
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]
import sentencepiece
import tiktoken

from megatron_ultralong.data.tokenize.refused_tokenizer import is_panic
from megatron_ultralong.data.tokenize.tokenising import MAX_MODEL_BYTES, well_formed
from megatron_ultralong.data.tokenize.unicode_versions import unassigned
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_bounded

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Meta's tokenizer.py cuts a text before merging."""

NUM_RANKS = 128_000
"""Ranks of Llama 3's file; Llama 4's looks the same but goes with another pattern."""

NUM_SPECIAL_TOKENS = 256

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
"""Llama 3.1's first special tokens, as its tokenizer.json names them; reserved ones follow."""

LONG_RUN = re.compile(r"\s{50000}|\S{200000}")
"""Runs on which tiktoken's pattern engine gives up (a panic, which no ``except Exception`` catches)
or takes a stack that grows with them."""


class Llama3Tokenizer:
    """Meta's ``tokenizer.model``, whole documents, whatever is in them.

    Meta's own wrapper slices a text every 400,000 characters, which changes ids at the cuts; here
    a document is never sliced.

    Raises:
        InputError: where the file is not Llama 3's.
    """

    engine = "tiktoken"
    max_document_bytes = 32 << 20  # 10 bytes for each, 40 where each is a token

    def __init__(self, file: Path) -> None:
        data = read_bounded(file, MAX_MODEL_BYTES)
        ranks = _ranks(data, file)
        if len(ranks) != NUM_RANKS:
            raise InputError(
                f"{file} has {len(ranks)} ranks, where Llama 3's has {NUM_RANKS}: another model's "
                "file goes with another pattern, which it does not state; give the tokenizer.json"
            )
        rest = NUM_SPECIAL_TOKENS - len(SPECIAL_TOKENS)
        names = [*SPECIAL_TOKENS, *(f"<|reserved_special_token_{3 + i}|>" for i in range(rest))]
        special = {name: NUM_RANKS + number for number, name in enumerate(names)}
        self._encoding = tiktoken.Encoding(
            "llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        self._ranks = ranks
        self.file = file
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = NUM_RANKS + NUM_SPECIAL_TOKENS
        self.special_texts, self.added_texts = names, list[str]()

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of every text, see :class:`DocumentTokenizer` of ``tokenising.py``."""
        return [np.asarray(self._encode(well_formed(text)), dtype=np.int32) for text in texts]

    encode_behind = encode_documents

    def _encode(self, text: str) -> list[int]:
        if LONG_RUN.search(text) is None:
            try:
                return self._encoding.encode_ordinary(text)
            except BaseException as error:  # a panic of the library is not an Exception
                if not is_panic(error):
                    raise
        # the same pattern by an engine without that limit, then the same merges piece by piece
        spans = (found.span() for found in regex.finditer(PATTERN, text.translate(_stand_ins())))
        pieces = (text[start:stop].encode() for start, stop in spans)
        return [token for piece in pieces for token in self._encoding._encode_single_piece(piece)]

    def encode_separator(self, text: str) -> list[int]:
        """Ids of a text alone: ``"<s>" -> [45147, 29]``, ``"<|end_of_text|>" -> [128001]``."""
        return self._encoding.encode(text, allowed_special="all")

    def spans(self, text: str, is_behind: bool) -> list[tuple[int, int]]:
        """Characters of each token, see :class:`DocumentTokenizer`."""
        del is_behind
        _, starts = self._encoding.decode_with_offsets(self._encode(well_formed(text)))
        return list(itertools.pairwise([*starts, len(text)]))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self._encoding.decode(list(ids))

    def eos_text(self) -> str:
        """``<|end_of_text|>``, the EOS of Meta's own wrapper."""
        return "<|end_of_text|>"

    def tokenizer_json(self) -> str:
        """The same vocabulary as a ``tokenizer.json`` without special tokens, for the fast path.

        Every way to write a token as two others is a merge, in the order of the tokens' ranks:
        that is what the ranks mean to tiktoken, which merges the pair of the lowest rank first.
        """
        merges: list[list[str]] = []
        ranks, table = self._ranks, _byte_level_table()
        for token in sorted(ranks, key=ranks.__getitem__):
            pairs = [
                (ranks[token[:cut]], ranks[token[cut:]], cut)
                for cut in range(1, len(token))
                if token[:cut] in ranks and token[cut:] in ranks
            ]
            name = token.decode("latin-1").translate(table)
            merges += [[name[:cut], name[cut:]] for _, _, cut in sorted(pairs)]
        vocab = {token.decode("latin-1").translate(table): rank for token, rank in ranks.items()}
        split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        steps = [{**split, "invert": False}, {**level, "use_regex": False}]
        return json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
                "post_processor": None,
                "decoder": {**level, "use_regex": True},
                "model": {
                    "type": "BPE",
                    "byte_fallback": False,
                    "ignore_merges": True,  # a piece that is a token is taken whole
                    "vocab": vocab,
                    "merges": merges,
                },
            }
        )


_KINDS = {"": "\ue000", r"\p{L}": "\u4e00", r"\p{N}": "1"}
"""What the pattern tells apart besides white space, and a character of it that all versions of
Unicode know: neither, letters, numbers."""


@functools.cache
def _stand_ins() -> dict[int, str]:
    """Characters of other kinds to ``regex`` than to tiktoken, and what tiktoken cuts like them.

    The libraries know different versions of Unicode, in which other letters are new.
    """
    new = "".join(map(chr, np.flatnonzero(unassigned(are_signs_alike=False))))
    found, wanted = ({letter: "" for letter in new} for _ in range(2))
    for kind in filter(None, _KINDS):
        found.update(dict.fromkeys(regex.findall(kind, new), kind))
        single = {bytes([byte]): byte for byte in range(256)}
        probe = tiktoken.Encoding("kind", pat_str=kind, mergeable_ranks=single, special_tokens={})
        # what the pattern does not find has no ids
        wanted.update(dict.fromkeys(probe.decode(probe.encode_ordinary(new)), kind))
    return {ord(each): _KINDS[wanted[each]] for each in new if wanted[each] != found[each]}


def _ranks(data: bytes, file: Path) -> dict[bytes, int]:
    """Rank of every token: lines of its bytes in base 64, a space and the rank."""
    ranks, line = {}, b""
    try:
        for line in filter(None, data.splitlines()):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
        raise InputError(
            f"{file} is not a tokenizer.model of tiktoken ({error})"
            + ("; is it cut short?" if data.endswith(line) else "")
        ) from error
    return ranks


def _byte_level_table() -> dict[int, int]:
    """Characters that stand for bytes in a ``tokenizer.json``: printable ones for themselves."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 256 + number for number, byte in enumerate(others)}


class SentencePieceTokenizer:
    """Any sentencepiece model; the model's own normalisation applies, as in training.

    Raises:
        InputError: where the file is no such model.
    """

    engine = "sentencepiece"
    max_document_bytes = 16 << 20  # 30 bytes for each, 90 where each is a token

    def __init__(self, file: Path) -> None:
        data = read_bounded(file, MAX_MODEL_BYTES)
        model: Any = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise InputError(
                f"{file} is neither tiktoken ranks nor a sentencepiece model: give a "
                "tokenizer.json or tokenizer.model, or the folder that holds one; if it is one, "
                "copy it again"
            ) from error
        self._model = model
        self.file = file
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = int(model.vocab_size())
        ids = range(self.vocab_size)
        self._control = {model.id_to_piece(i): i for i in ids if model.is_control(i)}
        self.special_texts, self.added_texts = list(self._control), _user_defined(data)

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of every text; the text of a control piece is text to the library itself."""
        return [np.asarray(self._model.encode(well_formed(t)), dtype=np.int32) for t in texts]

    encode_behind = encode_documents

    def encode_separator(self, text: str) -> list[int]:
        """Ids of a text alone: ``"</s>" -> [2]`` where that is a control piece."""
        return [self._control[text]] if text in self._control else list(self._model.encode(text))

    def spans(self, text: str, is_behind: bool) -> list[tuple[int, int]]:
        """Characters of each token, see :class:`DocumentTokenizer`."""
        del is_behind
        text = well_formed(text)
        pieces = self._model.encode(text, return_type="proto").pieces
        # its places are bytes; all but the first of a character begin with the bits 10
        is_first = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
        chars = [0, *np.cumsum(is_first).tolist()]
        found: list[tuple[int, int]] = []
        stop = len(text)
        for piece in reversed(pieces):
            if not self._model.is_byte(piece.id) or piece.begin < piece.end:
                stop = chars[piece.end]
            found.append((chars[piece.begin], stop))  # of a character's bytes the last one has it
        return found[::-1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control pieces, which the library leaves out, by their names."""
        model = self._model
        parts: list[str] = []
        for is_control, run in itertools.groupby(ids, model.is_control):
            tokens = list(run)
            parts += map(model.id_to_piece, tokens) if is_control else [model.decode(tokens)]
        return "".join(parts)

    def eos_text(self) -> str:
        """The model's EOS piece."""
        if self._model.eos_id() < 0:
            raise InputError(
                f"--separator eos: {self.file} has no EOS piece; give a text as --separator"
            )
        return str(self._model.id_to_piece(self._model.eos_id()))


_USER_DEFINED = 4
"""Type of a piece that is found in a text before it is cut, in sentencepiece_model.proto."""


def _user_defined(data: bytes) -> list[str]:
    """Texts of the pieces of that type; the library has no question for it.

    A model is fields of protocol buffers: the first are its pieces, of which the first is the text
    and the third the type.
    """
    found = []
    for number, piece in _fields(data):
        if number == 1 and isinstance(piece, bytes):
            its = dict(_fields(piece))
            if its.get(3) == _USER_DEFINED and isinstance(its.get(1), bytes):
                found.append(its[1].decode(errors="replace"))
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message's fields: whole numbers, and bytes of all others."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind, size = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if kind in (0, 2):
            size, at = _varint(data, at)
        if kind:
            value, at = data[at : at + size], at + size
        yield tag >> 3, value if kind else size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            break
    return value, at
