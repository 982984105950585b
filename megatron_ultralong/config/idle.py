"""Options of a run that change nothing beside its others, and why."""

from collections.abc import Iterator

from megatron_ultralong.config.plain_values import flat_fields
from megatron_ultralong.config.training import TrainingConfig


def idle_fields(config: TrainingConfig) -> dict[str, str]:
    """Fields that this run does not look at, whatever their values, and why."""
    optimizer, memory, log = config.optimizer, config.memory, config.log
    host = "there is no --optimizer-cpu-offload"
    constant = (
        "--lr-decay-style is constant, which does not decay: with cosine or linear a run ends there"
    )
    no_profile = "there is no --profile"
    rules = {
        "min_lr": (optimizer.lr_decay_style == "constant", constant),
        "optimizer_offload_fraction": (not optimizer.optimizer_cpu_offload, host),
        "overlap_cpu_optimizer_d2h_h2d": (not optimizer.optimizer_cpu_offload, host),
        "fp8_recipe": (config.layers.fp8_format == "none", "there is no --fp8-format"),
        "eval_iters": (not config.eval_interval, "there is no --eval-interval"),
        "max_host_memory_gib": (
            not memory.offload_activations,
            "this layout offloads no activations",
        ),
        "sequence_tile_size": (
            memory.recompute_granularity == "none",
            "this layout recomputes nothing, and only recomputed layers work in tiles",
        ),
        "save_retain_interval": (
            not config.checkpoint.save_retain_last,
            "--save-retain-last 0 keeps all checkpoints",
        ),
        **dict.fromkeys(
            ("profile_step_start", "profile_step_end", "profile_ranks"),
            (not log.profile, no_profile),
        ),
    }
    return {name: why for name, (is_idle, why) in rules.items() if is_idle}


def fields_not_reached(config: TrainingConfig, done: int) -> dict[str, str]:
    """Fields of iterations that a start does not come to, which resumes after ``done``, and why."""
    last, interval, log = config.train_iters, config.eval_interval, config.log
    if done >= last:
        return {}
    why = f"this start does iterations {done + 1} to {last}"
    rules = {
        "eval_interval": interval > 0 and last // interval == done // interval,
        "profile_step_start": log.profile and log.profile_step_start > last,
        "profile_step_end": log.profile and log.profile_step_end <= done + 1,
    }
    return dict.fromkeys((name for name, is_idle in rules.items() if is_idle), why)


def idle_notes(config: TrainingConfig, done: int = 0) -> Iterator[str]:
    """A line for each of them that is not its default: somebody may have meant it.

    And for each that a start after ``done`` iterations does not come to.
    """
    idle, usual = idle_fields(config), flat_fields(type(config)())
    late = fields_not_reached(config, done)
    for name, value in flat_fields(config).items():
        field = name.split(".")[-1]
        if field in late or (field in idle and value != usual[name]):
            why = late.get(field) or idle[field]
            yield f"warning: {field} {_text(value)} is without effect: {why}"


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
