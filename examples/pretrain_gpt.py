"""What Megatron-LM's own ``pretrain_gpt.py`` does, for a wheel, which does not bring it.

Its data set, its layers by its arguments, its loss; one CPU rank or several context-parallel ones.
"""

import inspect
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt import gpt_layer_specs as specs
from megatron.core.transformer.spec_utils import import_module
from megatron.training import get_args, get_tokenizer, pretrain
from megatron.training.arguments import core_transformer_config_from_args
from megatron.training.utils import get_blend_and_blend_per_split


def datasets(num_samples, vp_stage=None):
    """Training, validation and test, as the arguments say."""
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    asked = {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "blend": blend,
        "blend_per_split": blend_per_split,
        "split": args.split,
        "multiple_validation_sets": getattr(args, "multiple_validation_sets", None),
        "full_validation": getattr(args, "full_validation", None),
        "path_to_cache": args.data_cache_path,
        "mmap_bin_files": args.mmap_bin_files,
        "tokenizer": get_tokenizer(),
        "reset_position_ids": args.reset_position_ids,
        "reset_attention_mask": args.reset_attention_mask,
        "eod_mask_loss": args.eod_mask_loss,
        "create_attention_mask": args.create_attention_mask_in_dataloader,
        "mid_level_dataset_surplus": args.mid_level_dataset_surplus,
    }
    known = inspect.signature(GPTDatasetConfig).parameters
    config = GPTDatasetConfig(**{name: asked[name] for name in asked if name in known})
    kind = MockGPTDataset if args.mock_data else GPTDataset
    return BlendedMegatronDatasetBuilder(kind, num_samples, lambda: True, config).build()


datasets.is_distributed = True


def layer_spec(args, config, vp_stage):
    """Megatron-Core's own layers, as the arguments say, or those of ``--spec``."""
    if args.spec is not None:
        return import_module(args.spec)
    if args.num_experts:
        return specs.get_gpt_decoder_block_spec(
            config,
            use_transformer_engine=False,
            normalization=args.normalization,
            qk_l2_norm=args.qk_l2_norm,
            vp_stage=vp_stage,
        )
    return specs.get_gpt_layer_local_spec(
        args.num_experts,
        args.moe_grouped_gemm,
        args.qk_layernorm,
        args.multi_latent_attention,
        args.experimental_attention_variant,
        normalization=args.normalization,
    )


def model_provider(pre_process=True, post_process=True, vp_stage=None, config=None, **others):
    """A GPT; releases from 0.19 on build it themselves."""
    args = get_args()
    config = config or core_transformer_config_from_args(args)
    further = None
    if args.mtp_num_layers is not None:
        layers = specs.get_gpt_decoder_layer_specs(
            config,
            use_transformer_engine=False,
            normalization=args.normalization,
            qk_l2_norm=args.qk_l2_norm,
        )
        further = specs.get_gpt_mtp_block_spec(
            config, layers[-1], use_transformer_engine=False, vp_stage=vp_stage
        )
    return GPTModel(
        config=config,
        transformer_layer_spec=layer_spec(args, config, vp_stage),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        mtp_block_spec=further,
        vp_stage=vp_stage,
    )


def loss_of(mask, losses):
    """Sum and number of the losses that count."""
    total, count = (losses.float() * mask).sum(), mask.sum().int()
    return total, count, {"lm loss": torch.stack((total.detach(), count.float()))}


def forward_step(iterator, model):
    """Losses of this rank's chunks of the next rows."""
    batch = next(iterator)
    size = parallel_state.get_context_parallel_world_size()
    rank = parallel_state.get_context_parallel_rank()
    local = {}
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        chunks = batch[name].chunk(2 * size, dim=1)
        local[name] = torch.cat((chunks[rank], chunks[2 * size - 1 - rank]), dim=1)
    losses = model(
        local["tokens"],
        local["position_ids"],
        batch.get("attention_mask"),
        labels=local["labels"],
        loss_mask=local["loss_mask"],
    )
    return losses, partial(loss_of, local["loss_mask"])


if __name__ == "__main__":
    kind = ModelType.encoder_or_decoder
    if "args_defaults" in inspect.signature(pretrain).parameters:
        defaults = {"tokenizer_type": "NullTokenizer"}
        pretrain(datasets, model_provider, kind, forward_step, args_defaults=defaults)
    else:
        from megatron.training import argument_utils
        from megatron.training.arguments import parse_and_validate_args

        args = parse_and_validate_args(args_defaults={"tokenizer_type": "NullTokenizer"})
        described, provider = None, {"model_provider": model_provider}
        if hasattr(argument_utils, "gpt_config_from_args"):
            described, provider = argument_utils.gpt_config_from_args(args), {}
        words = [args] if described is None else [args, described]
        pretrain(
            argument_utils.pretrain_cfg_container_from_args(*words),
            train_valid_test_dataset_provider=datasets,
            model_type=kind,
            forward_step_func=forward_step,
            **provider,
        )
