"""Whether pages fit a screen, seen in a real browser."""
