"""What releases read in exports, beside what they should."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig

from megatron_ultralong.checkpoint.convert.report import good_for
from megatron_ultralong.checkpoint.disk.metadata import CheckpointMetadata
from megatron_ultralong.checkpoint.formats.hugging_face import HuggingFaceFolder
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.checkpoint.formats.tokenizer_files import TokenizerFiles
from megatron_ultralong.checkpoint.logits.transformers_model import transformers_logits

from .probe import LENGTH, MESSAGES, TEXTS, TOOLS

MAX_DIFFERENCE = 1e-4
"""Of logits up to 5: float32 in other releases; another rotary embedding moves them by 0.1."""
_FILES = {
    "model": (CONFIG_FILE,),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    "template": ("tokenizer.json", "tokenizer_config.json", "chat template", "chat templates"),
    "generation": (),
}
"""Files of ``good_for`` that a part of the probe reads."""


def export_good_for(folder: Path) -> dict[str, Any]:
    """What the report of an export promised, read off its files.

    Raises:
        InputError: it is not a Hugging Face folder of a Llama, or one of its files is damaged.
    """
    model = HuggingFaceFolder(folder)
    metadata = CheckpointMetadata(model.model, model.rope_scaling, model.name)
    return good_for(metadata, TokenizerFiles(folder))


@dataclasses.dataclass(frozen=True)
class Export:
    """An export to be tried."""

    folder: Path
    source: Path
    """The Hugging Face folder that the checkpoint was imported from."""
    good_for: Mapping[str, Any]
    """Of the report."""
    has_tokenizer: bool = True
    """Whether its tokenizer is one of its model's: transformers gives Qwen's own class to any."""

    @property
    def spoken_for(self) -> Path:
        """Whose special tokens and templates are right: the source's, where it states some."""
        stated = (self.source / "tokenizer_config.json").is_file()
        return self.source if stated else self.folder


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One part of one export in one release."""

    export: str
    part: str
    release: str
    promised: bool
    """By the report's ``good_for``."""
    fault: str
    """Empty: it was read as it was meant."""

    @property
    def is_wrong(self) -> bool:
        """Promised, and not so."""
        return self.promised and bool(self.fault)


def outcomes(
    release: str,
    found: Mapping[str, Any],
    output: Path,
    exports: Mapping[str, Export],
) -> list[Outcome]:
    """Compare what a release found with what the project, or the installed release, makes of it.

    Args:
        release: of transformers.
        found: what ``probe`` returned.
        output: its folder.
        exports: what was tried, by name.
    """
    assert found["versions"]["transformers"] == release
    result = []
    for name, export in exports.items():
        parts = found["exports"][name]
        for part, files in _FILES.items() if export.has_tokenizer else [("model", (CONFIG_FILE,))]:
            promised = all(
                _holds(export.good_for["files"][file], release)
                for file in files
                if file in export.good_for["files"]
            )
            fault = parts[part]["error"] if "error" in (parts[part] or {}) else ""
            if not fault:
                fault = _CHECKS[part](parts[part], export, output / f"{name}.npy")
            result.append(Outcome(name, part, release, promised, fault))
    return result


def _holds(versions: str, release: str) -> bool:
    if not versions.startswith(">="):
        return False
    oldest, tried = (
        tuple(map(int, text.split("."))) for text in (versions.removeprefix(">="), release)
    )
    return tried >= oldest


def _model(found: Mapping[str, Any], export: Export, logits: Path) -> str:
    folder = HuggingFaceFolder(export.folder)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(folder.model.vocab_size, 200), (LENGTH,), generator=generator)
    expected = transformers_logits(folder, tokens).numpy()
    difference = float(np.abs(np.load(logits) - expected).max())
    if not difference <= MAX_DIFFERENCE * np.abs(expected).max():
        return f"logits differ by {difference:.3g}"
    stated = (found["positions"], found["tied"])
    own = (
        folder.model.max_position_embeddings,
        not folder.model.untie_embeddings_and_output_weights,
    )
    return "" if stated == own else f"{stated} for {own}"


def _tokenizer(found: Mapping[str, Any], export: Export, logits: Path) -> str:
    """Beside the library's reading of ``tokenizer.json``, whatever classes say."""
    tokenizer = Tokenizer.from_file(str(export.source / "tokenizer.json"))
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    expected = {
        "plain": plain,
        "with_specials": [tokenizer.encode(text).ids for text in TEXTS],
        "decoded": [tokenizer.decode(ids, skip_special_tokens=False) for ids in plain],
        "without_specials": [tokenizer.decode(ids) for ids in plain],
        "length": tokenizer.get_vocab_size(),
        "vocabulary": sorted(
            map(list, tokenizer.get_vocab().items()), key=lambda item: (item[1], item[0])
        ),
    }
    installed = AutoTokenizer.from_pretrained(export.spoken_for)
    expected["specials"] = {
        name: [getattr(installed, f"{name}_token"), getattr(installed, f"{name}_token_id")]
        for name in ("bos", "eos", "pad", "unk")
    }
    expected["model_max_length"] = AutoTokenizer.from_pretrained(export.folder).model_max_length
    wrong = [name for name, value in expected.items() if found[name] != value]
    return f"other {', '.join(wrong)}" if wrong else ""


def _template(found: Mapping[str, Any] | None, export: Export, logits: Path) -> str:
    installed = AutoTokenizer.from_pretrained(export.spoken_for)
    if found is None or not installed.chat_template:
        return "" if found is None and not installed.chat_template else "no template"
    several = isinstance(installed.chat_template, dict)
    expected = {
        str(name): installed.apply_chat_template(
            MESSAGES, chat_template=name, tools=TOOLS, tokenize=False, add_generation_prompt=True
        )
        for name in (installed.chat_template if several else [None])
    }
    return "" if found == expected else "renders other text"


def _generation(found: Mapping[str, Any] | None, export: Export, logits: Path) -> str:
    if not (export.source / "generation_config.json").is_file():
        return ""
    installed = GenerationConfig.from_pretrained(export.source)
    wrong = [key for key, value in (found or {}).items() if getattr(installed, key, None) != value]
    return f"other {', '.join(wrong)}" if wrong else ""


_CHECKS = {
    "model": _model,
    "tokenizer": _tokenizer,
    "template": _template,
    "generation": _generation,
}
