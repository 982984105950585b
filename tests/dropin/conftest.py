"""The tiny model and rows of the training tests, and our own run over them."""

from tests.training.conftest import make_config, tiny

__all__ = ["make_config", "tiny"]
