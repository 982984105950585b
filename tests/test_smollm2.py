"""examples/smollm2: its settings, arms and corpus; test_smollm2_steps.py runs its steps."""

from __future__ import annotations

import importlib.util
import itertools
import json
import operator as op
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from megatron_ultralong.cli.dispatch import read_training
from megatron_ultralong.cli.verbs import VERBS
from megatron_ultralong.config.training import PretrainConfig
from megatron_ultralong.training.config_file import load_config
from tests.warm.programs import ROOT

SCRIPTS = ROOT / "examples" / "smollm2"
POSITIONS = 8192
"""That the model was trained for."""
LICENCES = {
    "Apache-2.0", "Artistic-1.0 or GPL-1.0+", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0",
    "CC-BY-SA-3.0 or GPL-2.0+", "GPL-2.0", "GPL-3.0+", "MIT", "MIT or Apache-2.0", "PSF-2.0",
    "Vim", "public domain",
}  # fmt: skip


def module(name: str) -> ModuleType:
    """A script, with its own neighbours: those of other examples have the same names."""
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    neighbours = {path.stem for path in SCRIPTS.glob("*.py")} & {*sys.modules}
    others = {neighbour: sys.modules.pop(neighbour) for neighbour in neighbours}
    sys.modules[spec.name] = made
    sys.path.insert(0, str(SCRIPTS))
    spec.loader.exec_module(made)
    sys.path.remove(str(SCRIPTS))
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)
    sys.modules.update(others)
    return made


def settings(*words: str, **environment: str) -> dict[str, str]:
    """What the scripts get from settings.sh."""
    names = re.findall(r"\b([A-Z][A-Z_]+)=", (SCRIPTS / "settings.sh").read_text())
    names = sorted({*names} - {"CPU"})
    prints = "; ".join(f'echo "{name}=${name}"' for name in names)
    lines = outputs(f'source "$0" && {prints}', *words, **environment)
    return dict(line.split("=", 1) for line in lines)


def outputs(command: str, *words: str, **environment: str) -> list[str]:
    """Lines of a command of bash, whose name is that of settings.sh."""
    done = subprocess.run(
        ["bash", "-euc", command, str(SCRIPTS / "settings.sh"), *words],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_files_of_settings_are_those_of_the_scripts() -> None:
    found = settings()
    for file, iterations in (("first.yaml", "FIRST_ITERS"), ("target.yaml", "TRAIN_ITERS")):
        config = load_config(SCRIPTS / file, PretrainConfig)
        assert config.train_iters == int(found[iterations]), file
        assert config.optimizer.lr == float(found["LR"]), file
    page = (ROOT / "docs" / "results.md").read_text()
    first, target = int(found["FIRST_ITERS"]), int(found["TRAIN_ITERS"])
    assert f"{first} iterations of 4 rows of {int(found['FIRST_LENGTH']):,} tokens" in page
    assert f"{target} iterations of one row of {int(found['SEQ_LENGTH']):,} tokens" in page


def test_the_files_of_settings_can_be_run() -> None:
    """What needs a GPU is read here as the program reads it, before anybody waits for step 6."""
    verbs = {"first": "pretrain", "target": "pretrain", "ablation": "pretrain", "tune": "sft"}
    files = {path.stem for path in SCRIPTS.glob("*.yaml")}
    assert files == {*verbs, "choices"}
    for name, verb in verbs.items():
        words = ["--config", str(SCRIPTS / f"{name}.yaml"), "--train-iters", "20"]
        words += ["--load", "l", "--data-path", "d"]
        read_training(verb, VERBS[verb], words)[0].check(1)


def test_arms_differ_in_one_thing_and_take_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of every arm are read as the program reads them."""
    ablations, commands = module("ablations"), []
    monkeypatch.setattr(ablations, "run", lambda *words: commands.append([*map(str, words)]))
    monkeypatch.setattr(ablations, "rows", lambda work, arm, length: work / f"rows-{length}")
    monkeypatch.setattr(ablations, "held_out_rows", lambda work: work)
    tokens, last = {}, {}
    for name in ablations.ARMS:
        commands.clear()
        ablations.train(tmp_path, name, 1, tmp_path / name)
        trained = [words[1:] for words in commands if words[0] == "pretrain"]
        runs = [read_training("pretrain", VERBS["pretrain"], words)[0] for words in trained]
        for run in runs:
            run.check(1)
        tokens[name] = sum(r.train_iters * r.global_batch_size * r.data.seq_length for r in runs)
        arm = ablations.ARMS[name]
        of_rows = arm.separator, arm.documents, arm.length_sampling
        last[name] = (runs[-1].rope, runs[-1].data.document_mask, *of_rows)
    assert set(tokens.values()) == {ablations.TRAIN_ITERS * ablations.SEQ_LENGTH}
    differ = {name for name, setting in last.items() if setting == last["recipe"]}
    assert differ == {"recipe", "two-steps"}
    assert len({repr(setting) for setting in last.values()}) == len(ablations.ARMS) - 1
    for name, setting in last.items():  # from the first arm that has its documents
        first = next(other for other in last.values() if other[3] == setting[3])
        assert sum(map(op.ne, first, setting)) <= 1, name
    ablations.evaluate(tmp_path, "recipe=run", tmp_path / "results")
    assert [words[:2] for words in commands[-2:]] == [["evaluate", "loss"], ["evaluate", "passkey"]]


def test_documents_are_cut_at_lines_and_nothing_is_lost() -> None:
    ablations, seed = module("ablations"), random.Random(3)
    texts = ["".join(f"{seed.random()}\n" for _ in range(9000)) + "no end" for _ in range(4)]
    texts.append("x" * 100_000)  # one line
    lines = [json.dumps({"text": text, "package": "p"}).encode() + b"\n" for text in texts]
    for kind, documents in ablations.DOCUMENTS.items():
        parts = [json.loads(line) for line in ablations.cut(lines, documents)]
        assert "".join(part["text"] for part in parts) == "".join(texts)
        assert {part["package"] for part in parts} == {"p"}
        whole = [text for text in texts if {"text": text, "package": "p"} in parts]
        assert len(whole) == {"long": 5, "short": 0, "mixed": 2}[kind]
        bytes_of = [len(part["text"]) for part in parts if part["text"] not in whole]
        for size in bytes_of if kind != "long" else ():
            assert size / ablations.BYTES_OF_A_TOKEN <= documents.tokens[1]
        assert all(part["text"][-1] in "\ndx" for part in parts)


def test_rows_of_arms_are_the_separators_documents_and_sampling_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablations, commands = module("ablations"), []
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    (tmp_path / "corpus" / "train" / "code.jsonl").write_text('{"text": "line\\n"}\n')

    def run(*words: object) -> None:
        commands.append(flags := [*map(str, words)])
        Path(flags[flags.index("--output") + 1]).mkdir()

    monkeypatch.setattr(ablations, "run", run)
    made = {name: ablations.rows(tmp_path, arm, 64).name for name, arm in ablations.ARMS.items()}
    assert made["recipe"] == made["mask"] == "rows-s-64"
    assert made["short"] == made["short-mask"] == "rows-short-s-64"
    assert made["mixed-sampling"] == "rows-mixed-ultralong-s-64"
    assert len(commands) == len({*made.values()}) == 8
    for flags in commands:
        read_verb = dict(itertools.pairwise(flags))
        expected = "ultralong" if "mixed-ultralong" in read_verb["--output"] else "none"
        assert read_verb["--length-sampling"] == expected


def test_runs_are_taken_in_their_order_and_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ablations, ran = module("ablations"), []
    monkeypatch.setattr(ablations, "run_arm", lambda work, label: ran.append(label))

    def main(*words: str) -> list[str]:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["ablations.py", str(tmp_path), *words])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        ablations.main()
        return [*ran]

    every = [*main("--share", "0/2"), *main("--share", "1/2")]
    assert len(every) == len({*every}) == 1 + len(ablations.ARMS) * len(ablations.SEEDS)
    assert main("--runs", "short-2", "before", "recipe-1") == ["short-2", "before", "recipe-1"]
    assert main("--runs", "short-2", "before", "recipe-1", "--share", "1/2") == ["before"]
    with pytest.raises(SystemExit):
        main("--runs", "shor-2")
    assert "--runs shor-2: an arm and a seed, such as recipe-1" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["128k", "256k"])
def test_a_factor_is_twice_what_its_length_needs(target: str) -> None:
    found = settings(target)
    assert int(found["FACTOR"]) * POSITIONS == 2 * int(found["SEQ_LENGTH"])
    lengths = [*map(int, found["LENGTHS"].split())]
    assert lengths == sorted({*lengths})
    assert lengths[-1] == int(found["SEQ_LENGTH"])


@pytest.mark.parametrize(
    "length", [1, 256, 2048, 4095, 4096, 4097, 8191, 8192, 10_000, 16_384, 65_536, 131_073]
)
def test_a_factor_gives_room_for_any_length(length: int) -> None:
    """Rounded down, rows of less than 4,096 tokens had the factor 0, and no first part had room."""
    found = settings(SEQ_LENGTH=f"{length}", MILLION_LENGTH=f"{length}")
    factor = int(found["FACTOR"])
    assert factor >= 2
    assert factor * POSITIONS >= 2 * length
    assert factor == 2 or (factor - 1) * POSITIONS < 2 * length
    for rows in ("FIRST_LENGTH", "CHAT_LENGTH"):
        assert int(found[rows]) <= factor * POSITIONS, rows
    lengths = [*map(int, found["LENGTHS"].split())]
    assert len({*lengths}) == len(lengths), "evaluate takes each once"
    assert max(lengths) == length
    assert int(found["MILLION_FACTOR"]) == max(2, -(-length // POSITIONS))


@pytest.mark.parametrize("name", ["SEQ_LENGTH", "MILLION_LENGTH"])
@pytest.mark.parametrize("value", ["0", "-1", "128K", "1.5", "x", "08"])
def test_a_length_that_is_none_is_told(name: str, value: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        settings(**{name: value})
    assert refused.value.returncode == 2
    assert f"{name} must be a whole number of tokens, such as 131072, not '{value}'" in (
        refused.value.stderr
    )


def test_only_the_first_two_steps_fetch() -> None:
    """Later ones run where the GPUs are, mostly without a network."""
    fetch = {path.name for path in SCRIPTS.glob("*.py") if "fetched" in path.read_text()}
    fetch.add("get_smollm2")
    assert fetch == {"corpus.py", "conversations.py", "choices.py", "get_smollm2"}
    for script in SCRIPTS.glob("*.sh"):
        named = {name for name in fetch if name in script.read_text()}
        assert bool(named) == (script.name[:2] in ("01", "02")), f"{script.name}: {named}"


def test_what_is_set_before_stays() -> None:
    assert settings("256k", LR="1e-4", SEQ_LENGTH="1024")["LR"] == "1e-4"
    short = settings("--cpu")
    assert int(short["SEQ_LENGTH"]) <= 1024
    assert int(short["TRAIN_ITERS"]) <= 4
    number = re.compile(r"[0-9.]+")
    lists = ("LENGTHS", "DEPTHS", "MILLION_DEPTHS", "RULER_SHORT", "RULER_LONG", "RULER_TASKS")
    others = {"GPUS": "4", **dict.fromkeys(lists, "77 99")}
    for words in ((), ("--cpu",)):
        for name, value in settings(*words).items():
            if name not in ("TARGET", "POSITIONS"):
                other = "7777" if number.fullmatch(value) else "/other --words"
                other = others.get(name, other)
                assert settings(*words, **{name: other})[name] == other, f"{name} {words}"


def test_other_words_are_refused() -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / "05_train.sh"), "512k"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'512k' is not known; known: --cpu, 128k, 256k" in done.stderr


def test_every_source_has_a_licence_and_none_is_on_both_sides() -> None:
    sources = module("sources").SOURCES
    names = {True: set[str](), False: set[str]()}
    for source in sources:
        assert source.licence in LICENCES, source
        assert source.files, source
        for package in source.packages:
            name, _, version = package.partition("==")
            assert bool(version) == (source.index == "pypi"), f"{package}: a version of pip's"
            names[source.is_held_out].add(name)
        versions = {package.partition("==")[0] for package in source.packages}
        assert len(versions) == 1, "several packages of one source are versions of one thing"
        assert (len(source.packages) > 1) == (source.group in ("revisions", "distant"))
        assert source.is_for_target == (source.group == "distant")
        assert not (source.is_held_out and len(source.packages) > 1)
    assert not names[True] & names[False]
    assert len(names[True]) == 4
    all_names = [name for source in sources for name in source.packages]
    assert len(all_names) == len({*all_names})


def test_conversations_are_of_two_people_in_turns() -> None:
    told = [
        *(["q", "a"], [" q ", "a", "q2", "a2", "left over"]),  # the last turn has no answer
        *(["alone"], [], ["q", 7], ["q", ""]),
    ]
    made = module("conversations")
    found = list(made.conversations(json.dumps({"conversations": told}).encode()))
    system = {"role": "system", "content": made.SYSTEM}
    texts = [[turn["content"] for turn in messages[1:]] for messages in found]
    assert texts == [["q", "a"], ["q", "a", "q2", "a2"]]
    for messages in found:
        assert messages[0] == system
        roles = [turn["role"] for turn in messages[1:]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def write_wheel(packages: Path, package: str, texts: dict[str, str]) -> None:
    """A package as pip leaves it, so that nothing is fetched."""
    name, _, version = package.partition("==")
    folder = packages / f"{name}-{version}"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in texts.items():
            wheel.writestr(path, text)


def corpus(output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPTS / "corpus.py"), str(output), "--indexes", "pypi", *flags]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of three packages, one in two versions, under the names of sources.py."""
    folder = tmp_path_factory.mktemp("packages")
    seed = random.Random(20)
    for source in module("sources").SOURCES:
        for package in source.packages:
            name, _, version = package.partition("==")
            if name not in ("nltk", "networkx", "sphinx"):
                continue
            texts = {
                f"{name}/m{number}.py": "".join(
                    f"{name}_{version}_{number}_{line} = {seed.random()}\n"
                    for line in range(seed.randint(1, 900))
                )
                for number in range(12)
            }
            texts[f"{name}/_vendor/copied.py"] = "copied = 1\n" * 100
            texts[f"{name}/data.bin"] = "binary = 1\n" * 100
            write_wheel(folder, package, texts)
    return folder


def documents(folder: Path) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def test_the_corpus_keeps_held_out_packages_apart(packages: Path, tmp_path: Path) -> None:
    done = corpus(
        tmp_path / "corpus", "--packages", str(packages), "--only", "nltk", "networkx", "sphinx",
        "--largest-document", "20000",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert all(row["licence"] in LICENCES for row in rows)
    sides = {name: documents(tmp_path / "corpus" / name) for name in ("train", "held_out")}
    assert {text["package"] for text in sides["train"]} == {"nltk", "networkx"}
    assert {text["package"] for text in sides["held_out"]} == {"sphinx"}
    trained = {line for text in sides["train"] for line in text["text"].splitlines() if line}
    held_out = {line for text in sides["held_out"] for line in text["text"].splitlines() if line}
    assert not trained & held_out
    # every line of every package is there, except for others' code and what is not a text
    for name, lines in (("nltk", trained), ("networkx", trained), ("sphinx", held_out)):
        for path in packages.glob(f"{name}-*/*.whl"):
            with zipfile.ZipFile(path) as wheel:
                for member in wheel.namelist():
                    there = {*wheel.read(member).decode().splitlines()} & lines
                    assert bool(there) == bool(re.search(r"/m\d+\.py$", member)), member
    # documents of several files end between two; a longer file is cut at a line
    assert all(len(text["text"]) <= 20_100 for text in sides["held_out"])


def test_a_revision_follows_its_first_version(packages: Path, tmp_path: Path) -> None:
    done = corpus(tmp_path / "c", "--packages", str(packages), "--only", "networkx")
    assert done.returncode == 0, done.stderr
    old, new = (
        package.partition("==")[2]
        for source in module("sources").SOURCES
        for package in source.packages
        if package.startswith("networkx==")
    )
    for text in documents(tmp_path / "c" / "train"):
        versions = re.findall(r"^networkx_([\d.]+)_", text["text"], re.MULTILINE)
        assert {*versions} == {old, new}
        assert versions == sorted(versions, key=[old, new].index)
        files = [{*re.findall(rf"^networkx_{v}_(\d+)_", text["text"], re.M)} for v in (old, new)]
        assert files[0] == files[1]


def test_a_corpus_says_what_it_cannot_make(packages: Path, tmp_path: Path) -> None:
    kept = "--packages", str(packages)
    done = corpus(tmp_path / "c", *kept, "--only", "numpy")
    assert done.returncode == 1
    assert "numpy is not in sources.py; there: [" in done.stderr
    (tmp_path / "c").mkdir()
    done = corpus(tmp_path / "c", *kept)
    assert done.returncode == 1
    assert "is there; name a new folder, or remove it" in done.stderr
