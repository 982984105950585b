"""Loss by position."""
