"""A sentencepiece model (Llama 2's ``tokenizer.model``, for example)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from megatron_ultralong.data.tokenize.tokenising import MAX_MODEL_BYTES, well_formed
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.json_file import read_bounded


class SentencePieceTokenizer:
    """Any sentencepiece model; the model's own normalisation applies, as in training.

    Raises:
        InputError: where the file is no such model.
    """

    engine = "sentencepiece"
    max_document_bytes = 16 << 20  # 30 bytes for each, 90 where each is a token

    def __init__(self, file: Path) -> None:
        data = read_bounded(file, MAX_MODEL_BYTES)
        model: Any = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise InputError(
                f"{file} is neither tiktoken ranks nor a sentencepiece model ({error}); is it cut "
                "short?"
            ) from error
        self._model = model
        self.file = file
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = int(model.vocab_size())
        ids = range(self.vocab_size)
        self._control = {model.id_to_piece(i): i for i in ids if model.is_control(i)}
        self.special_texts = list(self._control)

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Ids of every text; the text of a control piece is text to the library itself."""
        return [np.asarray(self._model.encode(well_formed(t)), dtype=np.int32) for t in texts]

    def encode_separator(self, text: str) -> list[int]:
        """Ids of a text alone: ``"</s>" -> [2]`` where that is a control piece."""
        return [self._control[text]] if text in self._control else list(self._model.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control pieces, which the library leaves out, by their names."""
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if self._model.is_control(token):
                parts += [self._model.decode(run), self._model.id_to_piece(token)]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._model.decode(run)])

    def eos_text(self) -> str:
        """The model's EOS piece."""
        if self._model.eos_id() < 0:
            raise InputError(
                f"--separator eos: {self.file} has no EOS piece; give a text as --separator"
            )
        return str(self._model.id_to_piece(self._model.eos_id()))
