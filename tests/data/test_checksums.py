"""Damage to files of tokens: bit flips and truncations in every file are found, or change nothing that is read."""

import errno
import io
import json
import os
import shutil

import numpy as np
import pytest
from data_files import (
    LONG_AGO,
    contents,
    conversation,
    jsonl,
    load,
    mixed_corpus,
    old_file,
    text_file,
    without_checksums,
)

from slm_np.data import checksums, corpus, embedded, shards, text_files
from slm_np.errors import UserError

FILES = ["meta.json", "tokenizer.json", "train.bin", "train.mask.bin", "validation.bin", "validation.mask.bin"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick(monkeypatch):
    """No waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def seen(found):
    """Everything that training sees of a corpus."""
    return [found.tokenizer.to_json(), found.vocab_size] + [
        (
            part.ids.dtype.name,
            part.ids.tobytes(),
            None if part.mask is None else part.mask.tobytes(),
            part.n_bytes,
            part.n_targets,
            part.n_documents,
            part.bits_per_byte_floor,
        )
        for part in (found.train, found.validation)
    ]


def rows(folder):
    """A corpus of conversations, which has masks."""
    return text_file(folder, jsonl(conversation(f"Who is {i}?", "Me, ñ.") for i in range(40)), "r.jsonl")


def damages(folder, flips, cuts):
    """[(name, bytes), ...]: files of a folder with one bit flipped, or cut short, spread over each file."""
    found, random = [], np.random.default_rng(11)
    for name in sorted(os.listdir(folder)):
        whole = (folder / name).read_bytes()
        for bit in sorted(random.choice(8 * len(whole), min(8 * len(whole), flips), replace=False)):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            found.append((name, bytes(data)))
        found += [(name, whole[: len(whole) * i // cuts]) for i in range(cuts)]
    return found


MANY = pytest.param(170, 34, marks=pytest.mark.slow)  # 1,020 flips and 204 truncations in the six files


@pytest.mark.parametrize("flips, cuts", [(16, 5), MANY])
def test_no_damage_to_a_prepared_folder_is_trained_on(tmp_path, quick, flips, cuts):
    folder = tmp_path / "out"
    load(rows(tmp_path), out_dir=folder)
    assert sorted(os.listdir(folder)) == FILES
    expected, refused = seen(load(str(folder))), 0
    for name, data in damages(folder, flips, cuts):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        try:
            assert seen(load(str(folder))) == expected, (name, data)
        except UserError as error:
            refused += 1
            assert str(folder / name) in str(error) or f"{folder} are damaged ({name} " in str(error)
        (folder / name).write_bytes(whole)
    assert refused > 0.97 * len(FILES) * (flips + cuts)  # white space in meta.json does no harm


@pytest.mark.parametrize("flips, cuts", [(8, 3), MANY])
def test_a_damaged_store_in_the_cache_is_made_again(tmp_path, cache, quick, capsys, flips, cuts):
    data = rows(tmp_path)
    first = load(data, threads=1)
    folder, expected = cache / "corpora" / first.fingerprint, seen(first)
    assert sorted(os.listdir(folder)) == FILES
    whole, again = contents(folder), 0
    for name, damaged in damages(folder, flips, cuts):
        (folder / name).write_bytes(damaged)
        assert seen(load(data, threads=1)) == expected, (name, damaged)
        said = capsys.readouterr().err
        if contents(folder) == whole:
            again += 1
            assert said.count("\n") == 1 and f"the tokens in {folder} cannot be used: " in said
        else:  # of no consequence
            assert said == "" and name == "meta.json"
            (folder / name).write_bytes(whole[name])
    assert again > 0.97 * len(FILES) * (flips + cuts)


def test_a_missing_file_is_found(tmp_path, cache, quick):
    data = rows(tmp_path)
    first = load(data, threads=1)
    store, folder = cache / "corpora" / first.fingerprint, tmp_path / "out"
    load(data, out_dir=folder)
    for name in FILES:
        (store / name).unlink()
        assert seen(load(data, threads=1)) == seen(first)
        if name != "meta.json":  # without it there are no checksums
            (folder / name).rename(tmp_path / "away")
            said = "does not exist" if name == "train.bin" else f"the tokens in .*out are damaged .{name} is missing."
            with pytest.raises(UserError, match=said):
                load(str(folder))
            (tmp_path / "away").rename(folder / name)


def test_20_000_zeros_are_found(tmp_path, cache, capsys):
    data = text_file(tmp_path, "The quick brown fox jumps over the lazy dog.\n" * 2000)
    first = load(data, out_dir=tmp_path / "out")
    load(data)
    for folder in (cache / "corpora" / first.fingerprint, tmp_path / "out"):
        with open(folder / "train.bin", "r+b") as file:
            file.seek(30_000)
            file.write(bytes(20_000))
    with pytest.raises(UserError, match="out are damaged .train.bin has other .*run the command that prepared them"):
        load(str(tmp_path / "out"))
    assert seen(load(data)) == seen(load(data, out_dir=tmp_path / "out")) == seen(load(str(tmp_path / "out")))
    assert capsys.readouterr().err.count("train.bin has other contents than its checksum") == 2


def test_prepare_replaces_a_damaged_folder_only_if_nothing_else_is_in_it(tmp_path, quick):
    data, out = rows(tmp_path), tmp_path / "out"
    whole = load(data, out_dir=out) and contents(out)
    (out / "train.bin").write_bytes(b"xx")
    (out / "notes.txt").write_bytes(b"mine")
    with pytest.raises(UserError, match="--out-dir .*out contains something else; name a new directory"):
        load(data, out_dir=out)
    assert sorted(os.listdir(out)) == sorted([*FILES, "notes.txt"])
    (out / "notes.txt").unlink()
    with pytest.raises(UserError, match="contains something else"):
        load(data, tokenizer="char", out_dir=out)
    assert (out / "train.bin").read_bytes() == b"xx"
    load(data, out_dir=out)
    assert contents(out) == whole
    (out / "meta.json").write_bytes(b"{")
    with pytest.raises(UserError, match="contains a damaged meta.json .*; remove that directory, or name a new one"):
        load(data, out_dir=out)


def test_a_store_of_an_earlier_version_is_used_as_it_is(tmp_path, cache, quick, capsys):
    data = rows(tmp_path)
    first = load(data, threads=1)
    folder = cache / "corpora" / first.fingerprint
    without_checksums(folder)
    before, expected = contents(folder), seen(first)
    again = load(data, threads=1)
    assert again.fingerprint == first.fingerprint and seen(again) == expected and contents(folder) == before
    os.truncate(folder / "train.bin", 100)
    capsys.readouterr()
    assert seen(load(data, threads=1)) == expected and "cannot be used" in capsys.readouterr().err


def test_a_text_that_cannot_be_read_is_named(tmp_path, quick, monkeypatch):
    data = text_file(tmp_path, "One two three.\n" * 400)

    class Broken(io.BytesIO):
        def read(self, n=-1):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(text_files, "opened", lambda path: Broken())
    with pytest.raises(UserError, match=r"t.txt cannot be read \(Input/output error\); check the disk"):
        load(data)


def test_a_large_folder_is_verified_once_for_each_mtime(tmp_path, quick, monkeypatch):
    folder, read = tmp_path / "out", []
    load(rows(tmp_path), out_dir=folder)
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    crc32 = checksums.crc32
    monkeypatch.setattr(checksums, "crc32", lambda blocks: read.append(1) or crc32(blocks))
    for n in (5, 10):  # train.bin, validation.bin, their masks, and tokenizer.json for each of the two
        load(str(folder))
        assert len(read) >= n
    monkeypatch.setattr(checksums, "ALWAYS", 100)
    load(str(folder))
    read.clear()
    load(str(folder))
    assert not read
    os.utime(folder / "train.bin", (LONG_AGO + 1, LONG_AGO + 1))
    load(str(folder))
    assert len(read) == 1
    damaged = bytearray((folder / "train.bin").read_bytes())
    damaged[0] ^= 1
    (folder / "train.bin").write_bytes(damaged)
    with pytest.raises(UserError, match="train.bin has other contents"):
        load(str(folder))


@pytest.mark.parametrize("kind", ["mixed", "plain"])
def test_damage_between_two_starts_of_a_build_is_found(tmp_path, quick, monkeypatch, kind):
    data = mixed_corpus(tmp_path, 40) if kind == "mixed" else text_file(tmp_path, "One two three.\n" * 4500)
    load(data, out_dir=tmp_path / "once")
    expected, out, kept = contents(tmp_path / "once"), tmp_path / "out", tmp_path / "kept"
    monkeypatch.setattr(shards, "SHARD", 9000)
    tokenize, begun = shards.tokenize, []

    def interrupted(staging, plan, number, *rest):
        begun.append(number)
        if len(begun) == 6:
            (staging / "shards" / f"{number}.77.bin").write_bytes(b"half")
            raise KeyboardInterrupt
        tokenize(staging, plan, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "tokenize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(data, threads=1, out_dir=out)
    (tmp_path / "out.part").rename(kept)
    files = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file()]
    assert len(files) > 6
    random = np.random.default_rng(2)
    for name in files:
        whole = (kept / name).read_bytes()
        changed = bytearray(whole)
        if changed:
            changed[random.integers(len(changed))] ^= 1 << random.integers(8)
        for damage in (bytes(changed), whole[: len(whole) // 2], whole + b"\0\0", None):
            shutil.copytree(kept, tmp_path / "out.part")
            (tmp_path / "out.part" / name).unlink()
            if damage is not None:
                (tmp_path / "out.part" / name).write_bytes(damage)
            load(data, threads=1, out_dir=out)
            assert contents(out) == expected, name
            shutil.rmtree(out)


def test_damage_while_masks_are_joined_is_found(tmp_path, quick, monkeypatch):
    data, out, kept = rows(tmp_path), tmp_path / "out", tmp_path / "kept"
    load(data, out_dir=tmp_path / "once")
    monkeypatch.setattr(shards, "SHARD", 500)
    dumps, expected = json.dumps, contents(tmp_path / "once")

    def interrupted(value, **options):
        if "crc32" in value and "indent" in options:  # meta.json, after all masks are joined
            raise KeyboardInterrupt
        return dumps(value, **options)

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(data, threads=1, out_dir=out)
    (tmp_path / "out.part").rename(kept)
    assert (kept / "train.mask.bin").exists()
    for name in ("train.bin", "train.mask.bin", "validation.mask.bin", "shards/1.json"):
        for damage in (lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: data[:-9], lambda data: data + b"\1"):
            shutil.copytree(kept, tmp_path / "out.part")
            path = tmp_path / "out.part" / name
            path.write_bytes(damage(path.read_bytes()))
            load(data, threads=1, out_dir=out)
            assert contents(out) == expected
            shutil.rmtree(out)


def test_a_damaged_index_is_forgotten(tmp_path, cache, quick):
    data = mixed_corpus(tmp_path, 9)
    first = load(data, tokenizer="char")
    index = cache / "corpora" / "index.json"
    whole, random = index.read_bytes(), np.random.default_rng(4)
    assert b"bordered" not in whole and len(json.loads(whole)) > 3
    for bit in random.choice(8 * len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        index.write_bytes(damaged)
        again = load(data, tokenizer="char")
        assert again.fingerprint == first.fingerprint and seen(again) == seen(first)
    for content in (b"", b"[]", b"{}", json.dumps({key: 1 for key in json.loads(whole)}).encode(), whole[:-20]):
        index.write_bytes(content)
        assert load(data, tokenizer="char").fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["stories", "dialogues"])
def test_a_damaged_embedded_text_is_written_again(cache, quick, monkeypatch, capsys, name):
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=9000, validation=2000))
    [(path, size, _)] = corpus.find(name, "train", cache, False).files
    whole = contents(path.parent)
    for changed in (path, path.with_name("floor.json")):
        for damage in (lambda data: data[:100] + bytes([data[100 % len(data)] ^ 4]) + data[101:], lambda data: b""):
            status = changed.stat()
            changed.write_bytes(damage(changed.read_bytes()))
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))  # as bit rot does
            found = corpus.find(name, "train", cache, False)
            assert contents(path.parent) == whole and found.files[0][1] == size
            assert f"{path} is damaged" in capsys.readouterr().err


def test_a_known_embedded_text_is_verified(cache, quick, monkeypatch, capsys):
    [(path, _, _)] = corpus.find("stories", "validation", cache, False).files
    whole = path.read_bytes()
    assert embedded.KNOWN[path.parent.name.removeprefix("validation-")].size == len(whole)
    for write in (True, False):
        path.write_bytes(whole[:500] + b"?" + whole[501:])
        os.utime(path, ns=(embedded.MTIME, embedded.MTIME))
        text = corpus.find("stories", "validation", cache, False, write)
        assert b"".join(text.blocks()) == whole and "is damaged" in capsys.readouterr().err


def test_the_index_keeps_its_newest_values(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(text_files, "INDEX_SIZE", 3)
    texts = [corpus.find(old_file(tmp_path / f"{i}.txt", "text"), "train", cache) for i in range(5)]
    for text in texts:
        text.cached(cache, "value", lambda text=text: str(text.files[0][0]))
    fields = json.loads((cache / "corpora" / "index.json").read_text(encoding="utf-8"))
    assert [value[-5:] for value in fields.values()][:3] == ["2.txt", "3.txt", "4.txt"] and len(fields) == 4
