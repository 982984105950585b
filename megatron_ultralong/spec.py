"""Layer specs by name, for ``--spec megatron_ultralong.spec ring_local_spec`` of Megatron-LM.

Megatron-LM looks a spec up in ``vars(module)``, so they are real module-level objects. Without
Transformer Engine, ``ring_te_spec`` is there too, and says what is missing when it is built.
"""

from megatron_ultralong.mcore import layer_spec

ring_local_spec = layer_spec.ring_spec(layer_spec.RingLocalLayer)
ring_te_spec = layer_spec.ring_spec(layer_spec.RingTransformerEngineLayer)
