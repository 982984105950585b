"""Tasks of lm-evaluation-harness, put to a checkpoint in any layout."""
