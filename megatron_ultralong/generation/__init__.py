"""Continuing prompts with a Megatron checkpoint, in the layout that trained it."""
