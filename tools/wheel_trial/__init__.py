"""A wheel is built, installed where nothing else is, and used."""
