"""`.bin` files of other programs: llm.c's and nanoGPT's are read, ids of other types and other files are refused."""

import io
import json
import os
import pickle
import re
import struct

import numpy as np
import pytest
from compressed import gzipped
from data_files import load, marked, old_file, stories, token_file

from slm_np.data import nanogpt
from slm_np.data.foreign_files import layout
from slm_np.errors import UserError

IDS = (np.random.default_rng(1).zipf(1.3, 3000) - 1) % 60_000  # as of a text: small ids are frequent


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def llm_c(path, ids, magic, version, dtype, tokens=None, order="<"):
    """Write a token file with llm.c's header."""
    header = np.zeros(256, f"{order}i4")
    header[:3] = magic, version, len(ids) if tokens is None else tokens
    return old_file(path, header.tobytes() + np.asarray(ids, dtype).tobytes())


@pytest.mark.parametrize("magic, version, dtype", [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_token_files_of_llm_c_are_read_behind_their_header(tmp_path, cache, magic, version, dtype):
    ids = IDS + (dtype == "<u4") * 70_000
    train = llm_c(tmp_path / "a_train.bin", ids, magic, version, dtype)
    val = llm_c(tmp_path / "a_val.bin", ids[:100], magic, version, dtype)
    found = load(train, val, cache_dir=cache)
    assert found.train.ids.tolist() == ids.tolist() and found.validation.ids.tolist() == ids[:100].tolist()
    assert found.train.ids.dtype == np.dtype(dtype) and found.vocab_size == ids.max() + 1
    assert load(train, cache_dir=cache).fingerprint != found.fingerprint
    (tmp_path / "meta.json").write_text(json.dumps(dict(vocab_size=200_000)), encoding="utf-8")
    assert load(train, val, cache_dir=cache).vocab_size == 200_000
    (tmp_path / "meta.json").write_text(json.dumps(dict(dtype="uint16" if "4" in dtype else "uint32")))
    with pytest.raises(UserError, match="by its llm.c header, but the meta.json beside it says"):
        load(train, val, cache_dir=cache)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(magic=20240520, version=1, dtype="<u2", tokens=5000), "room for 3,000 tokens, .* says 5,000"),
        (dict(magic=20240520, version=1, dtype="<u2", tokens=2999), "room for 3,000 tokens, .* says 2,999"),
        (dict(magic=20240801, version=7, dtype="<u2"), "room for 1,500 tokens, .* says 3,000"),
        (dict(magic=20240522, version=1, dtype="<u2"), r"an llm.c file of another kind \(magic 20240522, version 1\)"),
        (dict(magic=20240326, version=3, dtype="<f4"), "an llm.c file of another kind"),
        (dict(magic=20240520, version=1, dtype=">u2", order=">"), "llm.c in big-endian order"),
    ],
)
def test_files_of_llm_c_that_are_damaged_or_of_another_kind_are_refused(tmp_path, cache, arguments, sentence):
    with pytest.raises(UserError, match=f"--data .*train.bin .*{sentence}"):
        load(llm_c(tmp_path / "train.bin", IDS, **arguments), cache_dir=cache)


@pytest.mark.parametrize(
    "ids, dtype, sentence",
    [
        (IDS, "<u4", r'32-bit ids, .* 16-bit number is 0; write {"dtype": "uint32"} into .*meta.json, or {"dtype"'),
        (IDS[:40], "<u4", "32-bit ids"),
        (IDS % 5 + 1, "<u4", "32-bit ids"),
        (IDS * 2 + 7, "<u4", "32-bit ids, .* is at most 1;"),
        (IDS * 9, "<i4", "32-bit ids, .* is at most 8;"),
        (np.where(IDS % 7, IDS, -100), "<i4", "32-bit ids, some of them negative"),
        (IDS, "<i8", r'64-bit ids; convert it: numpy.fromfile\(".*train.bin", "<i8"\).* write {"dtype": "uint32"}'),
        (IDS, ">u4", "32-bit ids in big-endian order"),
        (IDS % 99, ">u2", "16-bit ids in big-endian order"),
        (IDS % 65, "<u1", r'8-bit ids; convert it: numpy.fromfile\(".*train.bin", "u1"\).astype\("<u2"\)'),
    ],
)
@pytest.mark.parametrize("times", [1, 900])
def test_ids_of_another_type_are_refused_with_what_to_do(tmp_path, cache, ids, dtype, sentence, times):
    with pytest.raises(UserError, match=f"--data .*train.bin is made of {sentence}"):
        load(token_file(tmp_path / "train.bin", np.tile(ids, times), dtype), cache_dir=cache)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_meta_json_says_what_the_contents_only_suggest(tmp_path, cache, dtype):
    train = token_file(tmp_path / "train.bin", IDS, dtype)
    for name in ("uint16", "uint32"):
        (tmp_path / "meta.json").write_text(json.dumps(dict(dtype=name)), encoding="utf-8")
        found = load(train, cache_dir=cache)
        assert found.train.ids.dtype.name == name
    assert len(found.train) + len(found.validation) == len(IDS) * np.dtype(dtype).itemsize // 4


@pytest.mark.parametrize(
    "ids",
    [
        IDS,
        IDS % 2,  # two symbols
        IDS % 4,  # DNA
        np.zeros(1000),
        np.ones(1000),
        np.arange(1000) % 3,
        np.arange(65_536),
        IDS % 17,
        np.repeat(IDS[:1000], 2),
        np.frombuffer("".join(marked(stories(90))).encode(), np.uint8),
        [1, 0] * 7,
        65_535 - IDS % 3,
    ],
)
def test_ids_of_16_bits_are_read(tmp_path, cache, ids):
    found = load(token_file(tmp_path / "train.bin", ids), cache_dir=cache)
    assert [*found.train.ids, *found.validation.ids] == [*ids]


def saved(**arrays):
    """The bytes of a .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def array(ids):
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, ids)
    return file.getvalue()


def llama2_c(vocab):
    """A llama2.c checkpoint of version 0 with an untied output matrix if `vocab` is negative."""
    dim, hidden, layers, heads, kv, steps = 8, 12, 2, 4, 2, 16
    n = layers * (2 * dim + 2 * dim * dim + 2 * dim * kv * 2 + 3 * dim * hidden) + dim + steps * 2
    n += abs(vocab) * dim * (1 + (vocab < 0))
    return (
        struct.pack("<7i", dim, hidden, layers, heads, kv, vocab, steps)
        + np.random.default_rng(0).normal(size=n).astype("<f4").tobytes()
    )


@pytest.mark.parametrize(
    "data, sentence",
    [
        (array(IDS), r'a NumPy array .*; write its ids as a .bin file: numpy.load\(".*train.bin"\)'),
        (saved(ids=IDS), "a zip archive, such as a PyTorch checkpoint or a .npz"),
        (pickle.dumps(dict(a=1)), "a Python pickle"),
        (pickle.dumps([1] * 90, 2), "a Python pickle"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M\xe9\x03.", "an old PyTorch checkpoint"),
        (b"GGUF\3\0\0\0" + bytes(99), "a model in the format GGUF"),
        (
            struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}      ' + bytes(8),
            "a model in the format",
        ),
        (gzipped(IDS.astype("<u2").tobytes()), "compressed with gzip; unpack it first"),
        (b"PAR1" + bytes(100) + b"PAR1", "a Parquet file"),
        (llama2_c(64), "a llama2.c checkpoint; convert it with: python -m slm_np.convert .*train.bin"),
        (llama2_c(-64), "a llama2.c checkpoint; convert it with: python -m slm_np.convert .*train.bin"),
        (b"24ka" + bytes(300), "a llama2.c checkpoint"),
        (marked(stories(30)).encode(), "text, not token ids; give it a name that does not end in .bin"),
        (("naïve façade " * 40).encode("latin-1"), "text, not token ids"),
        (("漢字かな" * 400_000).encode(), "text, not token ids"),
    ],
)
def test_other_files_named_bin_are_refused_by_name(tmp_path, cache, data, sentence):
    path = old_file(tmp_path / "train.bin", data)
    with pytest.raises(UserError, match=f"--data .*train.bin is {sentence}"):
        load(path, cache_dir=cache)
    with pytest.raises(UserError, match=f"--val-data .*train.bin is {sentence}"):
        load(token_file(tmp_path / "ids.bin", IDS), path, cache_dir=cache)


def test_real_files_of_other_programs_are_refused(test_data, cache):
    with pytest.raises(UserError, match="a llama2.c checkpoint; convert it"):
        load(str(test_data / "llama2c" / "stories260K.bin"), cache_dir=cache)


@pytest.mark.parametrize("name, data", [("ids.npy", array(IDS)), ("ids.npz", saved(ids=IDS))])
def test_arrays_are_refused_by_their_name(tmp_path, cache, name, data):
    for arguments in ([old_file(tmp_path / name, data)], [old_file(tmp_path / "t.txt", "text"), str(tmp_path / name)]):
        with pytest.raises(UserError, match=rf"data .*{name} is a NumPy array; write its ids as a .bin file: numpy"):
            load(*arguments, cache_dir=cache)


def nanogpt_folder(folder, text, **changes):
    """What nanoGPT's shakespeare_char/prepare.py writes for a text."""
    characters = sorted(set(text))
    stoi, itos = {c: i for i, c in enumerate(characters)}, dict(enumerate(characters))
    ids, cut = [stoi[c] for c in text], int(len(text) * 0.9)
    token_file(folder / "train.bin", ids[:cut])
    token_file(folder / "val.bin", ids[cut:])
    meta = dict(vocab_size=len(characters), itos=itos, stoi=stoi) | changes
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return str(folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_characters_of_nanogpt_are_the_tokenizer(tmp_path, cache, monkeypatch, protocol):
    def unpickled(*arguments, **options):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, unpickled)
    monkeypatch.setattr(pickle, "dumps", lambda meta, dumps=pickle.dumps: dumps(meta, protocol))
    text = "".join(marked(stories(90))) + "".join(map(chr, range(0x100, 0x900)))  # more entries than pickle's batch
    found = load(nanogpt_folder(tmp_path, text), cache_dir=cache)
    assert found.vocab_size == len(set(text)) == found.tokenizer.vocab_size
    decoded = found.tokenizer.decode(found.train.ids) + found.tokenizer.decode(found.validation.ids)
    assert decoded.decode() == text


class Runs:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return exec, ("import os; os.environ['SLM_NP_UNPICKLED'] = 'yes'",)


@pytest.mark.parametrize(
    "changes",
    [
        dict(extra=Runs()),
        dict(stoi={"ab": 0, "c": 1}),
        dict(stoi={"a": 1, "b": 2}),
        dict(stoi={"a": 0, "b": 0}),
        dict(stoi={"\ud800": 0}),
        dict(stoi={}),
        dict(stoi=[["a", 0]]),
        dict(stoi={"a": "0"}),
        dict(vocab_size=np.int64(3)),
        dict(itos=("a", "b")),
    ],
)
def test_other_vocabularies_are_named_and_never_executed(tmp_path, cache, capsys, monkeypatch, changes):
    monkeypatch.delenv("SLM_NP_UNPICKLED", raising=False)
    folder = nanogpt_folder(tmp_path, "abcabd" * 90, **changes)
    found = load(folder, cache_dir=cache)
    assert found.tokenizer is None and found.vocab_size == 4
    said = capsys.readouterr().err
    assert re.search(r"meta.pkl cannot be read as a vocabulary .* put the tokenizer.json of the tokens beside it", said)
    assert "SLM_NP_UNPICKLED" not in os.environ


def test_a_damaged_or_hostile_pickle_is_not_a_vocabulary(tmp_path):
    whole, path = pickle.dumps(dict(stoi={"a": 0, "b": 1})), tmp_path / "meta.pkl"
    assert nanogpt.tokenizer_of(_written(path, whole)).characters == "ab"
    random = np.random.default_rng(3)
    for data in (
        *(whole[:n] for n in range(len(whole))),
        *(bytes(random.integers(0, 256, 60, np.uint8)) for _ in range(300)),
        *(b"\x80\x04" + bytes(random.permutation([*b"}](ueastbKh\x94\x8c\x00\x01."])) for _ in range(300)),
        b"(" * 100_000 + b"u" * 100_000,
        b"\x80\x04r\xff\xff\xff\xff.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        b"\x80\x04\x8e" + b"\x7f" * 8 + b".",
    ):
        assert nanogpt.tokenizer_of(_written(path, data)) is None


def _written(path, data):
    path.write_bytes(data)
    return path


def test_every_layout_of_a_random_file_is_a_layout_or_a_sentence(tmp_path):
    random, path = np.random.default_rng(5), tmp_path / "train.bin"
    for n in (1, 2, 3, 7, 8, 28, 63, 64, 65, 1024, 1025, 4096):
        for high in (2, 16, 60, 200, 256):
            path.write_bytes(bytes(random.integers(0, high, n, np.uint16).astype(np.uint8)))
            try:
                assert layout(path, n, None, "--data") == ("uint16", 0)
            except UserError as error:
                assert re.match(r"--data .*train.bin is .*; ", str(error))
