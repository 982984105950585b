"""Megatron's GPTModel in the shape of a model, with our attention and rotary embedding."""

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel.utils import is_vp_first_stage, is_vp_last_stage
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ultralong.config.parallel import ParallelConfig
from megatron_ultralong.config.rope import AnglePrecision
from megatron_ultralong.config.run import LOCAL_LAYERS, LayerConfig
from megatron_ultralong.mcore import cpu, layer_spec, recomputed_layer, rotary, tiled_loss, tiles
from megatron_ultralong.mcore.compat import check_kernel_variables
from megatron_ultralong.mcore.parallel import virtual_pipeline_size
from megatron_ultralong.model import shape, yarn


def _leave_uninitialized(weight: torch.Tensor) -> None:
    """Stands for an initialisation where the weights are loaded next."""


def transformer_config(
    model: shape.ModelConfig,
    parallel: ParallelConfig,
    *,
    params_dtype: torch.dtype,
    rope_scaling: yarn.RopeScaling = None,
    deterministic: bool = False,
    layers: LayerConfig = LOCAL_LAYERS,
    compiled: bool = False,
) -> TransformerConfig:
    """Megatron's configuration of a model.

    The temperature of ``rope_scaling`` becomes part of the softmax scale; ``deterministic`` sums in
    a fixed order on GPUs too; ``compiled``: SwiGLU is Megatron-Core's fused one, by
    ``torch.compile``.
    """
    is_interleaved = virtual_pipeline_size(parallel) is not None
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=model.family.add_qkv_bias,
        qk_layernorm=model.family.qk_layernorm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        softmax_scale=rotary.softmax_scale(rope_scaling, model.kv_channels),
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        num_layers_in_first_pipeline_stage=parallel.num_layers_in_first_pipeline_stage or None,
        num_layers_in_last_pipeline_stage=parallel.num_layers_in_last_pipeline_stage or None,
        virtual_pipeline_model_parallel_size=virtual_pipeline_size(parallel),
        microbatch_group_size_per_vp_stage=parallel.microbatch_group_size,
        # Interleaved stages send to both neighbours at once, which are one rank in a pipeline of
        # two: a batch of messages then pairs them wrongly.
        overlap_p2p_comm=is_interleaved,
        batch_p2p_comm=not is_interleaved,
        context_parallel_size=parallel.context_parallel_size,
        cp_comm_type=parallel.cp_comm_type,
        sequence_parallel=parallel.sequence_parallel,
        deterministic_mode=deterministic,
        params_dtype=params_dtype,
        pipeline_dtype=params_dtype,
        bf16=params_dtype is torch.bfloat16,
        # Sum, then divide once by the tokens of the global batch: the loss is the same mean over
        # tokens whatever the layout and the masks.
        calculate_per_token_loss=True,
        # An interleaved stage frees what it sent when the next pass begins. NCCL's streams keep
        # that in order; gloo may be sending it still, and would send what is written there next.
        deallocate_pipeline_outputs=not (is_interleaved and cpu.needs_cpu_backend()),
        # All weights come from a checkpoint. `perform_initialization=False` would say so, but
        # Megatron then leaves out the marks of tensor-parallel weights too, and without them the
        # gradient norm counts the first rank's part alone.
        init_method=_leave_uninitialized,
        output_layer_init_method=_leave_uninitialized,
        embedding_init_method=_leave_uninitialized,
        # Fusions need Apex, Transformer Engine or a compiler.
        apply_rope_fusion=layers.apply_rope_fusion,
        bias_activation_fusion=compiled,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        transformer_impl=layers.transformer_impl,
        fp8=None if layers.fp8_format == "none" else layers.fp8_format,
        fp8_recipe=layers.fp8_recipe,
    )


def build_model(
    model: shape.ModelConfig,
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    *,
    seq_length: int,
    rope_scaling: yarn.RopeScaling,
    angle_precision: AnglePrecision = "exact",
    recomputation: recomputed_layer.Recomputation | None = None,
    loss_tile_size: int = 0,
    layers: LayerConfig = LOCAL_LAYERS,
    vp_stage: int | None = None,
) -> GPTModel:
    """The part of the model of this rank, with weights that still have to be loaded.

    Args:
        model: shape of the model.
        config: from :func:`transformer_config`.
        groups: Megatron's process groups of this rank.
        seq_length: tokens of a row.
        rope_scaling: scaling of the rotary frequencies.
        angle_precision: precision of the rotary angles.
        recomputation: what layers keep for backward, and how many tokens go through projections,
            MLP and embedding at a time; None keeps everything, and has no tiles.
        loss_tile_size: tokens that go through the output layer and the loss at a time; such a
            model makes no logits (:class:`TiledLoss`). 0 leaves both to Megatron.
        layers: whose modules they are made of.
        vp_stage: number of a chunk of this rank's part, where it has several.

    Raises:
        InputError: ``layers`` are Transformer Engine's, and there is none, or a variable forbids
            its kernels.
    """
    check_kernel_variables()
    num_chunks = config.virtual_pipeline_model_parallel_size
    stage, last = groups.pp.rank(), groups.pp.size() - 1
    gpt = GPTModel(
        config=config,
        transformer_layer_spec=layer_spec.block_spec(config, layers, vp_stage),
        vocab_size=model.vocab_size,
        max_sequence_length=seq_length,
        pre_process=stage == 0 and is_vp_first_stage(vp_stage, num_chunks),
        post_process=stage == last and is_vp_last_stage(vp_stage, num_chunks),
        parallel_output=True,
        share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        pg_collection=groups,
        vp_stage=vp_stage,
    )
    work_in_tiles(gpt, recomputation, loss_tile_size)
    gpt.rotary_pos_emb = rotary.LocalRotaryEmbedding(
        rope_scaling,
        model.kv_channels,
        model.rotary_base,
        groups.cp,
        cpu.device(),
        angle_precision,
    )
    return gpt.to(cpu.device())


def work_in_tiles(
    gpt: GPTModel, recomputation: recomputed_layer.Recomputation | None, loss_tile_size: int
) -> None:
    """Let a model that is built recompute its layers, and embed and compute its loss in tiles.

    See :func:`build_model`.
    """
    if loss_tile_size and gpt.post_process:
        tiled_loss.TiledLoss(gpt, loss_tile_size).install(gpt)
    if recomputation is None:
        return
    for place, layer in enumerate(gpt.decoder.layers):
        layer.recomputation = recomputation
        layer.begins_pass = place == 0
    if recomputation.tile_size and gpt.pre_process:
        tiles.TiledEmbedding(gpt, recomputation.tile_size).install(gpt)
