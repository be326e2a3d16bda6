"""The token store: how a text is split, what the fingerprint depends on, when a store is reused, checks of tokens."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from data_files import LONG_AGO, load, old_file, tokens

from slm_np.data import text_files
from slm_np.data.batches import EpochOrder, random_batch
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.tokens import check_ids, check_length
from slm_np.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_the_last_tenth_of_the_bytes_is_for_validation(tmp_path, cache):
    data = bytes(range(256)) * 5
    found = load(old_file(tmp_path / "a", data), cache_dir=cache, binary=True)
    assert isinstance(found.train.ids, np.memmap) and found.train.ids.dtype == np.uint16
    with pytest.raises(ValueError):
        found.train.ids[0] = 1
    assert bytes(found.train.ids.astype(np.uint8)) == data[:1152]
    assert bytes(found.validation.ids.astype(np.uint8)) == data[1152:]
    assert (len(found.train), found.train.n_bytes, found.validation.n_bytes) == (1152, 1152, 128)
    assert found.vocab_size == 256
    assert found.source == str(tmp_path / "a")
    assert found.validation.bits_per_byte_floor is None
    assert (found.train.split, found.validation.split) == ("train", "validation")


def test_the_split_is_between_characters(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 7)
    for text in ("ab漢🙂é" * 23, "漢" * 10, "🙂" * 3, "é" * 20 + "x"):
        found = load(old_file(tmp_path / "a", text.encode()), tokenizer="char", cache_dir=cache)
        parts = [found.tokenizer.decode(part.ids).decode() for part in (found.train, found.validation)]
        assert "".join(parts) == text and found.tokenizer.characters == "".join(sorted(set(text)))
        assert [len(part.encode()) for part in parts] == [found.train.n_bytes, found.validation.n_bytes]
        assert 0 <= len(text.encode()) * 9 // 10 - len(parts[0].encode()) <= 3 and parts[1]


def test_a_char_vocabulary_covers_the_validation_data(tmp_path, cache):
    train, val = old_file(tmp_path / "a", b"aab"), old_file(tmp_path / "b", b"caz")
    found = load(train, val, "char", cache_dir=cache)
    assert found.tokenizer.characters == "abcz"
    assert found.train.ids.tolist() == [0, 0, 1] and found.validation.ids.tolist() == [2, 0, 3]


def test_a_given_tokenizer_is_used(tmp_path, cache):
    file = old_file(tmp_path / "a", b"abba" * 5)
    found = load(file, tokenizer=CharTokenizer("ba"), cache_dir=cache)
    assert found.train.ids.tolist() == [1, 0, 0, 1] * 4 + [1, 0]
    with pytest.raises(UserError, match=r"'b' \(U\+0062\) is not among the 1"):
        load(file, tokenizer=CharTokenizer("a"), cache_dir=cache)
    assert not list((cache / "corpora").glob("*.part"))


def test_an_unknown_tokenizer_and_text_that_is_not_utf8_are_errors(tmp_path, cache):
    file = old_file(tmp_path / "a", b"ab\xffcdefghijk")
    with pytest.raises(UserError, match="--tokenizer 'chars' is unknown; did you mean char"):
        load(file, tokenizer="chars", cache_dir=cache)
    with pytest.raises(UserError, match="not UTF-8 .byte 0xff at position 2.*--tokenizer byte"):
        load(file, tokenizer="char", cache_dir=cache)


def test_the_fingerprint_depends_on_contents_split_and_tokenizer(tmp_path, cache):
    a, same, other = (
        old_file(tmp_path / name, data * 9)
        for name, data in (("a", b"abcabc"), ("same", b"abcabc"), ("other", b"abcabd"))
    )

    def fingerprint(*arguments):
        return load(*arguments, cache_dir=cache).fingerprint

    assert fingerprint(a) == fingerprint(same)
    different = [(a,), (other,), (a, other), (other, a), (a, "", "char"), (a, "", "byte", "blank-line")]
    assert len({fingerprint(*arguments) for arguments in different}) == len(different)


def stamps(folder):
    """What changes if a file in the folder is written again."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_store_is_reused_and_a_damaged_one_is_rebuilt(tmp_path, cache, tokenizer):
    file = old_file(tmp_path / "a", "So it goes, ça va. ".encode() * 50)
    first = load(file, tokenizer=tokenizer, cache_dir=cache)
    folder = cache / "corpora" / first.fingerprint
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["meta.json", "tokenizer.json", "train.bin", "validation.bin"]
    expected, before = first.train.ids.tolist(), stamps(folder)
    again = load(file, tokenizer=tokenizer, cache_dir=cache)
    assert stamps(folder) == before and again.train.ids.tolist() == expected and again.fingerprint == first.fingerprint

    def damage_meta(text):
        return lambda: (folder / "meta.json").write_text(text, encoding="utf-8")

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    wrong = [
        {**meta, **change}
        for change in (dict(dtype="float99"), dict(dtype="uint32"), dict(tokens=3), dict(vocab_size=7))
    ]
    for damage in (
        *(damage_meta(text) for text in ("{", "[]", *map(json.dumps, wrong))),
        lambda: (folder / "meta.json").unlink(),
        lambda: (folder / "validation.bin").unlink(),
        lambda: os.truncate(folder / "train.bin", 100),
        lambda: os.truncate(folder / "train.bin", 101),
        lambda: (folder / "tokenizer.json").write_text("", encoding="utf-8"),
    ):
        damage()
        again = load(file, tokenizer=tokenizer, cache_dir=cache)
        assert again.train.ids.tolist() == expected and again.tokenizer.to_json() == first.tokenizer.to_json()
        assert json.loads((folder / "meta.json").read_text(encoding="utf-8")) == meta


def test_an_incomplete_store_is_never_used(tmp_path, cache, monkeypatch):
    file = old_file(tmp_path / "a", b"0123456789" * 5)

    def interrupted(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(file, cache_dir=cache)
    [incomplete] = [path for path in (cache / "corpora").iterdir() if path.is_dir()]
    assert incomplete.suffix == ".part"

    # Folders of killed processes do no harm. They are removed once nothing in them was written for a day.
    killed, alive = cache / "corpora" / "killed.part", cache / "corpora" / "alive.part"
    for folder in (killed, alive):
        folder.mkdir()
        (folder / "train.bin").write_bytes(b"incomplete")
    for path in (killed / "train.bin", killed, alive):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert load(file, cache_dir=cache).train.ids[:3].tolist() == [48, 49, 50]
    assert not killed.exists() and alive.exists()


def test_a_full_disk_is_an_error_with_a_remedy(tmp_path, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*SLM_NP_CACHE"):
        load(old_file(tmp_path / "a", b"text" * 9), cache_dir=cache)


def test_tokenizing_a_large_text_takes_little_memory(tmp_path, cache):
    with open(tmp_path / "large.txt", "wb") as file:
        line = "The quick brown fox jumps over the lazy dog, naïvely; 漢字 🙂.\n".encode() * 20000
        for _ in range(60_000_000 // len(line) + 1):
            file.write(line)
    tracemalloc.start()
    try:
        found = load(str(tmp_path / "large.txt"), tokenizer="char", cache_dir=cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.train.n_bytes + found.validation.n_bytes >= 60_000_000
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"


def test_ids_are_checked_against_the_vocabulary(monkeypatch):
    monkeypatch.setattr("slm_np.data.tokens.BLOCK", 4)
    ids = tokens([1, 2, 9, 3, 4, 11, 5, 11, 0], "validation")
    check_ids(ids, 12)
    with pytest.raises(
        UserError,
        match="the validation tokens contain the id 11 at position 5, but the vocabulary has 11.*--vocab-size 12",
    ):
        check_ids(ids, 11, may_grow=True)
    with pytest.raises(UserError, match="but the vocabulary has 11; give tokens of the right tokenizer"):
        check_ids(ids, 11)
    check_ids(tokens([]), 1)


def test_a_split_shorter_than_a_window_is_refused_with_both_lengths():
    check_length(tokens(range(9)), 8)
    with pytest.raises(
        UserError,
        match="train split has 8 tokens, but --block-size 8 needs 9; lower --block-size to 7 or less, or give more",
    ):
        check_length(tokens(range(8)), 8)
    with pytest.raises(
        UserError,
        match="validation split has 0 tokens, but --block-size 1 needs 2; give a longer text with --val-data",
    ):
        check_length(tokens([], "validation"), 1)
    one = tokens([1])
    x, y = np.zeros((2, 1, 1), np.int32)
    for use in (lambda: EpochOrder(one, 1, 0), lambda: random_batch(x, y, one, 0, 0, 0)):
        with pytest.raises(UserError, match="has 1 token, .* needs 2; give more text"):
            use()


def test_a_text_of_one_byte_is_too_short(tmp_path, cache):
    found = load(old_file(tmp_path / "a", b"x"), cache_dir=cache)
    assert len(found.train) + len(found.validation) == 1
    with pytest.raises(UserError, match="0 tokens"):
        check_length(found.train, 1)
