"""LV-Eval and InfiniteBench, from local copies."""
