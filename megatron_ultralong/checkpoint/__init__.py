"""Checkpoints: Megatron torch_dist and Hugging Face, and the way between them."""
