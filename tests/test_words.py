"""Counts and paths in sentences."""

import os
import shlex

import pytest

from slm_np.words import counted, quoted


@pytest.mark.parametrize(
    "n, noun, words",
    [
        (1, "document", "1 document"),
        (0, "document", "0 documents"),
        (2000, "token", "2,000 tokens"),
        (1, "row of JSON", "1 row of JSON"),
        (3, "byte of replies", "3 bytes of replies"),
        (2, "assistant token", "2 assistant tokens"),
        (2, "entry", "2 entries"),
    ],
)
def test_counts_have_their_plural(n, noun, words):
    assert counted(n, noun) == words


@pytest.mark.skipif(os.name == "nt", reason="for the shells of POSIX")
@pytest.mark.parametrize("path", ["runs/a", "my run", "it's", 'a "b"', "a$b", "größe", "a;b", "a*", "a\\b", "a(1)"])
def test_a_quoted_path_is_one_word_of_a_shell(path):
    assert shlex.split(quoted(path)) == [path]


def test_plain_paths_are_not_quoted():
    assert quoted("runs/a-1_2.txt") == "runs/a-1_2.txt"


@pytest.mark.parametrize("path", ["-x", "--model", "~x"])
def test_a_path_is_no_flag_and_no_home_folder(path):
    assert os.path.normpath(shlex.split(quoted(path))[0]) == path and quoted(path).strip("'\"").startswith("./")
