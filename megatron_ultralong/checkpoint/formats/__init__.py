"""Hugging Face, Meta and Megatron folders, read and written tensor by tensor."""
