"""Continuations by transformers: the judge of our own decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_ultralong.evaluation.models.generator import before_stop
from megatron_ultralong.evaluation.models.hugging_face_model import load_llama
from megatron_ultralong.generation.prompts import check_prompts


class HuggingFaceGenerator:
    """A Llama in a Hugging Face folder that transformers' ``generate`` continues greedily.

    It runs in float32 in this process. Prompts of one length make a batch, so that none is padded
    and the continuation of a prompt does not depend on the others.

    Args:
        folder: what `ultralong convert export` writes, or any Llama that transformers loads.
        name: name in tables and pictures; the folder's own by default.
        device: where it runs.
        max_batch_size: prompts that are continued together, at most.

    Raises:
        InputError: the folder does not hold a Llama.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        device: str | torch.device = "cpu",
        max_batch_size: int = 16,
    ) -> None:
        from transformers import GenerationConfig

        folder = Path(folder)
        self._device = torch.device(device)
        self._model = load_llama(folder, self._device)
        # The folder's own would fill in what is left open: sampling, and ids to stop at.
        self._model.generation_config = GenerationConfig()
        self._max_batch_size = max_batch_size
        self.name = name or folder.resolve().name
        self.max_positions: int = self._model.config.max_position_embeddings
        self.vocab_size: int = self._model.config.vocab_size
        self.is_main = True

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> list[list[int]]:
        """Greedy continuations of ``prompts``, see :class:`Generator`."""
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            by_length[len(prompt)].append(number)
        continuations: dict[int, list[int]] = {}
        for numbers in by_length.values():
            for start in range(0, len(numbers), self._max_batch_size):
                batch = numbers[start : start + self._max_batch_size]
                written = self._continue([prompts[k] for k in batch], max_new_tokens, stop_ids)
                for number, ids in zip(batch, written, strict=True):
                    continuations[number] = before_stop(ids, stop_ids)
        return [continuations[number] for number in range(len(prompts))]

    @torch.inference_mode()
    def _continue(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int]
    ) -> list[list[int]]:
        """What follows ``prompts`` of one length, with the stop id and padding after it."""
        prompt_bs = torch.tensor([list(map(int, prompt)) for prompt in prompts])
        prompt_bs = prompt_bs.to(self._device)
        whole_bs = self._model.generate(
            prompt_bs,
            attention_mask=torch.ones_like(prompt_bs),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=min(stop_ids, default=0),
        )
        return [[int(token) for token in row] for row in whole_bs[:, prompt_bs.shape[1] :].tolist()]
