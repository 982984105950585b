"""Verdicts on an extension: figures before and after against what was asked of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_ultralong.evaluation.report.report import Check
from megatron_ultralong.evaluation.results.result import Result

NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What an extension has to reach."""

    before_rise: float = 0.25
    """Nats by which the base is worse beyond its context than inside, in every bin."""
    after_slack: float = 0.05
    """Nats by which the extended model may be worse than the base inside its context."""
    passkey_inside: float = 0.9
    """Least share that the base retrieves inside its context."""
    passkey_beyond_before: float = 0.1
    """Greatest share that the base retrieves at any length beyond its context."""
    passkey_after: float = 0.8
    """Least share that the extended model retrieves at the greatest length."""
    turns_before: float = 0.1
    """Greatest share of the assistant's turns that the model writes word for word untuned."""
    turns_tuned: float = 0.4
    """Least share that the tuned model writes."""
    passkey_tuned: float = 0.8
    """Least share that the tuned model retrieves at the greatest length."""
    memory_gib: float = 6.0
    """Peak memory of all processes together."""


def loss_checks(results: Sequence[Result], bounds: Bounds) -> list[Check]:
    """Checks of the loss by position of two checkpoints, the base and the extended one.

    The base's loss inside its context is its mean over all positions there. Beyond the base's
    context the extended model is held against that mean; inside it bin by bin against the base,
    because the first tokens of a row are hard for every model.
    """
    assert len(results) == 2, "the base, then the extended model"
    before, after = results
    context = before.max_positions
    inside = before.mean_loss(0, context)
    return [
        _before_check(before, context, inside, bounds.before_rise),
        _beyond_check(after, context, inside, bounds.after_slack),
        _inside_check(before, after, context, bounds.after_slack),
    ]


def _before_check(before: Result, context: int, inside: float | None, rise: float) -> Check:
    name = f"loss beyond {context:,} positions, before: clearly worse than inside"
    losses = _beyond(before, context)
    if inside is None or not losses:
        return Check(name, NOT_MEASURED, f"at least {rise:.2f} nats above the mean inside", False)
    return _bin_check(name, "best", min(losses), inside, rise)


def _beyond_check(after: Result, context: int, inside: float | None, slack: float) -> Check:
    name = f"loss beyond {context:,} positions, after: no worse than the base inside"
    losses = _beyond(after, context)
    if inside is None or not losses:
        return Check(name, NOT_MEASURED, f"at most {slack:.2f} nats above the mean inside", False)
    return _bin_check(name, "worst", max(losses), inside, slack)


def _bin_check(name: str, which: str, loss: float, inside: float, margin: float) -> Check:
    """The best bin is so much worse than the mean; or the worst is no worse than that."""
    is_best, bound = which == "best", inside + margin
    return Check(
        name,
        f"{loss:.3f} in the {which} bin, {loss - inside:+.3f}",
        f"at {'least' if is_best else 'most'} {inside:.3f} + {margin:.2f} in every bin",
        loss >= bound if is_best else loss <= bound,
    )


def _inside_check(before: Result, after: Result, context: int, slack: float) -> Check:
    name = f"loss inside {context:,} positions, after: short context kept"
    bound = f"at most the base + {slack:.2f} in every bin"
    base, actual = _losses(before), _losses(after)
    differences = [actual[b] - base[b] for b in base if b[1] <= context and b in actual]
    if not differences:
        return Check(name, NOT_MEASURED, bound, False)
    highest = max(differences)
    return Check(name, f"{highest:+.3f} in the worst bin", bound, highest <= slack)


def _losses(result: Result) -> dict[tuple[int, int], float]:
    """Losses by their positions, where a prediction counts."""
    cells = {place: result.loss(place) for place in result.bins}
    return {place: cell.score for place, cell in cells.items() if cell and cell.score is not None}


def _beyond(result: Result, context: int) -> list[float]:
    return [loss for (start, _), loss in _losses(result).items() if start >= context]


def passkey_checks(before: Result, after: Result, bounds: Bounds) -> list[Check]:
    """Checks of passkey retrieval of the base and of the extended model."""
    context = before.max_positions
    inside = [length for length in before.lengths if length <= context]
    beyond = [length for length in before.lengths if length > context]
    full = after.lengths[-1]
    return [
        _at_least(f"passkey inside {context:,}, before", before, inside, bounds.passkey_inside),
        _near_zero(f"passkey beyond {context:,}, before", before, beyond, bounds),
        _at_least(f"passkey at {full:,}, after", after, [full], bounds.passkey_after),
    ]


def chat_checks(
    before: Result, tuned: Result, passkey_tuned: Result, bounds: Bounds
) -> list[Check]:
    """Checks of instruction tuning: held-out turns before and after, and the context kept."""
    full = passkey_tuned.lengths[-1]
    shares = [(result.pooled() or 0.0) / 100 for result in (before, tuned)]
    return [
        Check(
            "held-out turns of the assistant word for word, untuned",
            f"{100 * shares[0]:.1f} %",
            f"at most {100 * bounds.turns_before:.0f} %",
            shares[0] <= bounds.turns_before,
        ),
        Check(
            "held-out turns of the assistant word for word, tuned",
            f"{100 * shares[1]:.1f} %",
            f"at least {100 * bounds.turns_tuned:.0f} %",
            shares[1] >= bounds.turns_tuned,
        ),
        _at_least(f"passkey at {full:,}, tuned", passkey_tuned, [full], bounds.passkey_tuned),
    ]


def _at_least(name: str, result: Result, lengths: list[int], least: float) -> Check:
    bound = f"at least {100 * least:.0f} % over all depths"
    share = result.retrieved(lengths)
    if share is None:
        return Check(name, NOT_MEASURED, bound, False)
    worst = min(result.retrieved(lengths, depth) or 0.0 for depth in result.depths)
    figure = f"{share:.1f} % over all depths, {worst:.0f} % at the worst"
    return Check(name, figure, bound, share / 100 >= least)


def _near_zero(name: str, result: Result, lengths: list[int], bounds: Bounds) -> Check:
    bound = f"at most {100 * bounds.passkey_beyond_before:.0f} % at every length"
    if not lengths:
        return Check(name, NOT_MEASURED, bound, False)
    most = max(result.retrieved([length]) or 0.0 for length in lengths)
    figure = f"{most:.1f} % at the best length"
    return Check(name, figure, bound, most / 100 <= bounds.passkey_beyond_before)


def memory_check(peak_memory_gib: float, bounds: Bounds) -> Check:
    """Check of the memory that the run took; how long it took is shown and not judged."""
    return Check(
        "peak memory",
        f"{peak_memory_gib:.2f} GiB",
        f"at most {bounds.memory_gib:.0f} GiB",
        peak_memory_gib <= bounds.memory_gib,
    )
