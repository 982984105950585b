"""Which engine reads what; all of them give the ids of the reference, for hostile texts too."""

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from megatron_ultralong.data.tokenize.engines import (
    FastPathError,
    FastTokenizer,
    choose_tokenizer,
    lost_letters,
    open_reference,
)
from megatron_ultralong.data.tokenize.tokenising import (
    HuggingFaceTokenizer,
    TokenizerEngine,
    copy_tokenizer,
    separator_ids,
)
from megatron_ultralong.data.tokenize.tokenizer_model import Llama3Tokenizer
from megatron_ultralong.program.errors import InputError

HOSTILE = [
    "<|begin_of_text|>a<|end_of_text|>",
    " " * 1_000_000,
    "a" * 1_000_000,
    "\n" * 100_000 + "=" * 100_000,
    "\x00\x00a\x00",
    "a lone \ud800 surrogate, and \udfff\ud83d\ude00",
    "\u202e🙂\u0301\r\n\ufeff",
    "",
]


@pytest.fixture(scope="module")
def llama3_fast(llama3: Llama3Tokenizer) -> FastTokenizer:
    return FastTokenizer(llama3)


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory, library_files) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("\n".join(path.read_text() for path in library_files[:4]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def test_llama3_is_as_meta_reads_it(llama3: Llama3Tokenizer) -> None:
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

    meta = MetaTokenizer(llama3.file)
    assert llama3.sha256.startswith("82e9d319")
    assert llama3.vocab_size == meta.n_words == 128_256
    assert llama3.encode_separator("<s>") == [45147, 29]
    assert separator_ids(llama3, "eos") == [meta.eos_id] == [128_001]
    assert llama3.encode_separator("<|eot_id|>") == [meta.eot_id]
    text = Path(__file__).read_text()
    ids = llama3.encode_documents([text])[0].tolist()
    assert ids == meta.encode(text, bos=False, eos=False)
    assert llama3.decode(ids) == text


def test_llama3_golden_vectors(llama3: Llama3Tokenizer, llama3_fast: FastTokenizer) -> None:
    golden = json.loads((Path(__file__).parent / "golden" / "llama3.json").read_text())
    texts, expected = zip(*golden["texts_and_ids"], strict=True)
    assert len(texts) == 46
    for tokenizer in (llama3, llama3_fast):
        found = [ids.tolist() for ids in tokenizer.encode_documents(texts)]
        assert found == list(expected), tokenizer.engine


def test_llama3_hostile_texts_alike_in_both_engines(
    llama3: Llama3Tokenizer, llama3_fast: FastTokenizer
) -> None:
    texts = [*HOSTILE, "".join(llama3.special_texts), *llama3.special_texts]
    slow, fast = llama3.encode_documents(texts), llama3_fast.encode_documents(texts)
    for text, a, b in zip(texts, slow, fast, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=repr(text[:40]))
        assert a.dtype == b.dtype == np.int32
        assert a.max(initial=0) < 128_000  # never a special token
    for text, ids in zip(HOSTILE, slow[: len(HOSTILE)], strict=True):
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert llama3.decode(ids.tolist()) == whole


def test_llama3_equals_the_reference_on_real_documents(
    llama3: Llama3Tokenizer, llama3_fast: FastTokenizer, library_files: list[Path]
) -> None:
    texts = [path.read_text() for path in library_files]
    for a, b in zip(
        llama3.encode_documents(texts), llama3_fast.encode_documents(texts), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_llama3_as_a_tokenizer_json_gives_the_same_ids(
    llama3: Llama3Tokenizer, library_files: list[Path]
) -> None:
    # tokenizers is a third judge of the conversion that gigatoken is given
    third = Tokenizer.from_str(llama3.tokenizer_json())
    texts = [path.read_text()[:20_000] for path in library_files[:10]]
    for text, ids in zip(texts, llama3.encode_documents(texts), strict=True):
        assert third.encode(text).ids == ids.tolist()


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_hugging_face_hostile_texts(
    tokenizer_folder: Path, reference: Tokenizer, engine: str
) -> None:
    tokenizer, reason = choose_tokenizer(tokenizer_folder, engine)  # type: ignore[arg-type]
    assert reason == ("asked for" if engine == "reference" else "") or "gigatoken" in reason
    for text, ids in zip(HOSTILE, tokenizer.encode_documents(HOSTILE), strict=True):
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert ids.tolist() == reference.encode(whole).ids
    assert separator_ids(tokenizer, "eos") == [1001]
    assert tokenizer.decode([1000]) == "<|begin_of_text|>"


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_sentencepiece(
    sentencepiece_model: Path, library_files: list[Path], tmp_path: Path, engine: TokenizerEngine
) -> None:
    tokenizer, reason = choose_tokenizer(sentencepiece_model.parent, engine)
    assert tokenizer.engine == "sentencepiece" or (engine == "auto" and not reason)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    texts = [path.read_text() for path in library_files[:20]]
    texts += ["def f(x): return 1", "<s>a</s>", "漢字 \x00", " " * 50_000, ""]
    for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert ids.tolist() == plain.encode(text)
        assert not {1, 2} & set(ids.tolist())  # control pieces in the text are text
    assert separator_ids(tokenizer, "eos") == tokenizer.encode_separator("</s>") == [2]
    assert tokenizer.decode([*plain.encode("a b"), 2, *plain.encode("c")]) == "a b</s>c"
    copy_tokenizer(tokenizer, tmp_path / "copy")
    assert open_reference(tmp_path / "copy").sha256 == tokenizer.sha256


def test_the_folder_decides(
    tokenizer_folder: Path, sentencepiece_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json or tokenizer\.model"):
        open_reference(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    assert open_reference(tmp_path).engine == "sentencepiece"
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    assert isinstance(open_reference(tmp_path), HuggingFaceTokenizer)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes()[:500])
    with pytest.raises(InputError, match="neither tiktoken ranks nor a sentencepiece model"):
        open_reference(tmp_path / "tokenizer.model")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    with pytest.raises(InputError, match=r"is not a tokenizer, .* give .*/tokenizer\.json, or its"):
        open_reference(tmp_path / "model.safetensors")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "model.safetensors").write_bytes(bytes(100))
    with pytest.raises(InputError, match=r"give a tokenizer\.json or tokenizer\.model") as refused:
        open_reference(tmp_path / "alone" / "model.safetensors")
    assert "INTERNAL" not in str(refused.value)  # the library's place in its own source
    ranks = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(ranks))
    with pytest.raises(InputError, match=r"has 256 ranks, where Llama 3's has 128000"):
        open_reference(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"".join(ranks) + b"IQ== x\n")
    with pytest.raises(InputError, match=r"is not a tokenizer\.model of tiktoken"):
        open_reference(tmp_path / "tokenizer.model")


def test_the_tokenizer_of_a_checkpoint_is_named(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A checkpoint's own folder holds none; it keeps one in a folder."""
    with pytest.raises(InputError, match="give such a file or its folder"):
        open_reference(tmp_path)
    (tmp_path / "huggingface").symlink_to(tokenizer_folder)
    with pytest.raises(InputError, match=f"; give {tmp_path / 'huggingface'}$"):
        open_reference(tmp_path)


def test_without_gigatoken_the_reference_says_why(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    chosen = choose_tokenizer(tokenizer_folder, "auto")
    assert chosen.tokenizer.engine == "tokenizers"
    assert "gigatoken is not installed" in chosen.reason
    with pytest.raises(InputError, match=r"gigatoken is not installed .*use auto"):
        choose_tokenizer(tokenizer_folder, "gigatoken")


def test_a_vocabulary_that_differs_is_found(tokenizer_folder: Path, tmp_path: Path) -> None:
    data = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**data, "post_processor": None}))
    fast = FastTokenizer(HuggingFaceTokenizer(tmp_path))
    data["model"]["merges"] = data["model"]["merges"][:-50]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    fast.reference = HuggingFaceTokenizer(tmp_path)
    text = (Path(json.__file__)).read_text()
    with pytest.raises(FastPathError, match="differ from those of tokenizers at token"):
        fast.check([text])


def test_a_vocabulary_that_gigatoken_cannot_hold_goes_to_the_reference(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    chosen = choose_tokenizer(tmp_path, "auto")
    assert chosen.tokenizer.engine == "tokenizers"
    assert re.match(r"gigatoken cannot hold this vocabulary \(.*WordLevel", chosen.reason)
    assert "\n" not in chosen.reason


def test_a_sentencepiece_model_that_normalises_goes_to_the_reference(
    tmp_path: Path, library_files: list[Path]
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        input=str(library_files[0]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    chosen = choose_tokenizer(tmp_path, "auto")
    assert chosen.tokenizer.engine == "sentencepiece"
    assert "gigatoken's ids differ from those of sentencepiece" in chosen.reason
    with pytest.raises(InputError, match="--tokenizer-engine gigatoken: gigatoken's ids differ"):
        choose_tokenizer(tmp_path, "gigatoken")


def test_letters_that_a_tokenizer_cannot_write_are_told(
    tokenizer_folder: Path, llama3: Llama3Tokenizer, tmp_path: Path
) -> None:
    assert lost_letters(HuggingFaceTokenizer(tokenizer_folder)) == lost_letters(llama3) == ""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(["alpha beta"] * 9, trainers.BpeTrainer(show_progress=False))
    words.save(str(tmp_path / "tokenizer.json"))
    told = rf"warning: {tmp_path}/tokenizer\.json writes letters that it does not know as "
    assert re.match(told + "nothing: ", lost_letters(HuggingFaceTokenizer(tmp_path)))
    words.model.unk_token = "a"
    words.save(str(tmp_path / "tokenizer.json"))
    assert re.match(told + "'a': ", lost_letters(HuggingFaceTokenizer(tmp_path)))
