"""The models that are evaluated, Megatron's and Hugging Face's, as one interface."""
