"""InfiniteBench (arXiv 2402.13718): twelve tasks over 100K tokens and more."""
