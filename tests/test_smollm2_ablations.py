"""examples/smollm2/ablations.py: what is refused before an arm runs, and what is left of one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.test_smollm2 import module


@pytest.mark.parametrize(
    "words",
    [("--share", "2/2"), ("--share", "1/1"), ("--share", "-1/2"), ("--share", "0/0"),
     ("--share", "1"), ("--share", "a/b"), ("--share", "2/3"), ("--runs", "short-mask"),
     ("--runs", "recipe"), ("--runs", "recipe-"), ("--runs", "before-1")],
)  # fmt: skip
def test_ablations_of_no_share_or_seed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, str],
) -> None:  # fmt: skip
    """1/1 and -1/2 left runs out; short-mask, which is an arm without a seed, ended in a trace
    after the runs before it.
    """
    ablations, ran = module("ablations"), []
    monkeypatch.setattr(ablations, "run_arm", lambda work, label: ran.append(label))
    monkeypatch.setattr(sys, "argv", ["ablations.py", str(tmp_path), "=".join(words)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(SystemExit) as refused:
        ablations.main()
    assert refused.value.code == 2
    assert " ".join(words) in capsys.readouterr().err
    assert not ran


@pytest.mark.parametrize("kind", ["long", "short"])
def test_ablations_of_no_corpus_leave_nothing(tmp_path: Path, kind: str) -> None:
    """An empty folder stayed, and was taken for the documents when step 2 had written them."""
    ablations, corpus = module("ablations"), tmp_path / "corpus" / "train"
    with pytest.raises(SystemExit) as refused:
        ablations.some_documents(tmp_path, kind)
    assert f"{corpus} has no .jsonl file; 02_get_corpus.sh writes them" in str(refused.value)
    assert not list(tmp_path.iterdir())
    corpus.mkdir(parents=True)
    (corpus / "code.jsonl").write_text('{"text": "line\\n"}\n')
    assert (ablations.some_documents(tmp_path, kind) / "code.jsonl").read_text()


@pytest.mark.parametrize("changed", ["corpus/corpus.json", "base/checksums.json"])
def test_arms_of_another_corpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Finished arms and rows stayed, and later ones were compared with them."""
    ablations = module("ablations")
    monkeypatch.setattr(ablations, "run_arm", lambda work, label: None)
    monkeypatch.setattr(sys, "argv", ["ablations.py", str(tmp_path), "--runs", "recipe-1"])
    for name in ("corpus/corpus.json", "base/checksums.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("first")
    ablations.main()
    ablations.main()
    (tmp_path / changed).write_text("second")
    with pytest.raises(SystemExit, match=f"{changed} is not what the arms in .* are made of"):
        ablations.main()
    shutil.rmtree(tmp_path / "ablations")
    ablations.main()


def test_ablations_that_were_killed_at_their_end_leave_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gigabytes of each arm that was killed between its last figure and its removal stayed."""
    ablations = module("ablations")
    monkeypatch.setattr(ablations, "run", lambda *words: pytest.fail("it is finished"))
    for name in ("results/two-steps-1/passkey", "two-steps-1", "two-steps-1-first", "recipe-1"):
        (tmp_path / "ablations" / name).mkdir(parents=True)
    ablations.run_arm(tmp_path, "two-steps-1")
    left = {path.name for path in (tmp_path / "ablations").iterdir()}
    assert left == {"results", "recipe-1"}
