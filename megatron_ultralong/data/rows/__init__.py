"""Packed rows on disk, as training and evaluations read them."""
