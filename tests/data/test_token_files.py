"""Token files as data: bare .bin files, nanoGPT's folders, what lies beside them, and what is refused."""

import json
import re

import numpy as np
import pytest
from data_files import load, marked, old_file, stories, token_file, without_checksums

from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.files import checksummed
from slm_np.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_token_file_without_meta_json(tmp_path, cache):
    ids = np.arange(1000) * 7 % 997
    found = load(token_file(tmp_path / "train.bin", ids), cache_dir=cache)
    assert found.train.ids.tolist() == ids[:900].tolist() and found.validation.ids.tolist() == ids[900:].tolist()
    assert found.tokenizer is None
    assert found.vocab_size == 997
    assert found.train.n_bytes is None
    assert isinstance(found.train.ids, np.memmap)
    val = token_file(tmp_path / "val.bin", [5, 50256])
    both = load(str(tmp_path / "train.bin"), val, cache_dir=cache)
    assert (len(both.train), both.validation.ids.tolist(), both.vocab_size) == (1000, [5, 50256], 50257)
    assert both.fingerprint != found.fingerprint == load(str(tmp_path / "train.bin"), cache_dir=cache).fingerprint


def test_meta_json_describes_token_files(tmp_path, cache):
    train = token_file(tmp_path / "train.bin", [1, 70000, 3], "<u4")
    val = token_file(tmp_path / "val.bin", [4, 5], "<u4")
    meta = dict(dtype="uint32", bytes=dict(train=12, val=9), vocab_size=100000)
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    found = load(train, val, cache_dir=cache)
    assert found.train.ids.dtype == np.uint32
    assert found.train.ids.tolist() == [1, 70000, 3]
    assert found.vocab_size == 100000
    assert (found.train.n_bytes, found.validation.n_bytes) == (12, 9)
    (tmp_path / "meta.json").write_text(json.dumps(dict(dtype="uint32", bytes=12)), encoding="utf-8")
    assert load(train, val, cache_dir=cache).train.n_bytes is None  # one number for two files


def test_a_token_store_can_be_read_as_token_files(tmp_path, cache):
    found = load(old_file(tmp_path / "a", "naïve text " * 20), tokenizer="char", cache_dir=cache)
    folder = cache / "corpora" / found.fingerprint
    bare = load(str(folder / "train.bin"), str(folder / "validation.bin"), cache_dir=cache)
    assert bare.train.ids.tolist() == found.train.ids.tolist() and bare.vocab_size == found.vocab_size
    assert (bare.train.n_bytes, bare.validation.n_bytes) == (found.train.n_bytes, found.validation.n_bytes)


@pytest.mark.parametrize(
    "meta, sentence",
    [
        ("{", "meta.json is not a JSON object"),
        ('{"dtype": "int64"}', "\"dtype\" 'int64'; token files are uint16 or uint32"),
        ('{"bytes": -1}', '"bytes" -1; it must be a positive whole number'),
        ('{"vocab_size": "big"}', "\"vocab_size\" 'big'"),
        ('{"documents": {"train": "many"}}', "\"documents\" 'many'; it must be a whole number"),
        ('{"learnt": {"train": -1}}', '"learnt" -1; it must be a whole number'),
        (json.dumps(checksummed(dict(crc32=3))), "no checksums of files where they should be"),
        ("[" * 100_000, "meta.json is not a JSON object"),
        ('{"dtype": "uint32"}', "train.bin has 6 bytes, which is not a whole number of uint32 tokens"),
    ],
)
def test_a_bad_meta_json_is_an_error(tmp_path, cache, meta, sentence):
    (tmp_path / "meta.json").write_text(meta, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(sentence)):
        load(token_file(tmp_path / "train.bin", [1, 2, 3]), cache_dir=cache)


def test_a_named_tokenizer_is_used_only_if_none_is_beside_the_token_files(tmp_path, cache):
    train = token_file(tmp_path / "train.bin", np.arange(90) % 3)
    CharTokenizer("abc").save(tmp_path / "named.json")
    named = dict(tokenizer=f"file:{tmp_path / 'named.json'}", cache_dir=cache)
    found = load(train, **named)
    assert found.tokenizer.characters == "abc" and found.vocab_size == 3
    CharTokenizer("xyz").save(tmp_path / "tokenizer.json")
    assert load(train, **named).tokenizer.characters == "xyz"


def test_limit_bytes_is_refused_for_token_files(tmp_path, cache):
    with pytest.raises(UserError, match="--limit-bytes 10 cannot cut .*train.bin, which contains tokens already"):
        load(token_file(tmp_path / "train.bin", range(90)), limit_bytes=10, cache_dir=cache)


def test_targets_of_a_mask_are_counted_if_meta_json_does_not(tmp_path, cache):
    train = token_file(tmp_path / "train.bin", range(90))
    (np.arange(90) % 3 > 0).astype(np.uint8).tofile(tmp_path / "train.mask.bin")
    val = token_file(tmp_path / "val.bin", range(9))
    assert load(train, val, cache_dir=cache).train.n_targets == 60


def test_whole_takes_one_part_of_the_data(tmp_path, cache):
    ids = np.arange(90)
    token_file(tmp_path / "train.bin", ids)
    for whole, name, wanted in (
        ("validation", "train.bin", ids),
        ("validation", "val.bin", [1, 2]),
        ("validation", "validation.bin", [3]),
        ("train", "train.bin", ids),
    ):
        token_file(tmp_path / name, wanted)
        for data in (str(tmp_path), str(tmp_path / name)):
            found = load(data, whole=whole, cache_dir=cache)
            assert found.train.ids.tolist() == list(wanted) and len(found.validation) == 0
    text = old_file(tmp_path / "a.txt", "one two " * 9)
    found = load(text, whole="validation", limit_bytes=11, cache_dir=cache)
    assert bytes(found.train.ids.astype(np.uint8)) == b"one two one"
    assert len(found.validation) == 0
    assert found.train.n_bytes == 11
    with pytest.raises(UserError, match="--data .*b.txt does not exist"):
        load(str(tmp_path / "b.txt"), whole="validation", cache_dir=cache)


def test_bad_token_files_are_errors(tmp_path, cache):
    train, text = token_file(tmp_path / "train.bin", [1, 2, 3]), old_file(tmp_path / "a.txt", b"text")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "none.bin").write_bytes(b"")
    for data, val, sentence in (
        (str(tmp_path / "odd.bin"), "", "--data .*odd.bin has 3 bytes, which is not a whole number of uint16 tokens"),
        (train, str(tmp_path / "odd.bin"), "--val-data .*odd.bin has 3 bytes"),
        (str(tmp_path / "none.bin"), "", "none.bin is empty"),
        (str(tmp_path / "tran.bin"), "", "did you mean .*train.bin"),
        (train, text, "--val-data is .*a.txt, but a .bin token file can only be used alone"),
        (text, train, "--data is .*a.txt, but"),
        (f"{train},{text}", "", "can only be used alone"),
        (str(tmp_path / "*.bin"), "", "can only be used alone"),
    ):
        with pytest.raises(UserError, match=sentence):
            load(data, val, cache_dir=cache)


def test_nanogpt_folders_are_data(tmp_path, cache):
    token_file(tmp_path / "train.bin", range(100))
    token_file(tmp_path / "val.bin", range(50))
    found = load(str(tmp_path), cache_dir=cache)
    assert (len(found.train), len(found.validation), found.tokenizer, found.vocab_size) == (100, 50, None, 100)
    with pytest.raises(UserError, match="contain the id 99 at position 99, but the vocabulary has 3"):
        load(str(tmp_path), "", CharTokenizer("abc"), cache_dir=cache)


def test_incomplete_token_files_and_ids_out_of_range_are_refused(tmp_path, cache):
    load(old_file(tmp_path / "a.txt", marked(stories(50))), out_dir=tmp_path / "out", cache_dir=cache)
    without_checksums(tmp_path / "out")
    whole = (tmp_path / "out" / "train.bin").read_bytes()
    for content, sentence in (
        (whole[:-1], "not a whole number of uint16 tokens"),
        (whole[:-2], "tokens, but its meta.json says .* incomplete"),
        (whole[:-2] + b"\1\2", "contain the id 513 at position .*, but the vocabulary has 257"),
    ):
        (tmp_path / "out" / "train.bin").write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            load(str(tmp_path / "out"), cache_dir=cache)
