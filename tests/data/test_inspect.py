"""`prepare --inspect`: what was made, shown once more without making it again."""

import dataclasses
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.prepare.documents import prepare
from tests.data.digests import digests


def test_inspect_of_what_is_there_needs_its_folder_alone(
    config: PrepareConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(dataclasses.replace(config, output=tmp_path / "rows", inspect=True))
    shown = capsys.readouterr().out
    monkeypatch.setenv("HOME", str(tmp_path))
    outputs = ["--output", str(tmp_path / "rows")], [f"--output={tmp_path / 'rows'}"]
    for words in (*outputs, ["--output=~/rows"]):
        cli.main(["prepare", *words, "--inspect"])
        assert capsys.readouterr().out.strip() in shown
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "chat_manifest.json").touch()
    needed, chats = "--tokenizer is needed", ["--output", str(tmp_path / "chats"), "--inspect"]
    for words, part in (
        (["--output", str(tmp_path / "rows")], needed),
        (["--output", "nowhere", "--inspect", "--source", "a=b"], needed),
        (["--output", "nowhere", "--inspect"], "cannot read nowhere/manifest.json (No such file"),
        (chats, "these are rows of conversations, which `sft` trains on"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["prepare", *words])
        assert part in capsys.readouterr().err


def test_inspect(config: PrepareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(config, output=tmp_path / "rows", inspect=True, seq_length=60_000)
    made = prepare(config)
    first = capsys.readouterr().out
    assert "lengths before and after sampling" in first
    assert "train, row 0 of" in first
    assert "<s> [" in " ".join(first.split())  # the separator, decoded and as ids
    picture = tmp_path / "rows" / "lengths.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    before = digests(tmp_path / "rows")
    assert prepare(config) == made  # of rows that are there already: nothing is made again
    again = capsys.readouterr().out
    assert "Tokenizing" not in again
    assert again in first or first.endswith(again)
    picture.unlink()
    assert digests(tmp_path / "rows") == before
