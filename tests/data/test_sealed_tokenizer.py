"""A tokenizer inside a checkpoint that is refused: the suggestion leaves the checkpoint whole."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_ultralong import cli
from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import SOURCE_FOLDER, load_metadata
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.data.tokenize.engines import choose_tokenizer
from megatron_ultralong.program.errors import InputError
from tests.models import write_llama


@pytest.mark.parametrize("what", ["lost tokens", "no tokenizer.json"])
def test_the_suggestion_makes_rows_of_the_model(what: str, tmp_path: Path) -> None:
    source, base = tmp_path / "hf", tmp_path / "base"
    write_llama(source)
    if what == "lost tokens":
        tokens = {"319": {"content": "<tool>", "special": False}}
        config = {"added_tokens_decoder": tokens, "tokenizer_class": "PreTrainedTokenizerFast"}
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    import_checkpoint(ImportConfig(source, base, tokenizer=what == "lost tokens"))
    kept = base / SOURCE_FOLDER
    if what == "no tokenizer.json":
        kept.mkdir(exist_ok=True)
        (kept / "tokenizer.json").unlink(missing_ok=True)
        (kept / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match="in the folder SRC that ") as caught:
        choose_tokenizer(kept, "auto")
    said = str(caught.value)
    assert f"{base} was imported from" in said
    assert str(kept) not in said.split("in the folder SRC")[1], "nothing sealed is written to"
    if what == "no tokenizer.json":
        return
    line = said.split("import that again: ")[1]
    python, ultralong = line.split(" && ")
    new = tmp_path / "new"
    words = shlex.split(python.replace("SRC", str(source)))[1:]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    cli.main(shlex.split(ultralong.replace("SRC", str(source)).replace("NEW", str(new)))[1:])
    chosen = choose_tokenizer(new / SOURCE_FOLDER, "auto").tokenizer
    assert chosen.sha256 == load_metadata(new).tokenizer_sha256, "what pretrain compares"
    judge = AutoTokenizer.from_pretrained(source)
    text = "a <tool> b"
    (ids,) = chosen.encode_documents([text])
    assert ids.tolist() == judge.encode(text, add_special_tokens=False)
    assert load_metadata(base).model == load_metadata(new).model, "the first one is whole"
