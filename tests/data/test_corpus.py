"""What a `--data` string names: files, folders, globs, corpora known by name, and what is refused."""

import os
import re

import pytest
from data_files import load, old_file

from slm_np.data import corpus
from slm_np.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def texts(tmp_path):
    """A folder with a.txt, b.md, deep/c.txt, deep/deeper/d.txt, and files that are skipped."""
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
        old_file(folder / name, data)
    return folder


def read(data, cache, split="train"):
    return b"".join(corpus.find(str(data), split, cache, progress=False).blocks())


def test_a_file_a_list_and_a_folder(texts, cache):
    assert read(texts / "a.txt", cache) == b"alpha\n"
    in_order = f"{texts / 'b.md'}, {texts / 'a.txt'}"
    assert read(in_order, cache) == b"betaalpha\n"  # with nothing in between
    assert read(texts, cache) == b"alpha\nbetagammadelta\xff\x00"  # sorted, recursively, without hidden files
    assert read(f"{texts / 'b.md'},{texts}", cache) == b"betaalpha\ngammadelta\xff\x00"  # each file once


def test_globs_match_files_and_folders(texts, cache):
    assert read(texts / "*.txt", cache) == b"alpha\n"
    assert read(texts / "**" / "*.txt", cache) == b"alpha\ngammadelta\xff\x00"
    assert read(texts / "de*", cache) == b"gammadelta\xff\x00"
    assert read(texts / "[ab].*", cache) == b"alpha\nbeta"


def test_an_existing_file_may_have_commas_brackets_and_unicode_in_its_name(tmp_path, cache):
    for name in ("one, two.txt", "a[1].txt", "Ünï 漢.txt"):
        (tmp_path / name).write_bytes(name.encode())
        assert read(tmp_path / name, cache) == name.encode()


def test_links_to_folders_are_not_followed(texts, cache):
    try:
        os.symlink(texts, texts / "deep" / "loop")
        os.symlink(texts / "a.txt", texts / "z.txt")
    except OSError:
        pytest.skip("this user may not create links")
    assert read(texts, cache) == b"alpha\nbetagammadelta\xff\x00alpha\n"


def test_an_existing_file_takes_precedence_over_a_corpus_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old_file(tmp_path / "stories", "mine")
    assert b"".join(corpus.find("stories", "train", tmp_path, False).blocks()) == b"mine"


def test_corpora_known_by_name_add_up_with_files(texts, cache):
    known = read("stories", cache)
    assert read(f"{texts / 'a.txt'},stories,{texts / 'b.md'}", cache) == b"alpha\n" + known + b"beta"


@pytest.mark.parametrize(
    "data, sentence",
    [
        ("{texts}/aa.txt", r"--data \S+aa.txt does not exist; did you mean \S+a.txt\?"),
        ("{texts}/zzz", r"--data \S+zzz does not exist; \S+texts contains a.txt, b.md, deep$"),
        ("{texts}/nope/a.txt", r"--data \S+a.txt does not exist, nor does the folder \S+nope; \S+texts contains a.txt"),
        ("{texts}/*.tyt", r"--data \S+\*.tyt matches no files; did you mean \S+a.txt\?"),
        ("{texts}/**/*.xyzzy", r"--data \S+\*.xyzzy matches no files; \S+texts contains a.txt"),
        ("{texts}/a.txt,{texts}/b.mdd", r"--data \S+b.mdd does not exist; did you mean \S+b.md\?"),
        ("{texts}/deep/empty.txt", r"--data \S+empty.txt is empty; give a file with text"),
        ("{texts}/deep/emp*", r"--data \S+emp\* matches only empty files; give some text"),
        ("{texts}/void", r"--data \S+void is a folder without files"),
        ("{texts}/a.txt/b", r"--data \S+ does not exist"),
        (
            "",
            r"--data '' matches no files; give files, folders or globs separated by commas, "
            "or stories, dialogues, tinyshakespeare, tinystories",
        ),
        (" , ", r"--data ' , ' matches no files"),
        ("storys", r"--data storys does not exist; did you mean .*\bstories\b.*\?"),
        ("x" * 5000, r"--data x+ does not exist"),
        ("bad\0name", r"--data bad\x00name does not exist"),
    ],
)
def test_errors_name_what_was_not_found(texts, cache, data, sentence):
    (texts / "void").mkdir() if "void" in data else None
    with pytest.raises(UserError) as error:
        load(data.format(texts=texts), cache_dir=cache)
    assert re.search(sentence, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_errors_in_validation_data_name_its_flag(texts, cache):
    with pytest.raises(UserError, match="--val-data .*nope.txt does not exist"):
        load(str(texts), str(texts / "nope.txt"), cache_dir=cache)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="this system has no device files")
def test_devices_are_refused(cache):
    with pytest.raises(UserError, match="/dev/null is neither a file nor a folder"):
        load("/dev/null", cache_dir=cache)


@pytest.mark.parametrize("name", ["a.txt", "deep"])
def test_unreadable_files_and_folders_are_named(texts, cache, name, monkeypatch):
    def refuse(real):
        def call(path, *rest, **more):
            if os.fspath(path) == str(texts / name):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **more)

        return call

    # Root may read everything, so the error is simulated.
    monkeypatch.setattr("builtins.open", refuse(open))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied\)"):
        load(str(texts), cache_dir=cache)
