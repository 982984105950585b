"""Long context inside a user's own Megatron-LM: ``megatron.training`` and its entry scripts."""
