"""The ``--ultralong-...`` arguments without Megatron-LM: as a help text, and as a table."""

from __future__ import annotations

import argparse

from megatron_ultralong.dropin.arguments import PREFIX, add_own_group

_USAGE = "torchrun ... -m megatron_ultralong.dropin SCRIPT --spec megatron_ultralong.spec SPEC ..."
_AFTER = (
    "SCRIPT is a Megatron-LM script such as pretrain_gpt.py; SPEC is ring_te_spec (Transformer "
    "Engine) or ring_local_spec. All other arguments are those of SCRIPT: `SCRIPT --help` in the "
    "same place lists them too. docs/dropin.md has whole commands."
)


def own_help() -> str:
    """What ``python -m megatron_ultralong.dropin --help`` prints."""
    return _parser().format_help()


def table() -> str:
    """The same in Markdown, a line for each argument."""
    lines = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for action in _parser()._actions:
        if action.dest.startswith(PREFIX):
            kind = action.metavar or "\\|".join(action.choices or ())
            values = f"{action.option_strings[0]} {kind}"
            default = f"`{action.default}`" if action.default != "" else ""
            meaning = (str(action.help) % vars(action)).replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{values}` | {default} | {meaning} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron_ultralong.dropin", usage=_USAGE, epilog=_AFTER, add_help=False
    )
    add_own_group(parser)
    return parser
