"""RULER (arXiv 2404.06654): thirteen synthetic tasks at any length."""
