"""Configuration of the evaluations; their flags are generated from it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from megatron_ultralong.documents import DocumentMask
from megatron_ultralong.errors import InputError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss and perplexity by position on held-out rows."""

    data_path: str = ""
    """Folder written by `ultralong prepare`."""
    split: Literal["valid", "train"] = "valid"
    """Rows to evaluate on."""
    seq_length: int = 0
    """Tokens of each row to use, from its start; 0 uses whole rows."""
    num_samples: int = 0
    """Rows to use, the first ones of the split; 0 uses all."""
    micro_batch_size: int = 1
    """Rows in one forward pass."""
    smallest_bin: int = 128
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
        _check_at_least(self, seq_length=0, num_samples=0, micro_batch_size=1, smallest_bin=1)


@dataclasses.dataclass(frozen=True)
class PasskeyConfig:
    """Retrieval of a number hidden in a long text, by length and depth."""

    lengths: tuple[int, ...] = ()
    """Tokens of prompt and answer together; one column of the map each."""
    depths: tuple[float, ...] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    """Where the number stands, in per cent of the text; one line of the map each."""
    num_samples: int = 10
    """Prompts at every length and depth."""
    seed: int = 1234
    """Determines the hidden numbers."""
    haystack: str = ""
    """Text file to hide the number in; empty: InfiniteBench's noise line."""
    micro_batch_size: int = 1
    """Prompts in one forward pass."""
    beyond_trained_positions: bool = False
    """Allow lengths beyond those the checkpoint was trained for, to see how it breaks."""
    output: str = ""
    """New folder for passkey.json and passkey.png; empty: print only."""

    def check(self) -> None:
        """Raise InputError where a field is missing or out of range."""
        if not self.lengths:
            raise InputError("--lengths is needed: token counts, such as --lengths 512 1024 2048")
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} must be different numbers, not {list(values)}")
        wrong = [depth for depth in self.depths if not 0 <= depth <= 100]
        if wrong:
            raise InputError(f"depths are per cent, between 0 and 100: {wrong[0]} is not")
        _check_at_least(self, num_samples=1, micro_batch_size=1)


def _check_at_least(config: Any, **least: int) -> None:
    for field, bound in least.items():
        value = getattr(config, field)
        if value < bound:
            raise InputError(f"{field} must be at least {bound}, not {value}")
