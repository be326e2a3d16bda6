"""Conversion of llama2.c's files, compared with its equations and its encoder in float64 and plain loops."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from slm_np.data import meter
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.formats import llama2c, sources
from slm_np.formats.conversion import convert
from slm_np.nn.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = dict(
    dim=24, hidden=20, layers=2, heads=6, kv_heads=2, vocab=300, steps=12
)  # heads of width 4: two rotary pairs each


# llama2.c


def weights_of(raw):
    """(header, {name: float64 array}) of a checkpoint, read as run.c does."""
    dim, hidden, layers, heads, kv_heads, vocab, steps = header = struct.unpack_from("<7i", raw)
    kv, at, found = dim // heads * kv_heads, 28, {}
    for name, *shape in [
        ("emb", abs(vocab), dim),
        ("att", layers, dim),
        ("wq", layers, dim, dim),
        ("wk", layers, kv, dim),
        ("wv", layers, kv, dim),
        ("wo", layers, dim, dim),
        ("ffn", layers, dim),
        ("w1", layers, hidden, dim),
        ("w2", layers, dim, hidden),
        ("w3", layers, hidden, dim),
        ("final", dim),
        ("cos", steps, dim // heads // 2),
        ("sin", steps, dim // heads // 2),
        *([("cls", -vocab, dim)] if vocab < 0 else []),
    ]:
        found[name] = np.frombuffer(raw, "<f4", int(np.prod(shape)), at).reshape(shape).astype(np.float64)
        at += 4 * found[name].size
    assert at == len(raw)
    return header, found


def reference_logits(raw, ids):
    """Logits (T, V) of run.c's forward, token by token.

    It rotates the pairs (2i, 2i + 1), and key-value head j serves the query heads of group j.
    """
    (dim, _, layers, heads, kv_heads, _, _), w = weights_of(raw)
    width, group = dim // heads, heads // kv_heads
    keys, values, out = [[] for _ in range(layers)], [[] for _ in range(layers)], []

    def norm(x, weight):
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def rotated(x, position):
        x = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % width) / width)
            a, b = x[i], x[i + 1]
            x[i], x[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        return x

    for position, token in enumerate(ids):
        x = w["emb"][token].copy()
        for layer in range(layers):
            normed = norm(x, w["att"][layer])
            q = rotated(w["wq"][layer] @ normed, position).reshape(heads, width)
            keys[layer].append(rotated(w["wk"][layer] @ normed, position).reshape(kv_heads, width))
            values[layer].append((w["wv"][layer] @ normed).reshape(kv_heads, width))
            attended = []
            for head in range(heads):
                scores = np.array([q[head] @ key[head // group] for key in keys[layer]]) / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                attended.append(
                    sum(weight * value[head // group] for weight, value in zip(weights / weights.sum(), values[layer]))
                )
            x = x + w["wo"][layer] @ np.concatenate(attended)
            normed = norm(x, w["ffn"][layer])
            gate = w["w1"][layer] @ normed
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ normed))
        out.append(w.get("cls", w["emb"]) @ norm(x, w["final"]))
    return np.array(out)


def reference_encode(tokens, text):
    """Ids of tokenizer.h's encode, without begin of text: characters or their bytes, merged greedily by score."""
    ids_of = {token: id for id, (token, _) in enumerate(tokens)}
    ids = []
    for letter in " " + text if text else "":
        ids += [ids_of[letter]] if letter in ids_of else [byte + 3 for byte in letter.encode()]
    while True:
        best, where = -1e10, None
        for i in range(len(ids) - 1):
            id = ids_of.get(tokens[ids[i]][0] + tokens[ids[i + 1]][0])
            if id is not None and tokens[id][1] > best:
                best, where = tokens[id][1], (i, id)
        if where is None:
            return ids
        ids[where[0] : where[0] + 2] = [where[1]]


# Files in its formats


def checkpoint_bytes(tied=True, seed=0, **changes):
    """A checkpoint of random weights."""
    shape = {**SHAPE, **changes}
    dim, hidden, layers, heads, kv_heads, vocab, steps = shape.values()
    kv, draw = dim // heads * kv_heads, np.random.default_rng(seed)
    n = (
        vocab * dim * (1 if tied else 2)
        + layers * (2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * hidden * dim)
        + dim
        + steps * (dim // heads)
    )
    return (
        struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, steps)
        + draw.normal(0, 0.4, n).astype("<f4").tobytes()
    )


def tokens_of(words):
    """The tokens of a tokenizer file: three markers, the bytes, merged tokens, then single characters; scores fall."""
    joined = list(dict.fromkeys(words))
    letters = sorted(set("".join(joined)) | {" "})
    return [(name, 0.0) for name in ("<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)))] + [
        (token, -float(i)) for i, token in enumerate([word for word in joined if len(word) > 1] + letters)
    ]


def tokenizer_bytes(tokens):
    encoded = [(token.encode(), score) for token, score in tokens]
    return struct.pack("<i", max(len(token) for token, _ in encoded)) + b"".join(
        struct.pack("<fi", score, len(token)) + token for token, score in encoded
    )


def files(folder, tokens=None, **options):
    """A checkpoint and a tokenizer that fits it, in `folder`."""
    tokens = tokens or tokens_of([" t", "he", " the", " c", "at", " cat", "s", "b", "r", " a"])
    (folder / "model.bin").write_bytes(checkpoint_bytes(vocab=len(tokens), **options))
    (folder / "tok.bin").write_bytes(tokenizer_bytes(tokens))
    return folder / "model.bin", folder / "tok.bin", tokens


def library(tokens):
    return Tokenizer.from_str(json.dumps(llama2c.tokenizer_json(tokens)))


# Weights


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_logits_are_those_of_its_equations(tmp_path, tied, kv_heads):
    file, _, tokens = files(tmp_path, tied=tied, kv_heads=kv_heads)
    run = sources.load(convert(file, tmp_path / "run").path)
    assert run.tokenizer is None and run.step == 0 and run.config.model.head == ("tied" if tied else "linear")
    ids = np.random.default_rng(1).integers(0, len(tokens), SHAPE["steps"])
    wanted = reference_logits(file.read_bytes(), ids)
    np.testing.assert_allclose(
        run.model.logits(ids[None].astype(np.int32))[0], wanted, atol=2e-4 * np.abs(wanted).max()
    )


def test_the_command_makes_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, tokenizer, _ = files(tmp_path)
    assert small.status("convert", file, "--tokenizer", tokenizer) == 0
    assert "run: runs" in capsys.readouterr().out
    settings = ["config.json", "generation_config.json", "run.json", "tokenizer.json", "tokenizer_config.json"]
    assert small.tree("runs/model") == sorted(["model.safetensors", *settings])
    assert Tokenizer.from_file("runs/model/tokenizer.json").encode("the cat").tokens == [" the", " cat"]
    (tmp_path / "tok.bin").rename("tokenizer.bin")  # found by its name; a tokenizer.json is accepted too
    for words in (["--out-dir", "beside"], ["--out-dir", "json", "--tokenizer", "runs/model/tokenizer.json"]):
        assert small.status("convert", file, *words) == 0
        assert json.loads(Path(words[1], "tokenizer.json").read_text(encoding="utf-8")) == json.loads(
            Path("runs/model/tokenizer.json").read_text(encoding="utf-8")
        )


# Tokenizer


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab c", min_size=1, max_size=4), min_size=1, max_size=25),
    st.lists(st.text("ab cé☃\n▁<s>", max_size=25), max_size=4),
)
def test_ids_are_those_of_its_encoder(words, texts):
    """Any vocabulary, also with spaces inside tokens and with tokens that no merge makes; text with many overlaps."""
    tokens = tokens_of(words)
    made = library(tokens)
    made.encode_special_tokens = True  # what looks like a special token in text is text
    for text in texts:
        ids = made.encode(text).ids
        assert ids == reference_encode(tokens, text)
        assert made.decode(ids) == text


def test_reading_and_writing_show_how_far_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(meter, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(meter, "LINE_S", 0.0)
    file, _, _ = files(tmp_path)
    assert small.status("convert", file, "--out-dir", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert said.count("converting model.bin: ") > 10
    assert re.search("converting model.bin: [0-9]+ of [0-9]+ MB, ETA 0s", said)


def test_begin_of_text_is_special_and_ends_documents(tmp_path):
    made = library(tokens_of(["ab"]))
    assert [made.token_to_id(name) for name in ("<unk>", "<s>")] == [0, 1]
    assert made.decode([1, *made.encode("ab ab").ids, 1]) == "ab ab"
    file, tokenizer, tokens = files(tmp_path)
    loaded = sources.load(convert(file, tmp_path / "run", tokenizer).path).tokenizer
    assert loaded.end_of_text == 1 and loaded.vocab_size == len(tokens)
    assert loaded.encode(b"the cat\xff <s>").tolist() == reference_encode(tokens, "the cat") + [
        0xFF + 3,
        *reference_encode(tokens, "<s>"),
    ]
    assert loaded.decode(loaded.encode("the  cat ☃".encode())) == "the  cat ☃".encode()


# Bad input


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda raw: raw[:-1], r"has [\d,]+ bytes but its header \(dim 24, .*\) asks for [\d,]+: it is cut short"),
        (lambda raw: raw + b"0000", "cut short"),
        (lambda raw: raw[:20], "has 20 bytes and the header alone takes 28"),
        (lambda raw: b"", "is empty, not a model"),
        (lambda raw: b"hello " * 99, "is a text, not a model"),
        (lambda raw: b"hello " * 99 + bytes(9), "its header is not that of a model"),
        (lambda raw: struct.pack("<Ii", 0x616B3432, 1) + raw, "of version 1, .*--version 0"),
        (lambda raw: raw[:-4] + b"\0\0\xc0\x7f", "not finite"),
        (lambda raw: struct.pack("<7i", *[2**31 - 2] * 2, 1, 1, 1, 9, 9) + raw[28:], "cut short"),
    ],
)
def test_a_file_that_is_not_a_checkpoint(tmp_path, capsys, change, said):
    file, _, _ = files(tmp_path)
    file.write_bytes(change(file.read_bytes()))
    assert small.status("convert", file, "--out-dir", tmp_path / "run") == 2
    assert re.fullmatch(rf"slm_np: {re.escape(str(file))} [^\n]*{said}[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda tokens: tokenizer_bytes(tokens)[:-1], "cut short"),
        (lambda tokens: tokenizer_bytes(tokens[:-1]), r"has \d+ tokens, but the model \d+"),
        (lambda tokens: tokenizer_bytes([tokens[0], *tokens[2:], ("x", 0.0)]), "must be the bytes"),
        (lambda tokens: tokenizer_bytes(tokens[:-1] + tokens[-2:-1]), "tokens must be unique"),
        (lambda tokens: b"\0" * 4 + struct.pack("<fi", 0, -1), "cut short"),
    ],
)
def test_a_tokenizer_that_does_not_fit(tmp_path, make, said):
    file, tokenizer, tokens = files(tmp_path)
    tokenizer.write_bytes(make(tokens))
    with pytest.raises(UserError, match=said):
        convert(file, tmp_path / "run", tokenizer)
    assert not (tmp_path / "run").exists()


def test_missing_files_and_an_existing_run(tmp_path):
    file, tokenizer, _ = files(tmp_path)
    with pytest.raises(UserError, match="nothing.bin is not a model: it does not exist"):
        convert(tmp_path / "nothing.bin", tmp_path / "run")
    with pytest.raises(UserError, match="--tokenizer .*nothing.bin cannot be read"):
        convert(file, tmp_path / "run", tmp_path / "nothing.bin")
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is not a tokenizer.json"):
        convert(file, tmp_path / "run", tmp_path / "bad.json")
    convert(file, tmp_path / "run", tokenizer)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="run already exists, and nothing is overwritten"):
        convert(file, tmp_path / "run", tokenizer)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


# The real files


@pytest.fixture(scope="module")
def stories260k(test_data):
    folder = test_data / "llama2c"
    if not folder.is_dir():
        pytest.skip("the test data hold no llama2c/")
    return folder


def test_real_logits_and_greedy_english(stories260k):
    file = stories260k / "stories260K.bin"
    parts = llama2c.read(file)
    config, tensors = parts.config, dict(parts.tensors())
    assert (
        config.n_embd,
        config.n_hidden,
        config.n_layer,
        config.n_head,
        config.n_kv_head,
        config.vocab_size,
        config.block_size,
    ) == (64, 172, 5, 8, 4, 512, 512)
    model = Model(config)
    assert {name: view.shape for name, view in model.parameters.weight.items()} == {
        name: array.shape for name, array in tensors.items()
    }
    for name, array in tensors.items():
        model.parameters.weight[name][...] = array
    words = library(llama2c.read_tokenizer(stories260k / "tok512.bin", 512))
    ids = np.ones((1, 40), np.int32)
    for position in range(1, ids.size):  # later positions have no effect yet
        ids[0, position] = model.logits(ids)[0, position - 1].argmax()
    wanted = reference_logits(file.read_bytes(), ids[0])
    np.testing.assert_allclose(model.logits(ids)[0], wanted, atol=1e-4 * np.abs(wanted).max())
    assert wanted[:-1].argmax(1).tolist() == ids[0, 1:].tolist()
    assert words.decode(ids[0].tolist()).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play"
    )


def test_real_ids(stories260k, test_data, tmp_path):
    tokens = llama2c.read_tokenizer(stories260k / "tok512.bin", 512)
    made = library(tokens)
    made.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    with open(test_data / "tinystories" / "stories.txt", encoding="utf-8") as file:
        text = file.read(40_000)
    documents = text.split("\n<|endoftext|>\n")[:-1]
    assert len(documents) > 20
    for document in documents:
        ids = made.encode(document).ids
        assert ids == reference_encode(tokens, document) == loaded.encode(document.encode()).tolist()
        assert made.decode(ids) == document and loaded.decode(ids) == document.encode()
