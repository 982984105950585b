"""Layer specs by name, for ``--spec megatron_ultralong.spec ring_local_spec`` of Megatron-LM.

Megatron-LM looks a spec up in ``vars(module)``, so they are real module-level objects.
``ring_te_spec`` exists where Transformer Engine is installed.
"""

from megatron.core.models.gpt import gpt_layer_specs

from megatron_ultralong.mcore.layer_spec import ring_layer_local_spec, ring_layer_te_spec

ring_local_spec = ring_layer_local_spec()
if gpt_layer_specs.HAVE_TE:
    ring_te_spec = ring_layer_te_spec()
