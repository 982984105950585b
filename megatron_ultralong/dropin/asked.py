"""What a command line asks of Megatron-LM's parser: its words for things, and which were given."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence


class Asked:
    """The arguments that a parser knew when :meth:`remember` was called, and those given."""

    def __init__(self) -> None:
        self._parser: argparse.ArgumentParser | None = None
        self._theirs: dict[str, str] = {}

    def remember(self, parser: argparse.ArgumentParser) -> None:
        """Take ``parser`` for Megatron-LM's: all it knows by now are arguments of Megatron-LM."""
        if parser is self._parser:
            return
        self._parser = parser
        self._theirs = {}
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                self._theirs.setdefault(action.dest, max(action.option_strings, key=len))

    def flag(self, name: str) -> str:
        """What an argument is called on the command line; of a field, its own name."""
        return self._theirs.get(name, name)

    def given(self, words: Sequence[str] | None = None) -> set[str]:
        """Names of Megatron-LM's arguments that stand on the command line, by whatever value.

        Args:
            words: of the command line; this process's.
        """
        if self._parser is None:
            return set()
        # Defaults that suppress: what is left in the namespace was given.
        silent = copy.copy(self._parser)
        silent._actions = [copy.copy(action) for action in self._parser._actions]
        silent._option_string_actions = {
            word: action for action in silent._actions for word in action.option_strings
        }
        silent._defaults = {}
        for action in silent._actions:
            action.default = argparse.SUPPRESS
            action.required = False
        namespace, _ = silent.parse_known_args(sys.argv[1:] if words is None else list(words))
        return set(vars(namespace)) & set(self._theirs)


ASKED = Asked()
"""Of this process."""
