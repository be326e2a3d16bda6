"""Generation: stop strings, uncertain tails, samples, whole characters, the end of a text, prompts."""

import unicodedata

import numpy as np
import pytest

from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder
from slm_np.inference.generation import (
    START,
    StopStrings,
    TextStream,
    cut,
    encode_prompt,
    generate,
    generate_tokens,
    printable,
    text_of,
)
from slm_np.nn.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")


def model(vocab_size=256, **changes):
    made = Model(
        ModelConfig(
            **{**dict(vocab_size=vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=16, n_hidden=16), **changes}
        ),
        seed=3,
    )
    made.parameters.weights *= 20  # so that logits differ
    return made


def chain(follows, size=256, block_size=32):
    """A constructed model of bytes, or of `size` ids: `follows[a] = (b, p)` makes b follow a with probability p.

    After all others every id is equally likely. Attention and feed-forward add nothing: only the last token matters.
    """
    made = Model(
        ModelConfig(
            vocab_size=size,
            block_size=block_size,
            n_layer=1,
            n_head=1,
            head_dim=2,
            n_embd=size,
            n_hidden=1,
            norm="none",
            positions="none",
            head="linear",
        ),
        seed=3,
    )
    weight = made.parameters.weight
    made.parameters.weights[:] = 0
    weight["embedding.weight"][:] = np.eye(size)
    for a, (b, p) in follows.items():
        weight["head.weight"][:, ord(a)] = np.log((1 - p) / (size - 1))
        weight["head.weight"][ord(b), ord(a)] = np.log(p)
    return made


def word_chain(words, p=1 - 1e-6, **likelihoods):
    """`follows` for `chain`: the letters of each word, with probability p, or that in `likelihoods` after a letter."""
    return {a: (b, likelihoods.get(a, p)) for word in words for a, b in zip(word, word[1:])}


# Stop strings


@pytest.mark.parametrize(
    "stops, parts, shown",
    [
        (["END"], ["abc", "def"], "abcdef"),
        (["END"], ["abcENDdef", "x"], "abc"),
        (["END"], ["abE", "N", "D", "x"], "ab"),
        (["END"], ["abE", "N", "x"], "abENx"),
        (["END"], ["abEN"], "abEN"),
        (["aab"], ["a", "a", "a", "b", "c"], "a"),
        (["b", "ab"], ["x", "a", "b"], "x"),
        (["yz", "bc"], ["abcyz"], "a"),
        (["xx"], ["x", "y", "x", "x"], "xy"),
        ([], ["a", "b"], "ab"),
        ([""], ["a"], "a"),
    ],
)
def test_stop_strings_end_a_text(stops, parts, shown):
    strings = StopStrings(stops)
    assert "".join([strings.push(part) for part in parts] + [strings.end()]) == shown
    assert strings.finished and strings.push("more") == "" == strings.end()


def test_stop_strings_hold_back_no_more_than_needed():
    strings = StopStrings(["END", "\n\n"])
    assert [strings.push(letter) for letter in "aEbEN\nc"] == ["a", "", "Eb", "", "", "EN", "\nc"]


def test_any_division_of_a_text_shows_the_same():
    text, stops = "one two\n\nthree", ["\n\n", "two\n\nthree"]
    for size in range(1, len(text) + 1):
        strings = StopStrings(stops)
        parts = [strings.push(text[start : start + size]) for start in range(0, len(text), size)] + [strings.end()]
        assert "".join(parts) == "one two", size  # the stop string that ends first


# The text of one sequence


class Ending(ByteTokenizer):
    """Bytes; 0 is the end-of-text token."""

    def __init__(self):
        super().__init__()
        self.end_of_text = 0


def test_a_text_has_whole_characters_and_ends_at_end_of_text():
    text = TextStream(Ending(), ["!!"])
    shown = [text.push(byte) for byte in "aß€!".encode()]
    assert shown == ["a", "", "ß", "", "", "€", ""]
    assert (
        not text.finished and text.push(0) == "!" and text.finished
    )  # what was held back is shown once nothing can follow
    assert text.push(65) == "" == text.end()


# Confidence: per token a letter and the first decimal of the likeliest token's probability


@pytest.mark.parametrize(
    "letters, decimals, parts",
    [
        ("abcdef", "999999", ["a", "b", "c", "d", "e", "f", ""]),
        ("abcdef", "911999", ["a", "", "", "bcd", "e", "f", ""]),
        ("abcdef", "991119", ["a", "b", "", "", ""]),
        ("abc", "111", ["", "", ""]),
        ("abcdef", "919191", ["a", "", "bc", "", "de", "", "f"]),
        ("ab", "11", ["", "", "ab"]),
    ],
)
def test_uncertain_tokens_are_held_back(letters, decimals, parts):
    text, shown = TextStream(ByteTokenizer(), [], 0.15, 3), []
    for letter, decimal in zip(letters, decimals):
        shown.append(text.push(ord(letter), 0.5, float("0." + decimal)))
        if text.finished:
            break
    else:
        shown.append(text.end())
    assert shown == parts and text.push(65) == "" == text.end()


def test_patience_and_the_threshold():
    for patience in (1, 2, 5):
        text = TextStream(ByteTokenizer(), [], 0.5, patience)
        assert "".join(text.push(65, 1.0, 0.5) for _ in range(10)) == "A" * 10  # exactly the threshold is certain
        assert [text.push(66, 0.1, 0.49) for _ in range(patience)] == [""] * patience and text.finished
    text = TextStream(ByteTokenizer(), [])
    assert text.push(65, 0.0, 0.0) == "A"  # off


def test_an_uncertain_tail_and_the_text_that_stop_strings_hold_back():
    text = TextStream(ByteTokenizer(), ["END"], 0.15, 2)
    shown = [text.push(ord(letter), 1.0, p) for letter, p in zip("abEN", (0.9, 0.9, 0.9, 0.1))]
    assert (
        shown == ["a", "b", "", ""] and text.push(ord("x"), 1.0, 0.1) == "E" and text.finished
    )  # certain, but it could have begun the stop string
    text = TextStream(ByteTokenizer(), ["END"], 0.15, 3)
    shown = [text.push(ord(letter), 1.0, p) for letter, p in zip("aEND", (0.9, 0.9, 0.1, 0.1))]
    assert shown == ["a", "", "", ""] and text.finished
    text = TextStream(ByteTokenizer(), ["D"], 0.15, 3)
    assert [text.push(ord(letter), 1.0, 0.1) for letter in "xyD"] == [
        "",
        "",
        "xy",
    ] and text.finished  # the stop string ended it: nothing is dropped
    text = TextStream(Ending(), [], 0.15, 3)
    assert [text.push(id, 1.0, 0.1) for id in (65, 66, 0)] == ["", "", "AB"] and text.finished


def test_an_uncertain_tail_includes_its_unfinished_character():
    a, b, c = "€".encode()
    text = TextStream(ByteTokenizer(), [], 0.15, 2)
    assert [
        text.push(65, 1.0, 0.9),
        text.push(a, 1.0, 0.9),
        text.push(b, 1.0, 0.1),
        text.push(c, 1.0, 0.1),
        text.end(),
    ] == ["A", "", "", "", ""]
    text = TextStream(ByteTokenizer(), [], 0.15, 3)
    assert [text.push(a, 1.0, 0.9), text.push(b, 1.0, 0.1), text.push(c, 1.0, 0.9)] == ["", "", "€"]


def test_style_gets_whole_characters_with_their_lowest_probability():
    styled = []

    def style(part, probability):
        styled.append((part, probability))
        return f"<{part}>"

    text = TextStream(ByteTokenizer(), ["!!"], style=style)
    shown = [text.push(byte, p, 0.9) for byte, p in zip("a€!b".encode(), (0.5, 0.4, 0.2, 0.3, 0.6, 0.7))] + [
        text.push(0x80, 0.1, 0.9),
        text.push(0xE2, 0.05, 0.9),
        text.end(),
    ]
    assert shown == ["<a>", "", "", "<€>", "", "<!><b>", "<\ufffd>", "", "<\ufffd>"]
    assert styled == [("a", 0.5), ("€", 0.2), ("!", 0.6), ("b", 0.7), ("\ufffd", 0.1), ("\ufffd", 0.05)]
    text = TextStream(ByteTokenizer(), ["b!"], 0.15, 2, style)
    assert [text.push(ord(letter), 0.3, 0.9) for letter in "ab!"] == ["<a>", "", ""] and text.finished
    text = TextStream(ByteTokenizer(), [], 0.15, 2, style)
    assert [text.push(65, 0.3, 0.1), text.push(66, 0.3, 0.9), text.push(67, 0.3, 0.1), text.push(68, 0.3, 0.1)] == [
        "",
        "<A><B>",
        "",
        "",
    ]


def test_half_a_character_at_the_end_is_replaced():
    text = TextStream(ByteTokenizer(), [])
    assert text.push(0xE2) == "" and text.end() == "\ufffd"


# Models


def strings_of(model, tokenizer, prompt, n, sampling=SamplingConfig(), **options):
    return list(generate(model, tokenizer, prompt, n, sampling, **options))


def test_a_sample_is_the_same_alone_and_beside_others():
    llm, words = model(), CharTokenizer("".join(map(chr, range(32, 288))))
    three, two = (["".join(parts) for parts in zip(*strings_of(llm, words, "ab", 20, samples=n))] for n in (3, 2))
    assert three[:2] == two and len(set(three)) == 3 and all(len(text) == 20 for text in three)
    assert two[0] == text_of(llm, words, "ab", 20, SamplingConfig())
    assert two[0] != text_of(llm, words, "ab", 20, SamplingConfig(seed=1))


def test_samples_end_one_by_one_and_generation_with_the_last():
    llm, words = model(), CharTokenizer("".join(map(chr, range(32, 288))))
    whole = ["".join(parts) for parts in zip(*strings_of(llm, words, "ab", 40, samples=3))]
    stops = [text[3 * i + 4] for i, text in enumerate(whole)]
    made = strings_of(llm, words, "ab", 40, samples=3, stops=stops)
    assert len(made) < 40
    for text, parts in zip(whole, zip(*made)):
        assert "".join(parts) == text[: min(text.index(stop) for stop in stops if stop in text)]


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned", "rotary"])
def test_any_number_of_tokens(positions):
    """Beyond the context, positions that end there re-read the last T tokens; the others slide."""
    llm, prompt = model(positions=positions), np.arange(11)
    steps = generate_tokens(Decoder(llm), prompt, 20, SamplingConfig(temp=0))
    ids = np.concatenate([ids for _, ids in steps])
    assert ids.shape == (20,)
    if positions in ("sinusoidal", "learned"):
        sequence = [*prompt, *ids]
        for position in range(len(prompt), len(sequence)):
            last = np.array([sequence[position - 8 : position]], np.int32)
            assert llm.logits(last)[0, -1].argmax() == sequence[position]


def test_any_of_several_ids_ends_a_text():
    llm = chain(word_chain([">abc.def!ghi"]))
    assert text_of(llm, ByteTokenizer(), ">", 50, CERTAIN, ends=[ord("!")]) == "abc.def"
    assert text_of(llm, ByteTokenizer(), ">", 50, CERTAIN, ends=(ord("!"), ord("."))) == "abc"
    tokenizer = ByteTokenizer()
    tokenizer.more_ends = (ord("e"),)
    assert text_of(llm, tokenizer, ">", 50, CERTAIN) == "abc.d" and tokenizer.ends == {ord("e")}
    assert text_of(llm, tokenizer, ">", 50, CERTAIN, ends=[ord(".")]) == "abc"


def test_ids_beyond_the_tokenizer_are_never_proposed():
    """The embedding of another program's model may be padded."""
    llm = model(vocab_size=300)
    llm.parameters.weight["embedding.weight"][:256] *= 0.01
    sampling = SamplingConfig(temp=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    text = text_of(llm, ByteTokenizer(), "a", 60, sampling)
    assert len(text.encode("utf-8", "replace")) >= 60


def test_a_prompt_starts_as_the_model_was_trained():
    tokenizer = ByteTokenizer(end=True)
    assert encode_prompt(tokenizer, "ab").tolist() == [256, 97, 98] and encode_prompt(tokenizer, "").tolist() == [256]
    tokenizer.prompt_start = ()
    assert encode_prompt(tokenizer, "ab").tolist() == [97, 98] and encode_prompt(tokenizer, "").tolist() == [256]
    tokenizer.prompt_start = (7, 8)
    assert encode_prompt(tokenizer, b"ab").tolist() == [7, 8, 97, 98] and encode_prompt(tokenizer, "").tolist() == [
        7,
        8,
    ]
    assert encode_prompt(tokenizer, [b"ab", 256, b"c"]).tolist() == [97, 98, 256, 99]  # of a chat template
    assert encode_prompt(tokenizer, [b"ab"]).tolist() == [7, 8, 97, 98]


def test_no_tokens_are_one_empty_string():
    assert strings_of(model(), ByteTokenizer(), "ab", 0) == [[""]]


CERTAIN = SamplingConfig(temp=0.0, min_confidence=0.15)


def test_a_constructed_model_stops_where_it_is_uncertain():
    llm = chain(word_chain([">helo."]))  # after the period every byte has probability 1/256
    assert text_of(llm, ByteTokenizer(), ">", 50, CERTAIN) == "helo."
    llm = chain(word_chain([">the cy."], h=0.16))
    assert text_of(llm, ByteTokenizer(), ">", 50, CERTAIN) == "the cy."
    assert strings_of(llm, ByteTokenizer(), ">", 50, CERTAIN) == [[letter] for letter in "the cy."] + [[""]] * 3
    assert len(text_of(llm, ByteTokenizer(), ">", 50, SamplingConfig(temp=0.0)).encode("utf-8", "replace")) >= 50
    llm = chain(word_chain([">the cy."], h=0.14))  # one uncertain step: "e" is held back for one token, then shown
    assert strings_of(llm, ByteTokenizer(), ">", 50, CERTAIN)[:4] == [["t"], ["h"], [""], ["e "]]
    llm = chain(word_chain([">the cy."], h=0.14, e=0.14, **{" ": 0.14}))  # three
    assert strings_of(llm, ByteTokenizer(), ">", 50, CERTAIN) == [["t"], ["h"], [""], [""], [""]]
    assert (
        text_of(llm, ByteTokenizer(), ">", 50, SamplingConfig(temp=0.0, min_confidence=0.15, confidence_patience=4))
        == "the cy."
    )
    assert text_of(llm, ByteTokenizer(), ">", 4, CERTAIN) == "the "  # max_tokens ended it


def test_confidence_is_measured_before_temperature_penalty_and_truncation():
    llm = chain(word_chain([">the cy."], p=0.5))
    for sampling in (
        SamplingConfig(temp=5.0, top_k=1, min_confidence=0.15),
        SamplingConfig(temp=0.0, repeat_penalty=1.0 + 1e-6, min_confidence=0.15),
        SamplingConfig(temp=1e-6, min_confidence=0.15),
    ):
        assert text_of(llm, ByteTokenizer(), ">", 50, sampling) == "the cy."
        assert (
            text_of(llm, ByteTokenizer(), ">", 50, SamplingConfig(temp=sampling.temp, top_k=1, min_confidence=0.51))
            == ""
        )


def test_confident_texts_in_a_batch_end_one_by_one():
    llm = chain({"a": ("b", 0.6), "b": ("a", 0.6)})  # after all other bytes it is uncertain
    sampling = SamplingConfig(temp=1.0, top_k=0, top_p=1.0, min_p=0.0, min_confidence=0.15)
    together = ["".join(parts) for parts in zip(*strings_of(llm, ByteTokenizer(), "a", 60, sampling, samples=5))]
    alone = [
        "".join(string for (string,) in strings_of(llm, ByteTokenizer(), "a", 60, sampling, substream=i))
        for i in range(5)
    ]
    assert together == alone and len({len(text) for text in together}) > 1


def test_a_stop_string_that_spans_tokens_of_a_model():
    llm = chain(word_chain([">the cy.", ".>"]))
    assert text_of(llm, ByteTokenizer(), ">", 90, SamplingConfig(temp=0.0), ["y.>t"]) == "the c"
    assert text_of(llm, ByteTokenizer(), ">", 10, SamplingConfig(temp=0.0), ["y.>th" + "x"]) == "the cy.>th"


def test_end_of_text_ends_generation():
    llm, words = chain({">": ("o", 1 - 1e-6), "o": ("k", 1 - 1e-6), "k": ("\0", 1 - 1e-6)}), Ending()
    assert strings_of(llm, words, ">", 50, SamplingConfig(temp=0.0)) == [["o"], ["k"], [""]]
    assert text_of(llm, words, "", 50, SamplingConfig(temp=0.0), ["k"]) != "ok"


def test_style_gets_the_probability_of_the_sampled_token():
    llm = chain(word_chain([">the cy."], h=0.3))
    seen = {}
    "".join(
        string
        for (string,) in strings_of(
            llm,
            ByteTokenizer(),
            ">",
            7,
            SamplingConfig(temp=0.0),
            style=lambda text, p: seen.setdefault(text, round(float(p), 3)) and "",
        )
    )
    assert seen == {"t": 1.0, "h": 1.0, "e": 0.3, " ": 1.0, "c": 1.0, "y": 1.0, ".": 1.0}


def test_a_prompt_begins_after_end_of_text():
    assert encode_prompt(Ending(), "ab").tolist() == [0, 97, 98] and encode_prompt(Ending(), "").tolist() == [0]
    assert encode_prompt(ByteTokenizer(), b"a\xff").tolist() == [97, 255]
    words = Ending()
    words.trained_ends = False  # a model that was not trained with it
    assert encode_prompt(words, "ab").tolist() == [97, 98] and encode_prompt(words, "").tolist() == [10, 10]


def test_a_prompt_longer_than_the_context():
    llm = model()  # of 8 tokens
    assert (
        cut(llm, np.zeros(8)) == ""
        and cut(llm, np.zeros(1200)) == "the prompt has 1,200 tokens and the context 8; its last 8 tokens are kept"
    )
    long = "abcdefghijklmnop"
    assert text_of(llm, ByteTokenizer(), long, 8, SamplingConfig()) == text_of(
        llm, ByteTokenizer(), long[-8:], 8, SamplingConfig()
    )


def test_a_prompt_may_be_ids():
    assert strings_of(model(), ByteTokenizer(), np.array([97, 98]), 9) == strings_of(model(), ByteTokenizer(), "ab", 9)


# Characters without a shape of their own: joiners, spaces, a soft hyphen, direction marks and isolates, a variation
# selector, a byte order mark, a tag, of private use, and not assigned.
FORMATS = "\u200d\u200c\u200b\u2060\xa0\u202f\u3000\u2009\xad\u200e\u200f\u061c\u2066\u2069\ufe0f\ufeff\u2028"
FORMATS += "\U000e0041\ue000\u0378"


def test_control_characters_are_not_printed():
    assert printable("a\tß\n\x1b[2J\x07\x9b") == "a\tß\n\ufffd[2J\ufffd\ufffd"
    controls = [chr(code) for code in range(256) if unicodedata.category(chr(code)) == "Cc"]
    assert len(controls) == 65
    assert {letter for letter in controls if printable(letter) != "\ufffd"} == {"\t", "\n", "\r"}
    assert printable("\ud800a\udfff\udc80") == "\ufffda\ufffd\ufffd"


def test_all_other_characters_are_printed_as_they_are():
    assert printable(FORMATS) == FORMATS
    assert printable("👩\u200d👧 ❤\ufe0f שלום\u200f, 日本\u3000語") == "👩\u200d👧 ❤\ufe0f שלום\u200f, 日本\u3000語"
    others = (chr(code) for code in range(0xA0, 0x110000) if not 0xD800 <= code < 0xE000)
    assert all(printable(letter) == letter for letter in others)


def test_every_line_end_is_printed_as_one():
    assert printable("a\r\nb\rc\n\r\n") == "a\nb\nc\n\n"


def test_an_empty_prompt_is_what_separates_documents():
    assert encode_prompt(ByteTokenizer(), "").tolist() == list(START)
    assert encode_prompt(CharTokenizer("\nab"), "").tolist() == [0, 0]
    assert encode_prompt(CharTokenizer("abc"), "").tolist() == [0]  # no newline: some token has to come first
    assert len(text_of(model(3), CharTokenizer("abc"), "", 5, SamplingConfig())) == 5


def test_prompts_that_cannot_be_encoded_are_refused_at_once():
    with pytest.raises(UserError, match="'z'.*'abc'"):
        generate(model(3), CharTokenizer("abc"), "az", 5, SamplingConfig())
    with pytest.raises(UserError, match="has no tokenizer"):
        generate(model(), None, "a", 5, SamplingConfig())
    assert encode_prompt(ByteTokenizer(), b"a\xff".decode("utf-8", "surrogateescape")).tolist() == [
        97,
        255,
    ]  # not valid UTF-8


def test_too_many_sequences_for_the_memory():
    with pytest.raises(UserError, match="ask for fewer"):
        generate(model(), ByteTokenizer(), "a", 5, SamplingConfig(), samples=10**12)
