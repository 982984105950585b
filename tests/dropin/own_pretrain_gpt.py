"""A script as users of Megatron-LM have them, without a word of this project in it.

Up to 0.17 ``pretrain`` parses the arguments, later the script does; from 0.19 on the model may be
described instead of built. ``OWN_SCRIPT_DESCRIBES_MODEL`` chooses that.
"""

import inspect
import os
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.spec_utils import import_module
from megatron.training import get_args, pretrain
from megatron.training.arguments import core_transformer_config_from_args


class Repeating(torch.utils.data.Dataset):
    """Rows that a model learns at once: multiples of 1, 2, ... 7."""

    def __init__(self, seq_length):
        self.seq_length = seq_length

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        row = (torch.arange(self.seq_length + 1) * (1 + index % 7)) % 300
        mask = torch.ones(self.seq_length)
        positions = torch.arange(self.seq_length)
        return {"tokens": row[:-1], "labels": row[1:], "mask": mask, "positions": positions}


def datasets(num_samples, vp_stage=None):
    rows = Repeating(get_args().seq_length)
    return rows, rows, None


datasets.is_distributed = True


def model_provider(pre_process=True, post_process=True, vp_stage=None, config=None, **others):
    args = get_args()
    return GPTModel(
        config=config or core_transformer_config_from_args(args),
        transformer_layer_spec=import_module(args.spec),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_base=args.rotary_base,
    )


def loss_of(mask, losses):
    total, count = (losses.float() * mask).sum(), mask.sum().int()
    return total, count, {"lm loss": torch.stack((total.detach(), count.float()))}


def forward_step(iterator, model):
    batch = next(iterator)
    size = parallel_state.get_context_parallel_world_size()
    rank = parallel_state.get_context_parallel_rank()
    local = {}
    for name, whole in batch.items():
        chunks = whole.chunk(2 * size, dim=1)
        local[name] = torch.cat((chunks[rank], chunks[2 * size - 1 - rank]), dim=1)
    attention_mask = None
    if get_args().create_attention_mask_in_dataloader:
        whole = batch["tokens"].shape[1]
        attention_mask = torch.ones(1, 1, whole, whole).tril() < 0.5
    losses = model(local["tokens"], local["positions"], attention_mask, labels=local["labels"])
    return losses, partial(loss_of, local["mask"])


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
        if os.environ.get("OWN_SCRIPT_DESCRIBES_MODEL"):
            described, provider = argument_utils.gpt_config_from_args(args), {}
        container = argument_utils.pretrain_cfg_container_from_args(args, described)
        pretrain(
            container,
            train_valid_test_dataset_provider=datasets,
            model_type=kind,
            forward_step_func=forward_step,
            **provider,
        )
