"""The model of lm-evaluation-harness: its three kinds of requests, put to a checkpoint.

Prompts, truncation, stop strings and sums are those of the harness's own ``hf`` model; the forward
passes are those of :mod:`megatron_ultralong.evaluation.models`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.evaluation.asking import samples
from megatron_ultralong.evaluation.harness.offline import WHAT
from megatron_ultralong.evaluation.harness.question import (
    Question,
    Writing,
    groups,
    in_order,
    scored,
)
from megatron_ultralong.evaluation.models.interface import LanguageModel
from megatron_ultralong.evaluation.models.language_models import Subject
from megatron_ultralong.evaluation.models.replicas import Replicas
from megatron_ultralong.generation.folder_tokenizer import FolderTokenizer
from megatron_ultralong.generation.prompt_tokenizer import IdArray
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.journal import Journal, sample_key
from megatron_ultralong.program.optional import optional_package
from megatron_ultralong.program.ranks import world_size

_api: Any = optional_package("lm_eval.api.model", WHAT)
_models: Any = optional_package("lm_eval.models.utils", WHAT)
_utils: Any = optional_package("lm_eval.utils", WHAT)

Request = Any
"""An ``Instance`` of the harness: ``request_type``, and ``args`` by it."""
DEFAULT_MAX_GEN_TOKS = 256
"""Of a task that does not say how many tokens to write, as of the ``hf`` model."""


class HarnessModel(_api.TemplateLM):
    """A checkpoint as the harness asks it, on the main rank.

    ``replicas`` are of the :class:`RankWork` of every rank; answers are noted in ``journal``, and
    found again by a later process. A row of more than ``max_length`` tokens loses its beginning;
    ``micro_batch_size`` rows of a replica make one forward pass.
    """

    def __init__(
        self,
        subject: Subject[LanguageModel],
        replicas: Replicas,
        journal: Journal,
        tokenizer: FolderTokenizer,
        *,
        max_length: int,
        micro_batch_size: int,
    ) -> None:
        super().__init__()
        self._subject, self._replicas, self._journal = subject, replicas, journal
        self._folder, self.tokenizer = tokenizer, tokenizer.tokenizer
        self.max_length, self.micro_batch_size = max_length, micro_batch_size
        eos = self.tokenizer.eos_token_id
        self._stop_ids = subject.tokenizer.stop_ids() | ({eos} - {None})
        self._questions: dict[str, Question] = {}
        self._has_told = self.has_written = False
        self.num_truncated = 0
        """Requests that lost their beginning."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, else EOS.

        Raises:
            InputError: the tokenizer has neither.
        """
        tokens = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        found = next((token for token in tokens if token is not None), None)
        if found is None:
            raise InputError(
                f"the tokenizer in {self._folder.folder} names neither a BOS nor an EOS token, and "
                "a text without a context is scored behind one: name one in tokenizer_config.json"
            )
        return int(found)

    @property
    def tokenizer_name(self) -> str:
        """What the harness calls the tokenizer in its caches."""
        return self._subject.tokenizer.sha256

    def get_model_info(self) -> dict[str, Any]:
        """What the harness states of the model."""
        record = dataclasses.asdict(self._subject.facts.record)
        return {**record, "model_dtype": record["precision"], "max_length": self.max_length}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, with what the tokenizer puts around it unless it begins so already."""
        if add_special_tokens is None:
            begin = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not string.startswith(begin)
        return self._folder.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat, by the template of the checkpoint's own tokenizer."""
        begins = add_generation_prompt
        options = {"add_generation_prompt": begins, "continues": not begins}
        try:
            return self._folder.render(chat_history, **options)
        except InputError as error:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            tell(f"warning: {error}; rendered without the system message")
            return self._folder.render(without, **options)

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of every continuation, and whether greedy decoding writes it."""
        notes = self._ask(requests, "log-likelihoods")
        return [(note["log_likelihood"], note["is_greedy"]) for note in notes]

    def loglikelihood_rolling(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood in nats of whole texts, in windows of ``max_length`` tokens."""
        notes = self._ask(requests, "texts")
        return [note["log_likelihood"] for note in notes]

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop string."""
        if not self.has_written and (note := self._subject.tokenizer.not_applied()):
            tell(f"warning: {note}")
        self.has_written = True
        return [note["text"] for note in self._ask(requests, "answers")]

    def _read(self, requests: Iterable[Request]) -> list[Question]:
        """Requests in tokens; where answers are drawn, each repetition is one of its own."""
        seen: dict[str, int] = {}
        questions = []
        for question in map(self._question, requests):
            if question.writing is not None and question.writing.sampling.temperature:
                number = seen[question.key] = seen.get(question.key, -1) + 1
                key = sample_key(of=question.key, repetition=number)
                question = dataclasses.replace(question, key=key)
            questions.append(question)
        return questions

    def _question(self, request: Request) -> Question:
        """A request in tokens; the same request is read once."""
        arguments = [request.request_type, *request.args]
        key = sample_key(request=json.dumps(arguments, default=str))
        if key not in self._questions:
            read: dict[str, Callable[..., Question]] = {
                "loglikelihood": self._continuation,
                "loglikelihood_rolling": self._text,
                "generate_until": self._prompt,
            }
            self._questions[key] = read[request.request_type](*request.args)
        return self._questions[key]

    def estimate(self, requests: Iterable[Request]) -> None:
        """Say what asking all ``requests`` costs, and refuse what is too much.

        Raises:
            InputError: it costs more than allowed.
        """
        questions = {one.key: one for one in self._read(requests)}
        pending = [q for key, q in questions.items() if key not in self._journal.entries]
        sizes = [
            (row.num_tokens, row.max_new_tokens)
            for group in groups(pending)
            for sample in in_order(group, self.tokenizer.decode)
            for row in sample.rows
        ]
        model, cost = self._subject.facts.model, self._subject.cost
        samples.check_cost(samples.estimate_cost(model, sizes, cost, world_size()), cost)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        raise AssertionError("requests are asked by loglikelihood")

    def _continuation(self, context: str, continuation: str) -> Question:
        """As ``TemplateLM.loglikelihood`` cuts a context and what may follow it."""
        before, after = self._encode_pair(context, continuation) if context else ([], [])
        if not context:
            after = self.tok_encode(continuation, add_special_tokens=False)
            after = after[after[:1] == [self.prefix_token_id] :]
        # Spaces alone are moved into the continuation: no token may be before it then either.
        before = before or [self.prefix_token_id]
        if not 0 < len(after) <= self.max_length:
            raise InputError(
                f"a continuation of {len(after)} tokens cannot be scored, only 1 to "
                f"{self.max_length} (--max-length): {continuation[:80]!r} after "
                f"{context[-80:]!r}"
            )
        return scored([(self._cut([*before, *after], self.max_length + 1), len(after))])

    def _text(self, text: str) -> Question:
        windows = _utils.get_rolling_token_windows(
            self.tok_encode(text), self.prefix_token_id, self.max_length, 1
        )
        pairs = map(_utils.make_disjoint_window, windows)
        return scored([(np.asarray([*a, *b], np.int32), len(b)) for a, b in pairs], is_text=True)

    def _prompt(self, context: str, options: dict[str, Any]) -> Question:
        stated = {name: value for name, value in options.items() if value is not None}
        values: dict[str, Any] = dict(_models.normalize_gen_kwargs(stated, DEFAULT_MAX_GEN_TOKS))
        eos = self.tokenizer.eos_token_id
        text = None if eos is None else self.tokenizer.decode([eos])
        until = _models.handle_stop_sequences(values.pop("until", None), eos=text)
        until = [stop for stop in until if stop is not None]
        if any(not isinstance(stop, str) for stop in until):
            raise InputError(f"a task stops at {until}, and stop strings are text: quote them")
        room = values.pop("max_gen_toks")
        if type(values.get("do_sample", False)) is not bool:
            raise InputError(f"do_sample is {values['do_sample']!r}, it must be true or false")
        names = ("temperature", "top_k", "top_p")
        choice = {name: values.pop(name) for name in names if name in values}
        draws = values.pop("do_sample", False) and choice.get("temperature")
        sampling = SamplingConfig(**choice) if draws else SamplingConfig()
        sampling.check()
        if values or not 0 < room < self.max_length:
            raise InputError(
                f"a task writes {room} tokens with {values or 'no other option'}: at least one and "
                f"fewer than --max-length ({self.max_length}) can be written, by until, do_sample, "
                "temperature, top_k and top_p alone; change the task's generation_kwargs or "
                "--gen-kwargs"
            )
        bos = self.tokenizer.bos_token
        starts = bool(bos) and context.startswith(bos)
        ids = self._folder.encode(context, add_special_tokens=not starts)
        tokens = self._cut(ids or [self.prefix_token_id], self.max_length - room)
        if "" in until and not self._has_told:
            self._has_told = True
            tell("warning: a stop string is empty, which ends an answer behind its first token")
        writing = Writing(room, tuple(until), sampling)
        stops = sorted(self._stop_ids)
        key = sample_key(tokens=tokens, writing=dataclasses.asdict(writing), stop_ids=stops)
        return Question(key, ((tokens, 0),), writing)

    def _cut(self, ids: list[int], length: int) -> IdArray:
        self.num_truncated += len(ids) > length
        return np.asarray(ids[-length:], np.int32)

    def _ask(self, requests: Sequence[Request], what: str) -> list[dict[str, Any]]:
        """What the journal has of the requests, in their order, when all are asked."""
        questions = self._read(requests)
        different = {question.key: question for question in questions}
        for group in groups(different.values()):
            samples.ask(
                in_order(group, self.tokenizer.decode),
                self._put(group[0].writing),
                self._subject.model,
                self._journal,
                micro_batch_size=self.micro_batch_size * self._replicas.num_replicas,
                description=f"{what.capitalize()} of {self._subject.facts.name}",
            )
        return [self._journal.entries[question.key] for question in questions]

    def _put(self, writing: Writing | None) -> samples.Put[Any]:
        if writing is None:
            return lambda prompts: self._replicas.ask(
                "score" if prompts[0].references is None else "score_ends", prompts
            )
        options = {"until": writing.until, "sampling": writing.sampling}
        return lambda prompts: self._replicas.ask(
            "write", prompts, stop_ids=self._stop_ids, **options
        )
