"""In which form a task is put to a model."""

from typing import Literal

PromptTemplate = Literal["base", "chat"]
"""base: text to be continued; chat: turns of the model's family."""
