"""The terminal, as everything here writes to it: names in files of others cannot steer it.

``tests/test_terminal.py`` sees to it that no other module makes a console of rich's own.
"""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from megatron_ultralong.program.errors import escaped


class Console(rich.console.Console):
    r"""rich's console; control characters in texts are written out, brackets are no markup.

    A model's tensor may be called ``a\x1b[2J`` or ``[/red]``: the one would clear the screen, the
    other end the program.
    """

    def __init__(self, *, markup: bool = False, **options: Any) -> None:
        super().__init__(markup=markup, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to :func:`megatron_ultralong.program.ending.ends_with_message`."""
        raise

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """See :meth:`rich.console.Console.render`."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield segment._replace(text=escaped(segment.text))
