"""Train the demo's base model: a small Llama with a short context, on Python source code.

Two steps, each one command::

    python examples/demo/train_base.py prepare --corpus DIR [--corpus DIR ...] --work WORK
    python examples/demo/train_base.py train --work WORK --output examples/demo/base

``prepare`` reads every ``.py`` file under the given folders, drops duplicates and the documents of
the held-out split (the rule of ``megatron_ultralong.sequence.documents``, as the demo uses it),
trains a byte-level BPE tokenizer and writes the tokens. ``train`` trains a Llama on rows of that
text mixed with retrieval examples, all within the context, and writes a Hugging Face folder. It
uses a GPU if there is one; on a CPU it is the same, slowly.

Rows start short and grow: the attention heads that copy from earlier text form sooner on many
short rows than on few long ones.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from base_corpus import encoder, prepare
from base_figures import figures
from base_model import ModelShape, save
from base_rows import Rows, batch_plan
from tokenizers import Tokenizer
from torch.nn import functional

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.output import check_output
from megatron_ultralong.program.progress import progress


def learning_rate(progress_made: float, peak: float, warmup: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to a twentieth of ``peak``; progress from 0 to 1."""
    if progress_made < warmup:
        return peak * progress_made / warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * (progress_made - warmup) / (1.0 - warmup)))
    return peak * (0.05 + 0.95 * cosine)


def token_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats, with the weight of every predicted token."""
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def optimizer_of(model: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]
    fused = matrices[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)


def train(arguments: argparse.Namespace) -> None:
    """Train the model and write the Hugging Face folder."""
    output: Path = arguments.output
    check_output(output)
    tokenizer = Tokenizer.from_file(str(arguments.work / "tokenizer.json"))
    tokens, valid = (np.load(arguments.work / f"{split}.npy") for split in ("train", "valid"))
    shape = ModelShape(
        tokenizer.get_vocab_size(), arguments.context, arguments.hidden_size,
        arguments.intermediate_size, arguments.num_layers, arguments.num_heads,
        arguments.num_kv_heads, arguments.head_dim, arguments.rope_theta,
    )  # fmt: skip
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = transformers.LlamaForCausalLM(shape.config()).to(device)
    plan = batch_plan(arguments.context, arguments.total_tokens, arguments.batch_tokens, GROWTH)
    rows = Rows(
        tokens, tokenizer, plan, arguments.seed, arguments.retrieval_fraction,
        arguments.answer_weight,
    )  # fmt: skip
    started = time.monotonic()
    log = list(optimization_steps(model, rows, arguments, device))
    seconds = time.monotonic() - started
    judged = transformers.LlamaForCausalLM(shape.config()).to(device).eval()
    judged.load_state_dict(model.state_dict())
    judged.to(torch.bfloat16).float()  # as it is saved
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
        },
        "parameters": sum(p.numel() for p in judged.parameters()),
        "corpus_tokens": int(tokens.size),
        "trained_tokens": sum(num_rows * length for num_rows, length in plan),
        "steps": len(plan),
        "seconds": round(seconds, 1),
        "figures": figures(judged, encoder(tokenizer), valid, arguments.context, 100),
        "log": log,
    }  # fmt: skip
    save(judged, tokenizer, shape, record, output)
    print(json.dumps({key: value for key, value in record.items() if key != "log"}, indent=1))


def optimization_steps(
    model: Any, rows: Rows, arguments: argparse.Namespace, device: torch.device
) -> Iterator[dict[str, float]]:
    """Train on every batch of ``rows``; yields the figures of the log."""
    on_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    if on_gpu:  # layer by layer: compiled whole, the model would build its mask instead of none
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    loss_of = torch.compile(token_loss, dynamic=False) if on_gpu else token_loss
    optimizer = optimizer_of(model, arguments.lr, arguments.weight_decay)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=arguments.num_workers, pin_memory=on_gpu,
        prefetch_factor=8 if arguments.num_workers else None,
    )  # fmt: skip
    mean_loss = torch.zeros((), device=device)
    log_every = max(1, len(rows) // 100)
    started = time.monotonic()
    with progress("training", len(rows), "steps") as bar:
        for step, batch in enumerate(loader):
            ids, weights = (part.to(device, non_blocking=True) for part in batch)
            lr = learning_rate((step + 1) / len(rows), arguments.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
                logits = model(input_ids=ids, use_cache=False).logits
                loss = loss_of(logits, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            mean_loss += loss.detach() / log_every
            if (step + 1) % log_every == 0:
                yield {
                    "step": step + 1,
                    "seq_length": ids.shape[1],
                    "weighted_loss": round(mean_loss.item(), 4),
                    "lr": round(lr, 6),
                    "seconds": round(time.monotonic() - started, 1),
                }
                mean_loss.zero_()
            bar.advance()


GROWTH = ((128, 0.15), (256, 0.15))
"""Row lengths before the context, each with its share of the tokens."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=formatter)
    verbs = parser.add_subparsers(required=True, metavar="{prepare,train}")

    verb = verbs.add_parser(
        "prepare", help="corpus -> tokenizer and tokens", formatter_class=formatter
    )
    verb.set_defaults(run=run_prepare)
    verb.add_argument(
        "--corpus",
        type=Path,
        action="append",
        required=True,
        help="folder of .py files; may be repeated",
    )
    verb.add_argument(
        "--work", type=Path, required=True, help="folder for tokenizer.json, train.npy, valid.npy"
    )
    verb.add_argument("--vocab-size", type=int, default=4096, help="with the two special tokens")
    verb.add_argument("--min-characters", type=int, default=200, help="shorter files are left out")
    verb.add_argument(
        "--tokenizer-documents",
        type=int,
        default=2000,
        help="documents the tokenizer is trained on",
    )
    verb.add_argument(
        "--max-tokens",
        type=int,
        default=22_000_000,
        help="stop after this many tokens of training text",
    )

    verb = verbs.add_parser(
        "train", help="tokens -> Hugging Face folder", formatter_class=formatter
    )
    verb.set_defaults(run=train)
    verb.add_argument("--work", type=Path, required=True, help="folder that prepare wrote")
    verb.add_argument("--output", type=Path, required=True, help="new folder for the model")
    verb.add_argument("--context", type=int, default=512, help="longest row, in tokens")
    verb.add_argument("--hidden-size", type=int, default=256, help="width")
    verb.add_argument("--intermediate-size", type=int, default=640, help="width inside the MLP")
    verb.add_argument("--num-layers", type=int, default=3, help="transformer layers")
    verb.add_argument("--num-heads", type=int, default=4, help="query heads")
    verb.add_argument("--num-kv-heads", type=int, default=2, help="key and value heads")
    verb.add_argument("--head-dim", type=int, default=32, help="width of a head")
    verb.add_argument("--rope-theta", type=float, default=10000.0, help="rotary base")
    verb.add_argument("--total-tokens", type=int, default=320_000_000, help="tokens to train on")
    verb.add_argument("--batch-tokens", type=int, default=65536, help="tokens of a step")
    verb.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of AdamW")
    verb.add_argument("--weight-decay", type=float, default=0.1, help="on matrices alone")
    verb.add_argument(
        "--retrieval-fraction",
        type=float,
        default=0.4,
        help="share of the rows that hold a retrieval example",
    )
    verb.add_argument(
        "--answer-weight",
        type=float,
        default=4.0,
        help="weight in the loss of tokens to be retrieved",
    )
    verb.add_argument(
        "--num-workers",
        type=int,
        default=4,
        help="processes that make rows; 0 makes them in this one",
    )
    verb.add_argument("--seed", type=int, default=1, help="of the weights and the rows")
    return parser.parse_args()


def run_prepare(arguments: argparse.Namespace) -> None:
    """The verb ``prepare``."""
    prepare(
        arguments.corpus,
        arguments.work,
        vocab_size=arguments.vocab_size,
        min_characters=arguments.min_characters,
        tokenizer_documents=arguments.tokenizer_documents,
        max_tokens=arguments.max_tokens,
    )


def main() -> None:
    """Run the verb; bad input ends in one line and status 2."""
    arguments = parse_arguments()
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
