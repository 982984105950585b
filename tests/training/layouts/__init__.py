"""The same checkpoint and batch give the same losses on every parallel layout."""
