"""Extend Llama 3.1 models to contexts of 1M, 2M and 4M tokens on Megatron-Core.

The package imports nothing here: each layer is imported by its own name, and the lowest ones
(``model/yarn.py``, ``sequence/documents.py``) need numpy alone.
"""

__version__ = "0.1.0"
