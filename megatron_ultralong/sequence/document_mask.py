"""What a token may attend to where several documents are in a row."""

from typing import Literal

DocumentMask = Literal["none", "block"]
"""none: all tokens before it; block: those of its own document."""
