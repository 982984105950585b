"""How every argument of Megatron-LM's parser is tried: words of a command line.

Most are tried by what the parser says of them: a switch is given, of choices each one but the
default, a number is halved and doubled. :data:`WORDS` has the others, and :data:`WITH` what must
stand beside an argument for it to mean anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

BASE = """
    --num-layers 2 --hidden-size 64 --num-attention-heads 4 --normalization RMSNorm --swiglu
    --disable-bias-linear --position-embedding-type rope --attention-dropout 0 --hidden-dropout 0
    --seq-length 64 --max-position-embeddings 64 --micro-batch-size 2 --global-batch-size 4
    --tokenizer-type NullTokenizer --vocab-size 200 --data-path {data} --split 8,1,1
    --lr 1e-2 --train-iters 3 --log-interval 1 --eval-iters 1 --eval-interval 2 --num-workers 0
    --untie-embeddings-and-output-weights
"""
"""A Llama of two layers over the indexed data set of :mod:`.data`."""

WITH = {
    "moe_": "--num-experts 4 --moe-router-topk 2 --moe-router-dtype fp64",
    "expert_": "--num-experts 4",
    "mtp_": "--mtp-num-layers 1",
    "muon_": "--optimizer muon",
    "lion_": "--optimizer lion",
    "sgd_": "--optimizer sgd",
    "fim_": "--fim-data",
    "lr_wsd_": "--lr-decay-style WSD --lr-wsd-decay-iters 1",
    "dsa_": "--experimental-attention-variant dsa",
    "linear_": "--experimental-attention-variant gated_delta_net",
    "mup_": "--use-mup",
    "fp8_": "--fp8-format hybrid",
    "fp4_": "--fp4-format e2m1",
    "qk_clip_": "--qk-clip",
    "yarn_": "--position-embedding-type yarn --yarn-original-max-position-embeddings 32",
    "rl_": "--perform-rl-step",
    "grpo_": "--perform-rl-step",
    "profile_": "--profile --use-pytorch-profiler",
    "hybrid_": "--is-hybrid-model",
    "recompute_method": "--recompute-granularity full --recompute-num-layers 1",
    "recompute_num_layers": "--recompute-granularity full --recompute-method block",
    "recompute_modules": "--recompute-granularity selective",
    "kv_lora_rank": "--multi-latent-attention",
    "q_lora_rank": "--multi-latent-attention",
    "qk_head_dim": "--multi-latent-attention",
    "qk_pos_emb_head_dim": "--multi-latent-attention",
    "v_head_dim": "--multi-latent-attention",
    "window_attn_skip_freq": "--window-size 16,0",
    "rope_scaling_factor": "--use-rope-scaling",
    "overlap_param_gather": "--use-distributed-optimizer --overlap-grad-reduce",
    "save_interval": "--save {folder}",
    "save_retain_interval": "--save {folder} --save-interval 1",
    "ckpt_format": "--save {folder} --save-interval 3",
    "async_save": "--save {folder} --save-interval 3",
    "tensorboard_log_interval": "--tensorboard-dir {folder}",
    "tensorboard_queue_size": "--tensorboard-dir {folder}",
    "train_samples": "--lr-decay-samples 12",
    "lr_decay_samples": "--train-samples 12",
    "lr_warmup_samples": "--train-samples 12 --lr-decay-samples 12",
    "cross_entropy_loss_fusion": "--disable-jit-fuser",
    "lr_warmup_init": "--lr-warmup-iters 1",
    "activation_func_clamp_value": "--quick-geglu",
    "step_batch_size_schedule": "--train-samples 12",
    "num_query_groups": "--group-query-attention",
    "apply_wd_to_qk_layernorm": "--qk-layernorm",
    "sequence_parallel": "--tensor-model-parallel-size 1",
    "fp16_lm_cross_entropy": "--fp16",
    "loss_scale": "--fp16",
    "initial_loss_scale": "--fp16",
    "min_loss_scale": "--fp16",
    "loss_scale_window": "--fp16",
    "hysteresis": "--fp16",
    "apply_query_key_layer_scaling": "--fp16",
}
"""By name, or by how it begins, the longest first."""

WITHOUT = {
    "train_samples": "--train-iters 3",
    "lr_decay_samples": "--train-iters 3",
    "lr_warmup_samples": "--train-iters 3",
    "rampup_batch_size": "--train-iters 3",
    "step_batch_size_schedule": "--train-iters 3",
    "squared_relu": "--swiglu",
    "quick_geglu": "--swiglu",
    "openai_gelu": "--swiglu",
    "swiglu": "--swiglu",
    "activation_func_clamp_value": "--swiglu",
    "add_bias_linear": "--disable-bias-linear",
    "mock_data": "--data-path {data}",
    "train_data_path": "--data-path {data} --split 8,1,1",
    "untie_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
}
"""Words of :data:`BASE` that an argument does not go with."""

WORDS: dict[str, tuple[str, ...]] = {
    "window_size": ("--window-size 16,0", "--window-size 64,0"),
    "num_experts": ("--num-experts 4 --moe-router-topk 2 --moe-router-dtype fp64",),
    "moe_layer_freq": ("--moe-layer-freq [0,1]",),
    "mtp_num_layers": ("",),
    "multi_latent_attention": ("--multi-latent-attention",),
    "normalization": ("--normalization LayerNorm",),
    "position_embedding_type": tuple(
        f"--position-embedding-type {kind}"
        for kind in ("learned_absolute", "none", "relative", "mrope --mrope-section 2 3 3", "yarn")
    ),
    "mrope_section": ("--mrope-section 2 3 3",),
    "rotary_base": ("--rotary-base 500000",),
    "rotary_percent": ("--rotary-percent 0.5",),
    "rotary_seq_len_interpolation_factor": ("--rotary-seq-len-interpolation-factor 2",),
    "no_rope_freq": ("--no-rope-freq 2",),
    "cp_comm_type": ("--cp-comm-type a2a", "--cp-comm-type all_gather", "--cp-comm-type a2a+p2p"),
    "dataloader_type": ("--dataloader-type cyclic", "--dataloader-type single"),
    "num_attention_heads": ("--num-attention-heads 8",),
    "num_query_groups": ("--num-query-groups 2", "--num-query-groups 1"),
    "kv_channels": ("--kv-channels 32", "--kv-channels 8"),
    "attention_dropout": ("--attention-dropout 0.1",),
    "hidden_dropout": ("--hidden-dropout 0.1",),
    "hidden_size": ("--hidden-size 32",),
    "ffn_hidden_size": ("--ffn-hidden-size 96",),
    "seq_length": ("--seq-length 32",),
    "max_position_embeddings": ("--max-position-embeddings 128",),
    "layernorm_epsilon": ("--norm-epsilon 1e-3",),
    "train_iters": ("--train-iters 2",),
    "train_samples": ("--train-samples 12",),
    "lr_decay_samples": ("--lr-decay-samples 8",),
    "lr_warmup_samples": ("--lr-warmup-samples 4",),
    "lr_warmup_init": ("--lr-warmup-init 1e-3",),
    "window_attn_skip_freq": ("--window-attn-skip-freq 2",),
    "swiglu": ("",),
    "add_bias_linear": ("",),
    "untie_embeddings_and_output_weights": ("",),
    "micro_batch_size": ("--micro-batch-size 1",),
    "global_batch_size": ("--global-batch-size 2",),
    "rampup_batch_size": ("--train-samples 12 --rampup-batch-size 2 2 4",),
    "tensor_model_parallel_size": (),
    "data_path": (),
    "mock_data": ("--mock-data",),
    "train_data_path": ("--train-data-path {data} --valid-data-path {data}",),
    "valid_data_path": (),
    "test_data_path": (),
    "split": ("--split 5,3,2",),
    "save": ("--save {folder} --save-interval 2",),
    "spec": (),
    "vocab_size": ("--vocab-size 300",),
    "make_vocab_size_divisible_by": ("--make-vocab-size-divisible-by 64",),
    "padded_vocab_size": ("--padded-vocab-size 384",),
    "tokenizer_type": ("--tokenizer-type NullMultimodalTokenizer",),
    "recompute_granularity": (
        "--recompute-granularity selective",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    ),
    "recompute_modules": ("--recompute-modules core_attn", "--recompute-modules layernorm mlp"),
    "iterations_to_skip": ("--iterations-to-skip 2",),
    "exit_interval": ("--exit-interval 2",),
    "exit_signal": (),
    "seed": ("--seed 7",),
    "clip_grad": ("--clip-grad 0.1",),
    "lr_decay_style": ("--lr-decay-style cosine", "--lr-decay-style constant"),
    "lr_warmup_fraction": ("--lr-warmup-fraction 0.5",),
    "lr_warmup_iters": ("--lr-warmup-iters 1",),
    "weight_decay_incr_style": (
        "--weight-decay-incr-style linear --start-weight-decay 0.01 --end-weight-decay 0.1",
    ),
    "transformer_impl": ("--transformer-impl transformer_engine",),
    "profile_ranks": ("--profile-ranks 0",),
    "tensorboard_dir": ("--tensorboard-dir {folder}",),
    "eval_iters": ("--eval-iters 2", "--eval-iters 0"),
    "phase_transition_iterations": ("--phase-transition-iterations 2",),
    "lr": ("--lr 1e-3",),
    "min_lr": ("--min-lr 1e-3",),
    "attention_backend": tuple(f"--attention-backend {kind}" for kind in ("local", "unfused")),
    "logits_save_dir": ("--logits-save-dir {folder} --logits-save-top-k 4",),
    "logging_level": ("--logging-level 30",),
    "profile_step_start": ("--tensorboard-dir {folder} --profile-step-start 1",),
    "profile_step_end": ("--tensorboard-dir {folder} --profile-step-start 1 --profile-step-end 2",),
    "optimizer": ("--optimizer sgd", "--optimizer muon", "--optimizer lion"),
    "reset_attention_mask": (
        "--reset-attention-mask",
        "--reset-attention-mask --reset-position-ids --eod-mask-loss",
        "--reset-attention-mask --micro-batch-size 1",
    ),
    "use_checkpoint_args": (),
    "local_rank": (),
    "bf16": ("--bf16",),
    "fp16": ("--fp16",),
}
"""An empty one: it is tried with another argument, or needs a checkpoint or other ranks, which the
tests of ``tests/dropin`` have."""


def base(name: str, data: str) -> list[str]:
    """The common command line for an argument.

    Args:
        name: of the argument.
        data: prefix of the data set.
    """
    text = " ".join(BASE.split())
    without = WITHOUT.get(name, "")
    assert without in text, f"not among the common words: {without}"
    return text.replace(without, "").replace("{data}", data).split()


def variants(action: argparse.Action) -> list[str]:
    """Command lines that try an argument, beside :data:`BASE`."""
    if action.dest in WORDS:
        tried: Iterable[str] = WORDS[action.dest]
    else:
        tried = _by_kind(action)
    beside = _beside(action.dest)
    return [f"{beside} {words}".strip() for words in tried]


def _beside(name: str) -> str:
    found = [begin for begin in WITH if name.startswith(begin)]
    return WITH[max(found, key=len)] if found else ""


def _by_kind(action: argparse.Action) -> list[str]:
    flag = max(action.option_strings, key=len)
    if isinstance(action, argparse.BooleanOptionalAction):
        return list(action.option_strings)
    if action.nargs == 0:
        return [flag]
    if action.choices is not None:
        others = [choice for choice in action.choices if choice != action.default]
        return [f"{flag} {getattr(choice, 'name', choice)}" for choice in others][:4]
    if isinstance(action.default, bool) or action.type is bool:
        return [f"{flag} {not action.default}"]
    number = action.default if isinstance(action.default, int | float) else None
    if action.type is int:
        return [f"{flag} {number * 2 if number else 1}"]
    if action.type is float:
        return [f"{flag} {number / 2 if number else 0.5}"]
    return [f"{flag} {{folder}}/{action.dest}"]
