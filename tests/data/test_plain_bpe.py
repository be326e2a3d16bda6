"""Byte-pair encoding in plain Python: round trips, the ids of the `tokenizers` library, and no need of it."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import small
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_tokenizers import SAMPLE, TALE, bpe_tokenizer

from slm_np.data import plain_bpe, stories
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.plain_bpe import LETTERS, PlainBPE, merged, words_of
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer, tokenizer_from, with_end_of_text
from slm_np.data.tokenizer_json import END_OF_TEXT

quick = settings(max_examples=200, deadline=None)
OURS = PlainBPE.stories()
LIBRARY = tokenizers.Tokenizer.from_str(json.dumps(OURS.to_json()))
LIBRARY.encode_special_tokens = True  # the name of the end-of-text token in a text is text
# What decides where a word ends: contractions, white space, digits, punctuation, in and outside of ASCII.
PIECES = " the|the| |  |\n|\n\n|\r\n|'s|'LL|'|.\"| \"|_|12|²|é|—|漢|\u3000|ſ|\x1c|\x85|٣|Lily|\u0301".split("|")
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@pytest.fixture(scope="module")
def corpus():
    return "".join(text for text, _ in stories.write(300_000, 5)).encode()


@quick
@given(st.one_of(st.binary(), TEXTS.map(str.encode)), st.integers(1, 9))
def test_any_bytes_round_trip_however_they_are_cut(data, size):
    ids = OURS.encode(data)
    assert ids.dtype == np.uint16 and OURS.decode(ids) == data
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    assert np.concatenate([ids[:0], *OURS.encode_blocks(blocks)]).tolist() == ids.tolist()
    stream = OURS.stream()
    assert "".join(map(stream.push, ids.tolist())) + stream.flush() == data.decode("utf-8", "replace")


@quick
@given(TEXTS)
@example(f"a {END_OF_TEXT} b")
@example("Lily's—'s²'s\u3000's_'s\n's'ſLily")
def test_the_library_gives_the_same_ids(text):
    ids = OURS.encode(text).tolist()
    assert LIBRARY.encode(text).ids == ids and LIBRARY.decode(ids) == text


def test_the_library_gives_the_same_ids_of_stories_and_other_text(corpus):
    for text in (corpus.decode(), SAMPLE, TALE):
        assert LIBRARY.encode(text).ids == OURS.encode(text).tolist()
    assert LIBRARY.get_vocab_size() == OURS.vocab_size


@quick
@given(st.one_of(st.binary(), st.lists(st.sampled_from([*PIECES, "\udcff", "\udce2"])).map("".join)))
def test_bytes_that_are_not_utf8_have_the_ids_of_a_library_tokenizer(data):
    assert OURS.encode(data).tolist() == LibraryTokenizer(OURS.to_json()).encode(data).tolist()


def test_ids_are_bytes_then_tokens_then_the_end_of_text():
    tokenizer = PlainBPE(["a b", "Ġcat", "ab c"])
    assert tokenizer.encode("abcab\n").tolist() == [258, 256, 10] and tokenizer.end_of_text == 259
    assert tokenizer.encode(" cat cats").tolist() == [257, *b" cats"]  # merged from nothing: only whole
    assert tokenizer.vocab_size == 260 and with_end_of_text(tokenizer) is tokenizer and tokenizer.lossless
    assert tokenizer.decode([258, 259, 257, 0]) == b"abc cat\0"


def test_a_word_that_is_a_token_stays_whole():
    tokenizer = PlainBPE(["b c", "abc"])
    assert tokenizer.encode("abc abcd").tolist() == [257, *b" a", 256, *b"d"]


@pytest.mark.parametrize(
    "tokens", [["a bc"], ["a b", "a b"], ["a"], ["a b c"], ["\n"], [""], ["a b", "b c", "a bc", "ab c"]]
)
def test_malformed_tokens_are_refused(tokens):
    with pytest.raises((ValueError, TypeError)):
        PlainBPE(tokens)


def replaced(text, merges):
    """The tokens of a word by the definition: replace the first pair of the list wherever it is, then the next one."""
    parts = list(text)
    for left, right in merges:
        at = 0
        while at < len(parts) - 1:
            if parts[at : at + 2] == [left, right]:
                parts[at : at + 2] = [left + right]
            at += 1
    return parts


@quick
@given(st.text("ab", max_size=40))
def test_merges_apply_in_their_order_from_left_to_right(text):
    merges = [("a", "a"), ("aa", "b"), ("b", "b"), ("aab", "aa"), ("aa", "aa"), ("b", "a"), ("bb", "ba")]
    tokenizer = PlainBPE(map(" ".join, merges))
    assert [tokenizer.decode([id]).decode() for id in tokenizer.encode(text)] == replaced(text, merges)


def test_a_long_word_takes_no_quadratic_time():
    ids = merged(b"ab" * 200_000, {(97, 98): 256, (256, 256): 257})  # with a rescan for each merge: 10^11 steps
    assert ids == [257] * 100_000


def test_the_cache_of_words_is_bounded(monkeypatch, corpus):
    expected = OURS.encode(corpus).tolist()
    assert len(OURS._words) > 500
    monkeypatch.setattr(plain_bpe, "CACHE", 4000)
    tokenizer, found = PlainBPE.stories(), []
    for ids in tokenizer.encode_blocks([corpus]):
        found += ids.tolist()
        assert tokenizer._words_size <= 4000 and len(tokenizer._words) <= 4000 / plain_bpe.WORD_COST
    assert found == expected


def test_saved_it_is_ours_again_also_as_the_library_writes_it(tmp_path):
    path = tmp_path / "tokenizer.json"
    OURS.save(path)
    for again in (load_tokenizer(path), pickle.loads(pickle.dumps(OURS))):
        assert type(again) is PlainBPE and again.to_json() == OURS.to_json()
    LIBRARY.save(str(path))
    assert type(load_tokenizer(path)) is PlainBPE and load_tokenizer(path).to_json() == OURS.to_json()


def test_others_are_not_ours():
    fields = OURS.to_json()
    model = fields["model"]
    vocab = model["vocab"]
    swapped = vocab | {LETTERS[0]: 1, LETTERS[1]: 0}
    other = [
        dict(fields, model=dict(model, ignore_merges=False)),
        dict(fields, model=dict(model, vocab=swapped)),
        dict(fields, model=dict(model, vocab=vocab | {"more": 3000})),
        dict(fields, model=dict(model, merges=model["merges"][1:2] + model["merges"][:1] + model["merges"][2:])),
        dict(fields, added_tokens=[]),
        dict(fields, normalizer=dict(type="NFC")),
        bpe_tokenizer().to_json(),  # its bytes have other ids
    ]
    assert type(tokenizer_from(fields, "t")) is PlainBPE
    assert all(type(tokenizer_from(one, "t")) is LibraryTokenizer for one in other)


def test_the_vocabulary_has_the_words_of_the_stories(corpus):
    ids, words = OURS.encode(corpus), words_of(corpus.decode())
    assert len(corpus) / len(ids) > 4.2 and len(words) > 0.97 * len(ids)
    assert make_tokenizer("stories", []).to_json() == OURS.to_json()
    names = [OURS.decode([id]).decode() for id in range(256, OURS.end_of_text)]
    told, some = set(words), "\0".join({*words})
    assert sum(name in told for name in names) > 0.6 * len(names)  # in 300 kB of text
    assert sum(name in some for name in names) > 0.8 * len(names)


def test_no_library_is_needed(tmp_path):
    """Neither to make the tokenizer, nor to tokenize in processes, nor to load a run."""
    text = small.text_file(tmp_path, lines=200)
    words = small.flags(text, tokenizer="stories", max_iters=2, out_dir=tmp_path / "run")
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(('tokenizers', 'tiktoken', 'regex')))\n"
        "from slm_np.train import main; main(sys.argv[1:])\n"
        "from slm_np import load; run = load(sys.argv[sys.argv.index('--out-dir') + 1])\n"
        "print(type(run.tokenizer).__name__, run.tokenizer.decode(run.tokenizer.encode('Lily ran.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, *words], env=small.environment(), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "PlainBPE b'Lily ran.'" in done.stdout
