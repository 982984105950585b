"""A row of tokens: its documents, and which rank holds what of it."""
