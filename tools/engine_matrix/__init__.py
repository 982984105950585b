"""Exports in the hands of inference engines, each in an environment of its own."""
