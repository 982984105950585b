"""Libraries that every installation has, and what to say where one is missing or broken.

Nothing outside the standard library is imported with this module.
"""

import re

LIBRARIES = {
    "numpy": "numpy>=1.26",
    "psutil": "psutil>=5.9",
    "safetensors": "safetensors>=0.4.5",
    "tokenizers": "tokenizers>=0.21",
    "gigatoken": "gigatoken>=0.10",
    "regex": "regex>=2024.5",
    "tiktoken": "tiktoken>=0.7",
    "sentencepiece": "sentencepiece>=0.2",
    "pyarrow": "pyarrow>=15",
    "pydantic": "pydantic>=2.7",
    "jinja2": "jinja2>=3.1",
    "yaml": "pyyaml>=6",
    "tyro": "tyro>=0.9",
    "rich": "rich>=13",
    "tensorboard": "tensorboard>=2.16",
    "matplotlib": "matplotlib>=3.8",
}
"""Module and requirement of all but torch and Megatron-Core."""
_OTHERS = {"torch": "torch>=2.6", "megatron": "megatron-core>=0.16.1,<0.20"}


def lacking(error: ImportError) -> str:
    """What to say of an import that has failed, whose library is missing or broken."""
    return lacking_package(error) or (
        f"{type(error).__name__}: {error}; a library is missing or broken: `ultralong doctor` "
        "says which and what to do, ULTRALONG_LOG=DEBUG where"
    )


def lacking_package(error: ImportError) -> str:
    """Which of these packages is not there, and how to install it; empty: it is not that."""
    module = error.name or ""
    requirement = {**LIBRARIES, **_OTHERS}.get(module)
    if not isinstance(error, ModuleNotFoundError) or requirement is None:
        return ""
    package = re.split("[<>]", requirement)[0]
    return (
        f"the package {package} is not installed, which this needs: pip install "
        f"'{requirement}'; `ultralong doctor` looks at all of them"
    )
