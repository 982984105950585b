"""Values of Megatron-LM's arguments that the replaced parts support; others are refused.

An argument, or a field of ``TransformerConfig``, that a replaced part would have to support is
listed here with the values that it does support; every other value is refused by name. What is only
in ``known_arguments.py`` concerns modules that stay Megatron-LM's own. What is in neither is new:
it is refused unless it is at its default (:func:`check_arguments`).
"""

import dataclasses
import enum
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.data.rows import manifest
from megatron_ultralong.dropin.arguments import ASKED, DropInConfig
from megatron_ultralong.dropin.known_arguments import KNOWN
from megatron_ultralong.mcore.core_attention import CP_COMM_TYPES
from megatron_ultralong.program.errors import InputError

Part = Literal["attention", "reset mask", "rotary", "rows", "recomputation", "loss tiles"]
"""A part of this project that a run uses; the attention always."""

OFF = (None, False, 0, "", "none", ())
"""Values of an argument that does not ask for anything."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """An argument, or a field, and what a part of this project honours of it."""

    name: str
    reason: str
    """Why other values are refused."""
    way_out: str = ""
    """What to do; leaving the argument out goes without saying."""
    accepted: tuple[Any, ...] = OFF


def _all(reason: str, *names: str, way_out: str = "") -> tuple[Rule, ...]:
    return tuple(Rule(name, reason, way_out) for name in names)


_END_TO_END = "it lays documents end to end without a row, and our attention takes rows"
_KEEP_APART = (
    "keep documents apart with --reset-attention-mask, or --ultralong-document-mask block over "
    "rows of `ultralong prepare`"
)
_GRAPH = "our attention is not captured in CUDA graphs"
_ANGLES = "our rotary embedding turns all dimensions of a head, half-split, by its own frequencies"
_OWN_ANGLES = "use --ultralong-rope-scaling keep without an ultralong.json for Megatron-LM's own"
_OWN_ROWS = "it is for Megatron-LM's data sets, and these rows are `ultralong prepare`'s"
_OWN_LAYER = "--ultralong-recompute-granularity runs Llama's layer by itself, and has it not"
_OWN_LOSS = "--ultralong-loss-tile-size computes the output layer and the loss by itself"
_BY_MASK = "say --ultralong-document-mask block or none instead"
_RECOMPUTE = "use Megatron-LM's own --recompute-granularity"
_NO_TILES = "leave --ultralong-loss-tile-size out"

_DATA_PATHS = ("data_path", "train_data_path", "valid_data_path", "test_data_path")

RULES: dict[Part, tuple[Rule, ...]] = {
    "attention": (
        Rule(
            "attention_dropout",
            "our attention has no dropout",
            "pass --attention-dropout 0 (Megatron-LM's default is 0.1)",
            (0,),
        ),
        Rule("softmax_type", "our attention has the plain softmax", accepted=("vanilla",)),
        *_all("every token of our attention sees all before it", "window_size"),
        *_all(
            "our attention takes queries, keys and values of one size",
            *("multi_latent_attention", "experimental_attention_variant"),
        ),
        *_all(
            "our attention does not tell the largest logit of a head",
            *("qk_clip", "log_max_attention_logit"),
        ),
        *_all(
            "our attention computes in the precision of its queries",
            *("fp8_dot_product_attention", "fp8_multi_head_attention"),
        ),
        *_all("another attention is in the layers then", "use_kitchen_attention"),
        *_all(
            "our attention sums in an order that depends on the batch",
            "batch_invariant_mode",
            way_out="--deterministic-mode is honoured",
        ),
        *_all(_END_TO_END, "sft", "dataloader_inter_document_masking", way_out=_KEEP_APART),
        *_all(
            "our attention has one context-parallel group for all rows",
            *("hybrid_context_parallel", "dynamic_context_parallel"),
        ),
        *_all(
            "our attention takes no mask of S x S",
            "create_attention_mask_in_dataloader",
            way_out="pass --no-create-attention-mask-in-dataloader",
        ),
        *_all(_GRAPH, "cuda_graph_impl", "enable_cuda_graph", "external_cuda_graph"),
        *_all("our parts are for Megatron-Core's models", "use_legacy_models"),
        *_all("its layers have no attention that this project can replace", "is_hybrid_model"),
        *_all("ours is a training loop over one model", "perform_rl_step"),
    ),
    "reset mask": (
        Rule(
            "pipeline_model_parallel_size",
            "with --reset-attention-mask documents are read off the tokens, and only the first "
            "pipeline stage has them",
            "train with --pipeline-model-parallel-size 1, or use rows of `ultralong prepare`",
            (1,),
        ),
        *_all(
            "with --reset-attention-mask the documents go through the model's own forward pass",
            *("mtp_num_layers", "overlap_moe_expert_parallel_comm"),
        ),
    ),
    "rotary": (
        Rule(
            "position_embedding_type",
            "our rotary embedding stands in the place of 'rope'",
            "pass --position-embedding-type rope",
            ("rope",),
        ),
        Rule("rotary_percent", _ANGLES, _OWN_ANGLES, (1,)),
        *_all(
            _ANGLES,
            *("rotary_interleaved", "rotary_seq_len_interpolation_factor", "use_rope_scaling"),
            *("mrope_section",),
            way_out=_OWN_ANGLES,
        ),
    ),
    "rows": (
        *_all(
            _OWN_ROWS,
            *("reset_attention_mask", "reset_position_ids", "eod_mask_loss"),
            way_out=_BY_MASK,
        ),
        Rule("dataloader_type", _OWN_ROWS, accepted=("external",)),
        *_all(
            _OWN_ROWS,
            *_DATA_PATHS,
            *("data_args_path", "per_split_data_args_path", "per_dataset_sequences_path"),
            *("mock_data", "fim_data", "full_validation", "multiple_validation_sets"),
            *("iterations_to_skip", "phase_transition_iterations"),
            *("logits_load_dir", "logits_save_dir", "validation_set_names"),
            way_out="leave it or --ultralong-data-path out",
        ),
        *_all(
            "our rows come with one label a token",
            *("mtp_num_layers", "overlap_moe_expert_parallel_comm"),
            way_out="leave it or --ultralong-data-path out",
        ),
    ),
    "recomputation": (
        *_all(
            "it and --ultralong-recompute-granularity would each recompute the layers",
            *("recompute_granularity", "recompute_activations", "checkpoint_activations"),
            way_out="use one of them",
        ),
        *_all(
            _OWN_LAYER,
            *("num_experts", "num_moe_experts", "hidden_dropout", "no_rope_freq"),
            *("attention_output_gate", "fp32_residual_connection", "cpu_offloading_num_layers"),
            *("apply_residual_connection_post_layernorm", "fine_grained_activation_offloading"),
            *("enable_mhc_connections", "fused_residual_rmsnorm", "delay_wgrad_compute"),
            *("heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json"),
            *("use_mup", "use_transformer_engine_op_fuser", "distribute_saved_activations"),
            way_out=_RECOMPUTE,
        ),
    ),
    "loss tiles": _all(
        _OWN_LOSS,
        *("mtp_num_layers", "use_mup", "fp16_lm_cross_entropy", "cross_entropy_loss_fusion"),
        *("defer_embedding_wgrad_compute", "fp8_output_proj", "logit_dtype", "logits_load_dir"),
        *("logits_save_dir",),
        way_out=_NO_TILES,
    ),
}
"""Per part, what it honours."""


_NEW = (
    "this version of megatron_ultralong does not know it, and cannot say whether its attention, "
    "rotary embedding or rows would have to honour it; leave it out, or, where you know that it "
    "concerns other parts of the model, pass --ultralong-accept {name}"
)


def parts(config: DropInConfig, args: Any) -> tuple[Part, ...]:
    """The parts of this project that a run uses.

    The rotary embedding is one wherever the arguments describe one that is ours too; what it
    computes is the same, in float64, and for the positions of this rank alone.
    """
    scales = config.rope_scaling not in ("keep", "none") or config.angle_precision != "exact"
    used: dict[Part, bool] = {
        "attention": True,
        "reset mask": bool(args.reset_attention_mask) and not config.data_path,
        "rotary": scales
        or bool(config.data_path)
        or config.recompute_granularity != "none"
        or all(_honours(rule, args) for rule in RULES["rotary"]),
        "rows": bool(config.data_path),
        "recomputation": config.recompute_granularity != "none",
        "loss tiles": bool(config.loss_tile_size),
    }
    return tuple(part for part, is_used in used.items() if is_used)


def check_arguments(config: DropInConfig, args: Any, used: Iterable[Part]) -> None:
    """Check Megatron-LM's arguments against the table.

    Raises:
        InputError: one asks for what such a part does not do, or is not known.
    """
    used = list(used)
    _check_data_paths(args)
    for rule in (rule for part in used for rule in RULES[part]):
        _apply(rule, args, rule.name)
    if args.context_parallel_size > 1:
        for kind in args.cp_comm_type if isinstance(args.cp_comm_type, list) else ():
            if kind not in CP_COMM_TYPES:
                raise InputError(
                    f"--cp-comm-type {kind} is not known; known: "
                    f"{', '.join(known for known in CP_COMM_TYPES if known)}"
                )
    if "reset mask" in used and "recomputation" in used and args.micro_batch_size > 1:
        raise InputError(
            f"--reset-attention-mask with --ultralong-recompute-granularity needs "
            f"--micro-batch-size 1, not {args.micro_batch_size}: the documents differ from row to "
            "row; raise --global-batch-size instead"
        )
    for name in sorted(ASKED.given() - KNOWN - config.accepted):
        raise InputError(f"{ASKED.flag(name)} is new: {_NEW.format(name=name)}")


def _check_data_paths(args: Any) -> None:
    """Raise InputError where Megatron-LM's data sets are to read a folder of our rows."""
    for name in _DATA_PATHS:
        for word in getattr(args, name, None) or ():
            for file in (manifest.FILE_NAME, manifest.CHAT_FILE_NAME):
                if (Path(word) / file).is_file():
                    raise InputError(
                        f"{ASKED.flag(name)} names {word}, a folder of rows of `ultralong "
                        "prepare`: give it to --ultralong-data-path instead; Megatron-LM's own "
                        f"data sets take its files without their endings ({Path(word) / 'train'})"
                    )


def idle_notes(config: DropInConfig, args: Any) -> Iterator[str]:
    """A line for each argument that changes nothing beside the others."""
    tiles, usual = config.sequence_tile_size, DropInConfig.sequence_tile_size
    if tiles != usual and config.recompute_granularity == "none":
        yield (
            f"warning: {config.flag('sequence_tile_size')} {tiles} is without effect: there is no "
            f"{config.flag('recompute_granularity')}, and only recomputed layers work in tiles"
        )
    if args.fp8 and args.transformer_impl == "local":
        yield (
            f"warning: --fp8-format {args.fp8} is without effect: --transformer-impl is local, and "
            "Megatron-Core's own layers have no FP8; transformer_engine's have"
        )


def check_model_config(config: DropInConfig, model_config: Any, used: Iterable[Part]) -> None:
    """Check the configuration that a model was built from, wherever its values are from.

    Raises:
        InputError: as :func:`check_arguments`.
    """
    for rule in (rule for part in used for rule in RULES[part]):
        _apply(rule, model_config, f"{type(model_config).__name__}.{rule.name}")
    for field in dataclasses.fields(model_config):
        if field.name in KNOWN or field.name in config.accepted:
            continue
        value = getattr(model_config, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            raise InputError(
                f"{type(model_config).__name__}.{field.name} is {value!r} (by default "
                f"{default!r}) and new: {_NEW.format(name=field.name)}"
            )


def _honours(rule: Rule, values: Any) -> bool:
    """Whether arguments, or a configuration, ask for what a rule accepts, or have it not."""
    value = getattr(values, rule.name, rule.accepted[0])
    if isinstance(value, enum.Enum):
        value = value.name
    return (tuple(value) if isinstance(value, list) else value) in rule.accepted


def _apply(rule: Rule, values: Any, where: str) -> None:
    if _honours(rule, values):
        return
    name = ASKED.flag(rule.name)
    raise InputError(
        f"{name if name != rule.name else where} is {getattr(values, rule.name)!r}, and "
        f"{rule.reason}: {rule.way_out or 'leave it out'}"
    )
