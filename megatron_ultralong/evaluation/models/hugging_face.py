"""A model in transformers, as a scorer and a generator: the judge of exported checkpoints."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_model
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.generation.continuation import are_finite, not_finite
from megatron_ultralong.generation.generate import check_prompts
from megatron_ultralong.mcore.float32 import whole_products
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import optional_package


def before_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    """What comes before the first id of ``stop_ids``: ``[5, 6, 2, 2]`` and ``{2}``: ``[5, 6]``."""
    stop = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return [int(token) for token in ids[:stop]]


class HuggingFaceModel:
    """A model in a Hugging Face folder, run by transformers in float32 in this process.

    It scores rows, and ``generate`` of transformers continues prompts greedily: those of one length
    make a batch, so that none is padded and no continuation depends on other prompts. ``name`` is
    that in tables and pictures, by default the folder's own.

    Raises:
        InputError: the folder holds no model of a known family, or a damaged one.
    """

    logits_chunk_size = 4096
    """Positions whose logits are held together: a row of 1M tokens and 128,256 ids would need
    0.5 TB of them at once."""
    max_batch_size = 16
    """Prompts that are continued together, at most."""

    def __init__(
        self, folder: str | Path, *, name: str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        transformers = optional_package("transformers", f"{folder} is run by transformers")
        folder = Path(folder)
        opened = HuggingFaceFolder(folder)
        self._device = torch.device(device)
        self._model: Any = transformers_model(opened).to(self._device)
        # The folder's own would fill in what is left open: sampling, and ids to stop at.
        self._model.generation_config = transformers.GenerationConfig()
        self.name = name or folder.resolve().name
        self.max_positions = opened.model.max_position_embeddings  # with what YaRN adds
        self.vocab_size: int = self._model.config.vocab_size
        self.is_main = True
        self.groups = None

    @whole_products()
    @torch.inference_mode()
    def score(self, tokens: npt.NDArray[np.int64]) -> interface.Scores:
        """Scores of rows ``tokens``, shape [b, S], see :class:`Scorer`."""
        tokens_bs = torch.from_numpy(np.ascontiguousarray(tokens)).to(self._device)
        hidden_bsh = self._model.model(input_ids=tokens_bs, use_cache=False).last_hidden_state
        losses, hits = [], []
        for start in range(0, tokens.shape[1] - 1, self.logits_chunk_size):
            stop = min(start + self.logits_chunk_size, tokens.shape[1] - 1)
            labels_bc = tokens_bs[:, start + 1 : stop + 1]
            logits_bcv = self._model.lm_head(hidden_bsh[:, start:stop])
            label_logits_bc = logits_bcv.gather(2, labels_bc[..., None]).squeeze(2)
            losses.append((logits_bcv.logsumexp(2) - label_logits_bc).cpu())
            hits.append((logits_bcv.argmax(2) == labels_bc).cpu())
        return interface.Scores(torch.cat(losses, dim=1).numpy(), torch.cat(hits, dim=1).numpy())

    def score_ends(
        self, rows: Sequence[tuple[npt.NDArray[np.integer], int]]
    ) -> list[interface.Scores]:
        """Scores of the last tokens of rows, see :class:`LanguageModel`; every row is read."""
        found = []
        for tokens, last in rows:
            one = self.score(np.asarray(tokens, np.int64)[None])
            found.append(interface.Scores(one.loss[0, -last:], one.correct[0, -last:]))
        return found

    def generate(
        self,
        prompts: interface.Prompts,
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        options: interface.GenerationOptions = interface.GREEDY,
    ) -> list[list[int]]:
        """Greedy continuations of ``prompts``, see :class:`Generator`."""
        if temperature := options.sampling.temperature:
            raise InputError(
                f"a task samples with temperature {temperature:g}, and Hugging Face "
                f"folders are continued greedily: import {self.name} with `ultralong convert "
                "import`, or give --gen-kwargs do_sample=False"
            )
        check_prompts(prompts, max_new_tokens, self.vocab_size, self.name)
        continuations: dict[int, list[int]] = {}
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for _, group in itertools.groupby(by_length, lambda number: len(prompts[number])):
            while batch := list(itertools.islice(group, self.max_batch_size)):
                its = [prompts[k] for k in batch]
                written = self._continue(its, max_new_tokens, stop_ids, options.has_ended)
                for number, ids in zip(batch, written, strict=True):
                    continuations[number] = before_stop(ids, stop_ids)
        return [continuations[number] for number in range(len(prompts))]

    @whole_products()
    @torch.inference_mode()
    def _continue(
        self,
        prompts: interface.Prompts,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        has_ended: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        """What follows ``prompts`` of one length, with the stop id and padding after it."""
        rows = [list(map(int, prompt)) for prompt in prompts]
        prompt_bs = torch.tensor(rows, device=self._device)
        ends: list[int | None] = [None] * len(rows)

        def stops(ids_bs: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            for number, ids in enumerate(ids_bs[:, prompt_bs.shape[1] :].tolist()):
                if ends[number] is None and has_ended(ids):
                    ends[number] = len(ids)
            return torch.tensor([end is not None for end in ends], device=self._device)

        def checked(ids_bs: torch.Tensor, logits_bv: torch.Tensor) -> torch.Tensor:
            if not are_finite(logits_bv).all():
                raise not_finite(ids_bs.shape[1] - prompt_bs.shape[1], self.name)
            return logits_bv

        whole_bs = self._model.generate(
            prompt_bs,
            attention_mask=torch.ones_like(prompt_bs),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=min(stop_ids, default=0),
            stopping_criteria=[stops],
            logits_processor=[checked],
        )
        written = whole_bs[:, prompt_bs.shape[1] :].tolist()
        return [row[:end] for row, end in zip(written, ends, strict=True)]
