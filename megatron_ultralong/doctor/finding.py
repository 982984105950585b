"""One line of the doctor's report."""

import dataclasses
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do about it."""

    level: Level
    """problem: a run cannot work, and the exit status is 1; warning: it may not, or is slow;
    note: something that some runs need is not here."""
    subject: str
    text: str
    fix: str = ""
    """What to do; empty where there is nothing to do."""

    def line(self) -> str:
        """The finding as it is printed: ``ok       python      3.11.7``."""
        text = f"{self.level:8} {self.subject:16} {self.text}"
        return f"{text}\n{'':25} -> {self.fix}" if self.fix else text
