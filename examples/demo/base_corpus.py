"""Corpus of the demo's base model: Python source files, a tokenizer of their own, their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_ultralong.evaluation.retrieval.passkey_prompt import Encode
from megatron_ultralong.program.aside import whole
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.progress import progress
from megatron_ultralong.sequence.documents import document_id, document_split, unit_hash

VALID_FRACTION, SPLIT_SEED = 0.05, 1234
"""The held-out split; the demo holds out the same documents."""
SEPARATOR = "<s>"
"""Encoded alone, its ids close every document. Not a token of the vocabulary, as in Llama 3."""
SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>")
"""The last ids of the vocabulary. Nothing inserts them."""
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pattern, except that every digit stands alone."""


def split_documents(
    folders: Sequence[Path], min_characters: int
) -> dict[Literal["train", "valid"], list[str]]:
    """Texts of the ``.py`` files by split, each text once, in an order by hash."""
    documents: dict[str, str] = {}
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    with progress("reading", len(files), "files") as bar:
        for file in files:
            bar.advance()
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if len(text) >= min_characters:
                documents.setdefault(document_id(text), text)
    if not documents:
        raise InputError(
            f"no .py file of at least {min_characters} characters under "
            f"{', '.join(map(str, folders))}: give other folders with --corpus"
        )
    splits: dict[Literal["train", "valid"], list[str]] = {"train": [], "valid": []}
    for identity in sorted(documents, key=lambda identity: unit_hash(SPLIT_SEED, identity)):
        split = document_split(identity, VALID_FRACTION, SPLIT_SEED)
        splits[split].append(documents[identity])
    return splits


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE in the manner of Llama 3, every digit a token, specials at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    if tokenizer.get_vocab_size() != vocab_size:
        raise InputError(
            f"the corpus is too small for --vocab-size {vocab_size}: byte-pair merging stopped at "
            f"{tokenizer.get_vocab_size()}; give more text or a smaller vocabulary"
        )
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Encode:
    """Text to ids, without special tokens."""
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def joined_tokens(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> npt.NDArray[np.uint16]:
    """Ids of the documents, each closed by the separator, one after the other."""
    separator = np.asarray(encoder(tokenizer)(SEPARATOR), dtype=np.uint16)
    parts: list[npt.NDArray[np.uint16]] = []
    num_tokens = 0
    with progress("tokenising", limit, "tokens") as bar:
        for start in range(0, len(texts), 64):
            batch = tokenizer.encode_batch_fast(texts[start : start + 64], add_special_tokens=False)
            for encoding in batch:
                parts += [np.asarray(encoding.ids, dtype=np.uint16), separator]
            added = sum(len(encoding.ids) + separator.size for encoding in batch)
            num_tokens += added
            bar.advance(added)
            if num_tokens >= limit:
                break
    return np.concatenate(parts)[:limit]


def prepare(
    folders: Sequence[Path],
    work: Path,
    *,
    vocab_size: int,
    min_characters: int,
    tokenizer_documents: int,
    max_tokens: int,
) -> None:
    """Write ``tokenizer.json``, ``train.npy`` and ``valid.npy`` (uint16, flat) to ``work``.

    Raises:
        InputError: the folders hold no documents, or too little text for the vocabulary.
    """
    splits = split_documents(folders, min_characters)
    tokenizer = train_tokenizer(splits["train"][:tokenizer_documents], vocab_size)
    work.mkdir(parents=True, exist_ok=True)
    with whole(work / "tokenizer.json") as aside:
        tokenizer.save(str(aside))
    limits = {"train": max_tokens, "valid": max_tokens // 20}
    for split, texts in splits.items():
        tokens = joined_tokens(tokenizer, texts, limits[split])
        with whole(work / f"{split}.npy") as aside, aside.open("wb") as file:
            np.save(file, tokens)
        print(f"{split}: {tokens.size:,} tokens of {len(texts):,} documents")
    print(f"separator {SEPARATOR!r} is {encoder(tokenizer)(SEPARATOR)}")
