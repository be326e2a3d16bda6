"""From `--data` strings to batches: what is found, what is kept in the cache, which windows are visited, and every refusal."""

import json
import os
import re
import sys
import time
import tracemalloc
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_np import paths
from slm_np.data import corpus
from slm_np.data.tokenizer import ByteTokenizer, CharTokenizer
from slm_np.data.tokens import EpochOrder, Tokens, check_ids, check_length, load_corpus, permute, random_batch
from slm_np.errors import UserError

quick = settings(max_examples=60, deadline=None)
LONG_AGO = 1_600_000_000


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def texts(tmp_path):
    """A folder: a.txt, b.md, deep/c.txt, deep/deeper/d.txt and what is to be skipped. All older than the index is wary of."""
    folder = tmp_path / "texts"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name, data in {
        "a.txt": b"alpha\n",
        "b.md": b"beta",
        "deep/c.txt": b"gamma",
        "deep/deeper/d.txt": b"delta\xff\x00",
        ".hidden": b"no",
        ".git/config": b"no",
        "deep/empty.txt": b"",
    }.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return folder


def read(data, cache, split="train"):
    return b"".join(corpus.find(str(data), split, cache, progress=False).blocks())


def old_file(path, data):
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def of(ids, split="train"):
    return Tokens(split, np.asarray(ids, np.uint16))


# ---- what a --data string names


def test_a_file_a_list_and_a_folder(texts, cache):
    assert read(texts / "a.txt", cache) == b"alpha\n"
    assert (
        read(f"{texts / 'b.md'}, {texts / 'a.txt'}", cache) == b"betaalpha\n"
    )  # in the order given, nothing in between
    assert read(texts, cache) == b"alpha\nbetagammadelta\xff\x00"  # sorted, recursively, without what is hidden
    assert read(f"{texts / 'b.md'},{texts}", cache) == b"betaalpha\ngammadelta\xff\x00"  # each once


def test_globs(texts, cache):
    assert read(texts / "*.txt", cache) == b"alpha\n"
    assert read(texts / "**" / "*.txt", cache) == b"alpha\ngammadelta\xff\x00"
    assert read(texts / "de*", cache) == b"gammadelta\xff\x00"
    assert read(texts / "[ab].*", cache) == b"alpha\nbeta"


def test_names_with_commas_brackets_and_unicode_are_taken_as_they_are(tmp_path, cache):
    for name in ("one, two.txt", "a[1].txt", "Ünï 漢.txt"):
        (tmp_path / name).write_bytes(name.encode())
        assert read(tmp_path / name, cache) == name.encode()


def test_links_to_folders_are_not_followed(texts, cache):
    try:
        os.symlink(texts, texts / "deep" / "loop")
        os.symlink(texts / "a.txt", texts / "z.txt")
    except OSError:
        pytest.skip("no right to make links here")
    assert read(texts, cache) == b"alpha\nbetagammadelta\xff\x00alpha\n"


def test_blocks_of_a_range_across_files(texts, cache, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 3)
    text = corpus.find(str(texts), "train", cache)
    whole = b"".join(text.blocks())
    assert text.size == len(whole) and all(len(block) <= 3 for block in text.blocks())
    for start in range(text.size + 1):
        for stop in range(start, text.size + 1):
            assert b"".join(text.blocks(start, stop)) == whole[start:stop]


def test_a_border_cuts_no_character(tmp_path, cache):
    data = "aé漢🙂b".encode()
    (tmp_path / "t").write_bytes(data)
    text = corpus.find(str(tmp_path / "t"), "train", cache)
    assert [text.border(i) for i in range(len(data))] == [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]
    (tmp_path / "u").write_bytes(b"\x80" * 9)
    assert corpus.find(str(tmp_path / "u"), "train", cache).border(3) == 3


@pytest.mark.parametrize(
    "data, sentence",
    [
        ("{texts}/aa.txt", r"--data \S+aa.txt does not exist; did you mean \S+a.txt\?"),
        ("{texts}/zzz", r"--data \S+zzz does not exist; \S+texts holds a.txt, b.md, deep$"),
        ("{texts}/nope/a.txt", r"--data \S+a.txt does not exist, nor does the folder \S+nope; \S+texts holds a.txt"),
        ("{texts}/*.tyt", r"--data \S+\*.tyt matches no file; did you mean \S+a.txt\?"),
        ("{texts}/**/*.xyzzy", r"--data \S+\*.xyzzy matches no file; \S+texts holds a.txt"),
        ("{texts}/a.txt,{texts}/b.mdd", r"--data \S+b.mdd does not exist; did you mean \S+b.md\?"),
        ("{texts}/deep/empty.txt", r"--data \S+empty.txt is empty; give a file with text"),
        ("{texts}/deep/emp*", r"--data \S+emp\* names only empty files; give some text"),
        ("{texts}/void", r"--data \S+void is a folder without files"),
        ("{texts}/a.txt/b", r"--data \S+ does not exist"),
        (
            "",
            r"--data is '', which names nothing; give files, folders or globs separated by commas, or stories, dialogues, tinyshakespeare, tinystories",
        ),
        (" , ", r"--data is ' , ', which names nothing"),
        ("storys", r"--data storys does not exist; did you mean .*\bstories\b.*\?"),
        ("x" * 5000, r"--data x+ does not exist"),
        ("bad\0name", r"--data bad\x00name does not exist"),
    ],
)
def test_what_leads_nowhere_is_named(texts, cache, data, sentence):
    (texts / "void").mkdir() if "void" in data else None
    with pytest.raises(UserError) as error:
        load_corpus(data.format(texts=texts), cache_dir=cache, progress=False)
    assert re.search(sentence, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_the_validation_flag_is_the_one_blamed(texts, cache):
    with pytest.raises(UserError, match="--val-data .*nope.txt does not exist"):
        load_corpus(str(texts), str(texts / "nope.txt"), cache_dir=cache, progress=False)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no device files here")
def test_devices_are_refused(cache):
    with pytest.raises(UserError, match="/dev/null is neither a file nor a folder"):
        load_corpus("/dev/null", cache_dir=cache)


@pytest.mark.parametrize("name", ["a.txt", "deep"])
def test_what_may_not_be_read_is_named(texts, cache, name, monkeypatch):
    def refuse(real):
        def call(path, *rest, **more):
            if os.fspath(path) == str(texts / name):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **more)

        return call

    # Where tests run as root no permission bit refuses anything, so the refusal is played.
    monkeypatch.setattr("builtins.open", refuse(open))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied\)"):
        load_corpus(str(texts), cache_dir=cache, progress=False)


def test_a_file_that_changes_meanwhile_is_noticed(texts, cache):
    text = corpus.find(str(texts / "a.txt"), "train", cache)
    text.check_unchanged()
    (texts / "a.txt").write_bytes(b"al")
    with pytest.raises(UserError, match="a.txt got shorter while it was read"):
        list(text.blocks())
    with pytest.raises(UserError, match="a.txt changed while it was read"):
        text.check_unchanged()
    (texts / "a.txt").unlink()
    with pytest.raises(UserError, match="a.txt changed while it was read"):
        text.check_unchanged()


# ---- its identity


def test_the_hash_is_that_of_the_contents(tmp_path, cache):
    a, b, c = old_file(tmp_path / "a", b"one"), old_file(tmp_path / "b", b"two"), old_file(tmp_path / "c", b"onetwo")
    both, whole = corpus.find(f"{a},{b}", "train", cache), corpus.find(str(c), "train", cache)
    assert both.sha256(cache) == whole.sha256(cache) != corpus.find(f"{b},{a}", "train", cache).sha256(cache)


def test_the_hash_is_remembered_by_path_size_and_time(tmp_path, cache, monkeypatch):
    file = old_file(tmp_path / "a", b"one")
    before = corpus.find(str(file), "train", cache).sha256(cache)
    with monkeypatch.context() as patch:
        patch.setattr(corpus.Text, "blocks", None)  # so that nothing can be read
        assert corpus.find(str(file), "train", cache).sha256(cache) == before
    file.write_bytes(b"two")
    os.utime(file, (LONG_AGO + 1, LONG_AGO + 1))
    assert corpus.find(str(file), "train", cache).sha256(cache) != before


def test_a_file_just_written_is_not_remembered(tmp_path, cache):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    corpus.find(str(file), "train", cache).sha256(cache)
    assert not (cache / "corpora" / "index.json").exists()


@pytest.mark.parametrize("damage", ["", "[1]", '{"a": ', "\0"])
def test_a_damaged_index_is_forgotten(tmp_path, cache, damage):
    text = corpus.find(str(old_file(tmp_path / "a", b"one")), "train", cache)
    before = text.sha256(cache)
    index = cache / "corpora" / "index.json"
    index.write_text(damage, encoding="utf-8")
    assert text.sha256(cache) == before and list(json.loads(index.read_text(encoding="utf-8")).values()) == [before]


def test_the_index_does_not_grow_without_bound(tmp_path, cache):
    (cache / "corpora").mkdir(parents=True)
    index = cache / "corpora" / "index.json"
    index.write_text(json.dumps({str(i): "0" for i in range(5000)}), encoding="utf-8")
    corpus.find(str(old_file(tmp_path / "a", b"one")), "train", cache).sha256(cache)
    assert len(json.loads(index.read_text(encoding="utf-8"))) == 1000


# ---- the token store


def test_bytes_are_split_at_the_last_tenth(tmp_path, cache):
    data = bytes(range(256)) * 5
    corpus_ = load_corpus(str(old_file(tmp_path / "a", data)), cache_dir=cache, progress=False)
    assert isinstance(corpus_.train.ids, np.memmap) and corpus_.train.ids.dtype == np.uint16
    with pytest.raises(ValueError):
        corpus_.train.ids[0] = 1
    assert (
        bytes(corpus_.train.ids.astype(np.uint8)) == data[:1152]
        and bytes(corpus_.validation.ids.astype(np.uint8)) == data[1152:]
    )
    assert (len(corpus_.train), corpus_.train.n_bytes, corpus_.validation.n_bytes) == (1152, 1152, 128)
    assert (
        corpus_.vocab_size == 256
        and corpus_.source == str(tmp_path / "a")
        and corpus_.validation.bits_per_byte_floor is None
    )
    assert (corpus_.train.split, corpus_.validation.split) == ("train", "validation")


def test_characters_are_split_between_characters(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 7)
    for text in ("ab漢🙂é" * 23, "漢" * 10, "🙂" * 3, "é" * 20 + "x"):
        found = load_corpus(
            str(old_file(tmp_path / "a", text.encode())), tokenizer="char", cache_dir=cache, progress=False
        )
        parts = [found.tokenizer.decode(part.ids).decode() for part in (found.train, found.validation)]
        assert "".join(parts) == text and found.tokenizer.characters == "".join(sorted(set(text)))
        assert [len(part.encode()) for part in parts] == [found.train.n_bytes, found.validation.n_bytes]
        assert 0 <= len(text.encode()) * 9 // 10 - len(parts[0].encode()) <= 3 and parts[1]


def test_validation_of_its_own_and_its_characters(tmp_path, cache):
    train, val = old_file(tmp_path / "a", b"aab"), old_file(tmp_path / "b", b"caz")
    found = load_corpus(str(train), str(val), "char", cache_dir=cache, progress=False)
    assert found.tokenizer.characters == "abcz"
    assert found.train.ids.tolist() == [0, 0, 1] and found.validation.ids.tolist() == [2, 0, 3]


def test_a_given_tokenizer_is_used(tmp_path, cache):
    file = old_file(tmp_path / "a", b"abba" * 5)
    found = load_corpus(str(file), tokenizer=CharTokenizer("ba"), cache_dir=cache, progress=False)
    assert found.train.ids.tolist() == [1, 0, 0, 1] * 4 + [1, 0]
    with pytest.raises(UserError, match=r"'b' \(U\+0062\) is not among the 1"):
        load_corpus(str(file), tokenizer=CharTokenizer("a"), cache_dir=cache, progress=False)
    assert not list((cache / "corpora").glob("*.part"))


def test_an_unknown_tokenizer_and_text_that_is_not_utf8(tmp_path, cache):
    file = old_file(tmp_path / "a", b"ab\xffcdefghijk")
    with pytest.raises(UserError, match="--tokenizer 'chars' is unknown; did you mean char"):
        load_corpus(str(file), tokenizer="chars", cache_dir=cache)
    with pytest.raises(UserError, match="not UTF-8 .byte 0xff at position 2.*--tokenizer byte"):
        load_corpus(str(file), tokenizer="char", cache_dir=cache)


def test_the_fingerprint_knows_contents_split_and_tokenizer(tmp_path, cache):
    a, same, other = (
        old_file(tmp_path / name, data * 9)
        for name, data in (("a", b"abcabc"), ("same", b"abcabc"), ("other", b"abcabd"))
    )

    def mark(*arguments):
        return load_corpus(*map(str, arguments), cache_dir=cache, progress=False).fingerprint

    assert mark(a) == mark(same)
    assert (
        len(
            {
                mark(a),
                mark(other),
                mark(a, other),
                mark(a, "", "char"),
                mark(other, a),
                mark(a, "", "byte", "blank-line"),
            }
        )
        == 6
    )


def stamps(folder):
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_the_store_is_reused_and_mended(tmp_path, cache, tokenizer):
    file = old_file(tmp_path / "a", "So it goes, ça va. ".encode() * 50)
    first = load_corpus(str(file), tokenizer=tokenizer, cache_dir=cache, progress=False)
    folder = cache / "corpora" / first.fingerprint
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "validation.bin",
    ]
    expected, before = first.train.ids.tolist(), stamps(folder)
    again = load_corpus(str(file), tokenizer=tokenizer, cache_dir=cache, progress=False)
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
        again = load_corpus(str(file), tokenizer=tokenizer, cache_dir=cache, progress=False)
        assert again.train.ids.tolist() == expected and again.tokenizer.to_json() == first.tokenizer.to_json()
        assert json.loads((folder / "meta.json").read_text(encoding="utf-8")) == meta


def test_a_half_written_store_is_never_used(tmp_path, cache, monkeypatch):
    file = old_file(tmp_path / "a", b"0123456789" * 5)

    def interrupted(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_corpus(str(file), cache_dir=cache, progress=False)
    [half] = [path for path in (cache / "corpora").iterdir() if path.is_dir()]
    assert half.suffix == ".part"

    # What a killed process leaves is in nobody's way; it is swept once it is a day old.
    killed, alive = cache / "corpora" / "killed.part", cache / "corpora" / "alive.part"
    for folder in (killed, alive):
        folder.mkdir()
        (folder / "train.bin").write_bytes(b"half")
    for path in (killed / "train.bin", killed, alive):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert load_corpus(str(file), cache_dir=cache, progress=False).train.ids[:3].tolist() == [48, 49, 50]
    assert not killed.exists() and alive.exists()


def test_the_quicker_of_two_processes_wins(tmp_path):
    folder = tmp_path / "store"
    with paths.published(folder) as part:
        (part / "mine").write_text("x", encoding="utf-8")
        with paths.published(folder) as other:
            (other / "theirs").write_text("y", encoding="utf-8")
    assert [path.name for path in folder.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_is_an_error_with_a_mend(tmp_path, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*SLM_NP_CACHE"):
        load_corpus(str(old_file(tmp_path / "a", b"text" * 9)), cache_dir=cache, progress=False)


def test_memory_stays_small(tmp_path, cache):
    with open(tmp_path / "large.txt", "wb") as file:
        line = "The quick brown fox jumps over the lazy dog, naïvely; 漢字 🙂.\n".encode() * 20000
        for _ in range(60_000_000 // len(line) + 1):
            file.write(line)
    tracemalloc.start()
    try:
        found = load_corpus(str(tmp_path / "large.txt"), tokenizer="char", cache_dir=cache, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.train.n_bytes + found.validation.n_bytes >= 60_000_000
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"


def test_progress_is_lines_in_a_log(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(corpus.shown([b"a" * 10**6] * 4, 4 * 10**6, "reading")) == [b"a" * 10**6] * 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 1 of 4 MB, 30 s left" and len(lines) == 2
    assert list(corpus.shown([b"a"], 1, "reading", False)) == [b"a"] and not capsys.readouterr().err


# ---- the embedded corpus


@pytest.fixture
def stories(tmp_path, monkeypatch):
    writer = types.ModuleType("slm_np.data.stories")
    writer.__file__, writer.calls = str(old_file(tmp_path / "writer.py", b"first")), []

    def write(n_bytes, seed):
        writer.calls.append((n_bytes, seed))
        n = 0
        while n < n_bytes:
            text = f"Tale {seed * 1000 + n} of a café.\n\n"
            n += len(text.encode())
            yield text, 2.0 * seed * len(text.encode()) + 0.0

    writer.write = write
    monkeypatch.setitem(sys.modules, "slm_np.data.stories", writer)
    monkeypatch.setattr(corpus, "EMBEDDED_BYTES", dict(train=3000, validation=500))
    return writer


def test_stories_have_a_validation_part_and_a_floor(stories, cache):
    found = load_corpus("stories", cache_dir=cache, progress=False)
    assert stories.calls == [(3000, 1), (500, 2)]
    assert found.train.n_bytes >= 3000 and 500 <= found.validation.n_bytes < 600
    assert found.tokenizer.decode(found.validation.ids).startswith(b"Tale 2000")
    assert found.validation.bits_per_byte_floor == pytest.approx(
        4.0
    ) and found.train.bits_per_byte_floor == pytest.approx(2.0)
    meta = json.loads((cache / "corpora" / found.fingerprint / "meta.json").read_text(encoding="utf-8"))
    assert meta["bits_per_byte_floor"] == dict(train=2.0, validation=4.0)
    again = load_corpus("stories", cache_dir=cache, progress=False)
    assert (
        len(stories.calls) == 2
        and again.fingerprint == found.fingerprint
        and again.validation.bits_per_byte_floor == 4.0
    )
    assert load_corpus("stories", tokenizer="char", cache_dir=cache, progress=False).fingerprint != found.fingerprint


def test_stories_mixed_with_files(stories, tmp_path, cache):
    file = str(old_file(tmp_path / "a.txt", b"Once. " * 100))
    found = load_corpus("stories", file, cache_dir=cache, progress=False)
    assert (
        found.validation.n_bytes == 600
        and found.validation.bits_per_byte_floor is None
        and found.train.bits_per_byte_floor == 2.0
    )
    found = load_corpus(file, "stories", cache_dir=cache, progress=False)
    assert found.train.n_bytes == 600 and found.validation.bits_per_byte_floor == 4.0


def test_a_new_writer_or_damage_rewrites_the_stories(stories, cache):
    text = corpus.find("stories", "train", cache, False)
    [(path, size, _)] = text.files
    os.truncate(path, 10)
    assert corpus.find("stories", "train", cache, False).size == size and len(stories.calls) == 2
    (path.parent / "floor.json").write_text("{", encoding="utf-8")
    assert corpus.find("stories", "train", cache, False).bits_per_byte_floor == 2.0 and len(stories.calls) == 3
    with open(stories.__file__, "wb") as file:
        file.write(b"second")
    assert corpus.find("stories", "train", cache, False).files[0][0] != path and len(stories.calls) == 4


# ---- token files


def token_file(path, ids, dtype="<u2"):
    np.asarray(ids, dtype).tofile(path)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return str(path)


def test_a_bare_token_file(tmp_path, cache):
    ids = np.arange(1000) * 7 % 997
    found = load_corpus(token_file(tmp_path / "train.bin", ids), cache_dir=cache, progress=False)
    assert found.train.ids.tolist() == ids[:900].tolist() and found.validation.ids.tolist() == ids[900:].tolist()
    assert (
        found.tokenizer is None
        and found.vocab_size == 997
        and found.train.n_bytes is None
        and isinstance(found.train.ids, np.memmap)
    )
    val = token_file(tmp_path / "val.bin", [5, 50256])
    both = load_corpus(str(tmp_path / "train.bin"), val, cache_dir=cache, progress=False)
    assert (len(both.train), both.validation.ids.tolist(), both.vocab_size) == (1000, [5, 50256], 50257)
    assert (
        both.fingerprint
        != found.fingerprint
        == load_corpus(str(tmp_path / "train.bin"), cache_dir=cache, progress=False).fingerprint
    )


def test_what_meta_json_says_of_token_files(tmp_path, cache):
    train, val = (
        token_file(tmp_path / "train.bin", [1, 70000, 3], "<u4"),
        token_file(tmp_path / "val.bin", [4, 5], "<u4"),
    )
    meta = dict(dtype="uint32", bytes=dict(train=12, val=9), vocab_size=100000)
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    found = load_corpus(train, val, cache_dir=cache, progress=False)
    assert (
        found.train.ids.dtype == np.uint32 and found.train.ids.tolist() == [1, 70000, 3] and found.vocab_size == 100000
    )
    assert (found.train.n_bytes, found.validation.n_bytes) == (12, 9)
    (tmp_path / "meta.json").write_text(json.dumps(dict(dtype="uint32", bytes=12)), encoding="utf-8")
    assert load_corpus(train, val, cache_dir=cache, progress=False).train.n_bytes is None  # whose are they?


def test_our_own_store_is_readable_as_token_files(tmp_path, cache):
    found = load_corpus(
        str(old_file(tmp_path / "a", "naïve text ".encode() * 20)), tokenizer="char", cache_dir=cache, progress=False
    )
    folder = cache / "corpora" / found.fingerprint
    bare = load_corpus(str(folder / "train.bin"), str(folder / "validation.bin"), cache_dir=cache, progress=False)
    assert bare.train.ids.tolist() == found.train.ids.tolist() and bare.vocab_size == found.vocab_size
    assert (bare.train.n_bytes, bare.validation.n_bytes) == (found.train.n_bytes, found.validation.n_bytes)


@pytest.mark.parametrize(
    "meta, sentence",
    [
        ("{", "meta.json is not a JSON object"),
        ('{"dtype": "int64"}', "\"dtype\" 'int64'; token files are uint16 or uint32"),
        ('{"bytes": -1}', '"bytes" -1; it must be a positive whole number'),
        ('{"vocab_size": "big"}', "\"vocab_size\" 'big'"),
        ('{"dtype": "uint32"}', "train.bin has 6 bytes, which is no whole number of uint32 tokens"),
    ],
)
def test_a_wrong_meta_json_is_named(tmp_path, cache, meta, sentence):
    (tmp_path / "meta.json").write_text(meta, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_corpus(token_file(tmp_path / "train.bin", [1, 2, 3]), cache_dir=cache)


def test_token_files_take_a_tokenizer_by_name_where_none_lies_beside_them(tmp_path, cache):
    train = token_file(tmp_path / "train.bin", np.arange(90) % 3)
    CharTokenizer("abc").save(tmp_path / "named.json")
    named = lambda: load_corpus(train, tokenizer=f"file:{tmp_path / 'named.json'}", cache_dir=cache, progress=False)
    assert named().tokenizer.characters == "abc" and named().vocab_size == 3
    CharTokenizer("xyz").save(tmp_path / "tokenizer.json")
    assert named().tokenizer.characters == "xyz"


def test_tokens_are_not_cut_to_bytes(tmp_path, cache):
    with pytest.raises(UserError, match="--limit-bytes 10 cannot cut .*train.bin, which holds tokens already"):
        load_corpus(token_file(tmp_path / "train.bin", range(90)), limit_bytes=10, cache_dir=cache, progress=False)


def test_a_mask_without_a_count_is_counted(tmp_path, cache):
    train = token_file(tmp_path / "train.bin", range(90))
    (np.arange(90) % 3 > 0).astype(np.uint8).tofile(tmp_path / "train.mask.bin")
    val = token_file(tmp_path / "val.bin", range(9))
    assert load_corpus(train, val, cache_dir=cache, progress=False).train.n_learnt == 60


def test_one_part_taken_whole(tmp_path, cache):
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
            found = load_corpus(data, whole=whole, cache_dir=cache, progress=False)
            assert found.train.ids.tolist() == list(wanted) and len(found.validation) == 0
    text = old_file(tmp_path / "a.txt", b"one two " * 9)
    found = load_corpus(str(text), whole="validation", limit_bytes=11, cache_dir=cache, progress=False)
    assert (
        bytes(found.train.ids.astype(np.uint8)) == b"one two one"
        and len(found.validation) == 0
        and found.train.n_bytes == 11
    )
    with pytest.raises(UserError, match="--data .*b.txt does not exist"):
        load_corpus(str(tmp_path / "b.txt"), whole="validation", cache_dir=cache, progress=False)


def test_the_stories_validation_part_alone(stories, cache):
    found = load_corpus("stories", whole="validation", cache_dir=cache, progress=False)
    assert stories.calls == [(500, 2)] and found.train.bits_per_byte_floor == 4.0
    assert found.train.ids.tolist() == load_corpus("stories", cache_dir=cache, progress=False).validation.ids.tolist()


def test_wrong_token_files_are_named(tmp_path, cache):
    train, text = token_file(tmp_path / "train.bin", [1, 2, 3]), str(old_file(tmp_path / "a.txt", b"text"))
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "none.bin").write_bytes(b"")
    for data, val, sentence in (
        (str(tmp_path / "odd.bin"), "", "--data .*odd.bin has 3 bytes, which is no whole number of uint16 tokens"),
        (train, str(tmp_path / "odd.bin"), "--val-data .*odd.bin has 3 bytes"),
        (str(tmp_path / "none.bin"), "", "none.bin is empty"),
        (str(tmp_path / "tran.bin"), "", "did you mean .*train.bin"),
        (train, text, "--val-data is .*a.txt, but a .bin token file stands alone"),
        (text, train, "--data is .*a.txt, but"),
        (f"{train},{text}", "", "stands alone"),
        (str(tmp_path / "*.bin"), "", "stands alone"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_corpus(data, val, cache_dir=cache, progress=False)


def test_ids_are_checked_against_the_vocabulary(monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 4)
    tokens = of([1, 2, 9, 3, 4, 11, 5, 11, 0], "validation")
    check_ids(tokens, 12)
    with pytest.raises(
        UserError,
        match="the validation tokens hold the id 11 at position 5, but the vocabulary has 11.*--vocab-size 12",
    ):
        check_ids(tokens, 11)
    check_ids(of([]), 1)


def test_too_short_a_split_is_refused_with_both_numbers():
    check_length(of(range(9)), 8)
    with pytest.raises(
        UserError, match="train split has 8 tokens, but --block-size 8 needs 9; lower --block-size or give more text"
    ):
        check_length(of(range(8)), 8)
    with pytest.raises(
        UserError,
        match="validation split has 0 tokens, but --block-size 1 needs 2; .* give a longer text with --val-data",
    ):
        check_length(of([], "validation"), 1)
    one = of([1])
    for use in (lambda: EpochOrder(one, 1, 0), lambda: random_batch(*windows(1, 1), one, 0, 0, 0)):
        with pytest.raises(UserError, match="has 1 tokens"):
            use()


def test_a_text_of_one_byte_has_splits_that_are_too_short(tmp_path, cache):
    found = load_corpus(str(old_file(tmp_path / "a", b"x")), cache_dir=cache, progress=False)
    assert len(found.train) + len(found.validation) == 1
    with pytest.raises(UserError, match="0 tokens"):
        check_length(found.train, 1)


# ---- batches


def windows(B, T):
    return np.full((B, T), -1, np.int32), np.full((B, T), -1, np.int32)


@quick
@given(
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 30),
    st.integers(0, 2**63 - 1),
    st.integers(0, 9),
    st.integers(0, 10**12),
)
def test_a_random_batch_depends_on_seed_purpose_and_step_only(B, T, extra, seed, purpose, step):
    tokens = of(np.arange(T + 1 + extra) * 3)
    (x, y), (again_x, again_y) = windows(B, T), windows(B, T)
    random_batch(x, y, tokens, seed, purpose, step)
    np.random.seed(0)
    random_batch(*windows(3, T), tokens, seed, purpose, step + 1)
    random_batch(again_x, again_y, tokens, seed, purpose, step)
    assert (x == again_x).all() and (y == again_y).all()
    assert (y[:, :-1] == x[:, 1:]).all() and (x == x[:, :1] + 3 * np.arange(T)).all() and (y == x + 3).all()
    assert x.min() >= 0 and y.max() <= tokens.ids[-1]


def test_random_batches_differ_cover_the_ends_and_are_even():
    tokens, T = of(range(14)), 4
    drawn = {}
    for key in ((seed, purpose, step) for seed in (1, 2) for purpose in (0, 1) for step in (0, 1, 2)):
        x, y = windows(64, T)
        random_batch(x, y, tokens, *key)
        drawn[x[:, 0].tobytes()] = key
    assert len(drawn) == 12
    x, y = windows(20000, T)
    random_batch(x, y, tokens, 7, 0, 0)
    counts = np.bincount(x[:, 0])
    assert len(counts) == 10 and counts.min() > 1800 and counts.max() < 2200  # 2000 each, standard deviation 42
    assert x.min() == 0 and y.max() == 13


def test_random_batches_are_the_same_on_every_machine():
    x, y = windows(4, 1)
    random_batch(x, y, of(range(50001)), 1337, 2, 1000)
    assert x[:, 0].tolist() == [3765, 46370, 14586, 48392]


def test_batches_allocate_nothing_large(tmp_path):
    tokens = Tokens("train", np.memmap(token_file(tmp_path / "t.bin", np.arange(200_000) % 1000), "<u2", "r"))
    x, y = windows(64, 1024)
    order = EpochOrder(tokens, 1024, 1)
    random_batch(x, y, tokens, 1, 1, 1), order.batch(x, y, 0)
    tracemalloc.start()
    try:
        random_batch(x, y, tokens, 1, 1, 2), order.batch(x, y, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000


@quick
@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(n, seed):
    keys = np.random.default_rng(seed).integers(0, 2**64, 6, np.uint64)
    assert sorted(permute(np.arange(n), n, keys)) == list(range(n))


def test_permute_of_a_large_range_is_one_to_one_and_spread():
    n = 3_000_000_000
    keys = np.arange(6, dtype=np.uint64)
    image = permute(np.arange(20000), n, keys)
    assert len(set(image.tolist())) == 20000 and image.min() >= 0 and image.max() < n
    assert abs(image.mean() / n - 0.5) < 0.01 and abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.03


@quick
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5), st.integers(1, 7), st.integers(0, 2**40))
def test_an_epoch_visits_every_window_once(n, T, extra, B, seed):
    tokens = of(range(n * T + 1 + min(extra, T - 1)))
    order = EpochOrder(tokens, T, seed)
    assert order.n_windows == n
    seen, (x, y) = [], windows(B, T)
    for index in range(0, 3 * n, B):  # batches run on across the borders of epochs
        order.batch(x, y, index)
        assert (y == x + 1).all() and (x == x[:, :1] + np.arange(T)).all() and (x[:, 0] % T == 0).all()
        seen += (x[:, 0] // T).tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_are_shuffled_and_each_its_own_way():
    tokens = of(np.zeros(20001))
    order = EpochOrder(tokens, 10, 1)
    first, second = order.windows(np.arange(2000)), order.windows(np.arange(2000, 4000))
    other = EpochOrder(tokens, 10, 2).windows(np.arange(2000))
    straight = np.arange(2000)
    for a, b in ((first, straight), (second, straight), (first, second), (first, other)):
        assert (a == b).mean() < 0.01 and abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert (np.diff(first) == 1).mean() < 0.01
    assert (order.windows(np.arange(500, 600)) == first[500:600]).all()  # any row, without those before


# ---- the cache folder


def test_the_cache_folder_of_each_platform(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "_writable", lambda folder: folder)
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "own"))
    assert paths.cache_dir() == str(tmp_path / "own") and paths.cache_dir(tmp_path) == str(tmp_path)
    monkeypatch.setenv("SLM_NP_CACHE", "")
    monkeypatch.setattr(paths.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache_dir() == str(tmp_path / ".cache" / "slm_np")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.cache_dir() == str(tmp_path / ".cache" / "slm_np")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache_dir() == str(tmp_path / "xdg" / "slm_np")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert paths.cache_dir() == str(tmp_path / "Library" / "Caches" / "slm_np")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert paths.cache_dir() == str(tmp_path / "local" / "slm_np")


def test_a_cache_that_cannot_be_written_gives_way_to_a_temporary_folder(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"in the way")
    first = paths.cache_dir(tmp_path / "file" / "cache")
    assert first.is_dir() and paths.cache_dir(tmp_path / "file" / "cache") == first
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be written" in error and str(first) in error and "SLM_NP_CACHE" in error
