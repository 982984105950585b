"""float32 gradients of flash-attn-4: its accumulators, before the package rounds them.

Its backward kernel adds dq, and dk and dv of grouped heads, in float32 accumulators. These are
tiles of ``block_size`` rows, each in the order in which the threads of a product hold it;
``_bwd_postprocess_convert`` brings a tile into the order of rows and rounds it. It is held back
here during a call, and the tiles are put in order where they are, without a copy.

That order is not known here but **read off** the package's own conversion: of an accumulator that
holds the digits of its own places. Random numbers, converted both ways, must then agree bit for
bit; where they do not, the package rounds as ever, and a warning says so.
"""

import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CONVERTER = "_bwd_postprocess_convert"
Reorder = Callable[[Tensor, Tensor, float], None]
_BASE = 256  # digits of a place: whole numbers up to here are exact in bfloat16
_PIECE = 1 << 24  # elements that are in order at a time, without Triton
patching = threading.RLock()  # held while the package is changed, and when it is called


class Conversion(NamedTuple):
    """One call of the package's conversion that was held back."""

    convert: Callable[..., Any]
    accum: Tensor  # float32, [b, heads, rows * width]; of documents, [heads, rows * width]
    output: Tensor  # not written, [b, s, heads, d]; of documents, [s, heads, d]
    scale: float
    cu_seqlens: Tensor | None
    cu_total_m_blocks: Tensor | None  # where to look many documents up
    form: dict[str, Any]  # the other arguments: what it is compiled for

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for two calls whose tiles are in one order."""
        documents = self.cu_seqlens is not None
        return (self.accum.device, self.output.dtype, documents, *sorted(self.form.items()))

    @property
    def head_dim(self) -> int:
        """Columns of a tile that count."""
        return int(self.form["hdim"])

    @property
    def width(self) -> int:
        """Columns of a tile."""
        multiple = int(self.form["hdim_multiple_of"])
        return -(-self.head_dim // multiple) * multiple

    @property
    def block(self) -> int:
        """Rows of a tile."""
        return int(self.form["block_size"])

    @property
    def step(self) -> int:
        """Rows at whose multiples documents begin."""
        return self.block * int(self.form["cluster_size"])

    def rounded(self) -> Tensor:
        """What the package would have returned."""
        its = {name: getattr(self, name) for name in _OF_A_CALL}
        output = torch.zeros_like(self.output, device=self.accum.device)
        self.convert(**its | {"output": output}, **self.form)
        return output


def gradients(
    package: ModuleType, call: Callable[[], tuple[Any, ...]], edges: tuple[int, ...] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of a call of the package: float32 where it has accumulators.

    Without grouped heads dk and dv have none: they stay as the package writes them, rounded.

    Args:
        package: the module of the call.
        call: the package's backward pass.
        edges: boundaries of the documents that it was called with; None: it was called without.
    """
    with held_back(package) as held:
        results = list(call()[:3])
    for each in held:
        place = next((i for i, x in enumerate(results) if x is each.output), None)
        if place is None:  # what the package returns is made of it
            _say_rounded(f"{package.__name__} returns other tensors than {CONVERTER} writes")
            each.output.copy_(each.rounded())
            continue
        results[place] = each._replace(output=each.output.to("meta"))  # its memory is free
    held.clear()
    for place, each in enumerate(results):
        if isinstance(each, Conversion):
            results[place] = _in_float32(each, edges)
    dq, dk, dv = results
    return dq, dk, dv


@contextmanager
def held_back(package: ModuleType) -> Iterator[list[Conversion]]:
    """Collect this thread's conversions instead of doing them; afterwards all is as before."""
    held: list[Conversion] = []
    owner = threading.get_ident()
    with patching:
        convert = getattr(package, CONVERTER, None)
        defaults = _defaults(convert) if callable(convert) else {}
        if not callable(convert) or not set(defaults) >= _PARAMETERS:
            _say_rounded(f"{package.__name__}.{CONVERTER} is not the function that is known")
            yield held
            return

        @wraps(convert)  # its attributes too: the package keeps what it compiled in one
        def hold(*positional: Any, **named: Any) -> None:
            if threading.get_ident() != owner:
                convert(*positional, **named)
                return
            form = {**defaults, **dict(zip(defaults, positional, strict=False)), **named}
            its = {name: form.pop(name) for name in _OF_A_CALL}
            held.append(Conversion(convert=convert, form=form, **its))

        setattr(package, CONVERTER, hold)
        try:
            yield held
        finally:
            setattr(package, CONVERTER, convert)


@lru_cache(maxsize=4)
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Of all its parameters, in their order."""
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


_OF_A_CALL = ("accum", "output", "scale", "cu_seqlens", "cu_total_m_blocks")
_PARAMETERS = {*_OF_A_CALL, "hdim", "hdim_multiple_of", "block_size", "cluster_size"}


def _in_float32(conversion: Conversion, edges: tuple[int, ...] | None) -> Tensor:
    """The gradient, or what the package makes of it."""
    if conversion.key not in _orders:
        _orders[conversion.key] = _read_off(conversion)
    known = _orders[conversion.key]
    return conversion.rounded() if known is None else _ordered(conversion, *known, edges)


_orders: dict[tuple[Any, ...], tuple[Tensor, Reorder] | None] = {}


def _ordered(
    conversion: Conversion, order: Tensor, reorder_: Reorder, edges: tuple[int, ...] | None
) -> Tensor:
    """The gradient in the shape of the output: a view of the accumulator, except of documents."""
    accum = conversion.accum
    reorder_(accum, order, conversion.scale)
    rows: Tensor = accum.unflatten(-1, (-1, conversion.width))[..., : conversion.head_dim]
    if edges is None:
        return rows[:, :, : conversion.output.shape[1]].transpose(1, 2)
    return rows.index_select(1, _places(edges, conversion.step, accum.device)).transpose(0, 1)


@lru_cache(maxsize=4)
def _places(edges: tuple[int, ...], step: int, device: torch.device) -> Tensor:
    """Row of the accumulator of each token: every document begins with a tile."""
    lengths = torch.tensor(edges).diff()
    shifts = [(low + i * step) // step * step - low for i, (low, _) in enumerate(pairwise(edges))]
    return (torch.arange(edges[-1]) + torch.tensor(shifts).repeat_interleave(lengths)).to(device)


def _read_off(conversion: Conversion) -> tuple[Tensor, Reorder] | None:
    """Where a tile holds the number of each row and column, and what puts it there."""
    try:
        order = _order(conversion)
    except Exception as error:  # the package changed, and raises anything
        _say_rounded(f"{type(error).__name__}: {error}")
        return None
    why = []
    for reorder_ in _reorders(conversion.accum.device):
        try:
            _check(conversion, order, reorder_)
        except Exception as error:  # Triton raises anything where it finds no compiler
            why.append(f"{reorder_.__name__}: {type(error).__name__}: {error}")
        else:
            if why:
                say(f"its accumulators are read more slowly than by Triton: {'; '.join(why)}")
            return order, reorder_
    _say_rounded("; ".join(why))
    return None


def _order(conversion: Conversion) -> Tensor:
    """int32 [block, width]: where in a tile the number of a row and column is."""
    block, width, d = conversion.block, conversion.width, conversion.head_dim
    place = torch.arange(block * width, device=conversion.accum.device)
    digits = torch.stack([place % _BASE, place // _BASE]).float()
    trial = _trial(conversion, 2, (0, block))._replace(scale=1.0)
    trial.accum.unflatten(-1, (-1, block * width))[..., 0, :] = digits
    low, high = trial.rounded().reshape(block, 2, d).int().unbind(1)
    order = low + high * _BASE
    if int(order.min()) < 0 or int(order.max()) >= place.numel() or len(order.unique()) < block * d:
        raise ValueError("the conversion of a tile is no permutation")
    return torch.nn.functional.pad(order, (0, width - d)).contiguous()


def _check(conversion: Conversion, order: Tensor, reorder_: Reorder) -> None:
    """Convert random numbers both ways.

    Raises:
        ValueError: a bit differs.
    """
    block = conversion.block
    edges = (0, 1, block + 2, 3 * block + 2, 5 * block + 1)
    trial = _trial(conversion, 3, edges)
    trial.accum.normal_(generator=torch.Generator(trial.accum.device).manual_seed(0))
    expected = trial.rounded()
    found = _ordered(trial, order, reorder_, None if trial.cu_seqlens is None else edges)
    if not torch.equal(found.to(expected.dtype), expected):
        raise ValueError("its numbers, rounded, are not those of the package")


def _trial(conversion: Conversion, heads: int, edges: tuple[int, ...]) -> Conversion:
    """One of its form, of some documents, or of as many tokens in each of two rows; zeros."""
    like, out = conversion.accum.new_zeros, conversion.output.new_empty
    tokens, step = edges[-1], conversion.step
    size = -(-(tokens + len(edges) * step) // step) * step * conversion.width
    shape = (tokens, heads, conversion.head_dim)
    if conversion.cu_seqlens is not None:
        cu_seqlens = torch.tensor(edges, dtype=torch.int32, device=conversion.accum.device)
        accum, output = like(heads, size), out(shape)
    else:
        cu_seqlens, batch = None, 1 if len(edges) == 2 else 2
        accum, output = like(batch, heads, size), out(batch, *shape)
    return conversion._replace(
        accum=accum, output=output, cu_seqlens=cu_seqlens, cu_total_m_blocks=None
    )


def _reorders(device: torch.device) -> Iterator[Reorder]:
    """Ways to put tiles in order, the fastest first."""
    if device.type == "cuda":
        yield by_triton_
    yield by_pieces_


def by_triton_(accum: Tensor, order: Tensor, scale: float) -> None:
    """What :func:`by_pieces_` does, in one pass over the memory."""
    from megatron_ultralong.attention.kernels import tile_order  # Triton is not everywhere

    tile_order.reorder_(accum, order, scale)


def by_pieces_(accum: Tensor, order: Tensor, scale: float) -> None:
    """Put each tile in order and multiply it, in place: the definition of all ways."""
    tiles, places = accum.view(-1, order.numel()), order.flatten()
    for piece in tiles.split(max(1, _PIECE // order.numel())):
        piece.copy_(piece.index_select(1, places)).mul_(scale)


def _say_rounded(why: str) -> None:
    say(f"parts of dq, dk and dv are rounded before a ring adds them: {why}")


@lru_cache(maxsize=64)
def say(what: str) -> None:
    """Once for a process."""
    logger.warning("attention kernel fa4: %s", what)
