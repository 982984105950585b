"""From documents on disk to packed rows: numpy, pyarrow and tokenizers, no torch."""
