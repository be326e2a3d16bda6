"""The command `prepare`, and its output as data for training."""

import json
import os
import re

import numpy as np
import pytest
from data_files import END, MARKER, conversation, jsonl, load, marked, stories, text_file, without_checksums

from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.prepare import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_prepared_directory_is_data(tmp_path):
    path = text_file(tmp_path, marked(stories(50)))
    first = load(path, tokenizer="char", out_dir=tmp_path / "out")
    for data, val in (
        ("out", ""),
        ("out/train.bin", ""),
        ("out/train.bin", "out/validation.bin"),
        ("out", "out/validation.bin"),
    ):
        found = load(str(tmp_path / data), str(tmp_path / val) if val else "", "byte")
        assert found.train.ids.tolist() == first.train.ids.tolist()
        assert found.validation.ids.tolist() == first.validation.ids.tolist()
        assert found.tokenizer.to_json() == first.tokenizer.to_json() and found.vocab_size == first.vocab_size
        for split, expected in ((found.train, first.train), (found.validation, first.validation)):
            assert (split.n_documents, split.n_bytes) == (expected.n_documents, expected.n_bytes)
    assert load(str(tmp_path / "out"), "", first.tokenizer).vocab_size == first.vocab_size
    with pytest.raises(UserError, match="was made with another tokenizer"):
        load(str(tmp_path / "out"), "", ByteTokenizer())


def test_a_prepared_directory_keeps_its_mask(tmp_path):
    path = text_file(tmp_path, jsonl(conversation(f"Who {i}?", "Me.") for i in range(30)), "r.jsonl")
    first = load(path, out_dir=tmp_path / "out")
    found = load(str(tmp_path / "out"))
    assert (found.train.mask == first.train.mask).all()
    assert found.train.n_targets == first.train.n_targets
    assert found.validation.n_bytes == first.validation.n_bytes
    without_checksums(tmp_path / "out")
    (tmp_path / "out" / "train.mask.bin").write_bytes(b"\1")
    with pytest.raises(UserError, match="mask.bin has 1 entry for"):
        load(str(tmp_path / "out"))


def run(*arguments, capsys):
    """(exit status, stdout, stderr) of `prepare`."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


def test_prepare_writes_a_directory_and_describes_it(tmp_path, capsys):
    path, out = text_file(tmp_path, marked(stories(50))), tmp_path / "out"
    status, said, error = run(path, "--tokenizer", "byte", "--out-dir", out, capsys=capsys)
    assert status == 0 and ("train: 45 documents" in said or "train: 46 documents" in said)
    assert f"python -m slm_np.train --data {out}" in said and not error
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    ids = np.fromfile(out / "train.bin", "<u2")
    assert meta["tokens"]["train"] == len(ids)
    assert meta["dtype"] == "uint16"
    assert meta["vocab_size"] == 257
    assert meta["tokenizer"] == "byte"
    assert meta["documents"]["train"] == (ids == END).sum()
    assert meta["bytes"]["train"] == (ids != END).sum()
    assert len(meta["sha256"]["train"]) == 64
    assert load_tokenizer(out / "tokenizer.json").end_of_text == END
    before = {one.name: one.stat().st_mtime_ns for one in out.iterdir()}
    assert run(path, "--tokenizer", "byte", "--out-dir", out, capsys=capsys)[0] == 0  # the directory exists already
    assert {one.name: one.stat().st_mtime_ns for one in out.iterdir()} == before
    plain = text_file(tmp_path, "plain text\n" * 20, "p.txt")
    status, said, error = run(plain, "--out-dir", tmp_path / "plain", capsys=capsys)
    assert status == 0 and "one document; --documents line makes each line one" in error


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["{text}", "--out-dir", "{tmp}/full"], "full contains something else; name a new directory"),
        (["{text}", "--out-dir", "{text}"], "t.txt is a file; name a directory"),
        (["{text}", "--out-dir", "{tmp}/o", "--tokenizer", "bite"], "'bite' is unknown; did you mean byte"),
        (["{text}", "--out-dir", "{tmp}/o", "--documents", "lines"], "--documents 'lines' is unknown"),
        (["{text}", "--out-dir", "{tmp}/o", "--limit-bytes", "-1"], "--limit-bytes is -1; it must be at least 0"),
        (["{tmp}/nope", "--out-dir", "{tmp}/o"], "nope does not exist"),
        (["{tmp}/bad.txt", "--out-dir", "{tmp}/o", "--tokenizer", "char"], "not UTF-8 .byte 0xff"),
        (["{tmp}/bad.jsonl", "--out-dir", "{tmp}/o"], "bad.jsonl, line 2.*not JSON"),
        (["{text}"], "--out-dir"),
        (["--out-dir", "{tmp}/o"], "CORPUS"),
    ],
)
def test_prepare_refuses_bad_arguments_and_leaves_nothing(tmp_path, capsys, arguments, sentence):
    text = text_file(tmp_path, "some text\n" * 20)
    text_file(tmp_path, b"ab\xffcd" * 20, "bad.txt")
    text_file(tmp_path, '{"text": "a"}\n{"text"', "bad.jsonl")
    (tmp_path / "full").mkdir()
    text_file(tmp_path / "full", "x", "mine.txt")
    status, said, error = run(*(one.format(tmp=tmp_path, text=text) for one in arguments), capsys=capsys)
    assert status == 2 and re.search(sentence, error) and error.count("\n") == 1 and "Traceback" not in error, error
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.part").exists()
    assert os.listdir(tmp_path / "full") == ["mine.txt"]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:270"])
def test_prepare_says_if_nothing_separates_documents(tmp_path, capsys, tokenizer):
    plain, separated = text_file(tmp_path, "plain text\n" * 20, "p.txt"), text_file(tmp_path, marked(["one"]), "m.txt")
    options = ["--tokenizer", tokenizer, "--out-dir"]
    status, said, error = run(plain, *options, tmp_path / "plain", capsys=capsys)
    assert status == 0 and "each split is one document; --documents line makes each line one\n" in error
    status, said, error = run(separated, "--val-data", separated, *options, tmp_path / "separated", capsys=capsys)
    assert status == 0 and "train: 1 document," in said and "one document" not in error


@pytest.mark.parametrize(
    "text, documents, hint",
    [
        ("a b c\n \nd e f\n \n" * 99, "marker", "; --documents blank-line finds more"),
        ("a b c\rd e f\r\r" * 99, "marker", "; --documents blank-line finds more"),
        ("a b c\n" * 99, "blank-line", "; --documents line makes each line one"),
        (f"a b c {MARKER} " * 99, "blank-line", "; --documents marker finds more"),
        (f"a b c {MARKER} " * 99, "line", "; --documents marker finds more"),
        ("a b c </s>\n" * 99, "marker", "; </s> occurs 99 times at its start; if it ends documents, replace it by"),
        ("a b c " * 99, "marker", ""),
        ("a b c " * 99, "line", ""),
    ],
)
def test_the_hint_names_only_what_finds_more_documents(tmp_path, capsys, text, documents, hint):
    path = text_file(tmp_path, text)
    status, said, error = run(path, "--documents", documents, "--out-dir", tmp_path / "one", capsys=capsys)
    assert status == 0 and "train: 1 document," in said
    assert error.startswith(f"nothing separates documents, so each split is one document{hint}"), error
    named = re.search(r"--documents (\S+)", hint)
    if named:
        status, said, error = run(path, "--documents", named[1], "--out-dir", tmp_path / "more", capsys=capsys)
        assert status == 0 and int(re.search(r"train: (\d+) documents", said)[1]) > 80 and not error


def test_prepare_reads_lines_columns_and_several_corpora(tmp_path, capsys):
    names = text_file(tmp_path, "Ann\nBob\r\n\nCid\n" * 30, "names.txt")
    status, said, error = run(names, "--documents", "line", "--out-dir", tmp_path / "line", capsys=capsys)
    assert status == 0 and "train: 81 documents, 243 bytes" in said and "validation: 9 documents" in said and not error
    table = text_file(tmp_path, "id,story\r\n" + '1,"Mia, who ran,\nfell."\r\n' * 30, "t.csv")
    status, said, error = run(table, "--documents", "csv:story", "--out-dir", tmp_path / "csv", capsys=capsys)
    assert status == 0 and "train: 27 documents, 513 bytes" in said and not error
    status, said, error = run(table, "--out-dir", tmp_path / "text", capsys=capsys)
    assert status == 0 and "t.csv is read as text" in error and "--documents csv:COLUMN (id, story)" in error
    status, said, error = run(table, "--documents", "csv:text", "--out-dir", tmp_path / "no", capsys=capsys)
    assert status == 2 and "t.csv has no column 'text'; its columns are 'id', 'story'" in error
    arguments = [names, "--val-data", names, "--val-data", table, "--documents", "line", "--out-dir", tmp_path / "val"]
    status, said, error = run(*arguments, capsys=capsys)
    assert status == 0 and "validation: 151 documents" in said


def test_prepare_into_the_current_folder(tmp_path, capsys, monkeypatch):
    path, here = text_file(tmp_path, "plain text\n" * 20), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    status, said, error = run(path, "--out-dir", ".", capsys=capsys)
    os.chdir(tmp_path)  # on Linux a new folder has replaced the empty one
    if os.name != "nt":  # Windows cannot replace a folder in use
        assert status == 0 and (here / "train.bin").exists() and "--data ." in said, error
    assert "Traceback" not in error


def test_several_files_equal_their_glob(tmp_path, capsys):
    paths = [text_file(tmp_path, marked([name] * 9), f"{name}.txt") for name in "abc"]
    assert run(*paths, "--out-dir", tmp_path / "one", capsys=capsys)[0] == 0
    assert run(tmp_path / "*.txt", "--out-dir", tmp_path / "two", capsys=capsys)[0] == 0
    assert (tmp_path / "one" / "train.bin").read_bytes() == (tmp_path / "two" / "train.bin").read_bytes()
