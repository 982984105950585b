"""What pickles in a checkpoint may name."""

from __future__ import annotations

import io
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from megatron_ultralong.checkpoint.formats.pickles import UnsafeError, check_extra_state, read_saved


class Recipe:
    """As Transformer Engine pickles one; the class is found by its name alone."""


@pytest.mark.parametrize(
    ("module", "name", "is_allowed"),
    [
        ("transformer_engine.common.recipe", "Float8CurrentScaling", True),
        ("transformer_engine.common.recipe", "MXFP8BlockScaling", True),
        ("transformer_engine.common.recipe", "os.system", False),
        ("transformer_engine.common.recipe", "dataclass", False),
        ("transformer_engine.pytorch", "Linear", False),
        ("builtins", "eval", False),
        ("builtins", "getattr", False),
        ("os", "system", False),
    ],
)
def test_states_of_fp8_layers(module: str, name: str, is_allowed: bool) -> None:
    """A state in the form of ``pickle.dumps``, protocol 4: a recipe, tensors and plain values."""
    plain = pickle.dumps(
        {"scale_fwd": torch.ones(3), "extra": {"a": (1, 2.0, True)}, "dtype": torch.bfloat16},
        protocol=4,
    )
    short = [part.encode() for part in (module, name)]
    named = b"".join(b"\x8c" + bytes([len(part)]) + part for part in short)
    # the object is made, then thrown away: POP
    data = plain[:-1] + named + b"\x93)R0."
    state = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if is_allowed:
        check_extra_state(state)
    else:
        with pytest.raises(UnsafeError, match="has no place in a module's state"):
            check_extra_state(state)


def test_an_empty_state_says_nothing() -> None:
    for state in (None, torch.empty(0, dtype=torch.uint8), io.BytesIO()):
        check_extra_state(state)
    with pytest.raises(UnsafeError):
        check_extra_state(torch.zeros(3))


def test_what_other_libraries_allow_is_not_allowed_here(tmp_path: Path) -> None:
    """torch's list of allowed classes is the process's; ours is not, and theirs is left alone."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([Recipe])
    try:
        torch.save({"a": Recipe()}, tmp_path / "file")
        torch.load(tmp_path / "file", weights_only=True)
        with pytest.raises(UnsafeError, match="Recipe has no place in a checkpoint"):
            read_saved(tmp_path / "file")
        torch.save({"a": torch.ones(1), "b": Namespace(c=1)}, tmp_path / "file")
        assert read_saved(tmp_path / "file")["b"] == Namespace(c=1)
        assert set(torch.serialization.get_safe_globals()) == {*before, Recipe}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
