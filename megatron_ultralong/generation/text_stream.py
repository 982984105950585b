"""Text of ids as they come: characters are written when they are whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Writes the text of one continuation, token by token.

    A character can be several tokens, and a token's text can depend on the one before it. So the
    text of a token is what it adds to the text of the few before, and it waits while that ends in
    a half character. All that was written is the text of all ids together.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]
    ) -> None:
        self._decode = decode
        self._write = write
        self._ids: list[int] = []
        self._start = 0
        """First id that is decoded again with the next one."""
        self._done = 0
        """Ids whose text is written."""

    def add(self, token: int) -> None:
        """Take one more id."""
        self._ids.append(token)
        text = self._text(len(self._ids))
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write_rest(text)

    def finish(self) -> None:
        """Write what is left, be it half a character."""
        if self._done < len(self._ids):
            self._write_rest(self._text(len(self._ids)))

    def _write_rest(self, text: str) -> None:
        new = text[len(self._text(self._done)) :]
        if new:
            self._write(new)
        self._start, self._done = self._done, len(self._ids)

    def _text(self, stop: int) -> str:
        return self._decode(self._ids[self._start : stop])
