"""The configurations of ``evaluate``'s verbs: which models, and what of them."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.evaluation.local.config import InfiniteBenchConfig, LvEvalConfig
from megatron_ultralong.evaluation.options import (
    ChatConfig,
    ChoicesConfig,
    CostConfig,
    LossConfig,
    ModelsConfig,
    NeedleConfig,
    PasskeyConfig,
)
from megatron_ultralong.evaluation.ruler.config import RulerConfig


@dataclasses.dataclass(frozen=True)
class LossCommand:
    """Loss and perplexity by position on held-out rows; several models in one picture."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)


@dataclasses.dataclass(frozen=True)
class PasskeyCommand:
    """Retrieval of a number hidden in a long text, by length and depth."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    passkey: PasskeyConfig = dataclasses.field(default_factory=PasskeyConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)


@dataclasses.dataclass(frozen=True)
class NeedleCommand:
    """Retrieval of a sentence hidden in running text, by length and depth."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    needle: NeedleConfig = dataclasses.field(default_factory=NeedleConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)


@dataclasses.dataclass(frozen=True)
class RulerCommand:
    """RULER's thirteen synthetic tasks at any length."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    ruler: RulerConfig = dataclasses.field(default_factory=RulerConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)


@dataclasses.dataclass(frozen=True)
class LvEvalCommand:
    """LV-Eval's eleven sets from a local copy."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    lv_eval: LvEvalConfig = dataclasses.field(default_factory=LvEvalConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)


@dataclasses.dataclass(frozen=True)
class InfiniteBenchCommand:
    """InfiniteBench's twelve tasks from a local copy."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    infinitebench: InfiniteBenchConfig = dataclasses.field(default_factory=InfiniteBenchConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)


@dataclasses.dataclass(frozen=True)
class ChoicesCommand:
    """Multiple-choice questions answered by likelihood: whether short-context skill stayed."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    choices: ChoicesConfig = dataclasses.field(default_factory=ChoicesConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)


@dataclasses.dataclass(frozen=True)
class ChatCommand:
    """Held-out conversations: the assistant's turns that the model would write word for word."""

    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    chat: ChatConfig = dataclasses.field(default_factory=ChatConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)
