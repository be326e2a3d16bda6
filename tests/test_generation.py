"""Generation: stop strings, samples, whole characters, the end of a text, prompts."""
import numpy as np
import pytest

from slm_np.config import ModelConfig
from slm_np.data.tokenizer import ByteTokenizer, CharTokenizer
from slm_np.decode import Decoder
from slm_np.errors import UserError
from slm_np.generation import START, Stops, Text, encode_prompt, generate, generate_ids, text_of
from slm_np.model import Model
from slm_np.sampling import SamplingConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def model(vocab_size=256, **changes):
    made = Model(ModelConfig(**{**dict(vocab_size=vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=16, n_hidden=16), **changes}), seed=3)
    made.parameters.weights *= 20  # so that it has opinions
    return made


# Stop strings

@pytest.mark.parametrize("stops, pieces, shown", [
    (["END"], ["abc", "def"], "abcdef"), (["END"], ["abcENDdef", "x"], "abc"), (["END"], ["abE", "N", "D", "x"], "ab"), (["END"], ["abE", "N", "x"], "abENx"), (["END"], ["abEN"], "abEN"),
    (["aab"], ["a", "a", "a", "b", "c"], "a"), (["b", "ab"], ["x", "a", "b"], "x"), (["yz", "bc"], ["abcyz"], "a"), (["xx"], ["x", "y", "x", "x"], "xy"), ([], ["a", "b"], "ab"), ([""], ["a"], "a")])
def test_stops(stops, pieces, shown):
    held = Stops(stops)
    parts = [held.push(piece) for piece in pieces] + [held.end()]
    assert "".join(parts) == shown
    assert held.over and held.push("more") == "" == held.end()


def test_stops_hold_back_no_more_than_they_must():
    held = Stops(["END", "\n\n"])
    assert [held.push(letter) for letter in "aEbEN\nc"] == ["a", "", "Eb", "", "", "EN", "\nc"]


def test_any_split_of_a_text_shows_the_same():
    text, stops = "one two\n\nthree", ["\n\n", "two\n\nthree"]
    for size in range(1, len(text) + 1):
        held = Stops(stops)
        parts = [held.push(text[at:at + size]) for at in range(0, len(text), size)] + [held.end()]
        assert "".join(parts) == "one two", size  # the stop that is complete first


# One text

class Ending(ByteTokenizer):
    """Bytes, of which 0 ends a text."""
    end_of_text = 0


def test_a_text_is_whole_characters_and_ends_with_its_tokenizers_end():
    text = Text(Ending(), ["!!"])
    shown = [text.push(byte) for byte in "aß€!".encode()]
    assert shown == ["a", "", "ß", "", "", "€", ""]
    assert not text.over and text.push(0) == "!" and text.over  # what was held back is shown once nothing can follow
    assert text.push(65) == "" == text.end()


def test_half_a_character_at_the_end_is_a_replacement():
    text = Text(ByteTokenizer(), [])
    assert text.push(0xE2) == "" and text.end() == "\ufffd"


# Models

def pieces_of(model, tokenizer, prompt, n, sampling=SamplingConfig(), **options):
    return list(generate(model, tokenizer, prompt, n, sampling, **options))


def test_samples_are_those_made_alone_and_beside_others():
    llm, words = model(), CharTokenizer("".join(map(chr, range(32, 288))))
    three, two = (["".join(parts) for parts in zip(*pieces_of(llm, words, "ab", 20, samples=n))] for n in (3, 2))
    assert three[:2] == two and len(set(three)) == 3 and all(len(text) == 20 for text in three)
    assert two[0] == text_of(llm, words, "ab", 20, SamplingConfig())
    assert two[0] != text_of(llm, words, "ab", 20, SamplingConfig(seed=1))


def test_samples_end_one_by_one_and_generation_with_the_last():
    llm, words = model(), CharTokenizer("".join(map(chr, range(32, 288))))
    whole = ["".join(parts) for parts in zip(*pieces_of(llm, words, "ab", 40, samples=3))]
    stops = [text[3 * i + 4] for i, text in enumerate(whole)]
    made = pieces_of(llm, words, "ab", 40, samples=3, stops=stops)
    assert len(made) < 40
    for text, parts in zip(whole, zip(*made)):
        assert "".join(parts) == text[:min(text.index(stop) for stop in stops if stop in text)]


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned", "rotary"])
def test_any_number_of_tokens(positions):
    """Past the context, positions that end there re-read the last T tokens; the others slide."""
    llm, prompt = model(positions=positions), np.arange(11)
    ids = np.concatenate(list(generate_ids(Decoder(llm), prompt, 20, SamplingConfig(temp=0))))
    assert ids.shape == (20,)
    if positions in ("sinusoidal", "learned"):
        text = [*prompt, *ids]
        for at in range(len(prompt), len(text)):
            last = np.array([text[at - 8:at]], np.int32)
            assert llm.logits(last)[0, -1].argmax() == text[at]


def test_no_tokens_are_one_empty_piece():
    assert pieces_of(model(), ByteTokenizer(), "ab", 0) == [[""]]


def test_an_empty_prompt_is_what_stands_between_two_texts():
    assert encode_prompt(ByteTokenizer(), "").tolist() == list(START)
    assert encode_prompt(CharTokenizer("\nab"), "").tolist() == [0, 0]
    assert encode_prompt(CharTokenizer("abc"), "").tolist() == [0]  # no line ends: some character has to come first
    assert len(text_of(model(3), CharTokenizer("abc"), "", 5, SamplingConfig())) == 5


def test_prompts_that_cannot_be_read_are_refused_at_once():
    with pytest.raises(UserError, match="'z'.*'abc'"):
        generate(model(3), CharTokenizer("abc"), "az", 5, SamplingConfig())
    with pytest.raises(UserError, match="without a tokenizer"):
        generate(model(), None, "a", 5, SamplingConfig())
    assert encode_prompt(ByteTokenizer(), b"a\xff".decode("utf-8", "surrogateescape")).tolist() == [97, 255]  # bytes that are no text


def test_too_many_texts_for_the_memory():
    with pytest.raises(UserError, match="ask for fewer"):
        generate(model(), ByteTokenizer(), "a", 5, SamplingConfig(), samples=10 ** 12)
