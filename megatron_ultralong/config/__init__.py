"""Options of training, conversion and generation, and recipes. No torch."""
