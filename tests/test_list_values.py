"""Lists as other programs take them, behind flags of several numbers."""

from __future__ import annotations

import re

import pytest

from megatron_ultralong.cli.verbs import VERBS
from megatron_ultralong.config import command_line
from megatron_ultralong.config.flags import flags_of
from megatron_ultralong.program.errors import InputError
from tests.edges import parsed_class, with_needed


@pytest.mark.parametrize(
    "word", ["[64]", "[64,", "(64)", pytest.param("6']", marks=pytest.mark.slow), "[6'\"]"]
)
def test_a_list_of_another_program_is_told(word: str) -> None:
    told = 0  # was a trace of Python's own parser
    for verb in VERBS:
        for flag in flags_of(parsed_class(verb)):
            if not re.search(r" [NX] \.\.\." if word != "6']" else r" [NX](\W|$)", flag.usage):
                continue
            ends = "spaces stand between several, without brackets; " * flag.takes_several
            name = flag.names[0]
            with pytest.raises(InputError, match=f"{name} (must|takes).*{ends}") as found:
                command_line.parse(parsed_class(verb), verb, with_needed(verb, [name, word]))
            told += flag.takes_several and "\n" not in str(found.value)
    assert told > 5
