"""Every tokenizer round-trips, streams without half characters, and means the same to the `tokenizers` library."""

import functools
import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_np.data import bpe
from slm_np.data.bpe import PieceTokenizer
from slm_np.data.tokenizer import (
    END,
    ByteTokenizer,
    CharTokenizer,
    Stream,
    Tokenizer,
    bpe_model,
    byte_letters,
    byte_level,
    end_piece,
    learn,
    load_tokenizer,
    tokenizer_json,
    with_end_of_text,
)
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
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    tokenizer = CharTokenizer.learn(blocks)
    assert tokenizer.characters == "".join(sorted(set(text)))
    ids = tokenizer.encode(data)
    assert [tokenizer.characters[id] for id in ids] == list(text)
    assert tokenizer.decode(ids) == data
    assert np.concatenate(list(tokenizer.encode_blocks(blocks))).tolist() == ids.tolist()


TALE = "Once upon a time there was a cat. The cat's hat, naïve and 42 years old, didn't fit;\n\nso the cat sat.  漢字 🙂 the end of the tale.\n"


@functools.lru_cache(maxsize=None)
def learnt(n=300):
    return learn(f"bpe:{n}", [lambda: [TALE.encode()] * 3], progress=False)


def sentencepiece(vocab=(), merges=(), **changes):
    """A tokenizer in the manner of Llama's: bytes as <0x..>, a space as U+2581, one of them in front of a text."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdehnot",
        *(merge.replace(" ", "") for merge in merges),
        *vocab,
    ]
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        **dict(
            version="1.0",
            truncation=None,
            padding=None,
            added_tokens=[dict(id=id, content=pieces[id], **special) for id in range(3)],
            normalizer=dict(
                type="Sequence",
                normalizers=[
                    dict(type="Prepend", prepend="▁"),
                    dict(type="Replace", pattern={"String": " "}, content="▁"),
                ],
            ),
            pre_tokenizer=None,
            post_processor=None,
            decoder=dict(
                type="Sequence",
                decoders=[
                    dict(type="Replace", pattern={"String": "▁"}, content=" "),
                    dict(type="ByteFallback"),
                    dict(type="Fuse"),
                    dict(type="Strip", content=" ", start=1, stop=0),
                ],
            ),
            model={
                **bpe_model({piece: id for id, piece in enumerate(pieces)}, list(merges)),
                "unk_token": "<unk>",
                "fuse_unk": True,
                "byte_fallback": True,
            },
        ),
        **changes,
    }


LLAMA = sentencepiece(merges=["▁ t", "h e", "▁t he", "c a", "▁ ca"])


@quick
@given(st.binary())
def test_pieces_round_trip_any_bytes(data):
    ids = learnt().encode(data)
    assert ids.dtype == np.uint16 and learnt().decode(ids) == data
    if b"\xe2\x96\x81" not in data:  # the sign that stands for a space
        llama = PieceTokenizer(LLAMA)
        assert llama.decode(llama.encode(data)) == data


@quick
@given(
    st.lists(st.sampled_from(["the", " ", "\n", "  ", "é", "🙂", "4", "'s", "!", "\x1c", "\x85", "\u3000", END])).map(
        "".join
    ),
    st.binary(max_size=3),
    st.integers(0, 30),
)
def test_pieces_round_trip_mixed_text(text, broken, at):
    data = text.encode()[:at] + broken + text.encode()[at:]
    ids = learnt().encode(data)
    assert learnt().decode(ids) == data and learnt().end_of_text not in ids


@pytest.mark.parametrize("make", [learnt, lambda: PieceTokenizer(LLAMA)], ids=["bpe", "llama"])
def test_ids_do_not_depend_on_the_cuts(make, monkeypatch):
    monkeypatch.setattr(bpe, "SEGMENT", 12), monkeypatch.setattr(bpe, "LIMIT", 24), monkeypatch.setattr(bpe, "BATCH", 2)
    tokenizer = make()

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [
                    b"the",
                    b"cat",
                    b" ",
                    b"\n",
                    "é".encode(),
                    "🙂".encode(),
                    b"\xff",
                    b"\xf0\x9f",
                    b"a" * 30,
                    b" " * 30,
                    b"\n\n",
                ]
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
            [
                "the",
                "cat",
                " ",
                "\n",
                "\r\n",
                "\t",
                "  ",
                "é",
                "漢字。",
                "42",
                "'s",
                "!",
                "\x1c",
                "\x85",
                "\xa0",
                "\u3000",
                "\u180e",
                "\u200b",
                END,
            ]
        ),
        max_size=40,
    ).map("".join)
)
def test_words_and_segments_change_nothing(text):
    tokenizer, library = learnt(), tokenizers.Tokenizer.from_str(json.dumps(learnt().to_json()))
    library.encode_special_tokens = True
    assert tokenizer.encode(text.encode()).tolist() == library.encode(text).ids
    parts = list(bpe.segments([text]))
    assert "".join(parts) == text
    cut = [
        id
        for start in range(0, len(text), 1)
        if start == 0 or bpe.BORDER.match(text, start)
        for id in library.encode(
            text[start : next((at for at in range(start + 1, len(text)) if bpe.BORDER.match(text, at)), len(text))]
        ).ids
    ]
    assert cut == library.encode(text).ids


def test_segments_end_at_borders_and_hold_no_more_than_the_limit(monkeypatch):
    monkeypatch.setattr(bpe, "SEGMENT", 4), monkeypatch.setattr(bpe, "LIMIT", 8)
    assert list(bpe.segments(["one two three", " four"])) == ["one two", " three", " four"]
    assert list(bpe.segments(["x" * 20])) == ["x" * 8, "x" * 8, "x" * 4]
    assert list(bpe.segments(["漢字。\n漢字。\n漢"])) == ["漢字。\n", "漢字。\n", "漢"] and list(bpe.segments([])) == []
    pulled = []
    first = next(bpe.segments(pulled.append(i) or "x" for i in range(100)))
    assert first == "x" * 8 and len(pulled) == 9


def test_learning_pieces(tmp_path):
    tokenizer = learnt(300)
    assert (
        tokenizer.vocab_size == 300
        and tokenizer.end_of_text == 299
        and len(tokenizer.encode(TALE.encode())) < 0.8 * len(TALE.encode())
    )
    assert sorted(tokenizer.to_json()["model"]["vocab"].values()) == list(range(299))
    data = TALE.encode() * 3
    cut = learn("bpe:300", [lambda: (data[i : i + 7] for i in range(0, len(data), 7))], progress=False)
    assert cut.to_json() == tokenizer.to_json()  # however the text is cut
    two = learn("bpe:300", [lambda: [TALE.encode()], lambda: [TALE.encode() * 2]], progress=False)
    assert two.to_json() == tokenizer.to_json()
    assert learn("bpe:257", [lambda: [b"abc"]], progress=False).encode(b"abc").shape == (3,)
    small = learn("bpe:5000", [lambda: [b"abc abc \xff"]], progress=False)  # no more pairs to merge
    assert (
        small.vocab_size < 300
        and small.end_of_text == small.vocab_size - 1
        and small.decode(small.encode(b"abc \xff\xfe")) == b"abc \xff\xfe"
    )


def test_a_large_corpus_is_learnt_from_samples_all_over_it(monkeypatch):
    monkeypatch.setattr(bpe, "SEGMENT", 100), monkeypatch.setattr(bpe, "LIMIT", 200)
    data = "".join(f" word{i}" for i in range(4000))
    assert "".join(bpe.sample([data[i : i + 50] for i in range(0, len(data), 50)], len(data))) == data
    monkeypatch.setattr(bpe, "SAMPLE", 4000)
    taken = list(bpe.sample([data], len(data)))
    assert 3900 <= sum(map(len, taken)) <= 4200 and all(part in data for part in taken)
    assert [
        sum(data.index(part) * 4 // len(data) == quarter for part in taken) for quarter in range(4)
    ] == pytest.approx([len(taken) / 4] * 4, abs=1)
    assert list(bpe.sample([data[:777], data[777:]], len(data))) == taken
    assert list(bpe.sample(["a\udcffb"], 3)) == ["a", "b"]


def test_the_bar_and_the_log_count_the_bytes(monkeypatch):
    from slm_np.data import corpus

    calls = []
    monkeypatch.setattr(corpus, "shown", lambda blocks, total, what, show: calls.append((total, what, show)) or blocks)
    learn("bpe:260", [lambda: [b"abc", b"de"]], progress=True)
    learn("char", [lambda: [b"abc"], lambda: [b"d"]], progress=True)
    assert calls == [(5, "learning pieces", True), (3, "characters", True), (1, "characters", True)]


@pytest.fixture
def gpt2_cache(test_data, monkeypatch):
    """tiktoken with GPT-2's files, offline."""
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    return tiktoken.get_encoding("gpt2")


def test_gpt2_is_tiktokens(gpt2_cache, test_data, tmp_path, monkeypatch):
    made = learn("gpt2", [])
    made.save(tmp_path / "tokenizer.json")
    assert (made.vocab_size, made.end_of_text, made.dtype) == (50257, 50256, np.uint16)
    assert (
        made.to_json()["model"]["merges"]
        == (test_data / "gpt2" / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    )
    assert made.to_json()["model"]["vocab"] == {
        piece: id
        for piece, id in json.loads((test_data / "gpt2" / "encoder.json").read_text(encoding="utf-8")).items()
        if piece != END
    }
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # from here on without it
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.to_json() == made.to_json() and again.end_of_text == 50256
    for file, size in (("tinystories/stories.txt", 500_000), ("tinyshakespeare.txt", 100_000)):
        text = (test_data / file).read_bytes()[:size].decode("utf-8", "ignore")
        ids = again.encode(text.encode())
        assert ids.tolist() == gpt2_cache.encode_ordinary(text) and again.decode(ids) == text.encode()

    @settings(max_examples=80, deadline=None)
    @given(st.one_of(st.text(), st.text(alphabet=SAMPLE + "  \n\n't's'll "), st.just(END + "x" + END)), st.binary())
    def same(text, data):
        assert again.encode(text.encode()).tolist() == gpt2_cache.encode_ordinary(text)
        assert again.decode(again.encode(data)) == data

    same()
    for text in (
        "a" * 3000,
        " " * 3000 + "x",
        "\n" * 999,
        "word" + " " * 500 + "\n \n  end  ",
        "".join(map(chr, range(0x2000, 0x2100))),
    ):
        assert again.encode(text.encode()).tolist() == gpt2_cache.encode_ordinary(text)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (
        other.encode(TALE).ids == again.encode(TALE.encode()).tolist() and other.decode(other.encode(TALE).ids) == TALE
    )
    assert other.encode(END).ids == [50256] and 50256 not in again.encode(END.encode())


def test_gpt2_out_of_reach_is_one_sentence(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name):
        raise ConnectionError("HTTPSConnectionPool(host='example'): Max retries exceeded")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(
        UserError,
        match="gpt2 needs GPT-2's vocabulary, .* not in tiktoken's cache .*ConnectionError.* TIKTOKEN_CACHE_DIR",
    ):
        learn("gpt2", [])


@pytest.mark.parametrize(
    "name, package, install", [("gpt2", "tiktoken", r"slm_np\[gpt2\]"), ("bpe:300", "tokenizers", "tokenizers")]
)
def test_a_missing_package_is_one_sentence(name, package, install, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with pytest.raises(
        UserError,
        match=f'--tokenizer {name} needs the package {package}, which is not installed; run pip install "{install}"',
    ):
        learn(name, [lambda: [b"abc"]], progress=False)


@pytest.mark.parametrize(
    "name, match",
    [
        ("bites", "'bites' is unknown; did you mean byte"),
        ("gpt-2", "did you mean gpt2"),
        ("words", "known are byte, char, bpe:N, gpt2, file:PATH"),
        ("file:", "did you mean file:PATH"),
        ("bpe", "whole number N from 257"),
        ("bpe:", "whole number"),
        ("bpe:256", "'bpe:256' must be bpe:N"),
        ("bpe:many", "bpe:4096"),
        ("bpe:-5", "bpe:N"),
        ("bpe:1e9", "bpe:N"),
        ("bpe:9999999", "to 1048576"),
        ("bpe:٣٠٠", "bpe:N"),
        ("bpe:300:2", "bpe:N"),
        ("file:nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_a_wrong_name_is_refused(name, match):
    with pytest.raises(UserError, match=match):
        learn(name, [lambda: [b"text"]], progress=False)


def test_names_of_the_simple_kinds(tmp_path):
    assert (
        type(learn("byte", [])) is ByteTokenizer
        and learn("char", [lambda: [b"b"], lambda: [b"a"]], progress=False).characters == "ab"
    )
    learnt().save(tmp_path / "t.json")
    assert learn(f"file:{tmp_path / 't.json'}", []).to_json() == learnt().to_json()
    ByteTokenizer().save(tmp_path / "b.json")
    assert type(learn(f"file:{tmp_path / 'b.json'}", [])) is ByteTokenizer
    with pytest.raises(UserError, match="without a single character"):
        learn("char", [lambda: [b""]], progress=False)


@pytest.mark.parametrize(
    "make",
    [ByteTokenizer, lambda: char_tokenizer("abcd <|endoftx>\n"), learnt, lambda: PieceTokenizer(LLAMA)],
    ids=["byte", "char", "bpe", "llama"],
)
def test_end_of_text_is_a_piece_of_its_own(make, tmp_path):
    tokenizer = with_end_of_text(make())
    end = tokenizer.end_of_text
    assert with_end_of_text(tokenizer) is tokenizer and 0 <= end < tokenizer.vocab_size == make().vocab_size + (
        make().end_of_text is None
    )
    assert tokenizer.decode([end]) == b"" and tokenizer.stream().push(end) == ""
    name = library(tokenizer, tmp_path).id_to_token(end)
    marked = f"ab{name}cd {name}\n".encode() if name == END else b"ab cd"
    ids = tokenizer.encode(marked)
    assert end not in ids and tokenizer.decode(ids) == marked
    one, two = tokenizer.encode(b"ab cd"), tokenizer.encode(b"cd")
    assert tokenizer.decode([*one, end, *two, end]) == b"ab cdcd" and one.dtype == np.uint16
    assert tokenizer.encode(b"ab").tolist() == make().encode(b"ab").tolist()
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer) and again.to_json() == tokenizer.to_json() and again.end_of_text == end
    assert library(tokenizer, tmp_path).get_vocab_size() == tokenizer.vocab_size
    assert library(tokenizer, tmp_path).encode("ab").ids == tokenizer.encode(b"ab").tolist()
    assert again.encode(marked).tolist() == ids.tolist()  # as the processes that prepare a corpus have it


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
    assert CharTokenizer(every[: 1 << 16]).dtype == np.uint16


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


@quick
@given(st.lists(st.integers(0, 299), max_size=30), st.lists(st.integers(0, 273), max_size=30))
def test_the_stream_of_pieces_equals_the_whole(ids, other):
    for tokenizer, ids in ((learnt(), ids), (PieceTokenizer(LLAMA), other)):
        stream = tokenizer.stream()
        for _ in range(2):
            shown = list(map(stream.push, ids))
            assert "".join(shown) + stream.flush() == tokenizer.decode(ids).decode("utf-8", "replace")
        for cut in (0, len(ids) // 2, len(ids)):  # a stream that follows a prompt
            stream, head = tokenizer.stream(after=ids[:cut]), tokenizer.decode(ids[:cut])
            assert "".join(map(stream.push, ids[cut:])) + stream.flush() == tokenizer.decode(ids)[len(head) :].decode(
                "utf-8", "replace"
            )


def test_the_stream_never_shows_half_a_character():
    for tokenizer in (learnt(), PieceTokenizer(LLAMA)):
        stream, ids = tokenizer.stream(), tokenizer.encode("the 🙂é cat 漢".encode())
        shown = [stream.push(id) for id in ids]
        assert "".join(shown) == "the 🙂é cat 漢" and "\ufffd" not in "".join(shown) and "" in shown


def test_the_space_in_front_of_a_text_is_not_shown():
    tokenizer = PieceTokenizer(LLAMA)
    ids = tokenizer.encode(b"the cat").tolist()
    assert [tokenizer._library.id_to_token(id) for id in ids] == ["▁the", "▁ca", "t"]
    assert tokenizer.decode(ids) == b"the cat" and tokenizer.decode([1, *ids]) == b"the cat"
    assert [tokenizer.stream().push(id) for id in ids] == ["the", "ca", "t"]
    stream = tokenizer.stream()
    assert [stream.push(id) for id in [1, *ids, 1, ids[0], 2, ids[0]]] == ["", "the", " ca", "t", "", " the", "", "the"]
    assert (
        tokenizer.stream(after=[ids[0]]).push(ids[1]) == " ca"
        and tokenizer.stream(after=[ids[0], 2]).push(ids[1]) == "ca"
    )
    space = tokenizer._library.token_to_id("▁")
    stream = tokenizer.stream()
    assert [stream.push(id) for id in [space, space, ids[0]]] == ["", " ", " the"] and tokenizer.decode(
        [1, space, space, ids[0]]
    ) == b"  the"
    assert tokenizer.encode(b"").tolist() == [] and tokenizer.decode(tokenizer.encode(b"  the  ")) == b"  the  "


def test_the_stream_waits_for_whole_characters():
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert [stream.push(byte) for byte in b"\xf0\x9fa"] == [
        "",
        "",
        "\ufffda",
    ]  # only now it cannot become a character any more
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


def changed(tokenizer, **changes):
    return {**tokenizer.to_json(), **changes}


BYTES = ByteTokenizer().to_json()["model"]
FOREIGN = {
    "larger": changed(ByteTokenizer(), model={**BYTES, "vocab": {**BYTES["vocab"], "ab": 256}}),
    "shuffled": changed(ByteTokenizer(), model={**BYTES, "vocab": dict(zip(map(chr, range(256)), range(256)))}),
    "normalised": changed(char_tokenizer("ab"), normalizer={"type": "Lowercase"}),
    "special": changed(
        char_tokenizer("ab"), added_tokens=[dict(end_piece(2), content="<s>"), dict(end_piece(3), content="</s>")]
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


def test_files_of_other_kinds_are_read_through_the_library(tmp_path):
    for name, fields in FOREIGN.items():
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        found = load_tokenizer(path)
        assert type(found) is PieceTokenizer, name
        other = tokenizers.Tokenizer.from_file(str(path))
        assert found.vocab_size == 1 + max(other.get_vocab().values())
        text = "c" if name == "words" else "A" if name == "normalised" else "a"
        assert (
            found.encode(text.encode()).tolist() == other.encode(text).ids
            and found.decode(found.encode(text.encode())) == text.lower().encode()
        )


METASPACE = dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=True)
WORDS = ["[UNK]", "the", "cat", "##s", "##'", "sat", "."]
OTHERS = {
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
                        {piece: id for id, piece in enumerate(["a", "b", "a</w>", "b</w>", "ab</w>"])}, ["a b</w>"]
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
def test_tokenizers_of_many_makes(name, monkeypatch):
    fields, text, end = OTHERS[name]
    tokenizer = PieceTokenizer(json.loads(json.dumps(fields)))
    assert (tokenizer.end_of_text is None) == (end is None) and (
        end is None or tokenizer._library.id_to_token(tokenizer.end_of_text) == end
    )
    ids = tokenizer.encode(text.encode()).tolist()
    text += " " * (name == "suffix")  # which cannot tell a text's end from the end of a word
    assert tokenizer.decode(ids) == text.encode() and tokenizer.end_of_text not in ids
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    if "</s>" not in text:
        other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_json()))
        assert other.encode(text).ids == ids and other.decode(ids).rstrip() == text.rstrip()
    (
        monkeypatch.setattr(bpe, "SEGMENT", 3),
        monkeypatch.setattr(bpe, "LIMIT", 6),
    )  # a space in front of the first segment only
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()
    with (
        pytest.raises(UserError, match="not UTF-8 .byte 0xff.* no piece for that byte")
        if name not in ("metaspace", "robust byte level")
        else _nothing()
    ):
        assert b"\xff" in tokenizer.decode(tokenizer.encode(b"\xff"))


def _nothing():
    import contextlib

    return contextlib.nullcontext()


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
def test_which_piece_ends_a_text(added, expected):
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    fields = changed(
        ByteTokenizer(), added_tokens=[dict(id=256 + i, content=name, **special) for i, name in enumerate(added)]
    )
    tokenizer = PieceTokenizer(fields)
    assert tokenizer.end_of_text == (None if expected is None else 256 + added.index(expected))
    text = "".join(added).encode() + b" x"
    assert tokenizer.decode(tokenizer.encode(text)) == text and max(tokenizer.encode(text)) < 256
    plain = PieceTokenizer(
        dict(
            fields, added_tokens=[dict(token, special=token["content"] != expected) for token in fields["added_tokens"]]
        )
    )
    if expected in ("<|endoftext|>", "</s>", "<eos>"):  # even if the file does not mark it
        assert plain.end_of_text == tokenizer.end_of_text and max(plain.encode(text)) < 256


def test_letters_that_a_vocabulary_lacks_are_named(test_data):
    tokenizer = load_tokenizer(test_data / "hf_tiny_gpt2" / "tokenizer.json")
    assert tokenizer.end_of_text == 0 and tokenizer.decode(tokenizer.encode(b"the cat")) == b"the cat"
    with pytest.raises(UserError, match=r"'漢' \(U\+6F22\) is not among those that the tokenizer .* knows"):
        tokenizer.encode("the 漢".encode())


def test_real_stories_with_llama2cs_pieces(test_data):
    llama2c = pytest.importorskip("slm_np.formats.llama2c")
    tokenizer = PieceTokenizer(
        llama2c.tokenizer_json(llama2c.read_tokenizer(test_data / "llama2c" / "tok512.bin", 512))
    )
    text = (test_data / "tinystories" / "stories.txt").read_bytes()[:60_000]
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == 512 and tokenizer.decode(ids) == text and len(ids) < len(text) / 2
    other = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_json()))
    other.encode_special_tokens = True
    assert other.encode(text.decode(), add_special_tokens=False).ids == ids.tolist()


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
