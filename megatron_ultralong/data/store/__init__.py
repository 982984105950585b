"""Tokenised documents on disk, between tokenising and packing."""
