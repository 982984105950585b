"""Configuration of the evaluations; their flags are generated from it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.ranges import UINT32, Range, check_ranges
from megatron_ultralong.sequence.documents import DocumentMask

MOST_DISTRACTORS = 20
"""Sentences of a needle's form beside it."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss and perplexity by position on held-out rows."""

    data_path: str = ""
    """Folder written by `ultralong prepare`."""
    split: Literal["valid", "train"] = "valid"
    """Rows to evaluate on."""
    seq_length: Annotated[int, Range(2, or_zero=True, rule="a token, and its label")] = 0
    """Tokens of each row to use, from its start; 0 uses whole rows."""
    num_samples: Annotated[int, Range(0)] = 0
    """Rows to use, the first ones of the split; 0 uses all."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Rows in one forward pass."""
    smallest_bin: Annotated[int, Range(1)] = 128
    """Positions in the first bin; the edges after it double."""
    document_mask: DocumentMask = "none"
    """block: leave out the predictions of a document's first token."""
    beyond_trained_positions: bool = False
    """Allow rows longer than a checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for loss.json and loss.png; empty: print only."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        if not self.data_path:
            raise InputError("--data-path is needed: a folder written by `ultralong prepare`")
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class PasskeyConfig:
    """Retrieval of a number hidden in a long text, by length and depth."""

    lengths: Annotated[tuple[int, ...], Range(1)] = ()
    """Tokens of prompt and answer together; one column of the map each."""
    depths: Annotated[tuple[float, ...], Range(0, 100)] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    """Where the number stands, in per cent of the text; one line of the map each."""
    num_samples: Annotated[int, Range(1)] = 10
    """Prompts at every length and depth."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Determines the hidden numbers."""
    haystack: str = ""
    """Text file to hide the number in; empty: InfiniteBench's noise line."""
    by: Literal["argmax", "decoding"] = "argmax"
    """argmax: one forward pass over prompt and answer; decoding: the answer is written token by
    token. Both find the same."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow lengths beyond those the checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for passkey.json and passkey.png; empty: print only. A killed evaluation goes on
    from OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_grid(self)


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
    """Retrieval of a sentence hidden in running text, by length and depth."""

    lengths: Annotated[tuple[int, ...], Range(1)] = ()
    """Tokens of prompt and answer together; one column of the map each."""
    depths: Annotated[tuple[float, ...], Range(0, 100)] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    """Where the needle stands, in per cent of the text; one line of the map each."""
    num_samples: Annotated[int, Range(1)] = 10
    """Prompts at every length and depth."""
    seed: Annotated[int, Range(0, UINT32)] = 1234
    """Determines needles and haystacks."""
    haystack: tuple[str, ...] = ()
    """Text files to hide the needle in, from a different place each time; empty: sentences made
    up at random."""
    num_distractors: Annotated[
        int, Range(0, MOST_DISTRACTORS, rule="every one is about a city of its own")
    ] = 3
    """Sentences of the needle's form about other cities, at random places."""
    by: Literal["argmax", "decoding"] = "argmax"
    """argmax: one forward pass over prompt and answer; decoding: the answer is written token by
    token. Both find the same."""
    micro_batch_size: Annotated[int, Range(1)] = 1
    """Prompts in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow lengths beyond those the checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for needle.json and needle.png; empty: print only. A killed evaluation goes on
    from OUTPUT.partial."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        check_grid(self)


def check_grid(config: PasskeyConfig | NeedleConfig) -> None:
    """Raise InputError where a grid of lengths and depths is missing or out of range."""
    if not config.lengths:
        raise InputError("--lengths is needed: token counts, such as --lengths 512 1024 2048")
    for name, values in (("lengths", config.lengths), ("depths", config.depths)):
        if not values or len(set(values)) != len(values):
            raise InputError(f"{name} must be different numbers, not {list(values)}")
    check_ranges(config)
