"""Any tokenizer.json through the `tokenizers` library: round trips, other kinds, special tokens, bad files."""

import contextlib
import json
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import LLAMA, TALE, WILD, bpe_tokenizer, char_tokenizer, sentencepiece, wild

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


@pytest.mark.parametrize("name", WILD)
def test_ids_of_any_kind_do_not_depend_on_blocks(name, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 12)
    monkeypatch.setattr(segments, "LIMIT", 24)
    monkeypatch.setattr(library_tokenizer, "BATCH", 2)
    tokenizer = LibraryTokenizer(wild()[name])

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                ["the", "Cat", " ", "  ", "\n", "\r\n", "é", "漢字", "🙂", "hat, na", "\n\n", "a" * 30, "[UNK]"]
            )
        ).map(lambda parts: "".join(parts).encode()),
        st.lists(st.integers(0, 100)),
    )
    def same(data, cuts):
        cuts = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        blocks = [data[start:stop] for start, stop in zip(cuts, cuts[1:])]
        ids = np.concatenate([np.empty(0, tokenizer.dtype), *tokenizer.encode_blocks(blocks)])
        assert ids.tolist() == tokenizer.encode(data).tolist() and ids.dtype == tokenizer.dtype
        assert (ids < tokenizer.vocab_size).all() and tokenizer.end_of_text not in ids
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids).decode("utf-8", "replace")

    same()


@pytest.mark.parametrize("name", WILD)
def test_ordinary_text_has_the_ids_of_the_library(name):
    tokenizer = LibraryTokenizer(wild()[name])
    fields = {**tokenizer.to_json(), "post_processor": None}
    library = tokenizers.Tokenizer.from_str(json.dumps(fields))
    library.encode_special_tokens = True
    for text in ("the cat sat", TALE):
        assert tokenizer.encode(text.encode()).tolist() == library.encode(text).ids
    assert tokenizer.dtype == (np.uint32 if name == "many" else np.uint16)
    again = LibraryTokenizer(json.loads(json.dumps(tokenizer.to_json())))
    assert again.to_json() == tokenizer.to_json() and again.encode(TALE.encode()).tolist() == library.encode(TALE).ids


def test_ids_that_a_vocabulary_leaves_out_stay_free():
    """The library would give the added token the id of another one."""
    tokenizer = LibraryTokenizer(wild()["holes"])
    vocab = tokenizer._library.get_vocab()
    assert len(vocab) == len(set(vocab.values())) == tokenizer.vocab_size == 12
    assert [vocab[word] for word in ("[UNK]", "the", "cat", "sat")] == [0, 3, 6, 9]
    assert tokenizer.end_of_text == vocab["</s>"] == 10 and vocab[" hat "] == 11
    assert [token["id"] for token in tokenizer.to_json()["added_tokens"]] == [0, 10, 11]
    gaps = LibraryTokenizer(FOREIGN["gaps"]).with_end()
    assert (gaps.vocab_size, gaps.end_of_text) == (4, 3) and gaps.encode(b"c").tolist() == [2]
    assert gaps.decode([2, 3]) == b"c"


def test_a_post_processor_adds_and_removes_nothing():
    fields = changed(ByteTokenizer(True), post_processor=dict(type="TemplateProcessing", single=[], pair=[]))
    fields["post_processor"]["special_tokens"] = {}
    tokenizer = LibraryTokenizer(fields)
    assert tokenizer.encode(b"the cat").tolist() == list(b"the cat")
    assert tokenizer.to_json()["post_processor"] == fields["post_processor"]  # for other programs


def test_many_long_segments_are_encoded_in_small_batches(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 10)
    monkeypatch.setattr(segments, "LIMIT", 100)
    monkeypatch.setattr(library_tokenizer, "BATCH_SIZE", 150)
    tokenizer, sizes = LibraryTokenizer(LLAMA), []
    encode = tokenizer._encode_whole
    monkeypatch.setattr(
        tokenizer, "_encode_whole", lambda strings, library: sizes.append(strings) or encode(strings, library)
    )
    data = b"a" * 1000
    assert tokenizer.decode(tokenizer.encode(data)) == data
    assert max(sum(map(len, strings)) for strings in sizes) <= 250


SPLIT = dict(type="Split", pattern={"Regex": ""}, behavior="Isolated", invert=False)
HOSTILE = {  # fields that the library takes, panics at, or takes and then panics at
    "chunks of no length": dict(pre_tokenizer=dict(type="FixedLength", length=0)),
    "characters map": dict(normalizer=dict(type="Precompiled", precompiled_charsmap="AAAA")),
    "strip": dict(decoder=dict(type="Strip", content="a", start=1, stop=1), pre_tokenizer=None),
    "prefix": dict(model=dict(bpe_model({"a": 0, "b": 1, "ab": 2}, ["a b"]), continuing_subword_prefix="##")),
    "id": dict(model=dict(bpe_model({"a": 0, "b": 4_294_967_295}, []))),
    "holes": dict(model=dict(bpe_model({"a": 0, "b": 16_000_000}, []))),
    "no token": dict(model=dict(bpe_model({}, []))),
    "unknown token": dict(model=dict(bpe_model({"a": 0}, []), unk_token="b")),
    "no unknown token": dict(model=dict(type="WordLevel", vocab={"ab": 0}, unk_token="[UNK]")),
    "empty pattern": dict(pre_tokenizer=SPLIT),
    "empty replacement": dict(normalizer=dict(type="Replace", pattern={"String": ""}, content="x")),
    "empty added token": dict(added_tokens=[dict(end_of_text_token(2), content="")]),
    "nested": dict(normalizer=json.loads('{"type":"Sequence","normalizers":[' * 100 + "{}" + "]}" * 100)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_fields_are_refused_or_work(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**wild()["wordlevel"], "added_tokens": [], **HOSTILE[name]}), encoding="utf-8")
    if fault := survives(path):
        assert "tokenizer.json" in fault and "\n" not in fault
    else:
        assert name.startswith("empty") or name == "strip"


def survives(path):
    """Load a tokenizer and use it in every way. Returns "", or the first UserError. Anything else is raised."""
    faults = []
    with refusals(faults):
        tokenizer = load_tokenizer(path)
        for text in (b"", TALE.encode(), b"aab  b\r\n\x00", b"\xff", b"[UNK]<unk></s>"):
            with refusals([] if text == b"\xff" else faults):
                ids = tokenizer.encode(text)
                assert not len(ids) or ids.max() < tokenizer.vocab_size
                tokenizer.decode(ids)
                "".join(map(tokenizer.stream().push, ids))
        ended = tokenizer if tokenizer.end_of_text is not None else tokenizer.with_end()
        assert ended.end_of_text not in ended.encode(TALE.encode())
        assert 0 <= ended.start_of_text < ended.vocab_size <= 1 << 24
    return next(iter(faults), "")


@contextlib.contextmanager
def refusals(faults):
    """Append the message of a UserError to the list `faults`."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def test_a_damaged_tokenizer_is_refused_or_works(tmp_path):
    """Mutations of files and of fields; loading checks no checksum."""
    draw, outcomes = random.Random(1), {"": 0}
    originals = [
        json.dumps(fields, ensure_ascii=False).encode()
        for fields in (
            *(fields for name, fields in wild().items() if name != "many"),
            ByteTokenizer(end=True).to_json(),
            char_tokenizer(TALE).to_json(),
            bpe_tokenizer().to_json(),
        )
    ]
    path = tmp_path / "tokenizer.json"
    for _ in range(400):
        data = bytearray(draw.choice(originals))
        how = draw.choice(["cut", "bits", "number", "number", "field", "field", "field", "copy"])
        if how == "cut":
            del data[draw.randrange(len(data)) :]
        elif how == "bits":
            for _ in range(draw.choice([1, 1, 3, 20])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif how == "number":
            at = draw.choice([i for i, byte in enumerate(data) if 48 <= byte <= 57])
            data[at : at + 1] = draw.choice([b"-1", b"9999999999", b"1e5", b"0.5", b"16000000", b"7", b"null", b'"x"'])
        elif how == "field":
            fields = json.loads(data)
            part = draw.choice([fields, *(value for value in fields.values() if value and isinstance(value, dict))])
            part[draw.choice(list(part))] = draw.choice([None, [], {}, 0, -1, "", "x", True, "é"])
            data = json.dumps(fields).encode()
        else:
            start, at = draw.randrange(len(data)), draw.randrange(len(data))
            data[at:at] = data[start : start + draw.randrange(40)]
        path.write_bytes(data)
        fault = survives(path)
        outcomes[fault] = outcomes.get(fault, 0) + 1
    assert 40 < outcomes[""] < 360


def test_a_file_of_a_newer_library_names_the_remedy(tmp_path):
    path = tmp_path / "tokenizer.json"
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        path.write_text(json.dumps({**wild()["bpe_unk"], part: dict(type="FromTheFuture")}), encoding="utf-8")
        with pytest.raises(UserError, match=r"newer release of the package tokenizers \(pip install -U tokenizers\)"):
            load_tokenizer(path)


OTHER_FILES = {
    "tokenizer.model": (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "model of SentencePiece", "AutoTokenizer"),
    "vocab.txt": (b"[PAD]\n[UNK]\nthe\n##s\n", "is a WordPiece vocabulary", "BertWordPieceTokenizer"),
    "merges.txt": (b"#version: 0.2\nt h\nth e\n", "list of merges", "ByteLevelBPETokenizer"),
    "vocab.json": (b'{"the": 0, "cat": 1}', "vocabulary without merges", "ByteLevelBPETokenizer"),
    "cl100k_base.tiktoken": (b"IQ== 0\nIg== 1\nIw== 2\n", "vocabulary of tiktoken", "AutoTokenizer"),
    "tekken.json": (b'{"config": {"version": "v3"}, "vocab": []}', "tekken file", "AutoTokenizer"),
    "tokenizer_config.json": (b'{"tokenizer_class": "GPT2Tokenizer"}', "configuration", "tokenizer.json beside it"),
    "tokenizer.json.gz": (b"\x1f\x8b\x08\x00", "compressed", "unpack it"),
    "story.txt": (b"Once upon a time\nthere was\n", "is not a tokenizer.json, or it is damaged", "copy it again"),
    "deep.json": (b"[" * 100_000, "is not a tokenizer.json", "copy it again"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_vocabularies_in_other_formats_are_named(name, tmp_path):
    data, what, remedy = OTHER_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path / name)
    assert what in str(error.value) and remedy in str(error.value)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(bpe_tokenizer().to_json()).encode())
    assert load_tokenizer(path).to_json() == bpe_tokenizer().to_json()
