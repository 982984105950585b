"""Held-out conversations: how well a model writes the assistant's turns."""
