"""What every rank does of an evaluation by the harness, which the main rank alone imports."""

from collections.abc import Sequence

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.evaluation.asking import samples
from megatron_ultralong.evaluation.models.interface import GenerationOptions, LanguageModel, Scores
from megatron_ultralong.generation.folder_tokenizer import FolderTokenizer


class RankWork:
    """What every rank does of it, by :class:`Replicas`."""

    def __init__(self, model: LanguageModel, tokenizer: FolderTokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer.tokenizer
        self._score = samples.scoring(model)

    def score(self, prompts: Sequence[samples.Prompt]) -> Sequence[Scores]:
        """Scores of whole rows, padded to the longest."""
        return self._score(prompts)

    def score_ends(self, prompts: Sequence[samples.Prompt]) -> Sequence[Scores]:
        """Scores of the last tokens of rows, as many as ``references`` says."""
        return self._model.score_ends([(one.tokens, one.references) for one in prompts])

    def write(
        self,
        prompts: Sequence[samples.Prompt],
        *,
        until: Sequence[str],
        stop_ids: frozenset[int],
        sampling: SamplingConfig,
    ) -> list[list[int]]:
        """Continuations up to the token that completes one of ``until``."""
        # A token is a byte at least; two more, since texts are cut into tokens in several ways.
        last = max((len(text.encode()) for text in until), default=0) + 2

        def has_ended(ids: Sequence[int]) -> bool:
            text = self._tokenizer.decode(ids[-last:])
            return any(stop in text for stop in until)

        names = [prompt.references for prompt in prompts]
        return self._model.generate(
            [prompt.tokens.tolist() for prompt in prompts],
            max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
            stop_ids=stop_ids,
            options=GenerationOptions(has_ended, sampling, names),
        )
