"""Records of data of preferences: what they say is not to be learnt is not, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ultralong.data.read.options import ChatReadOptions
from megatron_ultralong.data.read.reading import ConversationReader
from megatron_ultralong.data.read.sources import Source
from megatron_ultralong.program.errors import InputError

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
WHOLE: dict[str, dict[str, Any]] = {
    "messages": {"messages": [QUESTION, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "turns": {"prompt": [QUESTION], "completion": [ANSWER]},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "answers": {"question": "q", "response": "a"},
}


def write(folder: Path, records: list[dict[str, Any]], suffix: str) -> Path:
    path = folder / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: Path, **options: Any) -> ConversationReader:
    reader = ConversationReader(Source("x", str(path)), ChatReadOptions(**options))
    assert all(chat.messages[-1].content == "a" for _, chat in reader)
    return reader


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("key", ["label", "kto_tag"])
@pytest.mark.parametrize("shape", WHOLE)
def test_an_answer_that_is_not_to_be_learnt(
    tmp_path: Path, shape: str, key: str, suffix: str
) -> None:
    verdicts = [True, False, None, True]
    path = write(tmp_path, [{**WHOLE[shape], key: verdict} for verdict in verdicts], suffix)
    place = r"a\.json\[1\]" if suffix == ".json" else rf"a\{suffix}:2"
    with pytest.raises(InputError, match=rf"{place}: bad weight: a record has {key} false.*select"):
        read(path)
    reader = read(path, skip_bad=True)
    assert (reader.num_conversations, reader.num_bad) == (3, {"bad weight": 1})
    assert read(path, ignore_keys=(key,)).num_conversations == 4


@pytest.mark.parametrize("label", [0, 1, "false", 0.0])
def test_a_label_of_another_kind_is_no_verdict(tmp_path: Path, label: object) -> None:
    path = write(tmp_path, [{**WHOLE["messages"], "label": label}], ".jsonl")
    assert read(path).num_conversations == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(("mark", "turns"), [("messages", [QUESTION, ANSWER]),
                                             ("conversations", [HUMAN, GPT])])  # fmt: skip
def test_an_answer_under_another_key(
    tmp_path: Path, mark: str, turns: list[dict[str, str]], suffix: str, *, as_list: bool
) -> None:
    question, answer = turns
    chosen = [answer] if as_list else answer
    records: list[dict[str, Any]] = [
        {mark: turns, "chosen": chosen, "rejected": chosen},
        {mark: [*turns, question], "chosen": chosen, "rejected": chosen},
        {mark: [*turns, question], "chosen": None, "rejected": None},
    ]
    path = write(tmp_path, records, suffix)
    with pytest.raises(InputError, match=rf"a\{suffix}:2: unknown keys: .* under 'chosen'") as told:
        read(path)
    assert read(path, skip_bad=True).num_conversations == 2
    assert read(path, ignore_keys=("chosen",)).num_conversations == 3
    if suffix == ".jsonl" and shutil.which("jq"):  # the fix fixes it
        query = str(told.value).partition("jq -c '")[2].partition("'")[0]
        lines = path.read_text().splitlines()[1]
        new = subprocess.run(["jq", "-c", query], input=lines, text=True, capture_output=True)
        found = ConversationReader(
            Source("x", str(write(tmp_path, [json.loads(new.stdout)], ".jsonl"))), ChatReadOptions()
        )
        ((_, chat),) = list(found)
        assert [message.content for message in chat.messages] == ["q", "a", "q", "a"]
