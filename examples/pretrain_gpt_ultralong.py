"""Megatron-LM's ``pretrain_gpt.py`` over this project's rows, rotary embedding and attention.

torchrun --nproc-per-node 8 examples/pretrain_gpt_ultralong.py --spec megatron_ultralong.spec
ring_te_spec --ultralong-data-path rows ... (docs/dropin.md). Your own script keeps its model, data
and step: call ``megatron_ultralong.dropin.entry.pretrain`` where it calls ``pretrain``.
"""

from megatron_ultralong.dropin.entry import pretrain_gpt

if __name__ == "__main__":
    pretrain_gpt()
