"""Odd corpora have the documents they were made from, or are refused in one sentence."""

import numpy as np
import pytest
from data_files import END, load, old_file
from odd_corpora import odd_corpora

from slm_np.errors import UserError


def documents_of(tokens, tokenizer):
    """The documents in the ids of a byte tokenizer, as bytes."""
    ids = np.asarray(tokens.ids)
    if tokenizer.end_of_text is None:
        return [ids.astype(np.uint8).tobytes()] if len(ids) else []
    *found, rest = np.split(ids, 1 + np.flatnonzero(ids == END))
    assert not len(rest)
    return [one[:-1].astype(np.uint8).tobytes() for one in found]


@pytest.mark.parametrize("seed", range(4))
def test_odd_corpora(tmp_path, seed):
    for i, (name, files, options, documents, refusal) in enumerate(odd_corpora(16, seed)):
        folder = tmp_path / str(i)
        folder.mkdir()
        for file, data in files.items():
            old_file(folder / file, data)
        arguments = dict(options, cache_dir=tmp_path / "cache", whole="train", out_dir=tmp_path / f"out{i}")
        if documents is None:
            with pytest.raises(UserError, match=refusal) as error:
                load(str(folder), **arguments)
            assert "\n" not in str(error.value) and not (tmp_path / f"out{i}").exists(), name
            continue
        corpus = load(str(folder), **arguments)
        found = documents_of(corpus.train, corpus.tokenizer)
        assert found == documents, name
        assert corpus.train.n_documents == len(documents), name
    assert not [*(tmp_path / "cache").rglob("*.part")]


def test_the_same_seed_makes_the_same_corpora():
    first, second = list(odd_corpora(24, 5)), list(odd_corpora(24, 5))
    assert first == second and len({one.name for one in first}) == 24
    assert sum(one.documents is None for one in first) == 3 and list(odd_corpora(24, 6)) != first
