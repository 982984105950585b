"""A real tokenizer and real text: the source files of Python's library."""

import gzip
import json
import os
from pathlib import Path

import llama_models
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from megatron_ultralong.data.options import PrepareConfig
from megatron_ultralong.data.pack.sampling import LengthSampling
from megatron_ultralong.data.prepare.documents import prepare
from megatron_ultralong.data.read.options import ReadOptions
from megatron_ultralong.data.rows.manifest import Manifest
from megatron_ultralong.data.tokenize.engines import open_reference
from megatron_ultralong.data.tokenize.tokenizer_model import Llama3Tokenizer

LIBRARY = Path(os.__file__).parent


@pytest.fixture(scope="session")
def library_files() -> list[Path]:
    """Sixty files of Python's library, 5 to 60 kB each, in one order on every machine."""
    files = [path for path in sorted(LIBRARY.glob("*.py")) if 5e3 < path.stat().st_size < 6e4]
    assert len(files) >= 60
    return files[:60]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, library_files: list[Path]) -> Path:
    """A byte-level BPE with special tokens, and a template that would add BOS, like Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in library_files[:20]], trainer)
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    bos = (special[0], tokenizer.token_to_id(special[0]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[bos]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.enable_truncation(16)  # a file may carry it; it must not cut documents
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def reference(tokenizer_folder: Path) -> Tokenizer:
    """The same tokenizer by the library alone, without special tokens and truncation."""
    data = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    data["added_tokens"], data["post_processor"], data["truncation"] = [], None, None
    return Tokenizer.from_str(json.dumps(data))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, library_files: list[Path]) -> Path:
    """Two sources: 30 documents in JSONL (one twice), 30 and an empty one in a folder of files."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [path.read_text() for path in library_files]
    lines = [json.dumps({"text": text}) for text in [*texts[:30], texts[0]]]
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "files").mkdir()
    for number, text in enumerate([*texts[30:], ""]):
        (folder / "files" / f"{number:02}.py").write_bytes(text.encode())
    (folder / "files" / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    return folder


@pytest.fixture(scope="session")
def config(corpus: Path, tokenizer_folder: Path, tmp_path_factory) -> PrepareConfig:
    return PrepareConfig(
        source=(f"lines={corpus}/lines.jsonl.gz", f"files={corpus}/files"),
        tokenizer=tokenizer_folder,
        output=tmp_path_factory.mktemp("everything") / "rows",
        seq_length=512,
        valid_fraction=0.2,
        sampling=LengthSampling("none"),
        reading=ReadOptions(suffixes=(".py",)),
    )


@pytest.fixture(scope="session")
def manifest(config: PrepareConfig) -> Manifest:
    """Everything, once."""
    return prepare(config)


@pytest.fixture(scope="session")
def llama3() -> Llama3Tokenizer:
    """Llama 3's own tokenizer.model, out of the package llama-models, which has its licence."""
    tokenizer = open_reference(Path(llama_models.__file__).parent / "llama3")
    assert isinstance(tokenizer, Llama3Tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def judge(llama3: Llama3Tokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer of that vocabulary."""
    tokenizer = Tokenizer.from_str(llama3.tokenizer_json())
    tokenizer.add_special_tokens(llama3.special_texts)
    assert tokenizer.token_to_id("<|eot_id|>") == 128009
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
