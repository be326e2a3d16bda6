"""A text in files: byte ranges, characters, changes while it is read, its hash and the index of hashes."""

import json
import os
import time

import pytest
from data_files import LONG_AGO, old_file

from slm_np.data import corpus, text_files
from slm_np.data.files import verified, write_cache_json
from slm_np.data.meter import metered
from slm_np.data.text_files import Text
from slm_np.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def text_of(*paths):
    """The `Text` of files."""
    return corpus.find(",".join(map(str, paths)), "train", None, progress=False)


def test_blocks_of_a_range_across_files(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 3)
    for name, data in {"a": b"alpha\n", "b": b"beta", "c": b"gamma", "d": b"", "e": b"delta\xff\x00"}.items():
        old_file(tmp_path / name, data)
    text = text_of(tmp_path)
    whole = b"".join(text.blocks())
    assert whole == b"alpha\nbetagammadelta\xff\x00" and text.size == len(whole)
    assert all(len(block) <= 3 for block in text.blocks())
    for start in range(text.size + 1):
        for stop in range(start, text.size + 1):
            assert b"".join(text.blocks(start, stop)) == whole[start:stop]


def test_character_start_is_never_inside_a_character(tmp_path):
    data = "aé漢🙂b".encode()
    text = text_of(old_file(tmp_path / "t", data))
    assert [text.character_start(i) for i in range(len(data))] == [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]
    assert text_of(old_file(tmp_path / "u", b"\x80" * 9)).character_start(3) == 3  # there is no character


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    text = text_of(old_file(tmp_path / "a.txt", b"alpha\n"))
    text.check_unchanged()
    (tmp_path / "a.txt").write_bytes(b"al")
    with pytest.raises(UserError, match="a.txt became shorter while it was read"):
        list(text.blocks())
    with pytest.raises(UserError, match="a.txt changed while it was read"):
        text.check_unchanged()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match="a.txt changed while it was read"):
        text.check_unchanged()


def test_the_hash_depends_on_contents_only(tmp_path, cache):
    a, b, c = old_file(tmp_path / "a", b"one"), old_file(tmp_path / "b", b"two"), old_file(tmp_path / "c", b"onetwo")
    assert text_of(a, b).sha256(cache) == text_of(c).sha256(cache) != text_of(b, a).sha256(cache)


def test_the_hash_is_cached_by_path_size_and_mtime(tmp_path, cache, monkeypatch):
    path = old_file(tmp_path / "a", b"one")
    before = text_of(path).sha256(cache)
    with monkeypatch.context() as patch:
        patch.setattr(Text, "blocks", None)  # so that nothing can be read
        assert text_of(path).sha256(cache) == before
    old_file(path, b"two")
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
    assert text_of(path).sha256(cache) != before


def test_the_hash_of_a_file_just_written_is_not_cached(tmp_path, cache):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    text_of(path).sha256(cache)
    assert not (cache / "corpora" / "index.json").exists()


def index_in(cache):
    """The cached values in the folder `cache`, without their checksum."""
    return verified(json.loads((cache / "corpora" / "index.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("damage", ["", "[1]", '{"a": ', "\0", '{"a": "1"}'])
def test_a_damaged_index_is_replaced(tmp_path, cache, damage):
    text = text_of(old_file(tmp_path / "a", b"one"))
    before = text.sha256(cache)
    index = cache / "corpora" / "index.json"
    index.write_text(damage, encoding="utf-8")
    assert text.sha256(cache) == before and list(index_in(cache).values()) == [before]


def test_the_index_has_a_maximum_size(tmp_path, cache):
    (cache / "corpora").mkdir(parents=True)
    write_cache_json(cache / "corpora" / "index.json", {str(i): "0" for i in range(5000)})
    text_of(old_file(tmp_path / "a", b"one")).sha256(cache)
    assert len(index_in(cache)) == 1000


def test_progress_in_a_log_is_lines(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(metered([b"a" * 10**6] * 4, 4 * 10**6, "reading")) == [b"a" * 10**6] * 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 1 of 4 MB, ETA 30s" and len(lines) == 2
    assert list(metered([b"a"], 1, "reading", False)) == [b"a"] and not capsys.readouterr().err
