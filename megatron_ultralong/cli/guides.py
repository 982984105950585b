"""What the help of each verb shows first: examples, and the flags that most calls have."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Guide:
    """Of one verb."""

    examples: tuple[str, ...]
    """Commands, the simplest first."""
    common: tuple[str, ...] = ()
    """Fields whose flags come before the rest, in this order; none: all flags are described."""


DRY_RUN = (
    "--dry-run",
    "Check everything that needs no weights, print the resolved configuration, and stop.",
)
"""Of the verbs that train."""
_TRAINING = (
    *("save", "seq_length", "train_iters", "global_batch_size", "micro_batch_size"),
    *("save_interval", "eval_interval", "lr", "tensor_model_parallel_size"),
    *("pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel", "precision"),
    *("recompute_granularity", "offload_activations", "rope_scaling", "rope_scaling_factor"),
    *("document_mask", "transformer_impl", "exit_duration_in_mins"),
)
_LAYOUT = ("tensor_model_parallel_size", "context_parallel_size", "sequence_parallel")
_EVALUATION = (*_LAYOUT, "precision", "num_samples", "beyond_trained_positions", "output")
RANKS = (
    "--ranks N",
    "Check everything that needs no weights, then start N ranks on this machine, one per GPU. "
    "For several machines, use torchrun.",
)
"""Of the verbs that work on ranks."""


def _benchmark(name: str, load: str, flags: str, *common: str) -> Guide:
    """Of a verb of ``evaluate`` that prompts a checkpoint, on eight ranks."""
    command = f"ultralong evaluate {name} --ranks 8 --load {load} \\\n    {flags}"
    return Guide((command,), common)


GUIDES: dict[str, Guide] = {
    "prepare": Guide(
        (
            "ultralong prepare --source 'web=data/*.jsonl' --tokenizer Llama-3.1-8B-Instruct \\\n"
            "    --seq-length 1048576 --output rows",
            "ultralong prepare --source web=web.parquet --source code=code.jsonl \\\n"
            "    --tokenizer Llama-3.1-8B-Instruct --seq-length 131072 --workers 8 --output rows",
        ),
        (
            *("workers", "max_tokens", "valid_fraction", "separator", "packing", "name"),
            *("text_key", "file_format", "suffixes", "skip_bad", "seed", "inspect"),
        ),
    ),
    "prepare chat": Guide(
        (
            "ultralong prepare chat --source 'tulu=tulu/*.parquet' \\\n"
            "    --tokenizer Llama-3.1-8B-Instruct --output chats",
            "ultralong prepare chat --source own=chats.jsonl --tokenizer Llama-3.1-8B-Instruct \\\n"
            "    --seq-length 32768 --too-long truncate --output chats",
        ),
        (
            *("seq_length", "max_length", "too_long", "packing", "chat_template", "chat_format"),
            *("reasoning", "valid_fraction", "skip_bad", "seed"),
        ),
    ),
    "convert import": Guide(("ultralong convert import Llama-3.1-8B-Instruct base",)),
    "convert export": Guide(
        (
            "ultralong convert export runs/1m Llama-3.1-8B-1M",
            "ultralong convert export runs/1m Llama-3.1-8B-1M-meta --format meta",
            "ultralong convert export runs/1m Llama-3.1-8B-1M.gguf --format gguf",
        )
    ),
    "convert verify": Guide(
        (
            "ultralong convert verify Llama-3.1-8B-Instruct base",
            "ultralong convert verify Llama-3.1-8B-Instruct base --logits",
        )
    ),
    "convert inspect": Guide(("ultralong convert inspect Llama-3.1-8B-Instruct",)),
    "pretrain": Guide(
        (
            "ultralong pretrain extend --load base --data-path rows --seq-length 512K \\\n"
            "    --save runs/512k --ranks 8",
            "WORLD_SIZE=32 ultralong pretrain llama3.1-8b-1m \\\n"
            "    --load base --data-path rows --dry-run",
            "ultralong pretrain --config runs/1m/config.yaml --train-iters 300 --ranks 8",
        ),
        _TRAINING,
    ),
    "sft": Guide(
        (
            "ultralong sft llama3.1-8b-sft --load runs/1m --data-path chats --save runs/1m-sft \\\n"
            "    --ranks 8",
            "ultralong sft demo-sft-cpu --load run --data-path chats --save tuned \\\n"
            "    --num-epochs 3 --ranks 2",
        ),
        (*_TRAINING[:3], "num_epochs", *_TRAINING[3:]),
    ),
    "plan": Guide(
        (
            "ultralong plan llama3.1-8b-1m --gpus 256 --gpu h100-80gb",
            "ultralong plan llama3.1-8b-1m --gpus 32 --context-parallel-size 4 --no-search",
            "ultralong plan --config runs/1m/config.yaml --gpus 64",
        ),
        (
            *("gpu", "model", "seq_length", "search", "global_batch_size", "train_tokens"),
            *("mean_document_length", "document_mask", "tensor_model_parallel_size"),
            *("pipeline_model_parallel_size", "context_parallel_size", "recompute_granularity"),
            *("offload_activations", "hardware", "json", "png"),
        ),
    ),
    "evaluate loss": Guide(
        (
            "ultralong evaluate loss --load before=base after=runs/1m --data-path rows \\\n"
            "    --output loss",
            "ultralong evaluate loss --ranks 8 --load runs/1m --data-path rows \\\n"
            "    --context-parallel-size 8",
        ),
        (*_EVALUATION, "seq_length", "split", "document_mask"),
    ),
    "evaluate passkey": _benchmark(
        *("passkey", "runs/1m"),
        "--context-parallel-size 8 --lengths 131072 1048576 --output passkey",
        *("depths", *_EVALUATION, "by", "haystack", "max_cost"),
    ),
    "evaluate needle": _benchmark(
        *("needle", "runs/1m"),
        "--context-parallel-size 8 --lengths 131072 1048576 --output needle",
        *("depths", *_EVALUATION, "by", "haystack", "num_distractors", "max_cost"),
    ),
    "evaluate ruler": _benchmark(
        *("ruler", "runs/1m"),
        "--tensor-model-parallel-size 8 --lengths 131072 --tasks vt cwe fwe --output ruler",
        *("tasks", *_EVALUATION, "prompt_template", "essays", "squad", "hotpotqa", "max_cost"),
    ),
    "evaluate harness": Guide(
        (
            "ultralong evaluate harness --load runs/1m --ranks 8 \\\n"
            "    --tensor-model-parallel-size 8 --tasks mmlu gsm8k --data data --output harness",
        ),
        (
            *("data", "num_fewshot", "limit", "apply_chat_template"),
            *(name for name in _EVALUATION if name != "num_samples"),
            "max_cost",
        ),
    ),
    "evaluate chat": _benchmark(
        *("chat", "runs/1m-sft"),
        "--data-path chats --tensor-model-parallel-size 8 --output chat",
        *(*_EVALUATION, "split", "micro_batch_size", "max_cost"),
    ),
    "evaluate lv-eval": _benchmark(
        *("lv-eval", "runs/1m"),
        "--data lv-eval --tensor-model-parallel-size 8 --output lv-eval-1m",
        *("tasks", "length_levels", "max_length", *_EVALUATION, "prompt_template", "max_cost"),
    ),
    "evaluate infinitebench": _benchmark(
        *("infinitebench", "runs/1m"),
        "--data infinitebench --tensor-model-parallel-size 8 --output infinitebench-1m",
        *("tasks", "max_length", *_EVALUATION, "prompt_template", "max_cost"),
    ),
    "evaluate mrcr": _benchmark(
        *("mrcr", "runs/1m-sft"),
        "--data mrcr --tensor-model-parallel-size 8 --output mrcr-1m",
        *("tasks", "lengths", "max_length", *_EVALUATION, "length_tokenizer", "max_cost"),
    ),
    "evaluate graphwalks": Guide(
        (
            "ultralong evaluate graphwalks --ranks 8 --load runs/1m-sft \\\n"
            "    --lengths 131072 1048576 --tensor-model-parallel-size 8 --output graphwalks-1m",
            "ultralong evaluate graphwalks --ranks 8 --load runs/1m-sft \\\n"
            "    --data graphwalks --tensor-model-parallel-size 8 --output graphwalks-openai",
        ),
        ("data", "tasks", "lengths", "max_new_tokens", *_EVALUATION, "seed", "max_cost"),
    ),
    "evaluate ruler2": _benchmark(
        *("ruler2", "runs/1m-sft"),
        "--data ruler2/llama3.1-1m --tensor-model-parallel-size 8 --output ruler2-1m",
        *("tasks", "lengths", "max_length", *_EVALUATION, "max_new_tokens", "max_cost"),
    ),
    "evaluate nolima": _benchmark(
        *("nolima", "runs/1m-sft"),
        "--data nolima --tensor-model-parallel-size 8 --output nolima-1m",
        *("lengths", "num_depths", "num_haystacks", "needle_set", *_EVALUATION, "max_cost"),
    ),
    "evaluate longbench-v2": _benchmark(
        *("longbench-v2", "runs/1m-sft"),
        "--data longbench-v2.parquet --tensor-model-parallel-size 8 --output longbench-v2",
        *("max_length", *_EVALUATION, "prompt_template", "max_cost"),
    ),
    "evaluate report": Guide(("ultralong evaluate report before/ after/ --output report",)),
    "generate": Guide(
        (
            "ultralong generate --load base --prompt 'The capital of France is'",
            "ultralong generate --ranks 8 --load runs/1m-sft \\\n"
            "    --context-parallel-size 8 --prompt-file question.txt --chat",
        ),
        (
            *("prompt", "prompt_file", "chat", "system", "max_new_tokens", "temperature", "top_p"),
            *("top_k", *_LAYOUT, "precision"),
        ),
    ),
    "doctor": Guide(
        ("ultralong doctor", "torchrun --nproc-per-node 8 -m megatron_ultralong doctor")
    ),
}
"""By the name of the verb."""
