"""Every argument of Megatron-LM, with the drop-in and without it."""
