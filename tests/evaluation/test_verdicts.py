from __future__ import annotations

import dataclasses

import pytest

from examples.demo.verdicts import Bounds, chat_checks, loss_checks, passkey_checks
from megatron_ultralong.evaluation.results.result import Result
from tests.evaluation.results import AFTER, BEFORE, loss_results, passkey_result, task_result


def passkeys(inside=9, beyond=1, full=8) -> tuple[Result, Result]:
    return (
        passkey_result("before", 512, {512: inside, 1024: 0, 2048: beyond}),
        passkey_result("after", 2048, {512: 9, 1024: 9, 2048: full}),
    )


# The base's mean inside its 512 positions is 3.1: 3.35 and 3.15 are the bounds beyond.
@pytest.mark.parametrize(
    ("before", "after", "verdicts"),
    [
        (BEFORE, AFTER, [True, True, True]),
        ((3.2, 3.0, 3.36, 6.0), AFTER, [True, True, True]),
        ((3.2, 3.0, 3.34, 6.0), AFTER, [False, True, True]),
        (BEFORE, (3.2, 3.0, 3.0, 3.16), [True, False, True]),
        (BEFORE, (3.2, 3.06, 3.0, 3.0), [True, True, False]),
        (BEFORE, (3.26, 3.0, 3.0, 3.0), [True, True, False]),
    ],
)
def test_losses_are_held_against_the_base_inside_its_context(before, after, verdicts):
    checks = loss_checks(loss_results(before, after), Bounds())
    assert [check.passed for check in checks] == verdicts
    assert "3.100 + 0.25" in checks[0].bound
    assert "3.100 + 0.05" in checks[1].bound


@pytest.mark.parametrize(
    ("counts", "verdicts"),
    [
        ((9, 1, 8), [True, True, True]),
        ((8, 1, 8), [False, True, True]),
        ((9, 2, 8), [True, False, True]),
        ((9, 1, 7), [True, True, False]),
    ],
)
def test_passkeys_are_held_against_their_bounds(counts, verdicts):
    checks = passkey_checks(*passkeys(*counts), Bounds())
    assert [check.passed for check in checks] == verdicts


def test_what_was_not_measured_does_not_pass():
    inside_only = passkey_result("before", 512, {256: 10})
    checks = passkey_checks(inside_only, passkeys()[1], Bounds())
    assert (checks[1].passed, checks[1].figure) == (False, "not measured")
    beyond_only = passkey_result("before", 512, {1024: 0})
    checks = passkey_checks(beyond_only, passkeys()[1], Bounds())
    assert (checks[0].passed, checks[0].figure) == (False, "not measured")
    trained_longer = [dataclasses.replace(one, max_positions=4096) for one in loss_results()]
    checks = loss_checks(trained_longer, Bounds())
    assert [check.figure for check in checks[:2]] == ["not measured", "not measured"]
    assert not any(check.passed for check in checks[:2])


@pytest.mark.parametrize(
    ("scores", "kept", "verdicts"),
    [
        ((10, 40), 8, [True, True, True]),
        ((11, 40), 8, [False, True, True]),
        ((10, 39), 8, [True, False, True]),
        ((10, 40), 7, [True, True, False]),
    ],
)
def test_tuning_is_held_against_the_untuned_model(scores, kept, verdicts):
    before, tuned = (
        task_result("chat", name, 2048, {("turn 1", "128"): score, ("turn 2", "256"): score})
        for name, score in zip(("after", "tuned"), scores, strict=True)
    )
    passkey = passkey_result("tuned", 2048, {512: 0, 2048: kept})
    checks = chat_checks(before, tuned, passkey, Bounds())
    assert [check.passed for check in checks] == verdicts
    assert checks[1].figure == f"{scores[1]:.1f} %"
