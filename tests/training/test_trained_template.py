"""A model is served in the template that it was tuned in, whatever its base had."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import (
    FILE_NAME,
    SOURCE_FOLDER,
    load_metadata,
    seal_small_files,
    unseal,
)
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.config.run import CheckpointConfig, LogConfig
from megatron_ultralong.config.training import DataConfig, SftConfig
from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.read.conversation import Conversation, Message, ToolCall
from megatron_ultralong.data.rows.manifest import load_chat_manifest
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.data.tokenize.chat_template import END, TEMPLATES
from megatron_ultralong.data.tokenize.trained_template import missed_end, trained_template
from megatron_ultralong.generation.generate import ChatPrompt
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer, Special
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.training.early_checks import RunInputs
from megatron_ultralong.training.saving.run_folder import RunFolder
from megatron_ultralong.training.verbs import check_sft, dry_run, sft
from tests.data.chats import TEMPLATE, write_jsonl
from tests.training.chats import conversations, write_chat_model

OTHER = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
PLAIN = TEMPLATES["plain"].jinja
DATE = 'the "1st" of \\n May: é'
"""Of rows in ``llama3.1``: its template writes it where a caller gives none."""
BASES = {"none": None, "other": OTHER, "plain": PLAIN, "llama3.1": TEMPLATE}
"""Templates of the model that is tuned."""
ROWS = {
    "plain, none": ("plain", None, True),
    "plain, its own": ("plain", PLAIN, True),
    "plain, not compared": ("plain", OTHER, False),
    "llama3, none": ("llama3", None, True),
    "llama3.1, none": ("llama3.1", None, True),
    "llama3.1, its own": ("llama3.1", TEMPLATE.replace("26 Jul 2024", "1 May 1999"), True),
    "llama3.1, not compared": ("llama3.1", OTHER, False),
}
"""Rows: ``--chat-template``, the template in the tokenizer's folder, whether they are compared."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    write_chat_model(folder, max_position_embeddings=512)
    records = conversations(4)
    records[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    write_jsonl(folder / "chats.jsonl", records)
    for name, (template, own, is_compared) in ROWS.items():
        write_template(folder / "hf", own)
        date = "1 May 1999" if own else DATE
        prepare_chat(
            PrepareChatConfig(
                source=(f"chats={folder}/chats.jsonl",),
                tokenizer=folder / "hf",
                output=folder / name,
                seq_length=512,
                valid_fraction=0.0,
                chat_template=template,
                check_template=is_compared,
                date_string=date,
            )
        )
    for name, template in BASES.items():
        write_template(folder / "hf", template)
        import_checkpoint(ImportConfig(folder / "hf", folder / "bases" / name))
    return folder


def write_template(folder: Path, template: str | None) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values.pop("chat_template", None)
    path.write_text(json.dumps(values | ({"chat_template": template} if template else {})))


def make_config(folder: Path, base: str, rows: str, **changes: object) -> SftConfig:
    config = SftConfig(
        load=str(folder / "bases" / base),
        train_iters=1,
        global_batch_size=1,
        precision="fp32",
        data=DataConfig(str(folder / rows), document_mask="block", reset_position_ids=True),
        checkpoint=CheckpointConfig(async_save=False),
        log=LogConfig(tensorboard=False),
    )
    return dataclasses.replace(config, **changes)


def trained_texts(folder: Path, rows: str, judge: PreTrainedTokenizerFast) -> set[str]:
    stored = ChatRows(folder / rows / "train")
    return {judge.decode(tokens) for n in range(len(stored)) for tokens, _ in stored.examples(n)}


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run that was trained; what it says of its template is what the tests write again."""
    sft(make_config(folder, "other", "plain, not compared", save=str(folder / "run")))
    return folder / "run"


def remarks(inputs: RunInputs) -> str:
    return " ".join(text for text in inputs.remarks if text.startswith("chat template"))


@pytest.mark.parametrize(
    ("base", "rows"),
    [
        pytest.param(
            *(base, rows),
            marks=[] if base == "other" or base in rows.split(", ") else pytest.mark.slow,
        )
        for base in BASES
        for rows in ROWS
    ],
)
def test_exports_and_chats_are_in_the_template_of_the_rows(
    folder: Path, run: Path, tmp_path: Path, base: str, rows: str
) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(SOURCE_FOLDER, FILE_NAME))
    inputs = check_sft(make_config(folder, base, rows), 1)
    config = dataclasses.replace(inputs.config, save=str(tmp_path / "run"))
    RunFolder(config, inputs.result, inputs.agreed, inputs.template).write_identity()
    kept = tmp_path / "run" / SOURCE_FOLDER
    own = folder / "bases" / base / SOURCE_FOLDER
    named, template, is_compared = ROWS[rows]
    is_same = template == BASES[base] if template and is_compared else False
    is_same |= named == base == "plain"
    assert (remarks(inputs) == "") == is_same
    if not is_same:
        found = "none" if BASES[base] is None else "another one"
        assert remarks(inputs).endswith(f"and in their exports; {own} has {found}")
    load_metadata(tmp_path / "run")  # sealed
    export_checkpoint(ExportConfig(tmp_path / "run", tmp_path / "hf", verify=False))
    messages = conversations(4)[1]["messages"]
    chats = []
    for place in (kept, tmp_path / "hf"):
        judge = PreTrainedTokenizerFast.from_pretrained(place)
        text = judge.apply_chat_template(messages, tokenize=False)
        assert text in trained_texts(folder, rows, judge)
        prompt = judge.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert text.startswith(prompt)
        chat = ChatPrompt(place)
        assert judge.decode(chat.encode(messages[0]["content"])) == prompt
        end = "<|end_of_text|>" if named == "plain" else "<|eot_id|>"
        assert chat.end_ids() == {judge.convert_tokens_to_ids(end)}
        ends = map(judge.convert_tokens_to_ids, template_ends(named))
        # as engines have it: what the base stopped at, and the ends of answers
        assert set(GenerationConfig.from_pretrained(place).eos_token_id) == {2, *ends}
        assert chat.end_ids() < PromptTokenizer(place).stop_ids()
        chats.append(prompt)
        assert missed_end(place) is None
    assert chats[0] == chats[1]


def test_an_export_says_where_answers_have_no_stop(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("llama3.1", "plain", "none"):
        checkpoint = folder / "bases" / name
        config = ExportConfig(checkpoint, tmp_path / name, verify=False)
        export_checkpoint(config)
        said = capsys.readouterr().err
        tokenizer = PromptTokenizer(checkpoint / SOURCE_FOLDER)
        (end,) = tokenizer.encode_parts([Special("<|eot_id|>")])
        assert ("ends answers with <|eot_id|>, where no file" in said) == (name == "llama3.1")
        if name == "llama3.1":
            assert f"; add {end} to eos_token_id of {config.dst / 'generation_config.json'}" in said
            assert missed_end(checkpoint / SOURCE_FOLDER) == ("<|eot_id|>", end)


def template_ends(name: str) -> list[str]:
    """What ends an answer in a template: the last token of it that is learnt."""
    turns = (Message("user", "a"), Message("assistant", "b"))
    call = (Message("user", "a"), Message("assistant", "", ToolCall("f", {})))
    chats = [Conversation(turns)]
    if name == "llama3.1":
        chats += [Conversation(call), Conversation(call, builtin_tools=())]
    found = (TEMPLATES[name].render(chat, "") for chat in chats)
    ends = [next(p for p in reversed(pieces) if p.is_target) for pieces in found]
    assert all(end.is_special for end in ends)
    return ["<|end_of_text|>" if end.text == END else end.text for end in dict.fromkeys(ends)]


def test_a_start_says_it_and_a_run_of_before_is_set_right(folder: Path, run: Path) -> None:
    """Versions before kept the base's template in the run: the next start writes the trained."""
    config = make_config(folder, "other", "plain, not compared", save=str(run))
    inputs = check_sft(config, 1)
    assert "# chat template: that of " in dry_run(inputs, 1)
    assert "# stop tokens: <|end_of_text|>, which end answers, are named " in dry_run(inputs, 1)
    unseal(run)
    shutil.copytree(folder / "bases" / "other" / SOURCE_FOLDER, run / SOURCE_FOLDER,
                    dirs_exist_ok=True)  # fmt: skip
    (run / SOURCE_FOLDER / "chat_template.jinja").unlink()
    (run / SOURCE_FOLDER / "generation_config.json").write_text('{"top_k": 3}')
    (run / SOURCE_FOLDER / "config.json").write_text('{"eos_token_id": 7}')
    seal_small_files(run)
    sft(dataclasses.replace(config, train_iters=2))
    assert (run / SOURCE_FOLDER / "chat_template.jinja").read_text() == PLAIN
    end = PromptTokenizer(run / SOURCE_FOLDER).encode_parts([Special("<|end_of_text|>")])
    found = json.loads((run / SOURCE_FOLDER / "generation_config.json").read_text())
    assert found == {"top_k": 3, "eos_token_id": [7, *end]}
    load_metadata(run)


def test_templates_know_what_ends_their_answers() -> None:
    for name, template in TEMPLATES.items():
        ends = ["<|end_of_text|>" if end == END else end for end in template.ends]
        assert ends == template_ends(name)


def test_templates_for_other_purposes_go_and_tokens_come(folder: Path, tmp_path: Path) -> None:
    """A template may write ``eos_token``: what that is belongs to it."""
    rows = folder / "plain, its own"
    template = trained_template(rows, load_chat_manifest(rows))
    assert template.tokens == {"eos_token": "<|end_of_text|>"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    several = [{"name": "default", "template": OTHER}, {"name": "rag", "template": OTHER}]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = {"bos_token": "b", "eos_token": {"content": "e"}, "chat_template": several}
        (tmp_path / name).write_text(json.dumps(values))
    assert template.lacks(tmp_path) == "another one"
    template.put(tmp_path)
    assert template.lacks(tmp_path) == ""
    assert not (tmp_path / "additional_chat_templates").exists()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = json.loads((tmp_path / name).read_text())
        assert values == {"bos_token": "b", "eos_token": "<|end_of_text|>"}
    newer = {"eos_token": "e", "added_tokens_decoder": {}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(newer))
    assert template.lacks(tmp_path) == "it with eos_token 'e', not '<|end_of_text|>'"


def test_texts_of_templates_stay() -> None:
    """Tuned models and rows have them: to these, one that changes is another template."""
    found = {
        name: hashlib.sha256(t.jinja.encode()).hexdigest()[:12] for name, t in TEMPLATES.items()
    }
    assert found == {
        "llama3.1": "c3d013de8bc5",
        "llama3": "87886c3e5cfe",
        "plain": "58eccc127194",
        "chatml": "49dda2328d9f",
        "qwen2.5": "56d9102f46aa",
        "qwen3": "456e36647d93",
    }


@pytest.mark.parametrize("rows", ["plain, none", "plain, its own", "llama3.1, not compared"])
def test_rows_keep_the_text_that_they_were_written_with(
    folder: Path, tmp_path: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where this program's says another thing by now; a text of others is refused."""
    shutil.copytree(folder / rows, tmp_path / "rows")
    manifest = load_chat_manifest(tmp_path / "rows")
    before = trained_template(tmp_path / "rows", manifest)
    assert before.sha256 == manifest.chat_template_sha256
    name = ROWS[rows][0]
    changed = dataclasses.replace(TEMPLATES[name], jinja=TEMPLATES[name].jinja + "{# new #}")  # type: ignore[index]
    monkeypatch.setitem(TEMPLATES, name, changed)
    assert trained_template(tmp_path / "rows", manifest) == before
    (tmp_path / "rows" / "tokenizer" / "chat_template.jinja").write_text(OTHER)
    with pytest.raises(
        InputError, match=r"were written with a chat template of SHA-256 \w{12}\.\.\.,"
    ):
        trained_template(tmp_path / "rows", manifest)


def test_rows_of_before_may_have_thoughts_behind_empty_ones(folder: Path) -> None:
    """They do not state their text, and versions before wrote another in template qwen3."""
    rows = folder / "plain, not compared"
    made = dataclasses.replace(load_chat_manifest(rows), chat_template_sha256="")
    assert not trained_template(rows, made).doubt
    old = dataclasses.replace(made, chat_template="qwen3")
    expected = "whose template qwen3 put an empty thought before"
    assert expected in trained_template(rows, old).doubt
    thinking = [dataclasses.replace(source, num_with_reasoning=3) for source in made.sources]
    assert trained_template(rows, dataclasses.replace(old, sources=thinking)).doubt  # dropped
    with pytest.raises(InputError, match=rf"{expected} .*: so have 3 conversations"):
        trained_template(rows, dataclasses.replace(old, sources=thinking, reasoning="keep"))


def test_rows_that_do_not_know_their_template_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, changes, message in (
        ("plain, its own", {}, "has no chat template, and the manifest beside it"),
        ("plain, none", {"chat_template": "mine"}, "names chat_template 'mine', and this"),
    ):
        shutil.copytree(folder / name, tmp_path / name)
        (tmp_path / name / "tokenizer" / "chat_template.jinja").unlink(missing_ok=True)
        write_template(tmp_path / name / "tokenizer", None)
        manifest = dataclasses.replace(load_chat_manifest(tmp_path / name), **changes)
        with pytest.raises(InputError, match=message):
            trained_template(tmp_path / name, manifest)


def test_prompts_of_llama_3_are_for_models_of_its_template(folder: Path) -> None:
    for base in ("none", "llama3.1"):
        PromptTokenizer(folder / "bases" / base / SOURCE_FOLDER).check_template("chat")
    tokenizer = PromptTokenizer(folder / "bases" / "other" / SOURCE_FOLDER)
    tokenizer.check_template("base")
    with pytest.raises(
        InputError, match=r"and the chat template, which .* has none: use --prompt-template base"
    ):
        tokenizer.check_template("chat")
