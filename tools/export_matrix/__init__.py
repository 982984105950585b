"""Exports in the hands of old and new releases of transformers."""
