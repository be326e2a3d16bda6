"""Byte and character tokenizers, streaming and saving: round trips, and agreement with the `tokenizers` library."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import LLAMA, SAMPLE, bpe_tokenizer, char_tokenizer

from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.tokenizer import StreamingDecoder, Tokenizer
from slm_np.data.tokenizer_factory import load_tokenizer, with_end_of_text
from slm_np.data.tokenizer_json import END_OF_TEXT
from slm_np.errors import UserError

quick = settings(max_examples=60, deadline=None)


def library(tokenizer, folder):
    """The library's tokenizer of what `tokenizer` saves."""
    tokenizer.save(folder / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@quick
@given(st.binary())
def test_bytes_round_trip(data):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(data)
    assert ids.dtype == np.uint16 and ids.tolist() == list(data)
    assert tokenizer.decode(ids) == data == tokenizer.decode(ids.tolist())


@quick
@given(st.text(min_size=1), st.integers(1, 7))
def test_characters_round_trip_and_learning_does_not_depend_on_blocks(text, size):
    data = text.encode()
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    tokenizer = CharTokenizer.learn(blocks)
    assert tokenizer.characters == "".join(sorted(set(text)))
    ids = tokenizer.encode(data)
    assert [tokenizer.characters[id] for id in ids] == list(text)
    assert tokenizer.decode(ids) == data
    assert np.concatenate(list(tokenizer.encode_blocks(blocks))).tolist() == ids.tolist()


def test_an_empty_text_has_no_ids():
    for tokenizer in (ByteTokenizer(), char_tokenizer("a")):
        assert tokenizer.encode(b"").shape == (0,) and tokenizer.encode(b"").dtype == np.uint16
        assert tokenizer.decode([]) == b"" and tokenizer.end_of_text is None


def test_ids_are_uint32_for_a_large_vocabulary():
    every = "".join(chr(code) for code in range(0x20, 0x11000) if not 0xD800 <= code < 0xE000)
    assert len(every) > 1 << 16
    tokenizer = char_tokenizer(every)
    assert tokenizer.encode(every.encode()).dtype == np.uint32
    assert tokenizer.encode(every.encode()).tolist() == list(range(len(every)))
    assert CharTokenizer(every[: 1 << 16]).dtype == np.uint16


@pytest.mark.parametrize(
    "make",
    [ByteTokenizer, lambda: char_tokenizer("abcd <|endoftx>\n"), bpe_tokenizer, lambda: LibraryTokenizer(LLAMA)],
    ids=["byte", "char", "bpe", "llama"],
)
def test_end_of_text_is_a_token_that_no_text_contains(make, tmp_path):
    tokenizer = with_end_of_text(make())
    end = tokenizer.end_of_text
    assert with_end_of_text(tokenizer) is tokenizer
    assert 0 <= end < tokenizer.vocab_size == make().vocab_size + (make().end_of_text is None)
    assert tokenizer.decode([end]) == b"" and tokenizer.stream().push(end) == ""
    name = library(tokenizer, tmp_path).id_to_token(end)
    marked = f"ab{name}cd {name}\n".encode() if name == END_OF_TEXT else b"ab cd"
    ids = tokenizer.encode(marked)
    assert end not in ids and tokenizer.decode(ids) == marked
    one, two = tokenizer.encode(b"ab cd"), tokenizer.encode(b"cd")
    assert tokenizer.decode([*one, end, *two, end]) == b"ab cdcd" and one.dtype == np.uint16
    assert tokenizer.encode(b"ab").tolist() == make().encode(b"ab").tolist()
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json() and again.end_of_text == end
    assert library(tokenizer, tmp_path).get_vocab_size() == tokenizer.vocab_size
    assert library(tokenizer, tmp_path).encode("ab").ids == tokenizer.encode(b"ab").tolist()
    assert again.encode(marked).tolist() == ids.tolist()  # worker processes load it from the file


@quick
@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode))).map(b"".join))
def test_streaming_equals_decoding_at_once(data):
    stream = ByteTokenizer().stream()
    for _ in range(2):  # flush starts a new text
        assert "".join(map(stream.push, data)) + stream.flush() == data.decode("utf-8", "replace")


@quick
@given(st.lists(st.binary(max_size=5)))
def test_streaming_equals_decoding_wherever_tokens_split_characters(tokens):
    class Bytes(Tokenizer):
        vocab_size = len(tokens)

        def decode(self, ids):
            return b"".join(tokens[id] for id in ids)

    stream = StreamingDecoder(Bytes())
    assert "".join(map(stream.push, range(len(tokens)))) + stream.flush() == b"".join(tokens).decode("utf-8", "replace")


@quick
@given(st.lists(st.integers(0, 299), max_size=30), st.lists(st.integers(0, 273), max_size=30))
def test_streaming_subwords_equals_decoding_at_once(ids, other):
    for tokenizer, ids in ((bpe_tokenizer(), ids), (LibraryTokenizer(LLAMA), other)):
        stream = tokenizer.stream()
        for _ in range(2):
            shown = list(map(stream.push, ids))
            assert "".join(shown) + stream.flush() == tokenizer.decode(ids).decode("utf-8", "replace")
        for cut in (0, len(ids) // 2, len(ids)):  # a stream that follows a prompt
            stream = tokenizer.stream(after=ids[:cut])
            text = tokenizer.decode(ids)[len(tokenizer.decode(ids[:cut])) :]
            assert "".join(map(stream.push, ids[cut:])) + stream.flush() == text.decode("utf-8", "replace")


def test_streaming_never_shows_part_of_a_character():
    for tokenizer in (bpe_tokenizer(), LibraryTokenizer(LLAMA)):
        stream, ids = tokenizer.stream(), tokenizer.encode("the 🙂é cat 漢".encode())
        shown = [stream.push(id) for id in ids]
        assert "".join(shown) == "the 🙂é cat 漢" and "\ufffd" not in "".join(shown) and "" in shown


def test_the_space_before_a_text_is_not_shown():
    tokenizer = LibraryTokenizer(LLAMA)
    ids = tokenizer.encode(b"the cat").tolist()
    assert [tokenizer._library.id_to_token(id) for id in ids] == ["▁the", "▁ca", "t"]
    assert tokenizer.decode(ids) == b"the cat" and tokenizer.decode([1, *ids]) == b"the cat"
    assert [tokenizer.stream().push(id) for id in ids] == ["the", "ca", "t"]
    stream = tokenizer.stream()
    assert [stream.push(id) for id in [1, *ids, 1, ids[0], 2, ids[0]]] == ["", "the", " ca", "t", "", " the", "", "the"]
    assert tokenizer.stream(after=[ids[0]]).push(ids[1]) == " ca"
    assert tokenizer.stream(after=[ids[0], 2]).push(ids[1]) == "ca"
    space = tokenizer._library.token_to_id("▁")
    stream = tokenizer.stream()
    assert [stream.push(id) for id in [space, space, ids[0]]] == ["", " ", " the"]
    assert tokenizer.decode([1, space, space, ids[0]]) == b"  the"
    assert tokenizer.encode(b"").tolist() == [] and tokenizer.decode(tokenizer.encode(b"  the  ")) == b"  the  "


def test_streaming_keeps_no_more_than_it_needs():
    tokenizer = LibraryTokenizer(LLAMA)
    the, space = tokenizer.encode(b"the")[0], tokenizer._library.token_to_id("▁")
    stream = tokenizer.stream()
    for ids, text in (
        ([0, 1] * 500, "the"),
        ([the, *[0, 1] * 500], " the"),
        ([2, 0, 1, 2, 1], "the"),
        ([2, space], " the"),
    ):
        shown = "".join(map(stream.push, [*ids, the]))
        assert shown.endswith(text) and len(stream._before) == 1
        for id in [0, 1] * 500:
            stream.push(id)
        assert len(stream._before) == 3


def test_streaming_waits_for_whole_characters():
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    # Only the third byte shows that the first two are not the start of a character.
    assert [stream.push(byte) for byte in b"\xf0\x9fa"] == ["", "", "\ufffda"]
    assert stream.push(0xE2) == "" and stream.flush() == "\ufffd" and stream.flush() == ""
    tokenizer = char_tokenizer("é🙂")
    stream = tokenizer.stream()
    assert [stream.push(id) for id in tokenizer.encode("🙂é".encode())] == ["🙂", "é"]


@pytest.mark.parametrize("make", [lambda text: ByteTokenizer(), char_tokenizer], ids=["byte", "char"])
def test_the_library_gives_the_same_ids(make, tmp_path):
    tokenizer = make(SAMPLE)
    other = library(tokenizer, tmp_path)
    assert other.get_vocab_size() == tokenizer.vocab_size

    @quick
    @given(st.text(alphabet=SAMPLE))
    def same(text):
        ids = tokenizer.encode(text.encode()).tolist()
        assert other.encode(text).ids == ids
        assert other.decode(ids) == text == tokenizer.decode(ids).decode()

    same()
    ids = tokenizer.encode(SAMPLE.encode()).tolist()
    assert other.encode(SAMPLE).ids == ids and other.decode(ids) == SAMPLE


def test_the_library_agrees_on_any_bytes(tmp_path):
    tokenizer = ByteTokenizer()
    other = library(tokenizer, tmp_path)

    @quick
    @given(st.text(), st.binary())
    def same(text, data):
        assert other.encode(text).ids == tokenizer.encode(text.encode()).tolist()
        assert other.decode(list(data)) == data.decode("utf-8", "replace")

    same()


def test_library_refuses_unknown_characters(tmp_path):
    with pytest.raises(Exception, match="UNK"):
        library(char_tokenizer("abc"), tmp_path).encode("abd")


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(),
        ByteTokenizer(end=True),
        char_tokenizer(SAMPLE),
        char_tokenizer("x"),
        CharTokenizer("xy", end=True),
    ],
    ids=["byte", "byte with end", "char", "one", "char with end"],
)
def test_a_saved_tokenizer_loads_as_the_same_kind(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json()
    library(tokenizer, tmp_path).save(str(path))  # as the library rewrites it
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json()


def test_a_character_outside_the_vocabulary_is_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) is not among the 3 characters of the tokenizer, 'abc'"):
        char_tokenizer("cab").encode("aéb".encode())
    with pytest.raises(UserError, match=r"'b' \(U\+0062\)"):  # its code point is between known ones
        char_tokenizer("ac").encode(b"abc")
    with pytest.raises(UserError) as error:
        char_tokenizer("".join(map(chr, range(0x400, 0x600)))).encode(b"a")
    assert len(str(error.value)) < 300 and "512" in str(error.value) and "..." in str(error.value)


@pytest.mark.parametrize(
    "data, byte, position",
    [(b"ab\xff", "0xff", 2), (b"abcd\xc3", "0xc3", 4), (b"abc\xe2\x82a", "0xe2", 3), (b"\xed\xa0\x80", "0xed", 0)],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_text_that_is_not_utf8_is_refused_with_its_position(data, byte, position, size):
    with pytest.raises(UserError, match=f"not UTF-8 .byte {byte} at position {position}.*--tokenizer byte"):
        CharTokenizer.learn([data[i : i + size] for i in range(0, len(data), size)])
    with pytest.raises(UserError, match="not UTF-8"):
        char_tokenizer("abcd").encode(data)


@pytest.mark.parametrize("id", [-1, 256, 70000])
def test_an_id_outside_the_vocabulary_is_named(id):
    with pytest.raises(UserError, match=f"id {id} .* vocabulary of 256"):
        ByteTokenizer().decode([1, id])
    with pytest.raises(UserError, match=f"id {id}"):
        ByteTokenizer().stream().push(id)
    with pytest.raises(UserError, match=f"id {id}"):
        char_tokenizer("ab").decode(np.array([0, id]))
