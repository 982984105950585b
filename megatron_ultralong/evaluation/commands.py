"""The commands of ``evaluate``'s verbs: which models, what of them, and what it may cost."""

import dataclasses
from typing import Any

from megatron_ultralong.evaluation import options
from megatron_ultralong.evaluation.local import options as local_options
from megatron_ultralong.evaluation.local.infinitebench import InfiniteBenchConfig
from megatron_ultralong.evaluation.local.lv_eval import LvEvalConfig
from megatron_ultralong.evaluation.ruler.parameters import RulerConfig

FLAGS: dict[str, Any] = {}
"""The class of each benchmark's options, by its name in a command."""


def _command(name: str, benchmark: Any, *, has_cost: bool = True) -> Any:
    """A dataclass with ``models``, the options of a benchmark under its name, and ``cost``."""
    FLAGS[name] = benchmark
    parts = {"models": options.ModelsConfig, name: benchmark}
    if has_cost:
        parts["cost"] = options.CostConfig
    return dataclasses.make_dataclass(
        benchmark.__name__.replace("Config", "Command"),
        [(part, cls, dataclasses.field(default_factory=cls)) for part, cls in parts.items()],
        namespace={"__doc__": benchmark.__doc__, "__module__": __name__},
        frozen=True,
    )


LossCommand = _command("loss", options.LossConfig, has_cost=False)
PasskeyCommand = _command("passkey", options.PasskeyConfig)
NeedleCommand = _command("needle", options.NeedleConfig)
RulerCommand = _command("ruler", RulerConfig)
MrcrCommand = _command("mrcr", local_options.MrcrConfig)
GraphWalksCommand = _command("graphwalks", local_options.GraphWalksConfig)
Ruler2Command = _command("ruler2", local_options.Ruler2Config)
NoLiMaCommand = _command("nolima", local_options.NoLiMaConfig)
LongBenchV2Command = _command("longbench_v2", local_options.LongBenchV2Config)
LvEvalCommand = _command("lv_eval", LvEvalConfig)
InfiniteBenchCommand = _command("infinitebench", InfiniteBenchConfig)
HarnessCommand = _command("harness", options.HarnessConfig)
ChatCommand = _command("chat", options.ChatConfig)


def benchmark_of(command: Any) -> tuple[str, Any]:
    """Name and options of a command's benchmark."""
    names = (field.name for field in dataclasses.fields(command))
    (name,) = {*names} - {"models", "cost"}
    return name, getattr(command, name)
