"""Live bytes of tensors in a real training step."""
