"""What a model is: shape, rotary embedding, FLOPs. No torch."""
