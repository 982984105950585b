"""Assistant's turns by one forward pass: against transformers, on a layout, and bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import import_checkpoint
from megatron_ultralong.config.convert import ImportConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.data.options import PrepareChatConfig
from megatron_ultralong.data.prepare.chats import prepare_chat
from megatron_ultralong.data.rows.stored import ChatRows
from megatron_ultralong.evaluation.chat import evaluate_chat
from megatron_ultralong.evaluation.models.facts import model_facts, tokenizer_folder
from megatron_ultralong.evaluation.models.language_models import Subject, open_scorers
from megatron_ultralong.evaluation.options import ChatConfig, CostConfig, ModelsConfig
from megatron_ultralong.evaluation.results.file import read_result
from megatron_ultralong.evaluation.results.result import Result
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.errors import InputError
from tests.models import TEXT, write_llama, write_tokenizer
from tests.ranks import run_on_ranks
from tests.training.chats import conversations, write_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, and a model that has learnt by heart which token follows which in them.

    With no attention and no MLP a token's logits are its embedding times the output's: so many
    turns come out right, and many do not.
    """
    folder = tmp_path_factory.mktemp("chat")
    write_chat_model(folder / "plain", max_position_embeddings=256)
    records = conversations(30)
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    prepare_chat(
        PrepareChatConfig(
            source=(f"all={folder / 'chats.jsonl'}",),
            tokenizer=folder / "plain" / "hf",
            output=folder / "rows",
            seq_length=256,
            chat_template="llama3",
            valid_fraction=0.5,
        )
    )
    model = LlamaForCausalLM.from_pretrained(folder / "plain" / "hf")
    follows: dict[int, int] = {}
    for tokens, turns in examples(folder):
        for start, stop in turns.tolist():
            for before, after in zip(tokens[start - 1 : stop - 1], tokens[start:stop], strict=True):
                follows.setdefault(int(before), int(after))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.lm_head.weight.mul_(0.01)  # the rest: far below, yet not all the same
        for before, after in follows.items():
            model.lm_head.weight[after] += model.model.embed_tokens.weight[before]
    shutil.copytree(folder / "plain" / "hf", folder / "hf")
    model.save_pretrained(folder / "hf")
    import_checkpoint(ImportConfig(folder / "hf", folder / "megatron"))
    return folder


def examples(folder: Path) -> list:
    rows = ChatRows(folder / "rows" / "valid")
    return [one for number in range(len(rows)) for one in rows.examples(number)]


def run(load: Path, config: ChatConfig, parallel: ParallelConfig | None = None) -> Result:
    models = ModelsConfig((str(load),), "fp32", parallel or ParallelConfig())
    facts = model_facts(str(load), "fp32")
    tokenizer = PromptTokenizer(tokenizer_folder(str(load)))
    with open_scorers(models) as scorers:
        cost = CostConfig(estimated_tflops=0.1)
        return evaluate_chat(config, Subject(next(scorers), facts, tokenizer, cost))


def on_two_ranks(folder: Path, output: Path) -> None:
    config = ChatConfig(data_path=str(folder / "rows"), output=str(output), micro_batch_size=4)
    run(folder / "megatron", config, ParallelConfig(context_parallel_size=2))


def test_turns_are_scored_as_transformers_scores_them(folder: Path, tmp_path: Path) -> None:
    """Alone and unpadded in transformers; padded batches over two ranks in Megatron-Core."""
    model = LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float64).eval()
    expected, exact, num_right, num_tokens, total = [], [], 0, 0, 0.0
    for tokens, turns in examples(folder):
        ids = torch.from_numpy(tokens.astype("int64"))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        likeliest = logits.argmax(1) == ids[1:]
        loss = -logits.log_softmax(1).gather(1, ids[1:, None]).squeeze(1)
        parts = [slice(start - 1, stop - 1) for start, stop in turns.tolist()]
        expected.append([(float(loss[p].sum()), int(likeliest[p].sum())) for p in parts])
        exact += [bool(likeliest[part].all()) for part in parts]
        num_right += sum(int(likeliest[part].sum()) for part in parts)
        num_tokens += sum(part.stop - part.start for part in parts)
        total += sum(float(loss[part].sum()) for part in parts)
    assert 0.1 < sum(exact) / len(exact) < 0.9  # else the test would not tell them apart

    run_on_ranks(2, on_two_ranks, folder, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    found = [list(zip(line["losses"], line["right"], strict=True)) for line in lines]
    for actual, reference in zip(sorted(found), sorted(expected), strict=True):
        for (loss, right), (their_loss, their_right) in zip(actual, reference, strict=True):
            # Float32 sums of up to 40 losses of magnitude 10.
            assert (loss, right) == (pytest.approx(their_loss, abs=1e-3), their_right)
    result = read_result(tmp_path / "out" / "chat.json", "chat")
    count = sum(cell.num_samples for cell in result.cells)
    assert count == len(exact)
    assert sum(cell.num_samples * cell.score for cell in result.cells) == pytest.approx(
        100 * sum(exact)
    )
    assert "not the chat template of 'megatron': " in result.notes[2], "it has none"
    mean = float(result.notes[1].split()[1])
    assert mean == pytest.approx(total / num_tokens, abs=2e-4)
    assert f"{100 * num_right / num_tokens:.1f} %" in result.notes[1]
    assert result.rows == ("turn 1", "turn 2", "turn 3")
    assert (tmp_path / "out" / "chat.png").stat().st_size > 5000


def test_a_turn_is_in_the_column_of_its_end(folder: Path) -> None:
    config = ChatConfig(data_path=str(folder / "rows"), num_samples=3)
    result = run(folder / "hf", config)
    chosen = examples(folder)[:3]
    ends = [stop for _, turns in chosen for _, stop in turns.tolist()]
    for column, lowest in (("128", 0), ("256", 128)):
        among = [cell.num_samples for cell in result.cells if cell.column == column]
        assert sum(among) == sum(lowest < end <= int(column) for end in ends)
    assert sum(cell.num_samples for cell in result.cells) == len(ends)


def test_bad_input_is_refused(folder: Path, tmp_path: Path) -> None:
    config = ChatConfig(data_path=str(folder / "rows"))
    for changes, message in (
        ({"data_path": ""}, "--data-path is needed"),
        ({"data_path": str(tmp_path)}, "give the output folder of `ultralong prepare chat`"),
        ({"num_samples": 99}, r"num_samples \(99\) is more than the \d+ conversations"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, not 0"),
    ):
        with pytest.raises(InputError, match=message):
            run(folder / "hf", dataclasses.replace(config, **changes))
    write_llama(tmp_path / "short", vocab_size=336, max_position_embeddings=32)
    shutil.copy(folder / "hf" / "tokenizer.json", tmp_path / "short")
    with pytest.raises(InputError, match=r"of \d+ tokens is beyond the 32 positions"):
        run(tmp_path / "short", config)
    write_tokenizer(tmp_path / "short", text=TEXT + "other words")
    with pytest.raises(InputError, match="made by another tokenizer"):
        run(tmp_path / "short", config)
    without = tmp_path / "without"
    shutil.copytree(folder / "rows", without)
    manifest = json.loads((without / "chat_manifest.json").read_text())
    del manifest["splits"]["valid"]
    (without / "chat_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="has no split 'valid'"):
        run(folder / "hf", dataclasses.replace(config, data_path=str(without)))
