"""``evaluate harness``: tasks of lm-evaluation-harness, without a network.

The main rank alone runs the harness: it reads the data, builds the prompts and scores the answers;
the other ranks take part in forward passes. So a task's own Python, and programs that a model
writes, run once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ultralong.config.generate import SamplingConfig
from megatron_ultralong.evaluation.asking import questions, samples
from megatron_ultralong.evaluation.harness import results as harness_results
from megatron_ultralong.evaluation.harness.offline import WHAT, offline
from megatron_ultralong.evaluation.models import interface
from megatron_ultralong.evaluation.models.interface import LanguageModel, Scores
from megatron_ultralong.evaluation.models.language_models import Subject
from megatron_ultralong.evaluation.models.replicas import Replicas
from megatron_ultralong.evaluation.options import WITHOUT_TEMPLATE, HarnessConfig
from megatron_ultralong.evaluation.results.asked_file import Asked, write_asked
from megatron_ultralong.evaluation.results.result import KINDS, Result
from megatron_ultralong.generation.early_checks import check_template
from megatron_ultralong.generation.folder_tokenizer import FolderTokenizer
from megatron_ultralong.generation.prompt_tokenizer import PromptTokenizer
from megatron_ultralong.program.ending import tell
from megatron_ultralong.program.errors import InputError, counted
from megatron_ultralong.program.journal import Journal, open_journal
from megatron_ultralong.program.json_file import parse_json
from megatron_ultralong.program.optional import check_optional_package, optional_package

if TYPE_CHECKING:
    from megatron_ultralong.evaluation.harness.model import HarnessModel


_MOST_NAMED = 20
"""Metrics that a note names."""


@contextlib.contextmanager
def harness_model(
    config: HarnessConfig, subject: Subject[LanguageModel]
) -> Iterator[tuple[HarnessModel, Journal] | None]:
    """The model on the main rank, None on the others, where all is done by then.

    Raises:
        InputError: lm_eval is not installed, the tokenizer cannot be opened, or ``max_length`` is
            beyond the trained positions.
    """
    check_optional_package("lm_eval", WHAT)
    model, facts = subject.model, subject.facts
    length = config.max_length or facts.max_positions
    interface.check_length(
        model, length, config.beyond_trained_positions, what=f"--max-length {length}"
    )
    tokenizer = FolderTokenizer(subject.tokenizer.folder, WHAT)
    if config.apply_chat_template:
        check_template(tokenizer.folder, WITHOUT_TEMPLATE)
    replicas = Replicas(RankWork(model, tokenizer), model.groups)
    identity = {**facts.identity, "tokenizer": subject.tokenizer.sha256}
    with (
        open_journal(config.output, "harness", identity, is_main=model.is_main) as journal,
        replicas.asked() as is_asking,
    ):
        if not is_asking:
            yield None
            return
        # It subclasses the harness's model, which takes seconds to import.
        from megatron_ultralong.evaluation.harness.model import HarnessModel

        options = {"max_length": length, "micro_batch_size": config.micro_batch_size}
        yield HarnessModel(subject, replicas, journal, tokenizer, **options), journal


def evaluate_harness(config: HarnessConfig, subject: Subject[LanguageModel]) -> Result | None:
    """Run the tasks, print a table and write the files; every rank calls it.

    Returns:
        The result on the main rank; None where the harness returns no score that it could hold.

    Raises:
        InputError: a task that is not known, or whose data is not on this machine, code that was
            not allowed to run, an output folder in use, or a cost above the limit.
    """
    with harness_model(config, subject) as opened:
        if opened is None:
            return None
        model, journal = opened
        with offline(config.data, allows_code=config.confirm_run_unsafe_code):
            results = _run(config, model)
        if journal.folder is not None:
            harness_results.write_files(journal.folder / "lm_eval", results)
        notes = _notes(config, model, subject.tokenizer, results)
        scores = list(harness_results.cells(results))
        if not scores:
            if journal.folder is not None:
                about = (subject.model.name, subject.asked, subject.facts.record.digest)
                write_asked(journal.folder, Asked(*about))
            tell(
                f"warning: --tasks {' '.join(config.tasks)}: none of the scores is a share or "
                "perplexity that this project knows, so there is no table and no harness.json: "
                + ("see lm_eval/results.json in " if config.output else "give ")
                + f"--output {config.output or 'for the files of the harness'}"
            )
            return None
        rows = harness_results.rows(results)
        metrics = {row: harness_results.condition(results, row) for row in rows}
        material = {
            row: hashed for row in rows if (hashed := harness_results.material(results, row))
        }
        options = {"metrics": metrics, "notes": notes, "material": material}
        measured = subject.result(KINDS["harness"], config, scores, **options)
        questions.show(measured, journal)
    if config.output:
        questions.draw(measured, config.output)
    return measured


def _run(config: HarnessConfig, model: HarnessModel) -> dict[str, Any]:
    """What ``lm_eval.simple_evaluate`` returns, and what its command adds to it."""
    harness, loggers, tasks_of = (
        optional_package(f"lm_eval{part}", WHAT) for part in ("", ".loggers", ".tasks")
    )

    class Tasks(tasks_of.TaskManager):  # type: ignore[name-defined]
        """Says what all tasks cost as soon as the requests of the last are built."""

        def load(self, task_list: Any) -> Any:
            loaded = super().load(task_list)
            tasks = list(loaded["tasks"].values())
            unsafe = [task.config.task for task in tasks if getattr(task, "UNSAFE_CODE", False)]
            if unsafe and not config.confirm_run_unsafe_code:
                raise InputError(_unsafe(unsafe[0]))
            last = tasks[-1]
            build = last.build_all_requests

            def build_all_requests(**options: Any) -> None:
                build(**options)
                model.estimate(request for one in tasks for request in one.instances)

            last.build_all_requests = build_all_requests
            return loaded

    tracker = loggers.EvaluationTracker()
    options = dict(option.split("=", 1) for option in config.gen_kwargs)
    if config.confirm_run_unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric code_eval asks, too
    try:
        manager = Tasks(include_path=config.include_path or None)
        results: dict[str, Any] = harness.simple_evaluate(
            model,
            tasks=_names(config, manager),
            task_manager=manager,
            num_fewshot=None if config.num_fewshot < 0 else config.num_fewshot,
            limit=config.limit or None,
            batch_size=config.micro_batch_size,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=config.apply_chat_template,
            system_instruction=config.system_instruction or None,
            gen_kwargs={name: _value(name, text) for name, text in options.items()} or None,
            fewshot_random_seed=config.seed,
            confirm_run_unsafe_code=config.confirm_run_unsafe_code,
            evaluation_tracker=tracker,
        )
    except InputError:
        raise
    except Exception as error:  # of any task, whose code is not ours
        raise InputError(_why(error)) from error
    return {**results, **dataclasses.asdict(tracker.general_config_tracker)}


def _names(config: HarnessConfig, manager: Any) -> list[Any]:
    """Tasks by their names or files, patterns written out.

    Raises:
        InputError: nothing has such a name.
    """
    names: list[Any] = []
    for name in config.tasks:
        found = [str(Path(name).absolute())] if name.endswith(".yaml") else []
        found = found or sorted(manager.match_tasks([name]))
        if not found or (name.endswith(".yaml") and not Path(name).is_file()):
            raise InputError(
                f"--tasks {name}: the harness has no task, group, tag or file of this name; "
                "`lm_eval ls tasks` lists them, and --include-path adds a folder"
            )
        names += found
    return list(dict.fromkeys(names))


def _value(name: str, text: str) -> Any:
    """The value of an option of generation: a list or an object is JSON, the rest the harness's."""
    if text[:1] in "[{":
        return parse_json(text, f"--gen-kwargs {name}", hint="quote it for the shell")
    return optional_package("lm_eval.utils", WHAT).handle_arg_string(text)


def _unsafe(task: str) -> str:
    return (
        f"task {task} runs programs that the model writes, as this user on this machine: run it in "
        "a container that can lose everything, and allow it with --confirm-run-unsafe-code"
    )


def _why(error: BaseException) -> str:
    """A message for what went wrong in a task."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    for one in chain:
        if isinstance(one, InputError):
            return str(one)
    if "HF_ALLOW_CODE_EVAL" in str(error):
        return _unsafe("(humaneval or the like)")
    text = " ".join(str(error).split())[:600]
    return (
        f"the harness ended with {type(error).__name__}: {text}; see the task's file, its data "
        "and docs/evaluation.md"
    )


def _notes(
    config: HarnessConfig,
    model: HarnessModel,
    tokenizer: PromptTokenizer,
    results: Mapping[str, Any],
) -> tuple[str, ...]:
    notes = [f"prompts and scores of lm-evaluation-harness {results['lm_eval_version']}"]
    if config.limit:
        notes.append(f"the first {counted(config.limit, 'question')} of every task")
    if number := model.num_truncated:
        note = f"{number} requests of more than {model.max_length} tokens lost their beginning"
        tell(f"warning: {note}; --max-length sets the limit")
        notes.append(note)
    if model.has_written and (note := tokenizer.not_applied()):
        notes.append(note)
    if found := harness_results.left_out(results):
        names = ", ".join(found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        note = f"not shown, as no known share or perplexity: {names}{more}; see "
        notes.append(note + "lm_eval/results.json of --output")
    return tuple(notes)


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
            options=interface.GenerationOptions(has_ended, sampling, names),
        )
