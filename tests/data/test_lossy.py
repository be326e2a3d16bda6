"""Lossy tokenizers: what they lose is measured on a sample and named once, and bits/byte are not shown."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tokenizers import TALE, WILD, bpe_tokenizer, char_tokenizer, wild

from slm_np.data import lossy, shards
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.lossy import losses, spread
from slm_np.data.token_store import load_corpus
from slm_np.data.tokens import Tokens
from slm_np.errors import UserError
from slm_np.inference.evaluation import text_bytes
from slm_np.training.evaluation import bits_per_byte


def made(name):
    return LibraryTokenizer(wild()[name])


MIXED = st.lists(
    st.sampled_from(
        ["the", "Cat", "HAT", " ", "  ", "\n", "\r\n", "\t", "é", "e\u0301", "ﬁ", "漢", "🙂", "[UNK]", "<unk>", "</s>"]
        + ["▁", "hat, na", "\n\n", "\u3000", "\x00", "##s", "."]
    ),
    max_size=20,
).map("".join)


@pytest.mark.parametrize("name", WILD)
def test_no_loss_is_missed_and_none_is_invented(name):
    tokenizer = made(name)

    @settings(max_examples=60, deadline=None)
    @given(st.one_of(MIXED, st.text()))
    def measured(text):
        data = text.encode()
        ids = tokenizer.encode(data)
        back = tokenizer.decode(ids)
        found = losses(tokenizer, [data])
        assert bool(found.kinds) == bool(found.sentence()) == (back != data)
        assert 0 <= found.lost <= found.tried == len(data) and 0 <= found.unknown <= 1
        assert back == data or not tokenizer.lossless

    measured()


@pytest.mark.parametrize("make", [ByteTokenizer, bpe_tokenizer], ids=["byte", "bpe"])
def test_own_tokenizers_lose_no_bytes(make):
    @settings(max_examples=60, deadline=None)
    @given(st.one_of(st.binary(), MIXED.map(str.encode)))
    def same(data):
        assert make().lossless and make().decode(make().encode(data)) == data

    same()
    assert (
        char_tokenizer(TALE).lossless
        and char_tokenizer(TALE).decode(char_tokenizer(TALE).encode(TALE.encode())) == TALE.encode()
    )


def test_a_tokenizer_with_a_special_token_that_merges_make_is_not_lossless():
    fields = bpe_tokenizer().to_json()
    tokenizer = LibraryTokenizer(fields)
    word = next(token for token, id in fields["model"]["vocab"].items() if id == 270)
    special = dict(fields["added_tokens"][0], id=270, content=word)
    other = LibraryTokenizer(dict(fields, added_tokens=[*fields["added_tokens"], special]))
    assert tokenizer.lossless and not other.lossless
    letter = dict(fields["added_tokens"][0], id=0, content="!")
    shouting = LibraryTokenizer(dict(fields, added_tokens=[*fields["added_tokens"], letter]))
    assert not shouting.lossless and shouting.encode("!").tolist() == [0] and losses(shouting, [b"!"]).kinds
    data = tokenizer.decode([270])
    assert len(other.encode(data)) > 1 and not losses(other, [data]).kinds  # its text is split into other tokens


NORMALIZERS = {
    "letter case": (dict(type="Lowercase"), "The Cat", 2),
    "accents and Unicode forms": (dict(type="NFKC"), "ﬁt", 3),
    "line ends": (dict(type="Replace", pattern={"Regex": "[\r\n]+"}, content=" "), "the\r\ncat", 2),
    "spaces": (dict(type="Replace", pattern={"Regex": " +"}, content=" "), "the   cat", 2),
    "characters such as '漢'": (dict(type="Replace", pattern={"Regex": "\\p{Han}"}, content=""), "the 漢字", 6),
}


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_what_is_lost_is_named(kind):
    normalizer, text, lost = NORMALIZERS[kind]
    tokenizer = LibraryTokenizer(dict(bpe_tokenizer().to_json(), normalizer=normalizer))
    found = losses(tokenizer, [text.encode(), b"the cat"])
    assert found.kinds == (kind,) and found.lost == lost and not tokenizer.lossless
    share = 100 * lost / found.tried
    assert f"lossy: of {found.tried} bytes of the text {share:.1f} % do not come back ({kind});" in found.sentence()
    assert not losses(tokenizer, [b"the cat"]).kinds and not losses(tokenizer, []).sentence()


def test_accents_alone_and_what_is_added_are_named():
    strip = dict(type="Sequence", normalizers=[dict(type="NFD"), dict(type="StripAccents")])
    tokenizer = LibraryTokenizer(dict(bpe_tokenizer().to_json(), normalizer=strip))
    for text in ("café", "cafe\u0301"):
        assert losses(tokenizer, [text.encode()]).kinds == ("accents and Unicode forms",)
    composed = LibraryTokenizer(dict(bpe_tokenizer().to_json(), normalizer=dict(type="NFC")))
    assert losses(composed, ["cafe\u0301".encode()]).kinds == ("accents and Unicode forms",)
    spaced = dict(type="Replace", pattern={"String": "."}, content=" .")
    found = losses(LibraryTokenizer(dict(bpe_tokenizer().to_json(), normalizer=spaced)), [b"the cat."])
    assert found.kinds == ("spaces",) and found.lost == 0 and "less than 0.1 % do not come back" in found.sentence()


def test_unknown_tokens_are_counted():
    found = losses(made("wordlevel"), [b"the cat zebra the"])
    assert found.unknown == 0.25 and "unknown characters such as" in found.kinds[0]
    assert ", 25.0 % of the tokens are unknown;" in found.sentence()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab é漢🙂\n", min_size=200), st.integers(4, 60), st.integers(1, 50))
def test_a_sample_is_spread_over_the_text(text, size, block):
    data = text.encode()
    blocks = [data[i : i + block] for i in range(0, len(data), block)]
    parts = spread(blocks, len(data), size)
    for part in parts:
        assert part.decode() in text and len(part) <= max(size, len(data) * (len(parts) == 1))
    if len(parts) == 3:
        assert data.startswith(parts[0]) and data.endswith(parts[2])
        assert parts[1] in data[len(data) // 2 :][:size]
    else:
        assert parts == [data]
    assert data.startswith(spread([data], 10**9, size)[0])  # as of rows, whose text is shorter than its file


def test_a_sample_has_whole_words():
    text = b"the cat sat " * 500
    for block in (1, 7, 10_000):
        parts = spread([text[i : i + block] for i in range(0, len(text), block)], len(text), 100)
        assert len(parts) == 3 and all(len(part) > 80 for part in parts)
        assert all(set(part.split()) == {b"the", b"cat", b"sat"} for part in parts)
    assert not losses(made("holes"), [part for part in parts if part.strip() == part]).kinds


def sampled_text(folder):
    """A text file with capitals near its end only."""
    path = folder / "text.txt"
    path.write_text("the cat sat. " * 3000 + "THE CAT SAT. " * 1000 + "the end", encoding="utf-8")
    return path


@pytest.fixture
def lowercase(tmp_path):
    """The path of a tokenizer.json that loses letter case."""
    path = tmp_path / "lower.json"
    path.write_text(json.dumps(dict(bpe_tokenizer().to_json(), normalizer=dict(type="Lowercase"))), encoding="utf-8")
    return path


def test_a_corpus_says_once_what_its_tokenizer_loses(tmp_path, lowercase, capsys, monkeypatch):
    monkeypatch.setattr(lossy, "PART", 4000)
    monkeypatch.setattr(shards, "SHARD", 20_000)
    path, options = sampled_text(tmp_path), dict(tokenizer=f"file:{lowercase}", cache_dir=tmp_path / "cache")
    for _ in range(2):  # when it is tokenized, and when the store is found
        corpus = load_corpus(str(path), **options)
        [line] = [line for line in capsys.readouterr().err.splitlines() if "lossy" in line]
        assert "bytes of the text" in line and "(letter case)" in line and "nats/token" in line
        assert corpus.train.lossy == corpus.validation.lossy == line
    assert math.isnan(bits_per_byte(2.0, corpus.train)) and text_bytes(corpus.train, corpus.tokenizer) is None
    assert corpus.train.n_bytes and corpus.train.first(10).lossy == line
    load_corpus(str(path), **options, progress=False)
    assert not capsys.readouterr().err

    load_corpus(str(path), **options, out_dir=tmp_path / "tokens", progress=False)
    again = load_corpus(str(tmp_path / "tokens"))
    assert again.train.lossy == line and line in capsys.readouterr().err
    assert text_bytes(again.validation, again.tokenizer) is None

    plain = load_corpus(str(path), tokenizer="bpe:300", cache_dir=tmp_path / "cache")
    assert not plain.train.lossy and "lossy" not in capsys.readouterr().err
    assert math.isfinite(bits_per_byte(2.0, plain.train))


def test_a_store_of_a_version_that_did_not_measure_is_made_again(tmp_path, lowercase):
    path, cache = sampled_text(tmp_path), tmp_path / "cache"
    corpus = load_corpus(str(path), tokenizer=f"file:{lowercase}", cache_dir=cache, progress=False)
    [meta] = cache.glob("corpora/*/meta.json")
    fields = json.loads(meta.read_text(encoding="utf-8"))
    del fields["lossy"]
    meta.write_text(json.dumps(fields), encoding="utf-8")
    again = load_corpus(str(path), tokenizer=f"file:{lowercase}", cache_dir=cache, progress=False)
    assert again.train.lossy == corpus.train.lossy != ""


def test_a_text_that_cannot_be_encoded_is_refused_before_it_is_tokenized(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the cat \xff " * 100)
    fields = made("wordlevel").to_json()
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UserError, match="not UTF-8 .byte 0xff"):
        load_corpus(str(path), tokenizer=f"file:{tmp_path / 'tokenizer.json'}", cache_dir=tmp_path, progress=False)


def test_losses_of_rows_and_documents_are_measured(tmp_path, lowercase):
    rows = tmp_path / "rows.jsonl"
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefgh ", k=50)) + "X" for _ in range(40)]
    rows.write_text("".join(json.dumps(dict(text=text)) + "\n" for text in texts), encoding="utf-8")
    documents = tmp_path / "documents.txt"
    documents.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    for path in (rows, documents):
        corpus = load_corpus(str(path), tokenizer=f"file:{lowercase}", cache_dir=tmp_path / "cache", progress=False)
        assert "(letter case)" in corpus.train.lossy  # and not the separators or the JSON


def test_bits_per_byte_need_bytes_that_come_back():
    tokens = Tokens("train", [1, 2, 3], 6)
    assert bits_per_byte(math.log(2), tokens) == 0.5
    assert math.isnan(bits_per_byte(math.log(2), Tokens("train", [1, 2, 3], 6, lossy="letter case")))
