"""The kernel of the package flash-attn-4, on Hopper and Blackwell GPUs.

It is compiled at its first use, some seconds for each of forward, backward and their forms for
documents. Called by the package's own functions: PyTorch's activation of "FA4" fits the releases
of its own time alone (the number of results has grown since).

On Hopper it rounds its float32 accumulator as it writes it, and has no other way to. Here it writes
twice: the numbers, and their residuals into as many heads again; together they have the 16 bits of
two. The end of a tile, ``epilogue``, is called two times for that, by a subclass of the package's
kernel; all else is the package's own. Numbers of a trial must agree with the formulas before it is
used; where they do not, the package rounds as ever, and a warning says so.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch

from megatron_ultralong.attention.kernels import accumulators, base, math
from megatron_ultralong.attention.kernels.base import Inputs, accumulation_dtype, each_alone

_PACKAGE = "flash_attn.cute.interface"


class Flash4Kernel(base.Kernel):
    """The package's functions."""

    name = "fa4"
    serves_documents = True

    def refusal(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> str | None:
        """It serves 16-bit floats and head sizes up to 128."""
        why = base.unfit(dtype, head_dim, device, 128, (9, 0))
        return why or base.missing(_PACKAGE, (9, 10), device)

    def forward(self, inputs: base.Inputs) -> base.Result:
        """See :class:`Kernel`. Parts of a sum are float32 on Hopper."""
        q, *_ = inputs
        package = importlib.import_module(_PACKAGE)

        def call(its: base.Inputs) -> "partial[tuple[Any, ...]]":
            tensors = base.packed(its, *its[:3])
            return partial(package._flash_attn_fwd, *tensors, return_lse=True, **_options(its))

        with accumulators.patching:
            if inputs.wide:
                out, lse = outputs(package, call, inputs)
            else:
                out, lse = call(inputs)()[:2]
        return base.unpacked(out)[0], lse.reshape(q.shape[1], q.shape[2], len(q))

    def backward(self, inputs: base.Inputs, saved: base.Saved) -> base.Gradients:
        """See :class:`Kernel`. Parts of a sum are float32; dk and dv only of grouped heads."""
        package = importlib.import_module(_PACKAGE)
        call = partial(
            package._flash_attn_bwd,
            *base.packed(inputs, *inputs[:3], saved.out, saved.dout),
            base.packed_lse(inputs, saved.lse),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_options(inputs),
        )
        with accumulators.patching:
            if inputs.wide:
                gradients = accumulators.gradients(package, call, inputs.documents)
            else:
                gradients = call()[:3]
        dq, dk, dv = base.unpacked(*gradients)
        return dq, dk, dv


def _options(inputs: base.Inputs) -> dict[str, Any]:
    """Arguments of forward and backward: factor, mask and documents."""
    options = {"softmax_scale": inputs.scale, "causal": inputs.mask is not None}
    if inputs.documents is None:
        return options
    edges, longest = base.device_edges(inputs.documents, inputs.q.device)
    return {
        **options,
        "cu_seqlens_q": edges,
        "cu_seqlens_k": edges,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


FA4 = Flash4Kernel()


_CHECK = "_validate_tensor"
_KERNEL = "FlashAttentionForwardSm90"
_BARRIER = 15  # of 16; the package's forward kernel has the first seven
_compiled: dict[str, dict[Any, Any]] = {}  # by package: its own forms are others
_usable: dict[tuple[Any, ...], bool] = {}


Call = Callable[[Inputs], "partial[tuple[Any, ...]]"]
"""The package's forward pass of some inputs, q the first argument."""


def outputs(package: ModuleType, call: Call, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, float32 where that can be had, and log-sum-exp, in the shapes of the package."""
    q, k, *_ = inputs
    kind = inputs.mask if inputs.mask is None else len(inputs.mask) > 2
    key = (package.__name__, q.device, q.dtype, q.shape[3], q.shape[2] // k.shape[2], kind)
    if key not in _usable:
        _usable[key] = _is_usable(package, call, inputs)
    if not _usable[key]:
        out, lse = call(inputs)()[:2]
        return out, lse
    rounded, rest, lse = _written_twice(package, call(inputs))
    return rounded.to(accumulation_dtype(q.dtype)).add_(rest), lse


def _is_usable(package: ModuleType, call: Call, inputs: Inputs) -> bool:
    """Whether the numbers of a trial are right, and the residuals theirs."""
    if not is_hopper(inputs.q.device):
        return False
    trial = _trial(inputs)
    try:
        rounded, rest, _ = _written_twice(package, call(trial))
    except Exception as error:  # the package changed, and raises anything
        return _refused(f"{type(error).__name__}: {error}")
    exact = _exact(trial).reshape(rounded.shape)  # b is 1
    first = float((rounded - exact).norm() / exact.norm())
    both = float((rounded.double() + rest - exact).norm() / exact.norm())
    # A residual is at most half a step of the number that it is of.
    if not both < first < 2**-7 or bool((rest.abs() > 2**-8 * rounded.abs()).any()):
        return _refused(
            f"numbers of a trial err by {first:.1e}, with their residuals by {both:.1e}"
        )
    return True


def _refused(why: str) -> bool:
    accumulators.say(f"parts of out are rounded before a ring adds them: {why}")
    return False


def is_hopper(device: torch.device) -> bool:
    """Whether the package's kernel is the one that is known here."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _trial(inputs: Inputs) -> Inputs:
    """Random inputs of the same form, [300, 1, heads of one key head, d]."""
    q, k, *_ = inputs
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 1, heads, q.shape[3]) for heads in (q.shape[2] // k.shape[2], 1, 1)]
    q, k, v = (torch.randn(shape, generator=generator).to(q) for shape in shapes)
    mask = inputs.mask if inputs.mask is None else (0, 300)
    return Inputs(q, k, v, (0, 1, 130, 300) if inputs.documents else mask, inputs.scale)


def _exact(inputs: Inputs) -> torch.Tensor:
    """The output, by the formulas, in float64."""
    q, k, v = (x.double() for x in inputs[:3])
    wide = Inputs(q, k, v, inputs.mask, inputs.scale)
    if inputs.documents is None:
        return math.MATH.forward(wide)[0]
    runs = [(slice(start, start + its[-1]), its) for start, its in each_alone(inputs.documents)]
    return torch.cat([math.MATH.forward(wide.rows(rows, its))[0] for rows, its in runs])


def _written_twice(
    package: ModuleType, call: "partial[tuple[Any, ...]]"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, its residuals and log-sum-exp, in the shapes of the package."""
    q, *_ = call.args
    room = q.new_empty((*q.shape[:-2], 2 * q.shape[-2], q.shape[-1]))
    with _writing_twice(package):
        _, lse = call(out=room, pack_gqa=False)[:2]  # packed, heads are rows of a tile
    rounded, rest = room.chunk(2, dim=-2)
    return rounded, rest, lse


@contextmanager
def _writing_twice(package: ModuleType) -> Iterator[None]:
    """The package's forward pass writes residuals into the second half of the heads."""
    its: dict[str, Any] = {name: getattr(package, name) for name in (_KERNEL, _CHECK)}
    function = package._flash_attn_fwd

    def check(tensor: torch.Tensor, name: str, *others: Any) -> None:
        if name != "out":  # which has twice the heads
            its[_CHECK](tensor, name, *others)

    with accumulators.patching:
        cache = function.compile_cache
        try:
            function.compile_cache = _compiled.setdefault(package.__name__, {})
            setattr(package, _KERNEL, _twice(its[_KERNEL]))
            setattr(package, _CHECK, check)
            yield
        finally:
            function.compile_cache = cache
            for name, before in its.items():
                setattr(package, name, before)


@lru_cache(maxsize=4)
def _twice(kernel: Any) -> type:
    """The kernel with two outputs."""
    cutlass, cute = (importlib.import_module(name) for name in ("cutlass", "cutlass.cute"))

    class Twice(kernel):
        """Writes its numbers, and what rounding took from them."""

        def epilogue(self, numbers: Any, lse: Any, out: Any, out_lse: Any, *others: Any) -> None:
            """The end of a tile. The last two arguments are the head and the batch."""
            super().epilogue(numbers, lse, out, out_lse, *others)
            exact = numbers.load()
            numbers.store(exact - exact.to(self.dtype).to(cutlass.Float32))
            # One warp still waits for what it writes, and would miss the next meeting.
            cute.arch.barrier(barrier_id=_BARRIER, number_of_threads=self.num_epilogue_threads)
            *same, head, batch = others
            super().epilogue(numbers, lse, out, None, *same, head + out.shape[2] // 2, batch)

    return Twice
