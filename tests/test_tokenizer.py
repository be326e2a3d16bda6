"""Every tokenizer round-trips, streams without half characters, and means the same to the `tokenizers` library."""
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings, strategies as st

from slm_np.data.tokenizer import ByteTokenizer, CharTokenizer, Stream, Tokenizer, load_tokenizer
from slm_np.errors import UserError

SAMPLE = "To be, or not to be:\n\tthat's the  question… ça va? Ω≈ç√ 漢字 🙂👩‍👩‍👧\r\n\x00\u2028\ufeff\x7f\xad"
quick = settings(max_examples=60, deadline=None)


def char_tokenizer(text):
    return CharTokenizer.learn([text.encode()])


def library(tokenizer, folder):
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
def test_characters_round_trip_and_learn_across_block_borders(text, size):
    data = text.encode()
    blocks = [data[i:i + size] for i in range(0, len(data), size)]
    tokenizer = CharTokenizer.learn(blocks)
    assert tokenizer.characters == "".join(sorted(set(text)))
    ids = tokenizer.encode(data)
    assert [tokenizer.characters[id] for id in ids] == list(text)
    assert tokenizer.decode(ids) == data
    assert np.concatenate(list(tokenizer.encode_blocks(blocks))).tolist() == ids.tolist()


def test_nothing_encodes_to_nothing():
    for tokenizer in (ByteTokenizer(), char_tokenizer("a")):
        assert tokenizer.encode(b"").shape == (0,) and tokenizer.encode(b"").dtype == np.uint16
        assert tokenizer.decode([]) == b"" and tokenizer.end_of_text is None


def test_ids_are_wide_where_the_vocabulary_is():
    every = "".join(chr(code) for code in range(0x20, 0x11000) if not 0xD800 <= code < 0xE000)
    assert len(every) > 1 << 16
    tokenizer = char_tokenizer(every)
    assert tokenizer.encode(every.encode()).dtype == np.uint32
    assert tokenizer.encode(every.encode()).tolist() == list(range(len(every)))
    assert CharTokenizer(every[:1 << 16]).dtype == np.uint16


@quick
@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode))).map(b"".join))
def test_the_stream_equals_the_whole(data):
    stream = ByteTokenizer().stream()
    for _ in range(2):  # flush starts the stream anew
        assert "".join(map(stream.push, data)) + stream.flush() == data.decode("utf-8", "replace")


@quick
@given(st.lists(st.binary(max_size=5)))
def test_the_stream_equals_the_whole_however_pieces_split_characters(pieces):
    class Pieces(Tokenizer):
        vocab_size = len(pieces)

        def decode(self, ids):
            return b"".join(pieces[id] for id in ids)

    stream = Stream(Pieces())
    assert "".join(map(stream.push, range(len(pieces)))) + stream.flush() == b"".join(pieces).decode("utf-8", "replace")


def test_the_stream_waits_for_whole_characters():
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert [stream.push(byte) for byte in b"\xf0\x9fa"] == ["", "", "\ufffda"]  # only now it cannot become a character any more
    assert stream.push(0xE2) == "" and stream.flush() == "\ufffd" and stream.flush() == ""
    tokenizer = char_tokenizer("é🙂")
    stream = tokenizer.stream()
    assert [stream.push(id) for id in tokenizer.encode("🙂é".encode())] == ["🙂", "é"]


@pytest.mark.parametrize("make", [lambda text: ByteTokenizer(), char_tokenizer], ids=["byte", "char"])
def test_the_library_reads_the_file_as_we_do(make, tmp_path):
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


def test_the_library_agrees_on_any_text_and_on_broken_bytes(tmp_path):
    tokenizer = ByteTokenizer()
    other = library(tokenizer, tmp_path)

    @quick
    @given(st.text(), st.binary())
    def same(text, data):
        assert other.encode(text).ids == tokenizer.encode(text.encode()).tolist()
        assert other.decode(list(data)) == data.decode("utf-8", "replace")

    same()


def test_an_unknown_character_is_an_error_to_the_library_too(tmp_path):
    with pytest.raises(Exception, match="UNK"):
        library(char_tokenizer("abc"), tmp_path).encode("abd")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), char_tokenizer(SAMPLE), char_tokenizer("x")], ids=["byte", "char", "one"])
def test_saved_and_loaded_again(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json()
    library(tokenizer, tmp_path).save(str(path))  # as the library rewrites it
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json()


def test_a_character_outside_the_vocabulary_is_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) is not among the 3 that the tokenizer knows, 'abc'"):
        char_tokenizer("cab").encode("aéb".encode())
    with pytest.raises(UserError, match=r"'b' \(U\+0062\)"):  # between known ones, not above them
        char_tokenizer("ac").encode(b"abc")
    with pytest.raises(UserError) as error:
        char_tokenizer("".join(map(chr, range(0x400, 0x600)))).encode(b"a")
    assert len(str(error.value)) < 300 and "512" in str(error.value) and "..." in str(error.value)


@pytest.mark.parametrize("data, byte, position", [
    (b"ab\xff", "0xff", 2), (b"abcd\xc3", "0xc3", 4), (b"abc\xe2\x82a", "0xe2", 3), (b"\xed\xa0\x80", "0xed", 0)])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_text_that_is_not_utf8_is_refused_with_its_position(data, byte, position, size):
    with pytest.raises(UserError, match=f"not UTF-8 .byte {byte} at position {position}.*--tokenizer byte"):
        CharTokenizer.learn([data[i:i + size] for i in range(0, len(data), size)])
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


def changed(tokenizer, **changes):
    return {**tokenizer.to_json(), **changes}


BYTES = ByteTokenizer().to_json()["model"]
FOREIGN = {
    "merges": changed(ByteTokenizer(), model={**BYTES, "merges": [["a", "b"]]}),
    "larger": changed(ByteTokenizer(), model={**BYTES, "vocab": {**BYTES["vocab"], "ab": 256}}),
    "shuffled": changed(ByteTokenizer(), model={**BYTES, "vocab": dict(zip(map(chr, range(256)), range(256)))}),
    "normalised": changed(char_tokenizer("ab"), normalizer={"type": "Lowercase"}),
    "special": changed(char_tokenizer("ab"), added_tokens=[{"id": 2, "content": "<s>"}]),
    "words": changed(char_tokenizer("ab"), model={"type": "WordLevel", "vocab": {"ab": 0, "c": 1}, "unk_token": "<unk>"}),
    "gaps": changed(char_tokenizer("ab"), model={"type": "WordLevel", "vocab": {"a": 0, "c": 2}, "unk_token": "<unk>"}),
    "unigram": changed(char_tokenizer("ab"), model={"type": "Unigram", "vocab": [["a", -1.0]]}),
}
BROKEN = {"cut": '{"version": "1.0", "model', "list": "[]", "number": "3", "empty": "", "none": "{}", "model": '{"model": null}',
          "no characters": json.dumps(changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"})),
          "ids": json.dumps(changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": {"a": 0, "b": "1"}, "unk_token": "<unk>"})),
          "vocab": json.dumps(changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": "ab", "unk_token": "<unk>"})),
          "surrogate": json.dumps(changed(char_tokenizer("a"), model={"type": "WordLevel", "vocab": {"\ud800": 0}, "unk_token": "<unk>"}))}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(FOREIGN[name]), encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer.json holds a .* not supported; supported are byte and char"):
        load_tokenizer(path)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(BROKEN[name], encoding="utf-8")
    with pytest.raises(UserError, match="is not a tokenizer.json, or a damaged one"):
        load_tokenizer(path)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere.json cannot be read"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path / "tokenizer.json")
