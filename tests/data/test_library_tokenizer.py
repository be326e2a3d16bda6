"""Any tokenizer.json through the `tokenizers` library: round trips, other kinds, special tokens, bad files."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import LLAMA, bpe_tokenizer, char_tokenizer, sentencepiece

from slm_np.data import library_tokenizer, segments
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.data.tokenizer_json import (
    END_OF_TEXT,
    bpe_model,
    byte_letters,
    byte_level,
    end_of_text_token,
    tokenizer_json,
)
from slm_np.errors import UserError

quick = settings(max_examples=60, deadline=None)


@quick
@given(st.binary())
def test_any_bytes_round_trip(data):
    ids = bpe_tokenizer().encode(data)
    assert ids.dtype == np.uint16 and bpe_tokenizer().decode(ids) == data
    if b"\xe2\x96\x81" not in data:  # the character that stands for a space
        llama = LibraryTokenizer(LLAMA)
        assert llama.decode(llama.encode(data)) == data


@quick
@given(
    st.lists(
        st.sampled_from(["the", " ", "\n", "  ", "é", "🙂", "4", "'s", "!", "\x1c", "\x85", "\u3000", END_OF_TEXT])
    ).map("".join),
    st.binary(max_size=3),
    st.integers(0, 30),
)
def test_mixed_text_and_broken_utf8_round_trip(text, broken, at):
    data = text.encode()[:at] + broken + text.encode()[at:]
    ids = bpe_tokenizer().encode(data)
    assert bpe_tokenizer().decode(ids) == data and bpe_tokenizer().end_of_text not in ids


@pytest.mark.parametrize("make", [bpe_tokenizer, lambda: LibraryTokenizer(LLAMA)], ids=["bpe", "llama"])
def test_ids_do_not_depend_on_blocks(make, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 12)
    monkeypatch.setattr(segments, "LIMIT", 24)
    monkeypatch.setattr(library_tokenizer, "BATCH", 2)
    tokenizer = make()

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [b"the", b"cat", b" ", b"\n", "é".encode(), "🙂".encode(), b"\xff", b"\xf0\x9f"]
                + [b"a" * 30, b" " * 30, b"\n\n"]
            )
        ).map(b"".join),
        st.lists(st.integers(0, 100)),
    )
    def same(data, cuts):
        cuts = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        blocks = [data[start:stop] for start, stop in zip(cuts, cuts[1:])]
        ids = np.concatenate([np.empty(0, tokenizer.dtype), *tokenizer.encode_blocks(blocks)])
        assert ids.tolist() == tokenizer.encode(data).tolist() and tokenizer.decode(ids) == data

    same()


@quick
@given(
    st.lists(
        st.sampled_from(
            ["the", "cat", " ", "\n", "\r\n", "\t", "  ", "é", "漢字。", "42", "'s", "!"]
            + ["\x1c", "\x85", "\xa0", "\u3000", "\u180e", "\u200b", END_OF_TEXT]
        ),
        max_size=40,
    ).map("".join)
)
def test_encoding_by_words_and_segments_equals_encoding_the_whole_text(text):
    tokenizer, library = bpe_tokenizer(), tokenizers.Tokenizer.from_str(json.dumps(bpe_tokenizer().to_json()))
    library.encode_special_tokens = True
    assert tokenizer.encode(text.encode()).tolist() == library.encode(text).ids
    parts = list(segments.segments([text]))
    assert "".join(parts) == text
    cuts = [0, *(at for at in range(1, len(text)) if segments.BOUNDARY.match(text, at)), len(text)]
    parts = [text[start:stop] for start, stop in zip(cuts, cuts[1:])]
    assert [id for part in parts for id in library.encode(part).ids] == library.encode(text).ids


def test_segments_end_at_boundaries_and_have_a_maximum_length(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 4)
    monkeypatch.setattr(segments, "LIMIT", 8)
    assert list(segments.segments(["one two three", " four"])) == ["one two", " three", " four"]
    assert list(segments.segments(["x" * 20])) == ["x" * 8, "x" * 8, "x" * 4]
    assert list(segments.segments(["漢字。\n漢字。\n漢"])) == ["漢字。\n", "漢字。\n", "漢"]
    assert list(segments.segments([])) == []
    pulled = []
    first = next(segments.segments(pulled.append(i) or "x" for i in range(100)))
    assert first == "x" * 8 and len(pulled) == 9


def changed(tokenizer, **changes):
    """The fields of a tokenizer with some of them changed."""
    return {**tokenizer.to_json(), **changes}


BYTES = ByteTokenizer().to_json()["model"]
FOREIGN = {
    "larger": changed(ByteTokenizer(), model={**BYTES, "vocab": {**BYTES["vocab"], "ab": 256}}),
    "shuffled": changed(ByteTokenizer(), model={**BYTES, "vocab": dict(zip(map(chr, range(256)), range(256)))}),
    "normalized": changed(char_tokenizer("ab"), normalizer={"type": "Lowercase"}),
    "special": changed(
        char_tokenizer("ab"),
        added_tokens=[dict(end_of_text_token(2), content="<s>"), dict(end_of_text_token(3), content="</s>")],
    ),
    "words": changed(
        char_tokenizer("ab"), model={"type": "WordLevel", "vocab": {"ab": 0, "c": 1}, "unk_token": "<unk>"}
    ),
    "gaps": changed(char_tokenizer("ab"), model={"type": "WordLevel", "vocab": {"a": 0, "c": 2}, "unk_token": "<unk>"}),
    "unigram": changed(char_tokenizer("ab"), model={"type": "Unigram", "vocab": [["a", -1.0]]}),
}
BROKEN = {
    "cut": '{"version": "1.0", "model',
    "list": "[]",
    "number": "3",
    "empty": "",
    "none": "{}",
    "model": '{"model": null}',
    "no characters": json.dumps(
        changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"})
    ),
    "merges": json.dumps(changed(ByteTokenizer(), model={**BYTES, "merges": [["a", "b"]]})),
    "ids": json.dumps(
        changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": {"a": 0, "b": "1"}, "unk_token": "<unk>"})
    ),
    "vocab": json.dumps(changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": "ab", "unk_token": "<unk>"})),
    "surrogate": json.dumps(
        changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": {"\ud800": 0}, "unk_token": "<unk>"})
    ),
}


def test_files_of_other_programs_are_read_through_the_library(tmp_path):
    for name, fields in FOREIGN.items():
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        found = load_tokenizer(path)
        assert type(found) is LibraryTokenizer, name
        other = tokenizers.Tokenizer.from_file(str(path))
        assert found.vocab_size == 1 + max(other.get_vocab().values())
        text = "c" if name == "words" else "A" if name == "normalized" else "a"
        assert found.encode(text.encode()).tolist() == other.encode(text).ids
        assert found.decode(found.encode(text.encode())) == text.lower().encode()


METASPACE = dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=True)
WORDS = ["[UNK]", "the", "cat", "##s", "##'", "sat", "."]
OTHERS = {  # fields, a text, the end-of-text token
    "metaspace": (
        sentencepiece(merges=["▁ t", "h e", "▁t he"], normalizer=None, pre_tokenizer=METASPACE, decoder=METASPACE),
        "the cat  the ",
        "</s>",
    ),
    "wordpiece": (
        dict(
            tokenizer_json(
                dict(type="BertPreTokenizer"),
                dict(type="WordPiece", prefix="##", cleanup=True),
                dict(
                    type="WordPiece",
                    unk_token="[UNK]",
                    continuing_subword_prefix="##",
                    max_input_chars_per_word=100,
                    vocab={word: id for id, word in enumerate(WORDS)},
                ),
            )
        ),
        "the cats sat.",
        None,
    ),
    "suffix": (
        dict(
            tokenizer_json(
                dict(type="WhitespaceSplit"),
                dict(type="BPEDecoder", suffix="</w>"),
                dict(
                    bpe_model(
                        {token: id for id, token in enumerate(["a", "b", "a</w>", "b</w>", "ab</w>"])}, ["a b</w>"]
                    ),
                    end_of_word_suffix="</w>",
                ),
            )
        ),
        "ab a b",
        None,
    ),
    "unigram": (
        dict(
            tokenizer_json(
                METASPACE,
                METASPACE,
                dict(
                    type="Unigram",
                    unk_id=0,
                    byte_fallback=False,
                    vocab=[
                        ["<unk>", 0.0],
                        ["</s>", 0.0],
                        ["▁", -2.0],
                        ["the", -1.0],
                        ["▁the", -1.5],
                        *([letter, -5.0] for letter in "</s>"),
                    ],
                ),
            )
        ),
        "the the</s>the",
        "</s>",
    ),
    "no decoder": (
        dict(
            tokenizer_json(
                dict(type="Whitespace"),
                None,
                dict(type="WordLevel", vocab={"the": 0, "cat": 1, "<unk>": 2}, unk_token="<unk>"),
            )
        ),
        "the cat the",
        None,
    ),
    "robust byte level": (
        dict(
            tokenizer_json(
                dict(byte_level(use_regex=True), add_prefix_space=True),
                byte_level(use_regex=True),
                bpe_model({letter: id for id, letter in enumerate(byte_letters())}, []),
            )
        ),
        " the cat",
        None,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tokenizers_of_many_kinds(name, monkeypatch):
    fields, text, end = OTHERS[name]
    tokenizer = LibraryTokenizer(json.loads(json.dumps(fields)))
    assert (tokenizer.end_of_text is None) == (end is None)
    assert end is None or tokenizer._library.id_to_token(tokenizer.end_of_text) == end
    ids = tokenizer.encode(text.encode()).tolist()
    text += " " * (name == "suffix")  # this kind cannot tell the end of a text from the end of a word
    assert tokenizer.decode(ids) == text.encode() and tokenizer.end_of_text not in ids
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    if "</s>" not in text:
        other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_json()))
        assert other.encode(text).ids == ids and other.decode(ids).rstrip() == text.rstrip()
    monkeypatch.setattr(segments, "SEGMENT", 3)  # a space comes before the first segment only
    monkeypatch.setattr(segments, "LIMIT", 6)
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()
    if name in ("metaspace", "robust byte level"):
        assert b"\xff" in tokenizer.decode(tokenizer.encode(b"\xff"))
    else:
        with pytest.raises(UserError, match="not UTF-8 .byte 0xff.* no token for that byte"):
            tokenizer.encode(b"\xff")


@pytest.mark.parametrize(
    "added, expected",
    [
        (["<|endoftext|>", "<s>"], "<|endoftext|>"),
        (["<s>", "</s>"], "</s>"),
        (["<bos>", "<eos>"], "<eos>"),
        (["<|begin_of_text|>", "<|end_of_text|>"], "<|end_of_text|>"),
        (["[STOP]"], "[STOP]"),
        (["[CLS]", "[MASK]"], None),
        ([], None),
    ],
)
def test_which_token_is_end_of_text(added, expected):
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    fields = changed(
        ByteTokenizer(), added_tokens=[dict(id=256 + i, content=name, **special) for i, name in enumerate(added)]
    )
    tokenizer = LibraryTokenizer(fields)
    assert tokenizer.end_of_text == (None if expected is None else 256 + added.index(expected))
    text = "".join(added).encode() + b" x"
    assert tokenizer.decode(tokenizer.encode(text)) == text and max(tokenizer.encode(text)) < 256
    if expected in ("<|endoftext|>", "</s>", "<eos>"):  # even if the file does not mark it as special
        added = [dict(token, special=token["content"] != expected) for token in fields["added_tokens"]]
        plain = LibraryTokenizer(dict(fields, added_tokens=added))
        assert plain.end_of_text == tokenizer.end_of_text and max(plain.encode(text)) < 256


def test_characters_missing_from_a_byte_level_vocabulary_are_named(test_data):
    tokenizer = load_tokenizer(test_data / "hf_tiny_gpt2" / "tokenizer.json")
    assert tokenizer.end_of_text == 0 and tokenizer.decode(tokenizer.encode(b"the cat")) == b"the cat"
    with pytest.raises(UserError, match=r"'漢' \(U\+6F22\) is not in the vocabulary of "):
        tokenizer.encode("the 漢".encode())


def test_real_stories_with_the_vocabulary_of_llama2c(test_data):
    llama2c = pytest.importorskip("slm_np.formats.llama2c")
    tokenizer = LibraryTokenizer(
        llama2c.tokenizer_json(llama2c.read_tokenizer(test_data / "llama2c" / "tok512.bin", 512))
    )
    text = (test_data / "tinystories" / "stories.txt").read_bytes()[:60_000]
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == 512 and tokenizer.decode(ids) == text and len(ids) < len(text) / 2
    other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_json()))
    other.encode_special_tokens = True
    assert other.encode(text.decode(), add_special_tokens=False).ids == ids.tolist()


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_refused(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(BROKEN[name], encoding="utf-8")
    with pytest.raises(UserError, match="is not a tokenizer.json, or it is damaged"):
        load_tokenizer(path)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere.json cannot be read"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path / "tokenizer.json")
