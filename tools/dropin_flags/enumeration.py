"""The arguments of a Megatron-LM's parser, one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from tools.dropin_flags import compare, data, runs, variants

OWN_SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_gpt.py"


class Enumeration:
    """A Megatron-LM, imported, with a data set for it."""

    def __init__(self, checkout: Path | None, folder: Path) -> None:
        """Import it.

        Args:
            checkout: its source tree, which stands on the path; None: the installed wheel.
            folder: for the data set.
        """
        from megatron_ultralong.dropin.known_arguments import KNOWN

        self.script = checkout.resolve() / "pretrain_gpt.py" if checkout else OWN_SCRIPT
        parser = runs.warm(self.script)
        self.actions = {
            action.dest: action
            for action in reversed(parser._actions)
            if action.option_strings and action.dest != "help"
        }
        self.new = sorted(set(self.actions) - KNOWN)
        """Arguments that nobody has looked at."""
        prefix = data.write(folder, end_of_document())
        self.data = str(prefix)

    def compare_all(self, only: tuple[str, ...] = ()) -> Iterator[compare.Comparison]:
        """Every way to try every argument; or those whose names begin with one of ``only``."""
        base = variants.base("", self.data)
        usual = runs.run("plain", self.script, base)
        assert not usual.error, usual.trace
        runs.import_too(usual.imported)
        yield compare.compare("(none)", "", [], self.script, base, usual)
        for name in sorted(self.actions):
            if only and not name.startswith(only):
                continue
            for words in variants.variants(self.actions[name]):
                flags = list(self.actions[name].option_strings)
                words = words.replace("{data}", self.data)
                base = variants.base(name, self.data)
                yield compare.compare(name, words, flags, self.script, base, usual)


def line(row: compare.Comparison) -> str:
    """One line of the table."""
    detail = f"{row.difference:.0e}{'' if row.has_effect else ', no effect'}"
    return f"{row.kind:8}{row.name}: {row.words} [{row.said or detail}]"


def end_of_document() -> int:
    """The last id of a ``NullTokenizer``, which up to 0.17 has one more than its vocabulary."""
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    counts_it = "eod_id" in inspect.signature(NullTokenizer).parameters
    return data.VOCABULARY - 1 if counts_it else data.VOCABULARY
