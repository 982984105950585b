"""What a model can be given to continue, and a user's message in the folder's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.checkpoint.convert.small_files import check_tokenizer_names
from megatron_ultralong.data.rows.indexed import unknown_id, why_unknown
from megatron_ultralong.data.tokenize.folder_template import TemplateProcess
from megatron_ultralong.data.tokenize.tokenising import check_file_sizes
from megatron_ultralong.program.errors import InputError


def check_prompts(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int, name: str
) -> None:
    """Check what checkpoint ``name`` is given to continue.

    Raises:
        InputError: an empty prompt, an id that the model does not know, or ``max_new_tokens``
            below one.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(
                f"prompt {number} has no tokens: a model continues at least one; begin it with the "
                "token that begins a text"
            )
        unknown = unknown_id(np.asarray(prompt), vocab_size)
        if unknown is not None:
            why = why_unknown(unknown[1], vocab_size, f"checkpoint '{name}'")
            raise InputError(
                f"prompt {number} has at position {unknown[0]} {why}: the tokenizer does not fit "
                "the model; use the one that the checkpoint was imported with"
            )


_ANSWER = "ultralong"
"""Stands for the assistant's answer where the template is asked what follows one."""


class ChatPrompt:
    """Renders messages as transformers does, from the template in ``folder``.

    Raises:
        InputError: transformers is not installed, or the folder has no chat template, or one that
            cannot be rendered.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise InputError(
                "--chat renders the tokenizer's template with transformers, which is not "
                "installed: pip install -e '.[hf]' in the folder of this project, or give a prompt "
                "without --chat"
            ) from error
        check_tokenizer_names(folder)
        check_file_sizes(folder)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        if not self._tokenizer.chat_template:
            raise InputError(
                f"{folder} has no chat template: the checkpoint was imported from a base model; "
                "import an instruction-tuned one, or give a prompt without --chat"
            )
        self._template = TemplateProcess(self._tokenizer.get_chat_template(), str(folder))

    def encode(self, message: str, system: str = "") -> list[int]:
        """Ids up to where the assistant's answer begins."""
        return self._ids(self._render(message, system, is_answered=False))

    def end_ids(self) -> frozenset[int]:
        """The special token that the template puts behind an answer: ``<|eot_id|>``; or nothing."""
        whole = self._render("?", "", is_answered=True)
        ids = self._ids(whole[whole.rindex(_ANSWER) + len(_ANSWER) :])
        added = self._tokenizer.added_tokens_decoder
        return frozenset(token for token in ids[:1] if token in added and added[token].special)

    def _render(self, message: str, system: str, *, is_answered: bool) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": message})
        if is_answered:
            messages.append({"role": "assistant", "content": _ANSWER})
        return self._template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=not is_answered,
            **self._tokenizer.special_tokens_map,
        )

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]
