"""Scores from transformers: the judge of an exported checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from megatron_ultralong.evaluation.models.hugging_face_model import load_llama
from megatron_ultralong.evaluation.models.scorer import Scores


class HuggingFaceScorer:
    """A Llama in a Hugging Face folder, run by transformers in float32 in this process.

    Logits are made for ``logits_chunk_size`` positions at a time: a row of 1M tokens and 128,256
    ids would need 0.5 TB of them at once.

    Args:
        folder: what `ultralong convert export` writes, or any Llama that transformers loads.
        name: name in tables and pictures; the folder's own by default.
        device: where it runs.
        logits_chunk_size: positions whose logits are held together.

    Raises:
        InputError: the folder does not hold a Llama.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        device: str | torch.device = "cpu",
        logits_chunk_size: int = 4096,
    ) -> None:
        folder = Path(folder)
        self._device = torch.device(device)
        self._model = load_llama(folder, self._device)
        self._logits_chunk_size = logits_chunk_size
        self.name = name or folder.resolve().name
        self.max_positions: int = self._model.config.max_position_embeddings
        self.vocab_size: int = self._model.config.vocab_size
        self.is_main = True

    @torch.inference_mode()
    def score(self, tokens: npt.NDArray[np.int64]) -> Scores:
        """Scores of rows ``tokens``, shape [b, S], see :class:`Scorer`."""
        tokens_bs = torch.from_numpy(np.ascontiguousarray(tokens)).to(self._device)
        hidden_bsh = self._model.model(input_ids=tokens_bs, use_cache=False).last_hidden_state
        losses, hits = [], []
        for start in range(0, tokens.shape[1] - 1, self._logits_chunk_size):
            stop = min(start + self._logits_chunk_size, tokens.shape[1] - 1)
            labels_bc = tokens_bs[:, start + 1 : stop + 1]
            logits_bcv = self._model.lm_head(hidden_bsh[:, start:stop])
            label_logits_bc = logits_bcv.gather(2, labels_bc[..., None]).squeeze(2)
            losses.append((logits_bcv.logsumexp(2) - label_logits_bc).cpu())
            hits.append((logits_bcv.argmax(2) == labels_bc).cpu())
        return Scores(torch.cat(losses, dim=1).numpy(), torch.cat(hits, dim=1).numpy())
