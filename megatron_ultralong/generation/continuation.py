"""Continuations of prompts: batches, the loop of steps, sampling, and text as it comes.

A draw takes a number ``u`` from the seed, the prompt's number and the token's, and returns the
first token, in falling order of probability, at which the cumulative probability passes ``u``. So
it is a function of (seed, prompt, token), whatever the batch and the layout.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.config.generate import DecodingConfig, SamplingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.mcore.decoding import Decoder, Tokens
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.sequence.documents import unit_hash


def choose(
    logits_BV: Tensor, config: SamplingConfig, prompts: Sequence[int | str], token: int
) -> Tensor:
    """The next token of every row, int64 [b].

    Args:
        logits_BV: float32, [b, vocabulary].
        config: greedy, or how to draw.
        prompts: numbers or names of the prompts that the rows continue.
        token: number of the token, from 0.
    """
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV, ids_BV = distribution(logits_BV, config)
    u_B1 = torch.tensor(
        [[unit_hash(config.seed, f"token:{prompt}:{token}")] for prompt in prompts],
        dtype=probabilities_BV.dtype,
        device=probabilities_BV.device,
    )
    passed_BV = probabilities_BV.cumsum(dim=-1)
    # Times the total: a sum of rounded numbers is not exactly one.
    place_B1 = torch.searchsorted(passed_BV, u_B1 * passed_BV[:, -1:], right=True)
    return ids_BV.gather(-1, place_B1.clamp_(max=ids_BV.shape[-1] - 1)).squeeze(-1)


def distribution(logits_BV: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order and their token ids, [b, vocabulary]; 0 where cut off.

    Temperature, then top-k (ties with the k-th stay), then top-p (the first token that completes
    the share stays): the order and the edges are those of transformers' logits processors.
    """
    scaled_BV = logits_BV.double() / config.temperature
    sorted_BV, ids_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    if 0 < config.top_k < sorted_BV.shape[-1]:
        smallest_B1 = sorted_BV[:, config.top_k - 1 : config.top_k]
        sorted_BV = sorted_BV.masked_fill(sorted_BV < smallest_B1, -torch.inf)
    probabilities_BV = sorted_BV.softmax(dim=-1)
    if config.top_p < 1:
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        probabilities_BV = probabilities_BV.masked_fill(before_BV >= config.top_p, 0.0)
        probabilities_BV = probabilities_BV / probabilities_BV.sum(dim=-1, keepdim=True)
    return probabilities_BV, ids_BV


def open_decoder(
    checkpoint: MegatronCheckpoint, parallel: ParallelConfig, groups: Any, dtype: torch.dtype
) -> Decoder:
    """The checkpoint's weights in ``parallel``; every rank calls it inside ``parallel_groups``.

    ``sequence_parallel`` is left out: it splits the tokens of a pass over tensor-parallel ranks,
    and a step of decoding has one. The weights are the same with and without.

    Raises:
        InputError: the checkpoint is damaged, or cannot be split this way.
    """
    parallel = dataclasses.replace(parallel, sequence_parallel=False)
    return Decoder(load_model(checkpoint, parallel, groups, dtype=dtype), groups)


_NO_TOKEN = -1
"""Where the logits are no numbers."""
OnToken = Callable[[int, int], None]


def are_finite(logits_BV: Tensor) -> Tensor:
    """Of each row whether a token can be chosen, [b]: none is NaN or endless; -inf is never it."""
    return (logits_BV < torch.inf).all(-1)


def not_finite(number: int, name: str = "the model") -> InputError:
    """The error where logits for token ``number`` behind a prompt are no numbers.

    Every way of choosing a token would write one for them, and always the same.
    """
    return InputError(
        f"{name}'s logits for token {number} of a continuation are not finite: its weights or "
        "its precision are broken; try --precision fp32, and `ultralong convert verify` with the "
        "model that it was imported from"
    )


@dataclasses.dataclass
class Speed:
    """Tokens and seconds of reading prompts and of writing behind them, of all batches."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    """Without the first token of each row, which comes with its prompt."""
    decode_seconds: float = 0.0

    def __str__(self) -> str:
        """``prefill 8,192 tokens at 4,096 tokens/s, decode 63 tokens at 21.0 tokens/s``."""
        prefill = self.prefill_tokens / max(self.prefill_seconds, 1e-9)
        text = f"prefill {self.prefill_tokens:,} tokens at {prefill:,.0f} tokens/s"
        if self.decode_tokens:
            decode = self.decode_tokens / max(self.decode_seconds, 1e-9)
            text += f", decode {self.decode_tokens:,} tokens at {decode:,.1f} tokens/s"
        return text


@dataclasses.dataclass
class Continuation:
    """Writes behind prompts with one model.

    Every rank calls it with the same arguments and gets the same tokens.
    """

    decoder: Decoder
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    config: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    speed: Speed = dataclasses.field(default_factory=Speed)
    """Of all calls so far."""

    def generate(
        self,
        prompts: Sequence[Tokens],
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        *,
        has_ended: Callable[[Sequence[int]], bool] = lambda written: False,
        names: Sequence[str] = (),
        on_token: OnToken = lambda prompt, token: None,
        advance: Callable[[float], None] = lambda amount: None,
    ) -> list[list[int]]:
        """Ids behind every prompt, at most ``max_new_tokens``, ended before a stop id.

        Args:
            prompts: token ids, at least one each.
            max_new_tokens: tokens to write behind each.
            stop_ids: ids that end a row; it leaves the batch, and the others continue.
            has_ended: whether what was written behind a prompt ends its row, too.
            names: of the prompts, for their draws; by default their numbers.
            on_token: is told the number of the prompt and each id as it is written.
            advance: is told how many tokens of prompts were read.

        Raises:
            InputError: keys and values of a single prompt do not fit into the device's memory, or
                logits are no numbers.
        """
        lengths = [(len(prompt), max_new_tokens) for prompt in prompts]
        written: list[list[int]] = [[] for _ in prompts]
        most_tokens = self.decoder.most_cached_tokens()

        def goes_on(prompt: int, token: int) -> bool:
            if token in stop_ids:
                return False
            written[prompt].append(token)
            on_token(prompt, token)
            return not has_ended(written[prompt])

        for batch in make_batches(
            [sum(each) for each in lengths], self.config.max_batch_size, most_tokens
        ):
            self.decoder.start([lengths[number] for number in batch])
            first = self._read([prompts[number] for number in batch], advance)
            self._write(batch, first, max_new_tokens, goes_on, names)
        return written

    def _read(self, prompts: Sequence[Tokens], advance: Callable[[float], None]) -> Tensor:
        """Logits behind every prompt, [b, vocabulary]."""
        start = _clock()
        logits = [
            self.decoder.read(row, prompt, self.config.prefill_chunk_size, advance)
            for row, prompt in enumerate(prompts)
        ]
        self.speed.prefill_tokens += sum(map(len, prompts))
        self.speed.prefill_seconds += _clock() - start
        return torch.stack(logits)

    def _write(
        self,
        batch: Sequence[int],
        logits: Tensor,
        max_new_tokens: int,
        goes_on: Callable[[int, int], bool],
        names: Sequence[str],
    ) -> None:
        """Steps until every row of the batch has ended; ``logits`` are those behind the prompts."""
        start = _clock()
        rows = list(range(len(batch)))
        for number in range(max_new_tokens):
            prompts = [batch[row] for row in rows]
            draws = [names[prompt] for prompt in prompts] if names else prompts
            chosen = choose(logits, self.sampling, draws, number)
            chosen = chosen.where(are_finite(logits), _NO_TOKEN)
            tokens: list[int] = self.decoder.agree(chosen).tolist()
            if _NO_TOKEN in tokens:  # on every rank
                raise not_finite(number)
            left = [
                (row, token)
                for row, prompt, token in zip(rows, prompts, tokens, strict=True)
                if goes_on(prompt, token)
            ]
            self.speed.decode_tokens += len(rows) if number else 0
            if not left or number == max_new_tokens - 1:
                break
            rows = [row for row, _ in left]
            logits = self.decoder.step(rows, [token for _, token in left])
        self.speed.decode_seconds += _clock() - start


def make_batches(
    lengths: Sequence[int], max_batch_size: int, most_tokens: int | None
) -> list[list[int]]:
    """Numbers of rows that are continued together, those of like length: a cache row is as long as
    the longest of its batch.

    ``[5, 90, 6, 100], 2, None -> [[3, 1], [2, 0]]``; with ``most_tokens`` 150, ``[[3], [1], [2,
    0]]``.

    Raises:
        InputError: a row is longer than ``most_tokens``.
    """
    if most_tokens is not None and max(lengths, default=0) > most_tokens:
        raise InputError(
            f"a prompt with its continuation has {max(lengths)} tokens, and the free memory of a "
            f"rank holds keys and values of {most_tokens}: raise --context-parallel-size or "
            "--tensor-model-parallel-size, which share them, or lower --max-new-tokens"
        )
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        batch = batches[-1] if batches else []
        has_room = 0 < len(batch) < max_batch_size and (
            most_tokens is None or (len(batch) + 1) * lengths[batch[0]] <= most_tokens
        )
        if has_room:
            batch.append(number)
        else:
            batches.append([number])
    return batches


def _clock() -> float:
    """Seconds, when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class TextStream:
    """Writes the text of one continuation, token by token.

    A character can be several tokens, and a token's text can depend on the one before it. So the
    text of a token is what it adds to the text of the few before, and it waits while that ends in
    a half character. All that was written is the text of all ids together.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]
    ) -> None:
        self._decode = decode
        self._write = write
        self._ids: list[int] = []
        self._start = 0
        """First id that is decoded again with the next one."""
        self._done = 0
        """Ids whose text is written."""

    def add(self, token: int) -> None:
        """Take one more id."""
        self._ids.append(token)
        text = self._text(len(self._ids))
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write_rest(text)

    def finish(self) -> None:
        """Write what is left, be it half a character."""
        if self._done < len(self._ids):
            self._write_rest(self._text(len(self._ids)))

    def _write_rest(self, text: str) -> None:
        new = text[len(self._text(self._done)) :]
        if new:
            self._write(new)
        self._start, self._done = self._done, len(self._ids)

    def _text(self, stop: int) -> str:
        return self._decode(self._ids[self._start : stop])
