"""Words that no verb, recipe or flag takes: one line, with what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from megatron_ultralong import cli
from megatron_ultralong.cli import meant_verb as verbs_elsewhere
from megatron_ultralong.cli.meant_verb import meant_verb
from megatron_ultralong.cli.verbs import VERBS, load
from megatron_ultralong.config import command_line
from megatron_ultralong.config.flags import flags_of
from megatron_ultralong.config.parser_errors import ELSEWHERE, unknown_flag
from megatron_ultralong.config.recipes import RECIPES
from megatron_ultralong.model.shape import MODELS
from megatron_ultralong.plan.hardware import HARDWARE
from megatron_ultralong.program.errors import InputError, missing, nearest, slips
from tests.command_line import refusal
from tests.edges import flags, parse, parsed_class, with_needed


@pytest.mark.parametrize("name", ["nowhere/book.txt", "nowhere/rows.jsonl", "x/a.zst", "x/a.bz2"])
def test_a_file_that_is_not_there_is_no_name_of_the_hub(name: str) -> None:
    assert missing(name) == f"{name} does not exist"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("train",), "known: prepare, prepare chat, convert import"),
        (("pretrian",), "perhaps you meant 'pretrain'"),
        (("eval", "loss"), "perhaps you meant 'evaluate loss'"),
        (("eval", "--load", "run"), "perhaps you meant 'evaluate'"),
        (("evaluat", "pass-key"), "perhaps you meant 'evaluate passkey'"),
        (("chat", "--load", "run"), "perhaps you meant 'generate --chat'"),
        (("conv", "exprot", "a", "b"), "perhaps you meant 'convert export'"),
        (("export", "a", "b"), "perhaps you meant 'convert export'"),
        (("passkey",), "perhaps you meant 'evaluate passkey'"),
        (("finetune", "chats"), "perhaps you meant 'sft'"),
        (("--help", "pretrian"), "perhaps you meant 'pretrain'"),
        (("convert", "import", "meta-llama/Llama-3.1-8B", "x"), "Hub is not downloaded: `hf downl"),
        (("convert", "import", "own/Qwen2.5", "x"), "not downloaded: `hf download own/Qwen2.5"),
        (("convert", "import", "./nowhere", "x"), "model folder nowhere does not exist"),
        (("convert", "merge"), "convert 'merge' is not known; known: import, export"),
        (("pretrain", "llama"), "recipe 'llama' is not known"),
        (
            ("pretrain", "--load", "base"),
            "no recipe given: write `ultralong pretrain RECIPE --load",
        ),
        (("plan", "--model", "m"), "--gpus is needed: the size of the job"),
        (
            ("plan", "/", "--gpus", "2"),
            "/ is not a recipe but a folder: write `ultralong plan RECIPE --m",
        ),
        (("pretrain", "llama3.1-8b-sft"), "llama3.1-8b-sft is a recipe of `ultralong sft`, not of"),
        (("sft", "llama3.1-8b-1m"), "llama3.1-8b-1m is a recipe of `ultralong pretrain`, not of"),
        (
            ("plan", "demo-cpu", "--gpu", "8"),
            "--gpu 8: that is not the name of a GPU; their number is --gpus",
        ),
        (("plan", "demo-cpu", "--gpu=8"), "their number is --gpus 8"),
        *(
            (("plan", "demo-cpu", "--gpus", "2", "--gpu", card), "describe another one in a YAML")
            for card in ("4090", "5090", "2080", "3060", "6000", "4500", "rtx4090", "l40s")
        ),
        *(
            (("plan", "demo-cpu", "--gpu", count), f"their number is --gpus {count}")
            for count in ("1", "16", "100", "256", "1024", "2048", "4096")
        ),
        *(
            (
                (
                    *[
                        "prepare",
                        "chat",
                        "--source",
                        "a=b",
                        "--tokenizer",
                        "t",
                        "--output",
                        "o",
                        "--chat-template",
                    ],
                    it,
                ),
                f"perhaps you meant {meant!r}; known: llama3.1, llama3, plain, chatml, qwen2.5, "
                "qwen3; chatml and qwen2.5 are for a tokenizer that has <|im_start|>",
            )
            for it, meant in (("chat-ml", "chatml"), ("im_start", "chatml"), ("qwen", "qwen2.5"))
        ),
        (
            ("--load", "my base", "pretrain", "small"),
            "--load stands before the verb, which comes first: write `ultralong pretrain small "
            "--load 'my base'`",
        ),
        (
            ("--length=8", "evaluate", "passkey", "--load", "b"),
            "write `ultralong evaluate passkey --load b --length=8`",
        ),
        (
            ("evaluate", "--load", "my base"),
            "--load stands before the kind, which comes first: write `ultralong evaluate KIND "
            "--load 'my base'`; kinds: loss, passkey",
        ),
        *(
            (("plan", "--seq-length", "8K", f"{dash}gpus", "8"), f"'{dash}gpus' does not begin wit")
            for dash in ("\u2013", "\u2014", "-")
        ),
        (("pretrain", "\u2014load", "b"), "does not begin with two hyphens: type --load"),
        (
            ("evaluate", "--load", "b", "passkey", "--lengths", "8"),
            "write `ultralong evaluate passkey --load b --lengths 8`",
        ),
        (("--xyzzy",), "comes first: write `ultralong VERB --xyzzy ...`; see `ultralong --help`"),
        (("pretrain", "--config", "nowhere.yaml"), "configuration nowhere.yaml does not exist"),
    ],
)
def test_unknown_words_are_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], part: str
) -> None:
    assert part in refusal(capsys, *words)


def test_each_verb_is_meant_by_its_last_word_and_by_a_slip_in_its_first() -> None:
    """And what other programs call it is not a verb here."""
    for name in VERBS:
        group, *rest = name.split()
        slip = [group[:-2] + group[-1] + group[-2], *rest]
        assert meant_verb(slip) == name
        if rest and rest[0] != "chat":
            assert str(meant_verb([rest[0], "x"])).split()[-1] == rest[0]
    assert not set(verbs_elsewhere.ELSEWHERE) & {name.split()[0] for name in VERBS}
    groups = {word for name in VERBS for word in (name, name.split()[0])}
    assert {meant.split(" --")[0] for meant in verbs_elsewhere.ELSEWHERE.values()} <= groups
    assert meant_verb(["qqqqqq"]) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "pretrain demo-cpu --rope-scaling-facto 8",
            "--rope-scaling-facto is not known; perhaps you meant --rope-scaling-factor",
        ),
        ("pretrain demo-cpu --iters=8", "--iters is not known; perhaps you meant --train-iters"),
        ("pretrain demo-cpu --xyzzy", "--xyzzy is not known"),
        (
            "prepare --source a=b --tokenizer t --output o --seq-len 1024",
            "--seq-len is not known; perhaps you meant --seq-length; --seq-length is needed: "
            "Tokens per row",
        ),
        ("pretrain demo-cpu more", "'more': no flag takes it; perhaps you meant --load more"),
        ("pretrain demo-cpu --train-iters two", "--train-iters must be a whole number, not 'two'"),
        ("pretrain demo-cpu --lr high", "--lr must be a number, not 'high'"),
        (
            "pretrain demo-cpu --attention-factor q",
            "--attention-factor must be a number or yarn, not 'q'",
        ),
        (
            "plan demo-cpu --gpus 8 --hierarchical-context-parallel-sizes 2 q",
            "--hierarchical-context-parallel-sizes must be whole numbers, not 'q'",
        ),
        (
            "pretrain demo-cpu --lr",
            "--lr needs a value: Peak learning rate (the paper's 3e-5)",
        ),
        (
            "pretrain demo-cpu --precision fp3",
            "--precision 'fp3' is not known; known: bf16, fp32",
        ),
        (
            "pretrain demo-cpu --precision bf61",
            "--precision 'bf61' is not known; known: bf16, fp32",
        ),
        (
            "pretrain demo-cpu --precision b16",
            "--precision 'b16' is not known; perhaps you meant 'bf16'; known: bf16, fp32",
        ),
        ("pretrain demo-cpu --rank 2", "--rank is not known; perhaps you meant --ranks"),
        (
            "prepare x=a.jsonl --tokenizer t --output o --seq-length 1024",
            "'x=a.jsonl': no flag takes it; perhaps you meant --source x=a.jsonl",
        ),
        (
            "prepare --tokenizer t --output o --seq-length 1024 data/a.jsonl",
            "'data/a.jsonl': no flag takes it; perhaps you meant --source a=data/a.jsonl",
        ),
        (
            "convert inspect",
            "SRC is needed: Folder to inspect; a config.json without weights is enough to show "
            "its rope block",
        ),
    ],
)
def test_what_the_parser_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    words = line.split()
    verb = " ".join(words[:2]) if words[0] == "convert" else words[0]
    expected = f"ultralong: error: {message}; see `ultralong {verb} --help`\n"
    assert refusal(capsys, *words) == expected


def test_values_of_no_kind_are_told_what_the_flag_takes() -> None:
    """Lists and unions too, for which the parser has words of its own; the wrong value alone."""
    told = {}
    for verb in VERBS:
        for cls, number in flags(verb):
            if (cls, number.name) not in told and (number.is_tuple or verb == "prepare"):
                flag = "--" + number.name.replace("_", "-")
                values = ["8", "q7"] if number.is_tuple else ["q7"]
                with pytest.raises(InputError) as error:
                    parse(verb, with_needed(verb, [flag, *values]))
                told[cls, number.name] = str(error.value)
    assert len(told) > 10
    pattern = r"must be (a )?(whole )?numbers?( or \w+)?( without .*|, plain, .*)?, not 'q7'"
    wrong = [text for text in told.values() if not re.search(pattern, text)]
    assert not wrong


@pytest.mark.parametrize("verb", [name for name, verb in cli.VERBS.items() if name != "doctor"])
def test_every_verb_refuses_a_flag_in_one_line(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    recipes = cli.VERBS[verb].recipes
    recipe = [next(iter(load(recipes)))] if recipes else []
    error = refusal(capsys, *verb.split(), *recipe, "--xyzzy", "3")
    assert error.startswith("ultralong: error: --xyzzy is not known")


def test_doctor_refuses_a_flag_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """By the standard library's parser: the other may be broken."""
    for words, message in (
        ("--xyzzy", "--xyzzy is not known; see `ultralong doctor --help`"),
        ("--megabyte 8", "--megabyte is not known; perhaps you meant --megabytes; see"),
        ("--ranks 2", "--ranks is not known: doctor starts two ranks itself, and checks those of"),
        ("--megabytes 64MB", "--megabytes must be a whole number of MiB, plain, not '64MB'; see"),
        ("--megabytes", "--megabytes needs a value; see"),
        ("more", "'more': no flag takes it; see"),
    ):
        assert f"ultralong: error: {message}" in refusal(capsys, "doctor", *words.split())


def test_several_values_stand_behind_one_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every flag that takes several, in every verb: a second one would lose the first's."""
    told = 0
    for verb in VERBS:
        several = [flag for flag in flags_of(parsed_class(verb)) if flag.usage.endswith("...")]
        for name in (flag.names[0] for flag in several if flag.names[0].startswith("--")):
            for second in (f"{name} 2", f"{name}=2", f"--{name[2:].replace('-', '_')} 2"):
                words = f"{name} 1 {second}".split()
                with pytest.raises(InputError, match=f"{name} is given 2 times"):
                    command_line.parse(parsed_class(verb), verb, words)
                told += 1
    assert told > 100
    error = refusal(capsys, *["evaluate", "passkey", "--load", "run", "--lengths", "256,1K"])
    assert "--lengths must be whole numbers, not '256,1K': spaces stand between several" in error


@pytest.mark.parametrize("most_verbs", [1, pytest.param(99, marks=pytest.mark.faults)])
def test_flags_of_other_programs_are_answered(most_verbs: int) -> None:
    """In verbs that have one of what it may mean, and they are told of none that they have not."""
    known = {}
    for verb in VERBS:
        names = {name for flag in flags_of(parsed_class(verb)) for name in flag.names}
        known[verb] = names | {"--ranks"} if "--load" in names else names
    for number, (other, meanings) in enumerate(ELSEWHERE.items()):
        verbs = [v for v, its in known.items() if other not in its and its & set(meanings)]
        assert verbs, other
        first = number % len(verbs)
        for verb in (verbs[first:] + verbs[:first])[:most_verbs]:
            meant = next(one for one in meanings if one in known[verb])
            words = f"{other} is not known; perhaps you meant {meant}"
            with pytest.raises(InputError, match=words):
                command_line.parse(parsed_class(verb), verb, [other, "2"])


def _slipped(name: str) -> set[str]:
    """A flag with a letter missing, doubled, or swapped with the next; its numbers stay."""
    return {
        name[:place] + form + name[place + 2 :]
        for place in range(2, len(name))
        for one, two in [(name[place], name[place + 1 : place + 2])]
        for form in (two, one + one + two, two + one)
        if not one.isdigit()
    }


def test_every_flag_with_one_slip_is_told_the_flag() -> None:
    """A letter missing, doubled, or swapped with the next, wherever no other flag is as near."""
    told, seen = 0, set[str]()
    for verb in VERBS:
        names = {name for flag in flags_of(parsed_class(verb)) for name in flag.names}
        known = sorted(name for name in names if name.startswith("--"))
        for name in known:
            if name in seen:
                continue
            seen.add(name)
            for form in _slipped(name) - {*known, *ELSEWHERE}:
                near = [one for one in known if abs(len(one) - len(form)) < 2]
                near = [one for one in near if len({*one} ^ {*form}) < 3]
                if [one for one in near if slips(form[2:], one[2:]) < 2] == [name]:
                    assert unknown_flag(form, known).endswith(f"perhaps you meant {name}"), form
                    told += 1
    assert told > 3000


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("v100", HARDWARE),
        ("a10", HARDWARE),
        ("fp16", ("bf16", "fp32")),
        ("llama3.1-8b-512k", RECIPES),
        ("llama3.2-8b", MODELS),
    ],
)
def test_another_thing_is_no_misspelling(given: str, known: Iterable[str]) -> None:
    assert nearest(given, known) is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("texts/a.txt texts/b.txt", "not 2 ('texts/a.txt', 'texts/b.txt')|'texts/*.txt'"),
        (
            "texts/a.txt texts/b.txt texts/c.md d.txt",
            "not 4 ('texts/a.txt', 'texts/b.txt', 'texts/c.md' and 1 more)|'*'",
        ),
        ("texts/a.txt nowhere.txt", ""),
    ],
)
def test_a_pattern_that_the_shell_has_taken_is_told(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "texts/b.txt", "texts/c.md", "d.txt"):
        Path(name).touch()
    words = ["--source", *names.split(), "--tokenizer", "t", "--output", "o", "--seq-length", "1K"]
    found = refusal(capsys, "prepare", *words)
    several, _, pattern = said.partition("|")
    if not said:
        assert "'nowhere.txt': no flag takes it" in found
        return
    assert f"--source takes one value, {several}, which the shell made" in found
    assert f"quotes: --source own={pattern};" in found
    assert "without" not in refusal(capsys, "prepare", names.split()[-1], *words[:2], *words[-6:])


def test_a_model_behind_convert_is_told_its_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "ultralong.json").touch()
    model, base = str(tmp_path), str(tmp_path / "base")
    for words, meant in (
        ((model, "base"), f"import {model} base"),
        ((base, "hf"), f"export {base} hf"),
        ((model,), f"inspect {model}"),
    ):
        assert f"write `ultralong convert {meant}`" in refusal(capsys, "convert", *words)


def test_a_flag_of_what_stands_without_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, bare in (("evaluate report --load x", "RUN"), ("convert export --model x y", "SRC")):
        assert f"is not known; {bare} stands without a flag" in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("generate --load run Hello", "--prompt Hello"),
        ("generate {folder} --prompt Hello", "--load {folder}"),
        ("pretrain demo-cpu base", "--load base"),
    ],
)
def test_a_word_without_a_flag_is_told_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, meant: str
) -> None:
    words = [word.format(folder=tmp_path) for word in line.split()]
    found = refusal(capsys, *words)
    assert f"no flag takes it; perhaps you meant {meant.format(folder=tmp_path)};" in found
