"""Legs of the version matrix: what each installs, runs and leaves."""
