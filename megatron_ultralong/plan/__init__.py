"""The plan of a run: memory, speed and layout, computed before a GPU is taken. No torch."""
