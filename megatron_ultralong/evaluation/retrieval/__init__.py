"""Passkeys and needles, by length and depth."""
