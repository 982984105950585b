"""LV-Eval (arXiv 2402.05136): eleven sets of questions over 16K to 256K words."""
