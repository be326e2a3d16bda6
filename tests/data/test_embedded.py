"""Embedded corpora as files in the cache: their splits, their entropy floor, and when they are written again."""

import hashlib
import json
import os
from types import SimpleNamespace

import pytest
from data_files import load, old_file

from slm_np.data import corpus, embedded
from slm_np.data.documents import MARKER
from slm_np.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def stories(tmp_path, monkeypatch):
    """A small writer in place of `stories`, of 2 bits per byte for seed 1 and 4 for seed 2. It records its `calls`."""
    module = SimpleNamespace(__file__=old_file(tmp_path / "writer.py", b"first"), calls=[])

    def write(n_bytes, seed):
        module.calls.append((n_bytes, seed))
        n = 0
        while n < n_bytes:
            text = f"Tale {seed * 1000 + n} of a café.\n\n"
            n += len(text.encode())
            yield text, 2.0 * seed * len(text.encode())

    monkeypatch.setitem(embedded.WRITERS, "stories", embedded.Writer(write, ".txt", (module,)))
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=3000, validation=500))
    return module


def test_stories_have_a_validation_split_and_a_floor(stories, cache):
    found = load("stories", cache_dir=cache)
    assert stories.calls == [(3000, 1), (500, 2)]
    assert found.train.n_bytes >= 3000 and 500 <= found.validation.n_bytes < 600
    assert found.tokenizer.decode(found.validation.ids).startswith(b"Tale 2000")
    assert found.validation.bits_per_byte_floor == pytest.approx(4.0)
    assert found.train.bits_per_byte_floor == pytest.approx(2.0)
    meta = json.loads((cache / "corpora" / found.fingerprint / "meta.json").read_text(encoding="utf-8"))
    assert meta["bits_per_byte_floor"] == dict(train=2.0, validation=4.0)
    again = load("stories", cache_dir=cache)
    assert len(stories.calls) == 2
    assert again.fingerprint == found.fingerprint
    assert again.validation.bits_per_byte_floor == 4.0
    assert load("stories", tokenizer="char", cache_dir=cache).fingerprint != found.fingerprint


def test_stories_with_validation_data_of_another_source(stories, tmp_path, cache):
    file = old_file(tmp_path / "a.txt", b"Once. " * 100)
    found = load("stories", file, cache_dir=cache)
    assert found.validation.n_bytes == 600
    assert found.validation.bits_per_byte_floor is None
    assert found.train.bits_per_byte_floor == 2.0
    found = load(file, "stories", cache_dir=cache)
    assert found.train.n_bytes == 600 and found.validation.bits_per_byte_floor == 4.0


def test_the_validation_split_of_stories_alone(stories, cache):
    found = load("stories", whole="validation", cache_dir=cache)
    assert stories.calls == [(500, 2)] and found.train.bits_per_byte_floor == 4.0
    assert found.train.ids.tolist() == load("stories", cache_dir=cache).validation.ids.tolist()


def test_a_changed_writer_or_a_damaged_file_writes_the_stories_again(stories, cache):
    text = corpus.find("stories", "train", cache, False)
    [(path, size, _)] = text.files
    os.truncate(path, 10)
    assert corpus.find("stories", "train", cache, False).size == size and len(stories.calls) == 2
    (path.parent / "floor.json").write_text("{", encoding="utf-8")
    assert corpus.find("stories", "train", cache, False).bits_per_byte_floor == 2.0 and len(stories.calls) == 3
    with open(stories.__file__, "wb") as file:
        file.write(b"second")
    assert corpus.find("stories", "train", cache, False).files[0][0] != path and len(stories.calls) == 4


def know(monkeypatch, split, **changes):
    """Enter what the small writer writes into `KNOWN`. Returns its bytes."""
    text = "".join(text for text, _ in embedded.WRITERS["stories"].write(*arguments_of(split))).encode()
    known = embedded.KnownText(len(text), 2.0 * embedded.SEEDS[split] * len(text), hashlib.sha256(text).hexdigest())
    monkeypatch.setitem(embedded.KNOWN, embedded._version("stories", split), known._replace(**changes))
    return text


def arguments_of(split):
    return embedded.SPLIT_BYTES[split], embedded.SEEDS[split]


def test_a_known_text_is_written_when_it_is_read(stories, cache, monkeypatch):
    expected = know(monkeypatch, "train")
    monkeypatch.setattr(embedded, "TOGETHER", 3)
    text = corpus.find("stories", "train", cache, False, write=False)
    [(path, size, _)] = text.files
    assert size == len(expected) and text.sha256(cache) == hashlib.sha256(expected).hexdigest()
    assert text.bits_per_byte_floor == 2.0 and not path.exists()
    blocks = text.blocks()
    first = next(blocks)
    assert expected.startswith(first) and not path.exists()
    assert first + b"".join(blocks) == expected == path.read_bytes()
    text.check_unchanged()
    assert corpus.find("stories", "train", cache, False) == text
    assert b"".join(text.blocks(5, 50)) == expected[5:50]


def test_a_part_of_a_known_text_is_read_once_all_is_written(stories, cache, monkeypatch):
    expected = know(monkeypatch, "validation")
    text = corpus.find("stories", "validation", cache, False, write=False)
    assert b"".join(text.blocks(100, 300)) == expected[100:300] and text.files[0][0].read_bytes() == expected


def test_a_text_that_is_not_the_known_one_is_an_error(stories, cache, monkeypatch):
    know(monkeypatch, "train", sha256="0" * 64)
    with pytest.raises(UserError, match="the train stories differ from what embedded.py knows"):
        b"".join(corpus.find("stories", "train", cache, False, write=False).blocks())
    assert not any((cache / "stories").iterdir())


def test_the_stories_are_known(cache):
    """If this fails, the writer was changed: correct `embedded.KNOWN`, as the README of data/ says."""
    for split in embedded.SPLIT_BYTES:
        known = embedded.KNOWN[embedded._version("stories", split)]
        text = corpus.find("stories", split, cache, False)
        data = b"".join(text.blocks())
        assert (len(data), hashlib.sha256(data).hexdigest()) == (known.size, known.sha256) and MARKER not in data
        assert text.bits_per_byte_floor == known.bits / known.size


def test_dialogues_are_conversations_with_a_mask(cache, monkeypatch):
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=20_000, validation=3000))
    found = load("dialogues", cache_dir=cache)
    assert found.train.n_documents > 50  # four times as long as that of `stories`
    assert found.train.mask is not None
    assert 0 < found.train.n_targets < len(found.train) / 2
    assert len(found.validation) + found.validation.n_documents * 150 > 3000 and found.source == "dialogues"
