"""What the paper says its own runs took."""

from __future__ import annotations

from megatron_ultralong.config.recipes import PRETRAIN_RECIPES
from megatron_ultralong.config.training import TrainingConfig
from megatron_ultralong.model.models import model_of_recipe

PAPER: dict[str, tuple[int, float]] = {
    "llama3.1-8b-1m": (256, 5.0),
    "llama3.1-8b-2m": (256, 6.0),
    "llama3.1-8b-4m": (256, 13.0),
}
"""H100s and about the hours that arXiv 2504.06214 gives for these runs, by recipe."""


def paper_hours(
    recipe: str, model: str, config: TrainingConfig, train_tokens: float
) -> tuple[int, float] | None:
    """GPUs and hours of the paper's run, where ``config`` is it: its model, rows and tokens.

    How it is spread over GPUs may differ, and what is kept in memory.
    """
    if recipe not in PAPER or model != model_of_recipe(recipe):
        return None
    theirs = PRETRAIN_RECIPES[recipe]()
    tokens = theirs.train_iters * theirs.global_batch_size * theirs.data.seq_length
    is_same = (
        train_tokens == tokens
        and all(
            getattr(config, name) == getattr(theirs, name)
            for name in ("global_batch_size", "precision", "rope", "optimizer", "layers")
        )
        and config.data.seq_length == theirs.data.seq_length
        and config.data.document_mask == theirs.data.document_mask
        and not config.deterministic_mode
    )
    return PAPER[recipe] if is_same else None
