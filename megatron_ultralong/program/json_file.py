"""JSON that comes from outside: one reader, with bounds on everything that a file can make large.

Every JSON file that is not written and read in one process is read here: configurations, indexes,
manifests, results. What :mod:`json` alone would do to a hostile one is a ``RecursionError`` for
nesting, a bare ``ValueError`` for a number of many digits, ``inf`` for ``1e999``, the last of two
values for a key that stands there twice, and memory for as long as the file continues.
"""

import functools
import json
import math
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from megatron_ultralong.program.errors import InputError, missing, refused_file
from megatron_ultralong.program.pointers import pointer_of

MAX_BYTES: Final = 16 * 2**20
"""Of a file. The index of the largest Llama has 100 kB; Python takes up to 25 times the text."""
MAX_NAMES_BYTES: Final = 64 * 2**20
"""Of the names of all input files of rows, 250,000 of them. More are refused before the work."""
MAX_ROWS_BYTES: Final = 2 * MAX_NAMES_BYTES
"""Of a file that says what rows are, those names and all else."""
MAX_DEPTH: Final = 64
"""Objects and arrays in each other."""
_MAX_DIGITS: Final = 64
"""Of an integer. transformers writes 10^30 for a length without a limit."""
_SHOWN = 60
"""Characters of a value that a message shows."""
_REQUIRED: Final[Any] = object()
Bound = float | None
"""Of a number; None: there is none."""


class JsonObject(dict[str, Any]):
    """A JSON object that knows where it stands: its getters name the file, the key and the value.

    It is a plain ``dict`` otherwise, with plain values below it.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """``where`` names the file, and the key in it if there is one: ``a.json: rope_scaling``."""
        super().__init__(values)
        self.where = where

    def integer(
        self, key: str, default: Any = _REQUIRED, *, minimum: Bound = None, maximum: Bound = None
    ) -> Any:
        """The integer under ``key``; ``default`` where it is absent or null.

        Raises:
            InputError: it is absent without a default, no integer, or out of its range.
        """
        fits = functools.partial(_fits, int, minimum=minimum, maximum=maximum)
        return self._checked(key, default, fits, "an integer" + _range(minimum, maximum))

    def number(
        self,
        key: str,
        default: Any = _REQUIRED,
        *,
        minimum: Bound = None,
        above: Bound = None,
        maximum: Bound = None,
    ) -> Any:
        """The number under ``key`` as a float; it is finite. See :meth:`integer`."""
        kind = "a number" if above is None else f"a number above {above:g}"
        fits = functools.partial(_fits, int | float, minimum=minimum, maximum=maximum, above=above)
        value = self._checked(key, default, fits, kind + _range(minimum, maximum))
        return value if value is default else float(value)

    def string(self, key: str, default: Any = _REQUIRED) -> Any:
        """The string under ``key``; see :meth:`integer`."""
        return self._typed(key, default, str, "a string")

    def boolean(self, key: str, default: Any = _REQUIRED) -> Any:
        """The truth value under ``key``; see :meth:`integer`."""
        return self._typed(key, default, bool, "true or false")

    def array(self, key: str, default: Any = _REQUIRED) -> Any:
        """The array under ``key``, a list; see :meth:`integer`."""
        return self._typed(key, default, list, "an array")

    def strings(self, key: str, default: Any = _REQUIRED) -> Any:
        """The array of strings under ``key``; see :meth:`integer`."""

        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(one, str) for one in value)

        return self._checked(key, default, fits, "an array of strings")

    def object(self, key: str, default: Any = _REQUIRED) -> Any:
        """The object under ``key``, a :class:`JsonObject`; see :meth:`integer`."""
        value = self._typed(key, default, dict, "an object")
        return value if value is default else JsonObject(value, f"{self.where}: {key}")

    def fitting(self, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        """The value under ``key``, for which ``fits`` holds; see :meth:`integer`.

        ``expected`` says in a message what it must be.
        """
        return self._checked(key, _REQUIRED, fits, expected)

    def wrong(self, key: str, expected: str) -> InputError:
        """The error of a value that is not what it must be."""
        return InputError(f"{self.where}: {key} is {_shown(self[key])}, it must be {expected}")

    def _typed(self, key: str, default: Any, kind: type, expected: str) -> Any:
        return self._checked(key, default, lambda value: isinstance(value, kind), expected)

    def _checked(self, key: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(key)
        if value is None and default is _REQUIRED:
            state = "null" if key in self else "missing"
            raise InputError(f"{self.where}: key {key} is {state}")
        if value is None or value is default:
            return default
        if not fits(value):
            raise self.wrong(key, expected)
        return value


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, hint: str = "copy it again") -> JsonObject:
    """The object in the JSON file ``path``.

    ``hint`` is the fix where the file is damaged.

    Raises:
        InputError: no such file; it is too large, not UTF-8, not JSON, or holds no object.
    """
    value = read_json_value(path, max_bytes=max_bytes, hint=hint)
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not {_shown(value)}: {hint}")
    return JsonObject(value, str(path))


def read_json_value(path: Path, *, max_bytes: int = MAX_BYTES, hint: str = "copy it again") -> Any:
    """As :func:`read_json`, for a file that may hold any value."""
    return parse_json(read_bounded(path, max_bytes), str(path), hint=hint)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All bytes of a small file.

    Raises:
        InputError: no such file, no regular file, or a larger one.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(missing(path)) from None
    except InputError:
        raise
    except OSError as error:
        told = refused_file(error, "read")
        raise told or InputError(f"{path} cannot be read ({error})") from error
    except ValueError as error:  # a null byte in the path
        raise InputError(f"{path} cannot be read ({error})") from error
    if len(data) > max_bytes:
        raise InputError(
            f"{path} has more than {max_bytes:,} bytes, the largest size of such a file: it is "
            "not what its name says"
        )
    if pointer := pointer_of(data):
        raise InputError(f"{path} is {pointer.name}: {pointer.way_out}")
    return data


def parse_json(data: bytes | str, where: str, *, hint: str = "copy it again") -> Any:
    """The value that ``data`` spells, in UTF-8; ``where`` names its place in messages.

    Raises:
        InputError: it is not JSON, or nested deeper than 64, or holds ``NaN``, ``Infinity``, a
            number beyond a float's range or of more than 64 digits, a key twice, or half a
            character.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
        _check_depth(value)
        if (
            "\\ud" in text or "\\uD" in text
        ):  # half a pair is not a character, and cannot be written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InputError(f"{where} is nested too deeply, {MAX_DEPTH} levels are read") from None
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): {hint}") from error
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, at most {_MAX_DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{_shown(digits)} is beyond a number's range")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {_shown(twice)} stands there twice")
    return values


def _check_depth(value: Any) -> None:
    """Raise RecursionError beyond ``MAX_DEPTH``; whatever walks the value later need not look."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise RecursionError


def _containers(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return ()
    return [inner for inner in value if isinstance(inner, dict | list)]


def _fits(
    kind: Any, value: Any, *, minimum: Any = None, maximum: Any = None, above: Any = None
) -> bool:
    """Whether it is a number inside its bounds."""
    return (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (minimum is None or value >= minimum)
        and (maximum is None or value <= maximum)
        and (above is None or value > above)
    )


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {minimum:,} to {maximum:,}"
    if minimum is not None:
        return f" of at least {minimum:,}"
    return "" if maximum is None else f" of at most {maximum:,}"


def _shown(value: Any) -> str:
    """A value as messages show it: its beginning, and what it is."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    text = value if isinstance(value, str) else json.dumps(value)
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return repr(text) if isinstance(value, str) else text
