"""Vocabularies by name: byte-pair encoding trained on a corpus, GPT-2's, and the names that are refused."""

import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import SAMPLE, TALE, bpe_tokenizer

from slm_np.data import bpe, segments, token_store, tokenizer_factory
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.token_store import load_corpus
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer
from slm_np.data.tokenizer_json import END_OF_TEXT
from slm_np.errors import UserError


def test_training_a_byte_pair_vocabulary(tmp_path):
    tokenizer = bpe_tokenizer(300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.end_of_text == 299
    assert len(tokenizer.encode(TALE.encode())) < 0.8 * len(TALE.encode())
    assert sorted(tokenizer.to_json()["model"]["vocab"].values()) == list(range(299))
    data = TALE.encode() * 3
    cut = make_tokenizer("bpe:300", [lambda: (data[i : i + 7] for i in range(0, len(data), 7))], progress=False)
    assert cut.to_json() == tokenizer.to_json()  # however the text is cut
    two = make_tokenizer("bpe:300", [lambda: [TALE.encode()], lambda: [TALE.encode() * 2]], progress=False)
    assert two.to_json() == tokenizer.to_json()
    assert make_tokenizer("bpe:257", [lambda: [b"abc"]], progress=False).encode(b"abc").shape == (3,)
    small = make_tokenizer("bpe:5000", [lambda: [b"abc abc \xff"]], progress=False)  # no more pairs to merge
    assert small.vocab_size < 300
    assert small.end_of_text == small.vocab_size - 1
    assert small.decode(small.encode(b"abc \xff\xfe")) == b"abc \xff\xfe"


def test_a_large_corpus_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 100)
    monkeypatch.setattr(segments, "LIMIT", 200)
    data = "".join(f" word{i}" for i in range(4000))
    assert "".join(bpe.sample([data[i : i + 50] for i in range(0, len(data), 50)], len(data))) == data
    monkeypatch.setattr(bpe, "SAMPLE", 4000)
    taken = list(bpe.sample([data], len(data)))
    assert 3900 <= sum(map(len, taken)) <= 4200 and all(part in data for part in taken)
    quarters = [data.index(part) * 4 // len(data) for part in taken]
    assert np.bincount(quarters) == pytest.approx([len(taken) / 4] * 4, abs=1)
    assert list(bpe.sample([data[:777], data[777:]], len(data))) == taken
    assert list(bpe.sample(["a\udcffb"], 3)) == ["a", "b"]


def test_progress_of_training_counts_the_bytes(monkeypatch):
    calls = []

    def metered(blocks, total, what, show):
        calls.append((total, what, show))
        return blocks

    monkeypatch.setattr(bpe, "metered", metered)
    monkeypatch.setattr(tokenizer_factory, "metered", metered)
    make_tokenizer("bpe:260", [lambda: [b"abc", b"de"]], progress=True)
    make_tokenizer("char", [lambda: [b"abc"], lambda: [b"d"]], progress=True)
    what = "collecting characters"
    assert calls == [(5, "training the tokenizer", True), (3, what, True), (1, what, True)]


@pytest.fixture
def gpt2_cache(test_data, monkeypatch):
    """tiktoken's GPT-2 encoding, from files."""
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    return tiktoken.get_encoding("gpt2")


def test_gpt2_equals_tiktoken(gpt2_cache, test_data, tmp_path, monkeypatch):
    made = make_tokenizer("gpt2", [])
    made.save(tmp_path / "tokenizer.json")
    assert (made.vocab_size, made.end_of_text, made.dtype) == (50257, 50256, np.uint16)
    model = made.to_json()["model"]
    assert model["merges"] == (test_data / "gpt2" / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    vocab = json.loads((test_data / "gpt2" / "encoder.json").read_text(encoding="utf-8"))
    assert model["vocab"] == {token: id for token, id in vocab.items() if token != END_OF_TEXT}
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # it is not needed any more
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.to_json() == made.to_json() and again.end_of_text == 50256
    for file, size in (("tinystories/stories.txt", 500_000), ("tinyshakespeare.txt", 100_000)):
        text = (test_data / file).read_bytes()[:size].decode("utf-8", "ignore")
        ids = again.encode(text.encode())
        assert ids.tolist() == gpt2_cache.encode_ordinary(text) and again.decode(ids) == text.encode()

    @settings(max_examples=80, deadline=None)
    @given(
        st.one_of(st.text(), st.text(alphabet=SAMPLE + "  \n\n't's'll "), st.just(END_OF_TEXT + "x" + END_OF_TEXT)),
        st.binary(),
    )
    def same(text, data):
        assert again.encode(text.encode()).tolist() == gpt2_cache.encode_ordinary(text)
        assert again.decode(again.encode(data)) == data

    same()
    for text in (
        "a" * 3000,
        " " * 3000 + "x",
        "\n" * 999,
        "word" + " " * 500 + "\n \n  end  ",
        "".join(map(chr, range(0x2000, 0x2100))),
    ):
        assert again.encode(text.encode()).tolist() == gpt2_cache.encode_ordinary(text)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert other.encode(TALE).ids == again.encode(TALE.encode()).tolist()
    assert other.decode(other.encode(TALE).ids) == TALE
    assert other.encode(END_OF_TEXT).ids == [50256] and 50256 not in again.encode(END_OF_TEXT.encode())


def test_gpt2_without_a_network_is_one_sentence(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name):
        raise ConnectionError("HTTPSConnectionPool(host='example'): Max retries exceeded")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(
        UserError,
        match="gpt2 needs GPT-2's vocabulary, .* not in tiktoken's cache .*ConnectionError.* TIKTOKEN_CACHE_DIR",
    ):
        make_tokenizer("gpt2", [])


@pytest.mark.parametrize(
    "name, package, install", [("gpt2", "tiktoken", r"slm_np\[gpt2\]"), ("bpe:300", "tokenizers", r"slm_np\[bpe\]")]
)
def test_a_missing_package_is_one_sentence(name, package, install, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with pytest.raises(
        UserError,
        match=f'--tokenizer {name} needs the package {package}, which is not installed; run pip install "{install}"',
    ):
        make_tokenizer(name, [lambda: [b"abc"]], progress=False)


@pytest.mark.parametrize("name, package", [("gpt2", "tiktoken"), ("bpe:300", "tokenizers")])
def test_a_missing_package_is_reported_before_the_text_is_read(name, package, monkeypatch):
    def read(*arguments):
        raise AssertionError("the text was read")

    monkeypatch.setattr(token_store, "split_ranges", read)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{name} needs the package {package}"):
        load_corpus("tinystories", tokenizer=name, progress=False)


def test_a_missing_package_leaves_the_finished_store(tmp_path, monkeypatch):
    """Its tokenizer.json cannot be loaded then, but the store is not damaged."""
    (tmp_path / "text.txt").write_text(TALE * 20, encoding="utf-8")
    given = dict(tokenizer="bpe:300", cache_dir=tmp_path / "cache", progress=False)
    load_corpus(str(tmp_path / "text.txt"), **given)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "corpora").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(UserError, match=r"slm_np\[bpe\]"):
            load_corpus(str(tmp_path / "text.txt"), **given)
    assert files and files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    "name, match",
    [
        ("bites", "'bites' is unknown; did you mean byte"),
        ("gpt-2", "did you mean gpt2"),
        ("words", "known are byte, char, bpe:N, gpt2, file:PATH"),
        ("file:", "did you mean file:PATH"),
        ("bpe", "whole number N from 257"),
        ("bpe:", "whole number"),
        ("bpe:256", "'bpe:256' must be bpe:N"),
        ("bpe:many", "bpe:4096"),
        ("bpe:-5", "bpe:N"),
        ("bpe:1e9", "bpe:N"),
        ("bpe:9999999", "to 1048576"),
        ("bpe:٣٠٠", "bpe:N"),
        ("bpe:300:2", "bpe:N"),
        ("file:nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_a_bad_tokenizer_name_is_refused(name, match):
    with pytest.raises(UserError, match=match):
        make_tokenizer(name, [lambda: [b"text"]], progress=False)


def test_tokenizers_by_name_and_by_file(tmp_path):
    assert type(make_tokenizer("byte", [])) is ByteTokenizer
    assert make_tokenizer("char", [lambda: [b"b"], lambda: [b"a"]], progress=False).characters == "ab"
    bpe_tokenizer().save(tmp_path / "t.json")
    assert make_tokenizer(f"file:{tmp_path / 't.json'}", []).to_json() == bpe_tokenizer().to_json()
    ByteTokenizer().save(tmp_path / "b.json")
    assert type(make_tokenizer(f"file:{tmp_path / 'b.json'}", [])) is ByteTokenizer
    with pytest.raises(UserError, match="no characters to learn a vocabulary from"):
        make_tokenizer("char", [lambda: [b""]], progress=False)
