"""Damaged models of other programs: each is refused in one sentence, or loads and can be used."""

import io
import json
import random
import re
import shutil
import sys

import numpy as np
import pytest
import small
import small_models
from damaged_files import broken, changed, edit_json, mutated
from special_tokens import special

import slm_np
from slm_np.errors import LONGEST, UserError
from slm_np.formats import peft, sources
from slm_np.formats.conversion import convert

pytest.importorskip("gguf", reason="GGUF files need the package gguf")
pytestmark = pytest.mark.usefixtures("one_thread")

N = [24, pytest.param(300, marks=pytest.mark.slow)]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
ADAPTER = dict(peft_type="LORA", r=2, lora_alpha=4, target_modules=["q_proj"], base_model_name_or_path="../directory")
MORE_TOKENS = [special(id, f"<{id}>") for id in range(256, 260)]
# (model, a file that it is read from)
FILES = [
    ("directory", "directory/config.json"),
    ("directory", "directory/tokenizer.json"),
    ("directory", "directory/tokenizer_config.json"),
    ("directory", "directory/generation_config.json"),
    ("directory", "directory/chat_template.jinja"),
    ("directory", "directory/model.safetensors"),
    ("sharded", "sharded/model.safetensors.index.json"),
    ("sharded", "sharded/model-00002-of-00003.safetensors"),
    ("adapter", "adapter/adapter_config.json"),
    ("adapter", "adapter/adapter_model.safetensors"),
    ("model.gguf", "model.gguf"),
    ("llama2c.bin", "llama2c.bin"),
    ("llama2c.bin", "tokenizer.bin"),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with one model in every format."""
    folder = tmp_path_factory.mktemp("originals")
    small_models.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        convert(folder / "run", folder / "directory", dtype="f16")
        patch.setattr("slm_np.formats.weight_files.SHARD_BYTES", 17_000)
        convert(folder / "run", folder / "sharded", dtype="bf16")
    (folder / "directory" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    assert len(list((folder / "sharded").glob("model-*"))) == 3
    base = sources.open_model(folder / "directory")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    draw, width = np.random.default_rng(0), base.config.n_embd
    factors = {f"{module}.lora_A.weight": (2, width), f"{module}.lora_B.weight": (width, 2)}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER), encoding="utf-8")
    peft.write_weights(
        folder / "adapter",
        factors,
        [(name, draw.normal(0, 1, shape).astype("f4")) for name, shape in factors.items()],
        "f32",
        file=peft.WEIGHTS,
    )
    convert(folder / "directory", folder / "model.gguf", dtype="q8_0")
    return folder


@pytest.fixture
def folder(originals, tmp_path):
    shutil.copytree(originals, tmp_path / "copy")
    return tmp_path / "copy"


def used(path):
    """Load a model and use all of it. Returns the `Run`."""
    run = slm_np.load(path)
    tokens = np.arange(5)[None] % run.model.config.vocab_size
    run.model.logits(tokens)
    if run.tokenizer is not None:
        ids = run.tokenizer.encode("the cat <|endoftext|> größe")
        run.tokenizer.decode(ids)
        if run.template is not None:
            run.template.prompt([dict(role="user", content="the cat")], run.tokenizer)
            run.template.stops(run.tokenizer)
    return run


def refused(path):
    """Whether loading or using a model is refused in one sentence. Any other exception fails the test."""
    try:
        used(path)
        return False
    except UserError as error:
        said = str(error)
        assert said and "\n" not in said.strip() and "Traceback" not in said
        return True


def test_undamaged_models_can_be_used(folder):
    for name in dict.fromkeys(name for name, _ in FILES):
        assert not refused(folder / name), name
    assert used(folder / "directory").template is not None and used(folder / "model.gguf").template is not None
    one, two = (sources.open_model(folder / name) for name in ("adapter", "directory"))
    one, two = small_models.weights(one), small_models.weights(two)
    assert [name for name in one if not np.array_equal(one[name], two[name])] == ["layers.0.attention.qkv.weight"]


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("model, file", FILES)
def test_flipped_bits_and_cut_files(folder, model, file, n):
    path = folder / file
    raw, found = path.read_bytes(), 0
    for content in changed(raw, n, n, n // 3):
        path.write_bytes(content)
        found += refused(folder / model)
    if path.suffix in (".gguf", ".bin") or path.name.endswith(".safetensors"):
        assert found >= n // 3  # cut files, at least


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("model, file", [pair for pair in FILES if pair[1].endswith(".json")])
def test_mutated_fields(folder, model, file, n):
    """Fields of another type, huge, negative or null; missing, renamed or unknown. Also files that are not JSON."""
    path, draw, found = folder / file, random.Random(n), 0
    raw = path.read_bytes()
    for _ in range(n):
        content = json.dumps(mutated(json.loads(raw), draw)).encode() if draw.random() < 0.9 else broken(raw, draw)
        path.write_bytes(content)
        found += refused(folder / model)
    assert found or path.name in ("tokenizer_config.json", "generation_config.json")


# Error messages


def rewrite(path, change):
    """Replace the bytes of a file by `change` of them."""
    path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "a shard that is cut short": (
        "sharded",
        lambda folder: rewrite(folder / "model-00001-of-00003.safetensors", lambda raw: raw[:-10]),
        "model-00001-of-00003.safetensors is cut short",
    ),
    "a shard that is missing": (
        "sharded",
        lambda folder: (folder / "model-00003-of-00003.safetensors").unlink(),
        "index.json names model-00003-of-00003.safetensors, which is missing",
    ),
    "an index that names other files": (
        "sharded",
        lambda folder: edit_json(folder / "model.safetensors.index.json", weight_map={"a": "../../etc/passwd"}),
        "which is not a file beside it",
    ),
    "an index that is empty": (
        "sharded",
        lambda folder: edit_json(folder / "model.safetensors.index.json", weight_map={}),
        "for 'weight_map'; it must be an object of file names",
    ),
    "another shape": (
        "directory",
        lambda folder: edit_json(folder / "config.json", intermediate_size=96),
        "but config.json says",
    ),
    "more layers": (
        "directory",
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=9),
        "lacks the tensor",
    ),
    "fewer tokens than the tokenizer": (
        "directory",
        lambda folder: edit_json(folder / "tokenizer.json", added_tokens=MORE_TOKENS),
        "has 260 tokens, but its model 257; use the tokenizer that the model was trained with",
    ),
    "an unknown architecture": (
        "directory",
        lambda folder: edit_json(folder / "config.json", model_type="lama"),
        "model_type 'lama', which is not supported; did you mean llama?",
    ),
    "no architecture": (
        "directory",
        lambda folder: edit_json(folder / "config.json", model_type=...),
        "config.json has no model_type; known are llama",
    ),
    "quantized weights": (
        "directory",
        lambda folder: edit_json(folder / "config.json", quantization_config=dict(quant_method="gptq")),
        "quantization_config .* is not supported, only null; choose another model",
    ),
    "a rotation that is not supported": (
        "directory",
        lambda folder: edit_json(folder / "config.json", rope_scaling=dict(rope_type="yarn", factor=4.0)),
        "rope_type 'yarn' is not supported",
    ),
    "pickled weights": (
        "directory",
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle, which may run any code, so it is not read; convert it",
    ),
    "no weights": (
        "directory",
        lambda folder: (folder / "model.safetensors").unlink(),
        "directory has settings but no model.safetensors; copy that file",
    ),
    "a template that raises": (
        "directory",
        lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('only once') }}"),
        "only once",
    ),
    "a template that does not end": (
        "directory",
        lambda folder: (folder / "chat_template.jinja").write_text("{% for i in range(99999999) %}{% endfor %}"),
        "chat_template.jinja",
    ),
    "a template that leaves its sandbox": (
        "directory",
        lambda folder: (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "chat_template.jinja",
    ),
    "a GGUF file that is cut short": (
        "model.gguf",
        lambda path: rewrite(path, lambda raw: raw[:-100]),
        "model.gguf is cut short or damaged",
    ),
    "an unknown architecture of GGUF": (
        "model.gguf",
        lambda path: rewrite(path, lambda raw: raw.replace(b"llama", b"lIama", 1)),
        "has the architecture 'lIama'; supported are",
    ),
    "a big-endian GGUF file": (
        "model.gguf",
        lambda path: rewrite(path, lambda raw: raw[:4] + raw[4:8][::-1] + raw[8:]),
        "is a big-endian GGUF file; only little-endian",
    ),
    "version 1 of GGUF": (
        "model.gguf",
        lambda path: rewrite(path, lambda raw: raw[:4] + b"\1\0\0\0" + raw[8:]),
        "is a GGUF file of version 1",
    ),
    "a base that is missing": (
        "adapter",
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="../nothing"),
        "the base of adapter, ../nothing, is missing; put it back, or write where it is",
    ),
    "an adapter to itself": (
        "adapter",
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="../adapter"),
        "the base of adapter is an adapter to itself",
    ),
    "no base": (
        "adapter",
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path=...),
        "has None for 'base_model_name_or_path'; write the path of the base there",
    ),
    "another kind of adapter": (
        "adapter",
        lambda folder: edit_json(folder / "adapter_config.json", peft_type="IA3"),
        "IA3",
    ),
    "DoRA": ("adapter", lambda folder: edit_json(folder / "adapter_config.json", use_dora=True), "use_dora"),
    "an adapter of another rank": ("adapter", lambda folder: edit_json(folder / "adapter_config.json", r=4), "shape"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_is_named_and_nothing_is_written(folder, name, capsys, monkeypatch):
    model, damage, said = DAMAGE[name]
    damage(folder / model)
    before = small.tree(folder)
    monkeypatch.chdir(folder)
    if "template" in name:
        commands = [("chat", "--model", model)]
    else:
        merge = ["--merge"] if model == "adapter" else []
        commands = [("generate", "--model", model), ("convert", model, "new.gguf", *merge)]
    for words in commands:
        if words[0] == "chat":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
        capsys.readouterr()
        assert small.status(*words) == 2, words
        err = capsys.readouterr().err
        line = err.splitlines()[-1]
        assert line.startswith("slm_np: ") and len(line) <= LONGEST + 30 and "Traceback" not in err
        assert re.search(said, line), line
    assert small.tree(folder) == before
