"""Vocabularies by name: byte-pair encoding trained on a corpus, GPT-2's, and the names that are refused."""

import json
import random
import subprocess
import sys
from queue import Empty

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import SAMPLE, TALE, bpe_tokenizer

from slm_np.data import bpe, bpe_process, segments, token_store, tokenizer_factory
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.token_store import load_corpus
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer
from slm_np.data.tokenizer_json import END_OF_TEXT, byte_letters
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


def by_the_library(text, n):
    """The vocabulary that the library learns of a text as a whole."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=n - 1, show_progress=False, initial_alphabet=byte_letters())
    library.train_from_iterator([text], trainer)
    return library.get_vocab()


def test_a_text_without_long_runs_gives_the_vocabulary_of_the_library(test_data):
    for text in (
        (test_data / "tinyshakespeare.txt").read_text(encoding="utf-8")[:300_000],
        "".join(f" {'ab' * (n % 90)}{n}" for n in range(2000)),  # words of up to 184 bytes
    ):
        made = make_tokenizer("bpe:700", [lambda: [text.encode()]], progress=False)
        vocab = {token: id for token, id in made.to_json()["model"]["vocab"].items() if token != END_OF_TEXT}
        assert vocab == by_the_library(text, 700)


@pytest.mark.parametrize(
    "letters, size", [("a", 3000), ("ACGT", 9000), ("漢字書道仮名", 6000), ("🙂🙃", 3000), (" ", 3000), ("!?", 3000)]
)
def test_long_runs_are_learned_in_parts_and_encoded_whole(letters, size):
    text = "".join(random.Random(1).choice(letters) for _ in range(size))
    made = make_tokenizer("bpe:600", [lambda: [text.encode()]], progress=False)
    tokens = [made.decode([id]) for id in range(256, made.end_of_text)]
    assert tokens and max(map(len, tokens)) <= bpe_process.LONGEST
    if ord(letters[0]) > 127:  # only whole characters are joined, after those of their bytes
        assert any(len(token) > len(letters[0].encode()) for token in tokens)
        for token in tokens:
            if len(token) > 2 * len(letters[0].encode()):
                assert token.decode() in text
    data = (text * 3).encode()
    ids = made.encode(data)
    assert made.decode(ids) == data
    library = tokenizers.Tokenizer.from_str(json.dumps(made.to_json()))
    assert library.encode(text * 3).ids == ids.tolist()  # so no other program cuts differently


def test_fewer_tokens_than_asked_for_are_reported(capsys):
    made = make_tokenizer("bpe:5000", [lambda: [b"abc abc"]])
    assert f"bpe:5000 learned {made.vocab_size} tokens: the text has no more pairs to merge" in capsys.readouterr().err
    make_tokenizer("bpe:258", [lambda: [b"abc abc"]])
    assert "no more pairs" not in capsys.readouterr().err


class Script:
    """A queue that gives what it was made of; None is a time without an answer."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def get(self, timeout):
        answer = self.answers.pop(0)
        if answer is None:
            raise Empty
        return answer

    def get_nowait(self):
        return self.get(0)


def test_progress_of_learning_merges(monkeypatch, capsys):
    monkeypatch.setattr(bpe_process, "SHOWN_AFTER_S", -1.0)
    monkeypatch.setattr(bpe_process, "FIRST_LINE_S", -1.0)
    monkeypatch.setattr(bpe_process, "LINE_S", 0.0)
    assert bpe_process._received(Script(None, 1, 2, None, 30, None, b"model"), "learning", 40, True) == b"model"
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition("  ETA ")[0] for line in shown] == [
        "learning for 0s",
        "learning: 2/40 merges",
        "learning: 30/40 merges",
    ]
    assert bpe_process._received(Script(None, 1, None, b"model"), "learning", 40, False) == b"model"
    assert not capsys.readouterr().err


@pytest.fixture
def processes(monkeypatch):
    """The processes that a test starts."""
    found, start = [], subprocess.Popen

    def popen(*arguments, **named):
        found.append(start(*arguments, **named))
        return found[-1]

    monkeypatch.setattr(bpe_process.subprocess, "Popen", popen)
    return found


def test_learning_ends_its_process(processes, monkeypatch):
    make_tokenizer("bpe:300", [lambda: [b"abc"]], progress=False)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bpe_process, "_received", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_tokenizer("bpe:300", [lambda: [b"abc"]], progress=False)

    def text():
        yield b"abc" * 1_000_000
        raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        bpe_process.learned(300, (block.decode() for block in text()), progress=False)
    assert len(processes) == 3 and all(process.returncode is not None for process in processes)


@pytest.mark.parametrize("moment", ["between strings", "within a string", "learning"])
def test_the_process_ends_with_its_parent(moment, processes, monkeypatch):
    class Gone(Exception):
        pass

    def send(pipe, strings):
        """Send some of the text, and close the pipe as the end of the parent does."""
        data = "".join(random.Random(1).choices("abcdefghijklm", k=2_000_000)).encode()
        pipe.write(bpe_process.LENGTH.pack(len(data)) + data[: 1000 if moment == "within a string" else None])
        if moment == "learning":
            pipe.write(bpe_process.LENGTH.pack(0))
        pipe.close()
        processes[0].wait(60)
        raise Gone

    monkeypatch.setattr(bpe_process, "_send", send)
    with pytest.raises(Gone):
        bpe_process.learned(200_000, [], progress=False)
    assert processes[0].returncode == 1


def test_a_process_that_fails_is_one_sentence(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match="process that learns bpe:300 cannot be started .*nowhere"):
            make_tokenizer("bpe:300", [lambda: [b"abc"]], progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(bpe_process, "import_path", lambda: [])
        patch.setattr(bpe_process, "__name__", "slm_np.data.missing")
        with pytest.raises(UserError, match="process that learned bpe:300 ended with status 1, .*smaller vocabulary"):
            make_tokenizer("bpe:300", [lambda: [b"abc" * 1_000_000]], progress=False)


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
        ("words", "known are byte, char, stories, bpe:N, gpt2, gpt2-trimmed, file:PATH"),
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
