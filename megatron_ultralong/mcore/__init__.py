"""The seam to Megatron-Core: layer spec, rotary embedding, model, and Megatron on a CPU."""
