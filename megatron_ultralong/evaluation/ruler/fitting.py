"""As many units of haystack as a length holds, found in a few passes of the tokenizer.

Units (a line of noise, a word, a document) are tokenised once and their lengths summed. Tokens
merge across units, so the sum is a little off: what it says is corrected by exact counts of whole
prompts, a small one first. Secant steps between brackets end where the next unit does not fit.
"""

import abc
import bisect
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.generation.prompt_tokenizer import IdArray, PromptTokenizer, Turn
from megatron_ultralong.program.errors import InputError

_PROBE_TOKENS = 8192
_MOST_SECANT_STEPS = 6
_BLOCK = 4096


class Builder(abc.ABC):
    """A sample that can be made with any number of units."""

    least_units: int
    """Units without which there is no sample."""
    most_units: int | None = None
    """Units that there are; None: without end."""
    answers: Sequence[str] = ()

    @abc.abstractmethod
    def estimate(self, num_units: int) -> float:
        """Tokens of the units, each counted alone, or in proportion; grows with ``num_units``."""

    @abc.abstractmethod
    def turns(self, num_units: int) -> Sequence[Turn]:
        """The prompt with ``num_units`` units, after solved ones: a function of its argument."""

    def references(self, num_units: int) -> Sequence[str]:
        """What the answer to that prompt has to hold."""
        return self.answers


class UnitCosts:
    """Tokens of a growing list of units, each counted once: ``total(3)`` is of the first three."""

    def __init__(self, tokenizer: PromptTokenizer, text: Callable[[int], str]) -> None:
        """``text(k)`` is unit ``k`` with what joins it to the one before."""
        self._tokenizer = tokenizer
        self._text = text
        self._cumulative: npt.NDArray[np.int64] = np.zeros(1, np.int64)

    def total(self, num_units: int) -> int:
        """Tokens of the first ``num_units`` units."""
        done = self._cumulative.size - 1
        if num_units > done:
            stop = -(-num_units // _BLOCK) * _BLOCK
            counts = self._tokenizer.count([self._text(k) for k in range(done, stop)])
            more = self._cumulative[-1] + np.cumsum(counts)
            self._cumulative = np.concatenate([self._cumulative, more])
        return int(self._cumulative[num_units])


def fit(
    least: int,
    most: int | None,
    estimate_of: Callable[[int], float],
    prompt: Callable[[int], IdArray],
    room: int,
    what: str,
) -> tuple[int, IdArray]:
    """Number of units and ids of the longest ``prompt`` within ``room`` tokens, or of all units.

    ``least``, ``most`` and ``estimate_of`` are as in :class:`Builder`; ``what`` names the sample in
    messages.

    Raises:
        InputError: not even the least prompt fits.
    """
    low, best = least, prompt(least)
    if best.size > room:
        raise InputError(
            f"{what}: {room} tokens are too few for a prompt, whose fixed parts and {least} units "
            f"of haystack alone take {best.size}; ask for a length of at least "
            f"{best.size - room} more"
        )
    high = None if most is None else max(most, least) + 1
    last = (estimate_of(least), float(best.size))
    slope = 1.0
    limit = float(min(room, _PROBE_TOKENS))  # the first step is a small one: it finds the slope
    steps = 0
    while high is None or high > low + 1:
        remaining = room - best.size
        if limit == room and remaining < estimate_of(low + 1) - estimate_of(low):
            break
        target = last[0] + (limit - last[1]) / slope
        guess = _largest(estimate_of, target, low, None if high is None else high - 1)
        if high is not None and steps > _MOST_SECANT_STEPS:
            guess = (low + high) // 2
        guess = max(guess, low + 1)
        ids = prompt(guess)
        estimate, count = estimate_of(guess), float(ids.size)
        if estimate != last[0] and count != last[1]:
            slope = max((count - last[1]) / (estimate - last[0]), 0.05)
        last = (estimate, count)
        if count <= room:
            low, best = guess, ids
        else:
            high = guess
        limit = float(room)
        steps += 1
    return low, best


def _largest(estimate: Callable[[int], float], target: float, low: int, most: int | None) -> int:
    """Greatest number from ``low`` to ``most`` whose units are estimated at ``target`` or less."""
    step = 1
    while (most is None or low + step < most) and estimate(low + step) <= target:
        step *= 2
    start = low + step // 2  # the last that was tried and fits
    stop = low + step if most is None else min(low + step, most + 1)
    return start + bisect.bisect_right(range(start + 1, stop), target, key=estimate)
