"""The tokenizer of a folder as transformers has it: special tokens in texts, and chat templates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.checkpoint.convert.small_files import check_tokenizer_names
from megatron_ultralong.checkpoint.formats.tokenizer_files import FAST_FILE
from megatron_ultralong.data.tokenize.folder_template import TemplateProcess
from megatron_ultralong.data.tokenize.tokenising import check_file_sizes
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import optional_package

_END = "ULTRALONG_CONTINUES_HERE "
"""Marks the end of a message that is to be continued; templates may trim the space."""


class FolderTokenizer:
    """Texts to ids as transformers makes them, templates rendered in a process of their own.

    Args:
        folder: with the tokenizer's files.
        what: what needs it, a message's first words.
        otherwise: what can be done without transformers.

    Raises:
        InputError: transformers is not installed, or cannot open the tokenizer.
    """

    def __init__(self, folder: Path, what: str, otherwise: str = "") -> None:
        transformers = optional_package("transformers", what, otherwise)
        check_tokenizer_names(folder)
        check_file_sizes(folder)
        # As rows were written: classes that a folder may name (Llama's of 5.x) make a tokenizer of
        # their own around its vocabulary.
        is_fast = (folder / FAST_FILE).is_file()
        reader = transformers.PreTrainedTokenizerFast if is_fast else transformers.AutoTokenizer
        try:
            self.tokenizer: Any = reader.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"transformers cannot open the tokenizer in {folder} ({error}): import the "
                "checkpoint from a folder with tokenizer.json"
            ) from error
        self.folder = folder
        self.has_template = bool(self.tokenizer.chat_template)
        self._template: TemplateProcess | None = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text; special tokens' texts are special tokens."""
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=add_special_tokens)]

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continues: bool = False,
    ) -> str:
        """The text of a chat.

        Args:
            messages: with ``role`` and ``content``.
            add_generation_prompt: put the header of the assistant's answer behind them.
            continues: end within the last message, which is to be continued.

        Raises:
            InputError: there is no template, it cannot be rendered, or it leaves out what the user
                or the system says.
        """
        if self._template is None:
            if not self.has_template:
                raise InputError(
                    f"{self.folder} has no chat template: the checkpoint was imported from a base "
                    "model; import an instruction-tuned one, or use plain prompts"
                )
            self._template = TemplateProcess(self.tokenizer.get_chat_template(), str(self.folder))
        chat = [dict(message) for message in messages]
        if continues:
            chat[-1]["content"] += _END
        text = self._template.render(
            messages=chat,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.tokenizer.special_tokens_map,
        )
        for message in chat:
            role, content = message["role"], message["content"].strip()
            if role in ("system", "user") and content not in text:
                raise InputError(
                    f"the chat template of {self.folder} leaves out the {role} message "
                    f"({content[:40]!r}): the model would never see it; "
                    + ("leave it out" if role == "system" else "use plain prompts")
                )
        if not continues:
            return text
        place = text.rfind(_END.strip())
        if place < 0:
            raise InputError(
                f"the chat template of {self.folder} leaves out the last message, which is to be "
                "continued: the task begins the assistant's answer; use plain prompts"
            )
        # Where the template trims the message, so is what stands before the mark.
        return text[:place] if text[place:].startswith(_END) else text[:place].rstrip()
