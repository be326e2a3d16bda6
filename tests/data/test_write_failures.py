"""Every k-th write, flush, rename or mkdir fails: one sentence, nothing under a final name, a rerun completes."""

import errno
import os
import shutil

import pytest
from data_files import contents, conversation, jsonl, load, marked, stories, text_file
from faulty_disk import FaultyDisk

from slm_np.data import corpus, embedded, shards
from slm_np.errors import UserError
from slm_np.prepare import main

CODES = [errno.ENOSPC, errno.EIO]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "SHARD", 250)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of the reruns, which need not wait for the disk
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def small_corpus(folder):
    """A `--data` string of a text and of rows, in several shards."""
    rows = jsonl(conversation(f"Who is {i}?", "Ünï") for i in range(6))
    return f"{text_file(folder, marked(stories(9)), 'a.txt')},{text_file(folder, rows, 'b.jsonl')}"


def failures(monkeypatch, code, attempt):
    """Call `attempt` with a disk that fails at its first operation, the second, ... Yields (disk, error or None)."""
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            disk, error = FaultyDisk(patch, at, code), None
            try:
                attempt()
            except (UserError, SystemExit) as raised:
                error = raised
        yield disk, error
        if not disk.failed:
            return


def check_remedy(sentence, code, elsewhere, other):
    """The sentence names the failure, asks for space only if that is missing, and names the folder that failed."""
    assert os.strerror(code) in sentence and elsewhere in sentence and other not in sentence, sentence
    assert ("free some space" in sentence) == (code == errno.ENOSPC), sentence


@pytest.mark.parametrize("code", CODES)
def test_prepare(tmp_path, cache, monkeypatch, capsys, code):
    arguments = [*small_corpus(tmp_path).split(","), "--threads", "1", "--tokenizer", "char", "--out-dir"]
    main([*arguments, str(tmp_path / "once")])
    expected, out, n = contents(tmp_path / "once"), tmp_path / "out", 0
    capsys.readouterr()
    for disk, ended in failures(monkeypatch, code, lambda: main([*arguments, str(out)])):
        said = capsys.readouterr()
        if ended is None:  # nothing failed, or a value that is only remembered, or after the rename
            assert contents(out) == expected
        else:
            n += 1
            assert ended.code == 2 and said.err.count("\n") == 1 and not said.out, said
            check_remedy(said.err, code, "name another --out-dir", "SLM_NP_CACHE")
            assert not out.exists() or contents(out) == expected
            main([*arguments, str(out)])
            assert contents(out) == expected
        assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.jsonl", "cache", "once", "out"]
        shutil.rmtree(out)
        shutil.rmtree(cache)
        capsys.readouterr()
    assert n > 50


@pytest.mark.parametrize("code", CODES)
def test_a_store_in_the_cache(tmp_path, cache, monkeypatch, code):
    data = text_file(tmp_path, marked(stories(20)))
    first = load(data, threads=1)
    folder, n = cache / "corpora" / first.fingerprint, 0
    expected = contents(folder)
    shutil.rmtree(cache)
    for disk, error in failures(monkeypatch, code, lambda: load(data, threads=1)):
        if error is not None:
            n += 1
            check_remedy(str(error), code, "set SLM_NP_CACHE to another folder", "--out-dir")
            assert not folder.exists() or contents(folder) == expected
        assert load(data, threads=1).train.ids.tolist() == first.train.ids.tolist()
        assert contents(folder) == expected
        assert not [*folder.parent.glob("*.part")] and not [*folder.parent.glob("*.lock")]
        shutil.rmtree(cache)
    assert n > 50


@pytest.mark.parametrize("code", CODES)
def test_every_failure_of_a_build_in_turn_lets_it_advance(tmp_path, monkeypatch, code):
    """Reruns that fail as well keep what was finished, and in the end the bytes are the same."""
    data, out = small_corpus(tmp_path), tmp_path / "out"
    load(data, threads=1, out_dir=tmp_path / "once")
    for _, error in failures(monkeypatch, code, lambda: load(data, threads=1, out_dir=out)):
        if error is None and out.exists():
            break
    assert contents(out) == contents(tmp_path / "once")


@pytest.mark.parametrize("code", CODES)
def test_an_embedded_text(cache, monkeypatch, code):
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=9000, validation=2000))
    text = corpus.find("dialogues", "train", cache, False)
    folder, n = text.files[0][0].parent, 0
    expected = contents(folder)
    shutil.rmtree(folder)
    for disk, error in failures(monkeypatch, code, lambda: corpus.find("dialogues", "train", cache, False)):
        if error is not None:
            n += 1
            check_remedy(str(error), code, "set SLM_NP_CACHE to another folder", "--out-dir")
            assert not folder.exists() or contents(folder) == expected
        assert corpus.find("dialogues", "train", cache, False).files == text.files
        assert contents(folder) == expected and os.listdir(folder.parent) == [folder.name]
        shutil.rmtree(folder)
    assert n > 8
