"""GPT-2's vocabulary trimmed to the tokens of a corpus."""

import numpy as np
import pytest

from slm_np.data import bpe
from slm_np.data.tokenizer_factory import load_tokenizer, make_tokenizer
from slm_np.errors import UserError

CORPUS = "Once upon a time, there were 17 little mice.\n\nThey didn't like the naïve cat's “plan”… at all! 日本\n" * 3
OTHER = "Supercalifragilistic 0123456789 \t\u00a0\u2028 ЖŽ🦊 don't\n\n\n"


@pytest.fixture(scope="module")
def whole():
    try:
        return bpe.gpt2()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def trimmed(whole):
    return make_tokenizer("gpt2-trimmed", [lambda: [CORPUS.encode()]], progress=False)


def names(tokenizer, text):
    fields = tokenizer.to_json()
    by_id = {id: name for name, id in fields["model"]["vocab"].items()}
    return [by_id[id] for id in tokenizer.encode(text).tolist()]


def test_the_corpus_has_the_tokens_of_gpt2(whole, trimmed):
    assert names(trimmed, CORPUS) == names(whole, CORPUS)
    assert 257 < trimmed.vocab_size < 400 and trimmed.end_of_text == trimmed.vocab_size - 1


@pytest.mark.parametrize("text", [CORPUS, OTHER, "", "\0\x7f"])
def test_every_text_comes_back(trimmed, text):
    assert trimmed.decode(trimmed.encode(text)) == text.encode()
    every_byte = bytes(range(256))
    assert trimmed.decode(trimmed.encode(every_byte)) == every_byte


def test_ids_are_in_the_order_of_gpt2(whole, trimmed):
    ours, theirs = (tokenizer.to_json()["model"] for tokenizer in (trimmed, whole))
    assert sorted(ours["vocab"], key=ours["vocab"].get) == sorted(ours["vocab"], key=theirs["vocab"].get)
    assert sorted(ours["vocab"].values()) == list(range(trimmed.vocab_size - 1))


def test_unseen_text_takes_more_tokens_and_no_others(whole, trimmed):
    assert len(trimmed.encode(OTHER)) > len(whole.encode(OTHER))
    assert set(names(trimmed, OTHER)) <= set(trimmed.to_json()["model"]["vocab"])


def test_it_is_saved_and_loaded(trimmed, tmp_path):
    trimmed.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(again.encode(CORPUS + OTHER), trimmed.encode(CORPUS + OTHER))


def test_a_part_of_a_corpus_has_a_smaller_vocabulary(whole, trimmed):
    part = make_tokenizer("gpt2-trimmed", [lambda: [CORPUS[:30].encode()]], progress=False)
    assert part.vocab_size < trimmed.vocab_size and names(part, CORPUS[:30]) == names(whole, CORPUS[:30])
