"""Multiple-choice questions answered by likelihood: whether short-context skill stayed."""
