"""Stop tokens that a model's files name, and the end of an answer that they do not name."""

from pathlib import Path
from typing import Any, NamedTuple

from megatron_ultralong.data.tokenize.engines import open_reference
from megatron_ultralong.data.tokenize.folder_template import FolderTemplate, folder_template
from megatron_ultralong.data.tokenize.refused_tokenizer import NAMES
from megatron_ultralong.data.tokenize.tokenising import side_file
from megatron_ultralong.program.errors import InputError

GENERATION_FILE = "generation_config.json"
_ANSWER = "ultralong"


class StopToken(NamedTuple):
    """A special token."""

    text: str
    id: int


def named_stop_ids(folder: Path) -> list[int]:
    """Ids that end a text of the model in ``folder``: engines take the first file that has some."""
    files = (GENERATION_FILE, "config.json")
    named = (side_file(folder, file).get("eos_token_id") for file in files)
    ids: Any = next((one for one in named if one is not None), [])
    return [*ids] if isinstance(ids, list) else [ids]


def missed_end(folder: Path) -> StopToken | None:
    """The token that ends an answer in the chat template of ``folder``, where no file names it.

    Many tuned models have the files of their base, whose texts end with another token. None: it is
    named, or is the tokenizer's EOS, or there is no template or no tokenizer.

    Raises:
        InputError: a file of the folder is damaged.
    """
    template = folder_template(folder)
    if template is None or not any((folder / name).is_file() for name in NAMES):
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        process = FolderTemplate(template, folder)
        with process:
            text, eos = process.render_messages(messages, None).text, process.eos
    except InputError:  # whoever renders it is told
        return None
    behind, tokenizer = text.rpartition(_ANSWER)[2].lstrip(), open_reference(folder)
    ends = [one for one in tokenizer.special_texts if one != eos and behind.startswith(one)]
    end = max(ends, key=len, default="")
    ids = tokenizer.encode_separator(end) if end else []
    return (
        StopToken(end, ids[0]) if len(ids) == 1 and ids[0] not in named_stop_ids(folder) else None
    )
