"""Which format a model on disk is in: told by the names of its files, without torch."""

from pathlib import Path
from typing import Literal

from megatron_ultralong.checkpoint.disk.folder import FORMAT_FILE, LATEST_FILE
from megatron_ultralong.checkpoint.formats.hugging_face_config import CONFIG_FILE
from megatron_ultralong.program.errors import InputError, missing
from megatron_ultralong.program.inner_folders import one_inside

PARAMS_FILE = "params.json"
GGUF_FILE = "model.gguf"
ADAPTER_FILE = "adapter_config.json"


def kind_of(path: Path) -> Literal["huggingface", "meta", "megatron"]:
    """The format of the model in the folder ``path``.

    Raises:
        InputError: there is no such folder, or it is in none.
    """
    if (path / CONFIG_FILE).is_file():
        if (path / LATEST_FILE).is_file():
            raise InputError(
                f"{path} holds a Hugging Face model ({CONFIG_FILE}) and a Megatron checkpoint "
                f"({LATEST_FILE}), which may be two models: move one of them out of the folder"
            )
        return "huggingface"
    if (path / PARAMS_FILE).is_file():
        return "meta"
    if is_gguf(path):
        raise InputError(
            f"{path} is a GGUF file, which is written and compared here, not read: use the "
            "Megatron checkpoint or the Hugging Face folder that it was made of"
        )
    if not path.is_dir():
        raise InputError(f"model folder {missing(path)}")
    if not (path / LATEST_FILE).is_file() and not (path / FORMAT_FILE).is_file():
        if (path / ADAPTER_FILE).is_file():
            raise InputError(
                f"{path} is an adapter ({ADAPTER_FILE}), not a model: merge it into the model that "
                "it was trained on, with merge_and_unload() of peft, and save that"
            )
        raise InputError(
            f"{path} is not a model: it has no {CONFIG_FILE} (Hugging Face), no {PARAMS_FILE} "
            f"(Meta) and no {LATEST_FILE} (Megatron)"
            + one_inside(path, (CONFIG_FILE, PARAMS_FILE, LATEST_FILE))
        )
    return "megatron"


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a GGUF file, or a folder that an export wrote one into."""
    return path.suffix == ".gguf" or (path / GGUF_FILE).is_file()
