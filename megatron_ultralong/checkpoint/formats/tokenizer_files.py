"""Tokenizer files of an export, in words that old and new releases of transformers read alike.

What is inside ``tokenizer.json`` stays byte for byte: rows and results know a tokenizer by the hash
of that file. What differs between releases stands beside it, in ``tokenizer_config.json``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from megatron_ultralong.checkpoint.disk.folder import check_inside
from megatron_ultralong.data.tokenize import folder_template, refused_tokenizer, tokenising
from megatron_ultralong.model.shape import MOST_IDS
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import JsonObject, read_bounded, read_json

FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
FAST_CLASS = "PreTrainedTokenizerFast"
"""Reads ``tokenizer.json`` as it is, in every release."""

_SHOWN = 300
"""Characters of the library's messages."""
_NEW_CLASSES = (None, "TokenizersBackend")
"""None: 4.x and 5.x take the class of the model, Llama's, which adds a BOS token or, in 5.x, makes
a tokenizer of its own around the vocabulary. ``TokenizersBackend`` is what 5.x calls FAST_CLASS."""
_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
_PARTS = {
    "normalizer": {
        *("BertNormalizer", "Strip", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Sequence"),
        *("Lowercase", "Nmt", "Precompiled", "Replace", "Prepend"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Metaspace", "Whitespace"),
        *("Sequence", "Split", "Punctuation", "WhitespaceSplit", "Digits", "UnicodeScripts"),
    },
    "post_processor": {
        *("RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing", "Sequence")
    },
    "decoder": {
        *("BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Sequence", "Replace"),
        *("Fuse", "Strip", "ByteFallback"),
    },
    "model": {"BPE", "WordPiece", "WordLevel", "Unigram"},
}
"""What tokenizers 0.19, of transformers 4.43 and 4.44, can read in a ``tokenizer.json``."""


class TokenizerFiles:
    """The tokenizer of a folder: what its files say, and how an export says the same."""

    def __init__(self, folder: Path) -> None:
        """Read them; any of them may be absent.

        Raises:
            InputError: a file is damaged, larger than such a file is, or leads out of ``folder``.
        """
        self._folder = folder
        self.templates = dict(_templates(folder))
        """Chat templates in files of their own, by name."""
        for name in (CONFIG_FILE, FAST_FILE):
            check_inside(folder / name, folder)
        path = folder / CONFIG_FILE
        self.values = read_json(path) if path.is_file() else JsonObject({}, str(path))
        """Of ``tokenizer_config.json``."""
        self.values.array("additional_special_tokens", None)
        path = folder / FAST_FILE
        self.fast = (
            read_json(path, max_bytes=tokenising.MAX_TOKENIZER_BYTES) if path.is_file() else None
        )
        """Of ``tokenizer.json``; None: there is none."""

    def config(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """``tokenizer_config.json`` with ``values``, and what was said in other words in it."""
        new = dict(values)
        changes: list[str] = []
        kind = new.get("tokenizer_class")
        if self.fast is not None and kind != FAST_CLASS and self._is_read_as_it_is(kind):
            new["tokenizer_class"] = FAST_CLASS
            changes.append(f"tokenizer_class {kind} -> {FAST_CLASS}")
        if self.fast is not None and new.pop("fast_tokenizer_files", None) is not None:
            changes.append(f"fast_tokenizer_files left out: {FAST_FILE} is the tokenizer")
        extra = new.get("extra_special_tokens")
        if isinstance(extra, list):  # 4.48 to 4.57 ask it for its keys
            del new["extra_special_tokens"]
            others = [t for t in new.get("additional_special_tokens") or [] if t not in extra]
            new["additional_special_tokens"] = [*extra, *others]
            changes.append("extra_special_tokens -> additional_special_tokens")
        template = self._template()
        if template is not None and new.get("chat_template") != template:
            state = "written here too" if "chat_template" not in new else "that of the file"
            new["chat_template"] = template
            changes.append(f"chat_template {state}")
        return new, changes

    def readers(self, merges: str = "keep") -> dict[str, str]:
        """Releases of transformers that read each file of an export as it was meant."""
        found: dict[str, str] = {}
        if self.fast is not None:
            kinds = ((part, kind) for part in _PARTS for kind in _types(self.fast.get(part)))
            unknown = sorted({f"{part} {kind}" for part, kind in kinds if kind not in _PARTS[part]})
            has_pairs = merges == "keep" and _has_pairs(self.fast)
            found[FAST_FILE] = ">=4.45" if has_pairs else ">=4.43"
            if unknown:
                found[FAST_FILE] = f"not tried: {', '.join(unknown)} came after tokenizers 0.19"
        kind = self.values.get("tokenizer_class")
        if self.fast is None:
            if self.values:
                found[CONFIG_FILE] = f"not tried: there is no {FAST_FILE}"
        elif kind == FAST_CLASS or self._is_read_as_it_is(kind):
            found[CONFIG_FILE] = ">=4.43"
        else:
            found[CONFIG_FILE] = f"not tried: tokenizer_class {kind} makes a tokenizer of its own"
        if self.templates.keys() - {"default"}:
            found["chat templates"] = ">=4.52"
        elif self.templates or self.values.get("chat_template"):
            found["chat template"] = ">=4.43"
        return found

    def check_string_merges(self) -> None:
        """Check that the merges of ``tokenizer.json`` can be said as strings.

        Raises:
            InputError: a token of a merge has a space in it, which that form cannot say.
        """
        if self.fast is None or not _has_pairs(self.fast):
            return
        load_fast(self._folder / FAST_FILE)  # every merge is of two texts then
        merges = self.fast["model"]["merges"]
        spaced = next((pair for pair in merges if any(" " in part for part in pair)), None)
        if spaced is not None:
            raise InputError(
                f"{self._folder / FAST_FILE}: the merge {spaced} has a space in a token, which "
                "only the form of tokenizers 0.20 can say: leave out --tokenizer-merges strings, "
                "and read the export with transformers 4.45 or later"
            )

    def write_string_merges(self, path: Path) -> bool:
        """Write ``tokenizer.json`` to ``path`` with merges as 4.43 and 4.44 read them, if needed.

        Raises:
            InputError: it would be another tokenizer.
        """
        if self.fast is None or not _has_pairs(self.fast):
            return False
        self.check_string_merges()
        model = self.fast["model"]
        strings = [" ".join(pair) for pair in model["merges"]]
        values = {**self.fast, "model": {**model, "merges": strings}}
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
        # both in the words of the installed library: vocabulary, merges, added tokens, all parts
        before, after = map(load_fast, (self._folder / FAST_FILE, path))
        if before.to_str() != after.to_str():
            raise InputError(
                f"{self._folder / FAST_FILE} is another tokenizer with its merges as strings: "
                "leave out --tokenizer-merges strings"
            )
        return True

    def _is_read_as_it_is(self, kind: object) -> bool:
        """Whether ``FAST_CLASS`` gives the ids that the class ``kind`` gives in 4.x.

        Llama's class takes ``tokenizer.json`` there, and its own rule of BOS and EOS; in 5.x it
        makes a sentencepiece tokenizer of the vocabulary, whatever ``tokenizer.json`` does to text.
        """
        if kind in _NEW_CLASSES:
            return True
        return kind in _LLAMA_CLASSES and self._adds_as_asked()

    def _adds_as_asked(self) -> bool:
        """Whether the file itself adds the BOS and EOS tokens that the configuration asks for."""
        path = self._folder / FAST_FILE
        tokenizer = load_fast(path)
        added, plain = (
            encode(tokenizer, "a", path, add_special_tokens=special).tokens
            for special in (True, False)
        )
        named = tokenising.named_tokens(self._folder)
        bos, eos = (
            [named.get(f"{name}_token")] if self.values.get(f"add_{name}_token", default) else []
            for name, default in (("bos", True), ("eos", False))
        )
        return added == [*bos, *plain, *eos]

    def _template(self) -> str | list[dict[str, str]] | None:
        """What releases that know no files of templates have to read: one, or several by name."""
        if self.templates.keys() <= {"default"} or "default" not in self.templates:
            return self.templates.get("default")
        return [{"name": name, "template": text} for name, text in self.templates.items()]


def load_fast(path: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``, for texts of any length.

    Raises:
        InputError: it is damaged, larger than such a file is, or of more tokens than a model has.
    """
    tokenizer, _ = tokenising.load_tokenizer(path)
    most = max(tokenizer.get_vocab().values(), default=0)
    if most > MOST_IDS:  # the library counts up to it
        raise InputError(
            f"{path} has a token of id {most:,}, and no model has more than {MOST_IDS:,} tokens: "
            "take the file that belongs to the model"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, path: Path, *, add_special_tokens: bool) -> Encoding:
    """What the tokenizer in ``path`` makes of ``text``.

    Raises:
        InputError: it has no tokens for it.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except BaseException as error:
        if not refused_tokenizer.is_failure(error):
            raise
        reason = str(error)[:_SHOWN]
        raise InputError(
            f"{path} has no tokens for {text!r} ({reason}): take the file of the model itself"
        ) from error


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    for name, path in folder_template.template_files(folder).items():
        check_inside(path, folder)
        try:
            text = read_bounded(path, folder_template.MAX_TEMPLATE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason}): copy it again") from error
        # as Python reads a file of text
        yield name, text.replace("\r\n", "\n").replace("\r", "\n")


def _has_pairs(fast: Mapping[str, Any]) -> bool:
    """Whether merges are pairs, as tokenizers 0.20 and later write them, and not strings."""
    model = fast.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    return bool(merges) and isinstance(merges, list) and isinstance(merges[0], list)


def _types(value: Any) -> Iterator[str]:
    """Types of a part and, of a sequence, of what is in it."""
    if not isinstance(value, dict):
        return
    if isinstance(value.get("type"), str):
        yield value["type"]
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        inside = value.get(key)
        for inner in inside if isinstance(inside, list) else ():
            yield from _types(inner)
