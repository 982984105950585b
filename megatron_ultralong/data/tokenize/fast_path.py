"""A ``tokenizer.json`` as gigatoken is given it, where it reads all that counts there."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


class FastPathError(Exception):
    """Why the reference has to take over; never seen by the user as an error."""


def text_for_gigatoken(text: str) -> str:
    """A ``tokenizer.json`` that adds, cuts and recognises nothing special.

    Raises:
        FastPathError: it has tokens that gigatoken does not find where the reference does, or cuts
            texts by steps that gigatoken passes over.
    """
    data = json.loads(text)
    data["added_tokens"] = _added_tokens(data)
    data["post_processor"] = data["truncation"] = data["padding"] = None
    _check_steps(data)
    return json.dumps(data)


def _added_tokens(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a ``tokenizer.json`` that are vocabulary, found in a text before it is cut.

    gigatoken looks for them everywhere, and behind the normaliser.

    Raises:
        FastPathError: one is to be found elsewhere.
    """
    found = [token for token in data.get("added_tokens") or [] if not token.get("special")]
    for token in found:
        flags = [name for name in ("single_word", "lstrip", "rstrip") if token.get(name)]
        if data.get("normalizer") is not None and not str(token.get("content")).isascii():
            flags.append("a normalizer")
        if flags:
            raise FastPathError(
                f"gigatoken finds the added token {token.get('content')!r} without regard to "
                f"{flags[0]}"
            )
    return found


def _check_steps(data: Mapping[str, Any]) -> None:
    """Check that of several steps gigatoken passes over none: it looks for patterns alone.

    It takes them for ``Split`` with the pieces kept, then ``ByteLevel`` that neither cuts nor adds.

    Raises:
        FastPathError: there is another one.
    """
    steps = list(_steps(data.get("pre_tokenizer")))
    if len(steps) == 1 and steps[0].get("type") != "Split":
        return
    for number, step in enumerate(steps):
        how = (step.get("behavior"), bool(step.get("invert")))
        is_split = step.get("type") == "Split" and how in (("Isolated", False), ("Removed", True))
        is_split = is_split and "Regex" in (step.get("pattern") or {})  # not a text as it stands
        is_bytes = step.get("type") == "ByteLevel" and number == len(steps) - 1
        if is_bytes:  # both are true where the file does not say
            is_bytes = not (step.get("use_regex", True) or step.get("add_prefix_space", True))
        if not (is_split or is_bytes):
            raise FastPathError(
                f"gigatoken does not cut as step {number + 1} of the pre-tokenizer does "
                f"({json.dumps(step)[:80]})"
            )


_OTHER_CLASSES = re.compile(r"\\[pP](?!\{[LMNZ][a-z]?\})|\\[wWbBX]|\[\[?:")
"""Classes of signs, scripts and words in a pattern: symbols and punctuation may be in them."""


def cuts_by_letters(text: str) -> bool:
    """Whether a ``tokenizer.json`` tells letters, marks, numbers and spaces apart, and no more.

    To them a symbol is what a character is that no version of Unicode has.
    """
    return not any(_OTHER_CLASSES.search(pattern) for pattern in _patterns(json.loads(text)))


def _patterns(value: Any) -> Iterator[str]:
    """Those of all steps, of the normaliser too."""
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        for key, inner in value.items():
            if key != "model":
                yield from _patterns(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _patterns(inner)


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a pre-tokenizer, those inside sequences too."""
    if not isinstance(step, dict):
        return
    if step.get("type") == "Sequence":
        for inner in step.get("pretokenizers") or []:
            yield from _steps(inner)
    else:
        yield step
