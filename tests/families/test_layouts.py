"""Models of every family: converted bit for bit, computed and trained as transformers does."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from megatron_ultralong.checkpoint.convert.verbs import export_checkpoint, import_checkpoint
from megatron_ultralong.checkpoint.formats.megatron import MegatronCheckpoint
from megatron_ultralong.checkpoint.logits.check import prompt
from megatron_ultralong.checkpoint.logits.comparison import arithmetic, compare_logits
from megatron_ultralong.checkpoint.logits.megatron_model import megatron_logits
from megatron_ultralong.config.convert import ExportConfig, ImportConfig
from megatron_ultralong.config.generate import DecodingConfig
from megatron_ultralong.config.optimizer import OptimizerConfig
from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.run import LogConfig, MemoryConfig
from megatron_ultralong.config.training import DataConfig, PretrainConfig
from megatron_ultralong.generation.continuation import Continuation, open_decoder
from megatron_ultralong.mcore.parallel import parallel_groups
from megatron_ultralong.model.yarn import rope_inv_freq
from megatron_ultralong.training.verbs import check_run, pretrain
from tests.families.shapes import cases, write
from tests.models import TEXT, prepare_rows
from tests.ranks import run_on_ranks

STEPS, ROWS, LENGTH, NEW = 4, 2, 64, 24
TP2 = {"tensor_model_parallel_size": 2}
LAYOUTS = {
    1: {"one": ParallelConfig()},
    2: {
        "tp2": ParallelConfig(**TP2),
        "tp2-sp": ParallelConfig(**TP2, sequence_parallel=True),
        "pp2": ParallelConfig(pipeline_model_parallel_size=2),
        "cp2": ParallelConfig(context_parallel_size=2),
    },
}
PROMPTS = [prompt(320, 57).tolist(), prompt(320, 30)[::2].tolist()]


class Found(NamedTuple):
    """What a layout makes of a model."""

    losses: list[float]
    grad_norms: list[float]
    written: list[list[int]]
    logits: dict[torch.dtype, torch.Tensor]
    """Of a row; none where it is split."""


def run_config(folder: Path, parallel: ParallelConfig) -> PretrainConfig:
    tiled = parallel.tensor_model_parallel_size == 1
    return PretrainConfig(
        load=str(folder / "base"),
        train_iters=STEPS,
        global_batch_size=ROWS,
        precision="fp32",
        memory=MemoryConfig(
            recompute_granularity="keep_attention" if tiled else "none",
            sequence_tile_size=24,
            loss_tile_size=40,
        ),
        parallel=parallel,
        data=DataConfig(str(folder / "rows"), document_mask="none"),
        optimizer=OptimizerConfig(lr=1e-3, lr_decay_style="constant"),
        log=LogConfig(tensorboard=False),
    )


def run(folder: Path, layouts: dict[str, ParallelConfig]) -> dict[str, Found]:
    """Run on every rank."""
    found = {}
    for name, parallel in layouts.items():
        records = pretrain(run_config(folder, parallel))
        checkpoint = MegatronCheckpoint(folder / "base")
        with parallel_groups(parallel, seed=0) as groups:
            decoder = open_decoder(checkpoint, parallel, groups, torch.float64)
            written = Continuation(decoder, config=DecodingConfig(32)).generate(PROMPTS, NEW)
        whole = parallel.context_parallel_size == 1 and not parallel.sequence_parallel
        found[name] = Found(
            [record.lm_loss for record in records],
            [record.grad_norm for record in records],
            written,
            {
                dtype: megatron_logits(checkpoint, prompt(320, LENGTH), parallel, dtype)
                for dtype in (torch.float32, torch.float64)
                if whole
            },
        )
    return found


def exact(model: Any) -> Any:
    """``model`` with rotary frequencies in float64, which transformers makes in float32."""
    rotary = model.model.rotary_emb
    config = model.config
    base = config.rope_parameters["rope_theta"]
    rotary.inv_freq = torch.from_numpy(rope_inv_freq(2 * len(rotary.inv_freq), base))
    assert config.rope_parameters["rope_type"] == "default"
    return model.double()


def expected_losses(folder: Path) -> tuple[list[float], list[float]]:
    """A loop of transformers and torch in float64: losses and norms of gradients."""
    model = exact(AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)).train()
    config = run_config(folder, ParallelConfig())
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    decays = (config.optimizer.weight_decay, 0.0)
    groups = [
        {"params": some, "weight_decay": decay}
        for some, decay in zip((matrices, vectors), decays, strict=True)
    ]
    adam = config.optimizer
    optimizer = torch.optim.AdamW(
        groups, lr=adam.lr, betas=(adam.adam_beta1, adam.adam_beta2), eps=adam.adam_eps
    )
    rows = check_run(config, 1).train_rows
    losses, norms = [], []
    for step in range(STEPS):
        total = torch.zeros((), dtype=torch.float64)
        count = 0.0
        for sample in range(step * ROWS, (step + 1) * ROWS):
            row: Any = rows.row(sample)
            tokens, labels = map(torch.from_numpy, row.read_chunks([(0, LENGTH)]))
            mask = torch.from_numpy(row.loss_mask("none")).double()
            with arithmetic(torch.float64):
                logits = model(tokens[None], use_cache=False).logits[0]
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            total, count = total + (each * mask).sum(), count + float(mask.sum())
        optimizer.zero_grad()
        (total / count).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), adam.clip_grad)))
        optimizer.step()
        losses.append(float(total / count))
    return losses, norms


@functools.cache
def made(folder: Path, family: str, shape: str) -> Path:
    write(folder / "hf", family, shape, max_position_embeddings=128)
    import_checkpoint(ImportConfig(folder / "hf", folder / "base"))
    export_checkpoint(ExportConfig(folder / "base", folder / "out"))
    prepare_rows(
        folder,
        (TEXT * (1 + n % 3) + str(n) for n in range(60)),
        folder / "hf",
        LENGTH,
        valid_fraction=0.0,
    )
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize(("family", "shape", "layouts"), cases())
def test_every_layout_is_transformers(
    folders: Path, family: str, shape: str, layouts: tuple[str, ...]
) -> None:
    folder = made(folders / f"{family}-{shape}", family, shape)
    source, export = (load_file(folder / name / "model.safetensors") for name in ("hf", "out"))
    assert source.keys() == export.keys()
    for name, tensor in source.items():
        assert torch.equal(tensor.view(torch.uint8), export[name].view(torch.uint8)), name
    found: dict[str, Found] = {}
    for ranks, known in LAYOUTS.items():
        wanted = {name: known[name] for name in known if not layouts or name in layouts}
        found |= run_on_ranks(ranks, run, folder, wanted)[0] if wanted else {}

    losses, norms = expected_losses(folder)
    model = exact(AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)).eval()
    model.generation_config = GenerationConfig()
    with torch.no_grad(), arithmetic(torch.float64):
        row = model(prompt(320, LENGTH)[None], use_cache=False).logits[0]
        written = [
            model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW,
            )[0, len(ids) :].tolist()
            for ids in PROMPTS
        ]
    for layout, its in found.items():
        # float32 against float64
        assert its.losses == pytest.approx(losses, rel=1e-5), layout
        assert its.grad_norms == pytest.approx(norms, rel=1e-5), layout
        assert its.written == written, layout
        for dtype, logits in its.logits.items():
            compared = compare_logits(row.to(dtype), logits)
            assert compared.max_difference < (1e-4 if dtype == torch.float32 else 1e-9), layout
            assert compared.max_kl < 1e-10, layout
    assert losses[-1] < losses[0]
