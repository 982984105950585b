"""Greedy decoding in every layout writes what transformers writes on the exported folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaForCausalLM

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.disk.metadata import load_metadata
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.formats.model_state import load_model
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.evaluation.models.language_models import before_stop
from megatron_ultralong.generation.continuation import Continuation, make_batches, open_decoder
from megatron_ultralong.mcore.decoding import Decoder
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model import yarn
from megatron_ultralong.program.errors import InputError
from tests.models import SCALED, write_llama
from tests.ranks import run_on_ranks

CONTEXT_PARALLEL = {
    size: ParallelConfig(context_parallel_size=size, cp_comm_type="all_gather")
    for size in (1, 2, 4)
}
LAYOUTS = {
    1: [("llama3", CONTEXT_PARALLEL[1]), ("yarn", CONTEXT_PARALLEL[1])],
    2: [
        ("llama3", CONTEXT_PARALLEL[2]),
        ("yarn", ParallelConfig(context_parallel_size=2)),
        ("llama3", ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)),
        ("yarn", ParallelConfig(pipeline_model_parallel_size=2)),
    ],
    4: [
        ("llama3", CONTEXT_PARALLEL[4]),
        ("yarn", ParallelConfig(context_parallel_size=2, tensor_model_parallel_size=2)),
    ],
}
NUM_TOKENS = {"llama3": 64, "yarn": 20}
RANDOM = np.random.default_rng(0)
# One token, fewer than 2 * cp, one more than a chunk, lengths that no layout divides, and long:
# 8,000 under the first rope, on every size of CP and TP; 1,500 under the other one.
SIZES = {name: (1, 3, 97, 301, 301, long) for name, long in (("llama3", 8000), ("yarn", 1500))}
PROMPTS = {name: [RANDOM.integers(0, 320, n).tolist() for n in SIZES[name]] for name in SCALED}
CHUNK = {"llama3": 2000, "yarn": 400}
"""Tokens of a long prompt that are read at a time; 96 of the others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoding")
    for name, rope in SCALED.items():
        write_llama(
            folder / f"source-{name}",
            num_hidden_layers=2,
            rope_parameters=rope,
            max_position_embeddings=8192,
        )
        import_checkpoint(ImportConfig(folder / f"source-{name}", folder / name))
        export_checkpoint(ExportConfig(folder / name, folder / f"hf-{name}"))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[Any]]:
    models = {}
    for name in SCALED:
        model = LlamaForCausalLM.from_pretrained(folder / f"hf-{name}", dtype=torch.float32).eval()
        # Transformers makes the frequencies in float32: their last bit is 5e-4 rad at 8,000.
        scaling = load_metadata(folder / name).rope_scaling
        exact = yarn.inv_freq(scaling, 16, 10_000.0)
        model.model.rotary_emb.inv_freq.copy_(torch.from_numpy(exact))
        models[name] = model
    return {
        name: [reference(model, prompt, NUM_TOKENS[name]) for prompt in PROMPTS[name]]
        for name, model in models.items()
    }


def reference(model: LlamaForCausalLM, prompt: list[int], num_tokens: int) -> Any:
    """What transformers' ``generate`` writes, and the logits of every step."""
    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, len(prompt) :].tolist(), torch.cat(made.logits)


def decode_all(folder: Path, cases: list[tuple[str, ParallelConfig]]) -> list[Any]:
    """Run on every rank: what is written, and the logits behind two of the prompts."""
    results: list[Any] = []
    for name, parallel in cases:
        with parallel_groups(parallel, seed=0) as groups:
            checkpoint = MegatronCheckpoint(folder / name)
            decoder = open_decoder(checkpoint, parallel, groups, torch.float32)
            prompts, chunk = PROMPTS[name], CHUNK[name]
            short = Continuation(decoder, config=DecodingConfig(96))
            long = Continuation(decoder, config=DecodingConfig(chunk))
            written = short.generate(prompts[:-1], NUM_TOKENS[name])
            written += long.generate(prompts[-1:], NUM_TOKENS[name])
            logits = {}
            parallel = dataclasses.replace(parallel, sequence_parallel=False)
            model = load_model(
                *(checkpoint, parallel, groups), dtype=torch.float32, angle_precision="float32"
            )
            decoder = Decoder(model, groups)
            for k, tokens in ((2, 96), (5, chunk)):
                decoder.start([(len(prompts[k]), 7)])
                made = [decoder.read(0, prompts[k], tokens)]
                made += [decoder.step([0], [token])[0] for token in written[k][:7]]
                logits[k] = torch.stack(made)
            results.append((written, logits))
    return results


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_every_layout_writes_what_transformers_writes(
    folder: Path, expected: dict[str, list[Any]], ranks: int
) -> None:
    for of_rank in run_on_ranks(ranks, decode_all, folder, LAYOUTS[ranks]):
        for (name, layout), (written, logits) in zip(LAYOUTS[ranks], of_rank, strict=True):
            upstream = expected[name]
            for k, ids in enumerate(written):
                assert ids == upstream[k][0], (name, layout, SIZES[name][k])
            for k, made in logits.items():
                # float32 on both sides, rotary angles too, from equal frequencies.
                torch.testing.assert_close(made, upstream[k][1][:8], atol=1e-4, rtol=0)


def test_rows_that_end_leave_the_others_alone(folder: Path, expected: dict[str, list[Any]]) -> None:
    written = [ids for ids, _ in expected["yarn"][:5]]
    # Ids at which rows end at different steps, one of them at its first token.
    stops = frozenset({written[0][0], written[2][7], written[3][12]})
    with parallel_groups(ParallelConfig(), seed=0) as groups:
        decoder = open_decoder(
            MegatronCheckpoint(folder / "yarn"), ParallelConfig(), groups, torch.float32
        )
        told: list[list[int]] = [[] for _ in written]
        found = Continuation(decoder, config=DecodingConfig(64, 4)).generate(
            PROMPTS["yarn"][:5],
            20,
            stops,
            on_token=lambda prompt, token: told[prompt].append(token),
        )
    assert found == told == [before_stop(ids, stops) for ids in written]
    assert found[0] == []
    assert len({len(ids) for ids in found}) > 2


@given(
    st.lists(st.integers(1, 100), max_size=20),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(100, 400)),
)
def test_batches_hold_every_row_once_and_fit(
    lengths: list[int], size: int, most: int | None
) -> None:
    batches = make_batches(lengths, size, most)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert most is None or len(batch) * max(lengths[number] for number in batch) <= most


def test_a_row_without_room_is_refused() -> None:
    with pytest.raises(InputError, match=r"has 90 tokens, .* holds keys and values of 80: raise"):
        make_batches([3, 90], 4, 80)


def test_logits_that_are_no_numbers_write_nothing(tmp_path: Path) -> None:
    """They wrote the first token of the vocabulary, again and again."""
    model = write_llama(tmp_path / "hf")
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "hf")
    import_checkpoint(ImportConfig(tmp_path / "hf", tmp_path / "base"))
    with parallel_groups(ParallelConfig(), seed=0) as groups:
        checkpoint = MegatronCheckpoint(tmp_path / "base")
        decoder = open_decoder(checkpoint, ParallelConfig(), groups, torch.float32)
        with pytest.raises(InputError, match="logits for token 0 of a continuation are not finite"):
            Continuation(decoder).generate([[1, 2, 3]], 4)
