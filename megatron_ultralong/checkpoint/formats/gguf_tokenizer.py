"""A tokenizer in GGUF: the vocabulary, and which of llama.cpp's pre-tokenizers cuts the text.

A GGUF file has no pattern of its own: it names one of those that llama.cpp is compiled with. Its
converter finds the name by the ids that a text is given, one hash for every vocabulary it has seen;
here it is found by what ``tokenizer.json`` says, so that every vocabulary has it, and one whose
pattern llama.cpp does not have is refused.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from megatron_ultralong.checkpoint.formats import tokenizer_files
from megatron_ultralong.checkpoint.formats.gguf_values import Values, array, boolean, string, uint32
from megatron_ultralong.checkpoint.formats.tokenizer_files import FAST_FILE, TokenizerFiles
from megatron_ultralong.data.tokenize.tokenising import named_tokens
from megatron_ultralong.program.errors import InputError, shown
from megatron_ultralong.program.json_file import JsonObject

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_BYTES = ("ByteLevel", False)
"""Bytes as letters, of what was cut before."""
_GPT2 = ("ByteLevel", True)
"""The same, after GPT-2's pattern."""
Parts = tuple[tuple[str, Any], ...]
PRE_TOKENIZERS: dict[tuple[Parts, bool], str] = {
    ((("Split", _LLAMA3), _BYTES), True): "llama-bpe",
    ((("Split", _LLAMA3), _BYTES), False): "smaug-bpe",
    ((("Split", _QWEN2), _BYTES), False): "qwen2",
    ((("Digits", True), _GPT2), False): "smollm",
    ((_GPT2,), False): "gpt-2",
}
"""llama.cpp's names, by pre-tokenizers and ``ignore_merges``, which keeps words that are tokens."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens."""
_LOOK_SPECIAL = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
_ARE_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
"""Added tokens that llama.cpp's converter takes for special ones, whatever they are said to be."""
_SPECIAL = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # so spelt there
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
"""Special tokens: transformers' word and GGUF's."""
_KEY = "tokenizer.ggml."
_SHOWN = 300
"""Characters of a tokenizer's parts that a message shows; Llama 3's pattern has half as many."""


def tokenizer_values(folder: Path, vocab_size: int, config: Mapping[str, Any]) -> Values:
    """Metadata of the tokenizer in ``folder``, of a model with ``vocab_size`` tokens.

    ``config`` is the model's ``config.json``, which may name special tokens too.

    Raises:
        InputError: there is no ``tokenizer.json``, or llama.cpp has no such tokenizer.
    """
    files = TokenizerFiles(folder)
    path = folder / FAST_FILE
    if files.fast is None:
        raise InputError(
            f"{folder} has no {FAST_FILE}, which --format gguf makes llama.cpp's tokenizer of: "
            "import the checkpoint with it"
        )
    tokenizer = tokenizer_files.load_fast(path)
    name = pre_tokenizer(files.fast, path)
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = _vocabulary(tokenizer.get_vocab(), added, vocab_size, path)
    special = dict(_special_ids(named_tokens(folder), config, added, vocab_size))
    values: Values = {
        _KEY + "model": string("gpt2"),
        _KEY + "pre": string(name),
        _KEY + "tokens": array(tokens),
        _KEY + "token_type": array(types),
        _KEY + "merges": array(_merges(files.fast, path)),
    }
    for kind, token in special.items():
        values[f"{_KEY}{_SPECIAL[kind]}_token_id"] = uint32(token)
    plain, whole = (
        tokenizer_files.encode(tokenizer, "a", path, add_special_tokens=special).ids
        for special in (False, True)
    )
    for kind, found in zip(("bos", "eos"), _around(whole, plain), strict=True):
        if found not in ([], [special.get(kind)]):
            raise InputError(
                f"{path} puts the tokens {found} around a text, and llama.cpp {kind} alone "
                f"({special.get(kind)}): serve the Hugging Face export"
            )
        values[f"{_KEY}add_{kind}_token"] = boolean(bool(found))
    if isinstance(files.values.get("add_prefix_space"), bool):
        values[_KEY + "add_space_prefix"] = boolean(files.values["add_prefix_space"])
    return {**values, **_templates(files)}


def pre_tokenizer(fast: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for how ``fast``, a ``tokenizer.json``, cuts a text.

    Raises:
        InputError: it has none; the message says what is there. Or a key has another type than in
            such a file.
    """
    root = JsonObject(fast, str(path))
    model = root.object("model", JsonObject({}, root.where))
    kind, normalizer = model.string("type", None), root.object("normalizer", None)
    odd = [
        *(() if kind == "BPE" else (f"model {kind}",)),
        *(
            f"{key} {shown(model[key])}"
            for key in (
                *("dropout", "continuing_subword_prefix", "end_of_word_suffix"),
                "byte_fallback",
            )
            if model.get(key)
        ),
        *(f"normalizer {part['type']}" for part in _flat(normalizer, "normalizers")),
    ]
    cutting = root.object("pre_tokenizer", None)
    parts = tuple(_part(part) for part in _flat(cutting, "pretokenizers"))
    found = (parts, model.boolean("ignore_merges", False))
    if odd or found not in PRE_TOKENIZERS:
        cuts = ", ".join(f"{kind} {what}" for kind, what in parts) or "no pre-tokenizer"
        ignores = ", ignore_merges" if found[1] else ""
        raise InputError(
            f"{path}: llama.cpp has no such tokenizer "
            f"({_beginning(', '.join([*odd, cuts]))}{ignores}); known: "
            f"{', '.join(PRE_TOKENIZERS.values())}: serve the Hugging Face export, or add the "
            "pattern to llama.cpp and its name here"
        )
    return PRE_TOKENIZERS[found]


def _flat(part: JsonObject | None, key: str) -> Iterator[JsonObject]:
    """Parts of a sequence, which stand under ``key``, in order; a part that stands alone is one."""
    if part is None:
        return
    if part.string("type") != "Sequence":
        yield part
        return
    for inner in part.array(key):
        if not isinstance(inner, dict):
            raise part.wrong(key, "an array of objects")
        yield from _flat(JsonObject(inner, f"{part.where}: {key}"), key)


def _part(part: JsonObject) -> tuple[str, Any]:
    """What a pre-tokenizer is, in a pair; all that is in it where a pair cannot say it."""
    kind = part.string("type")
    rest = {key: value for key, value in part.items() if key not in ("type", "trim_offsets")}
    if kind == "Split":
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        plain = {"pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        if isinstance(regex, str) and rest == plain:
            return kind, regex
    if kind == "ByteLevel" and part.boolean("add_prefix_space", None) is False:
        return kind, part.boolean("use_regex", True)
    if kind == "Digits":
        return kind, part.boolean("individual_digits", None)
    return kind, json.dumps(rest, sort_keys=True)


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _vocabulary(
    vocabulary: Mapping[str, int], added: Mapping[int, AddedToken], size: int, path: Path
) -> tuple[list[str], list[int]]:
    """Text and type of every token; ids without one are named as llama.cpp's converter does."""
    most = max(vocabulary.values(), default=-1)
    if most >= size:
        raise InputError(
            f"{path} has a token of id {most}, and the model {size} tokens: it is another model's"
        )
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [_UNUSED] * size
    for text, number in vocabulary.items():
        tokens[number], types[number] = text, _NORMAL
    for number, token in added.items():
        types[number] = _CONTROL if _is_special(token) else _USER_DEFINED
        if types[number] == _USER_DEFINED:
            tokens[number] = tokens[number].replace("\u2581", " ")
    return tokens, types


def _is_special(token: AddedToken) -> bool:
    text = token.content
    looks = any(text.startswith(begin) and text.endswith(end) for begin, end in _LOOK_SPECIAL)
    return token.special or looks or text in _ARE_SPECIAL


def _merges(fast: Mapping[str, Any], path: Path) -> list[str]:
    merges = JsonObject(fast, str(path)).object("model").array("merges", [])
    if not merges:
        raise InputError(
            f"{path} has no merges, and llama.cpp loads no such tokenizer: serve the Hugging Face "
            "export"
        )
    found = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or any(not isinstance(part, str) or " " in part for part in pair):
            raise InputError(
                f"{path}: the merge {shown(merge)} is not of two tokens without a space, as GGUF "
                "writes them: serve the Hugging Face export"
            )
        found.append(" ".join(pair))
    return found


def _special_ids(
    named: Mapping[str, str],
    config: Mapping[str, Any],
    added: Mapping[int, AddedToken],
    vocab_size: int,
) -> Iterator[tuple[str, int]]:
    """Special tokens that files beside the tokenizer name, or else ``config.json``."""
    by_text = {token.content: number for number, token in added.items()}
    for kind in _SPECIAL:
        number = by_text.get(named.get(f"{kind}_token", ""))
        if number is None:
            number = config.get(f"{kind}_token_id")
        if type(number) is int and 0 <= number < vocab_size:
            yield kind, number


def _around(whole: list[int], plain: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after ``plain`` in ``whole``."""
    for begin in range(len(whole) - len(plain) + 1):
        if whole[begin : begin + len(plain)] == plain:
            return whole[:begin], whole[begin + len(plain) :]
    return whole, []


def _templates(files: TokenizerFiles) -> Values:
    template = files.config(files.values)[0].get("chat_template")
    if isinstance(template, str) and template:
        return {"tokenizer.chat_template": string(template)}
    if not isinstance(template, list):
        return {}
    named = {
        re.sub(r"[^A-Za-z0-9]", "_", one["name"]): one["template"]
        for one in template
        if isinstance(one, Mapping)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
    }
    values = {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): string(text)
        for name, text in named.items()
    }
    others = sorted(name for name in named if name != "default")
    return {**values, **({"tokenizer.chat_templates": array(others)} if others else {})}
