"""Attention of new tokens over cached keys and values."""
