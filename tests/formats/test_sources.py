"""Models of every format are opened, loaded, used and converted in the same way; other paths are refused."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import small
import small_models
from faulty_disk import FaultyDisk

import slm_np
from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data import meter
from slm_np.errors import UserError
from slm_np.formats import conversion, hugging_face, sources
from slm_np.formats.conversion import convert
from slm_np.formats.model_parts import ModelParts
from slm_np.formats.sources import open_model
from slm_np.inference.generation import text_of
from slm_np.nn.model import parameters

pytest.importorskip("gguf", reason="GGUF files need the package gguf")
pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = SamplingConfig(temp=0.0)
# The largest error of a weight, relative to the largest weight.
ROUNDING = {"run": 0, "directory f32": 0, "directory bf16": 2**-8, "GGUF f32": 0, "GGUF q8_0": 1 / 200}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return small_models.make(tmp_path_factory.mktemp("models"))


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """An empty current directory with a text and a copy of the run."""
    monkeypatch.chdir(tmp_path)
    small.text_file(".")
    shutil.copytree(models["run"], "run")
    return tmp_path


def said(capsys, *words, status=2):
    """stderr of a command, which is one line if the command fails."""
    capsys.readouterr()
    assert small.status(*words) == status, words
    err = capsys.readouterr().err
    assert status == 0 or re.fullmatch(r"slm_np: [^\n]+\n", err), err
    return err


# One model in all formats


@pytest.mark.parametrize("kind", ROUNDING)
def test_a_model_is_the_same_in_every_format(models, kind):
    original, found = open_model(models["run"]), open_model(models[kind])
    assert dataclasses.replace(found.config, dropout=0.0, init_std=0.02) == original.config
    small_models.assert_close(small_models.weights(original), small_models.weights(found), ROUNDING[kind])
    for text in (b"the cat sat", "größe ☃\n\n".encode(), b"<|endoftext|>"):
        assert found.tokenizer.encode(text).tolist() == original.tokenizer.encode(text).tolist()


@pytest.mark.parametrize("kind", [*ROUNDING, "llama2.c"])
def test_load_gives_a_model_that_generates(models, kind):
    run = slm_np.load(models[kind])
    assert text_of(run.model, run.tokenizer, "the cat", 5, GREEDY)
    assert run.path == models[kind] and isinstance(run.sampling, SamplingConfig)
    if kind in ("GGUF f32", "directory f32"):
        assert text_of(run.model, run.tokenizer, "the", 20, GREEDY) == text_of(
            slm_np.load(models["run"]).model, run.tokenizer, "the", 20, GREEDY
        )


@pytest.mark.parametrize("kind", [*ROUNDING, "llama2.c"])
def test_commands_take_every_format(models, kind, here, capsys):
    path = models[kind]
    assert small.status("generate", "--model", path, "--prompt", "the", "-n", 3, "--temp", 0) == 0
    assert capsys.readouterr().out.startswith("the")
    assert small.status("evaluate", "--model", path, "--data", "text.txt", "--limit-bytes", 500, "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["model"] == str(path) and fields["tokens"] > 100 and fields["bits_per_byte"] > 0
    assert small.status("info", path) == 0
    out = capsys.readouterr().out
    assert f"{path}: " in out and "transformers: LlamaForCausalLM\n" in out and "GGUF: llama\n" in out


@pytest.mark.parametrize("kind", [*ROUNDING, "llama2.c"])
@pytest.mark.parametrize("target, dtype", [("out", "f32"), ("out", "f16"), ("out.gguf", "f32"), ("out.GGUF", "q8_0")])
def test_every_pair_of_formats(models, kind, target, dtype, here):
    found, parts, _ = convert(models[kind], target, dtype=dtype)
    assert found == Path(target)
    share = {"f32": 0, "f16": 2**-11, "q8_0": 1 / 200}[dtype]
    small_models.assert_close(small_models.weights(parts), small_models.weights(open_model(target)), share)
    assert (sources.format_of(target) == sources.RUN) == (target == "out" and dtype == "f32")


def test_conversions_back_and_forth_keep_every_bit(models, here):
    path = models["run"]
    for target in ("a", "b/x.gguf", "c", "d/x.gguf", "e"):
        path = convert(path, target).path
    small_models.assert_close(small_models.weights(open_model(models["run"])), small_models.weights(open_model(path)))
    assert Path("b/x.gguf").read_bytes() == Path("d/x.gguf").read_bytes()


def test_a_directory_of_f32_is_a_run(models, here, capsys):
    convert(models["GGUF f32"], "new")
    words = ["--base", "new", "--data", "text.txt", "--max-iters", 1, "--batch-size", 2, "--out-dir", "tuned"]
    assert small.status("finetune", *words) == 0
    assert slm_np.load("tuned").step == 1
    capsys.readouterr()
    assert small.status("info", "new") == 0
    assert "new: a run of slm_np, converted from GGUF" in capsys.readouterr().out


def test_a_run_before_its_first_evaluation_is_converted(here):
    small.trainer("text.txt", "young", max_iters=5)
    small_models.assert_close(
        small_models.weights(open_model("young")), small_models.weights(open_model(convert("young", "y.gguf").path))
    )


@pytest.mark.parametrize("kind", ["GGUF q8_0", "llama2.c", "run"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_transformers_computes_the_same_from_a_directory(models, here, kind, dtype):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle of this test")
    torch = pytest.importorskip("torch", reason="transformers needs PyTorch")
    convert(models[kind], "out", dtype=dtype)
    run, ids = slm_np.load("out"), [[3, 1, 4, 1, 5, 9, 2, 6]]
    theirs = transformers.AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(run.model.logits(ids), logits, atol=1e-4 * np.abs(logits).max())
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    ids = run.tokenizer.encode("the cat sat").tolist()
    assert tokenizer("the cat sat", add_special_tokens=False)["input_ids"] == ids


# Adapters


@pytest.fixture
def adapted(models, here):
    """The directory of a run that has trained adapters to `base`, a Hugging Face directory."""
    shutil.copytree(models["directory bf16"], "base")
    words = ["--base", "base", "--data", "text.txt", "--lora-rank", 2, "--lora-alpha", 8, "--max-iters", 3]
    assert small.status("finetune", *words, "--batch-size", 2, "--block-size", 8, "--out-dir", "adapted") == 0
    return Path("adapted")


def test_an_adapter_alone_and_merged(adapted, here, capsys):
    merged, base = small_models.weights(open_model(adapted)), small_models.weights(open_model("base"))
    assert sum(not np.array_equal(merged[name], base[name]) for name in base) > 3
    capsys.readouterr()
    assert small.status("convert", adapted, "alone") == 0
    shown = capsys.readouterr()
    assert f"adapted: an adapter to {Path('base').resolve()} with " in shown.err
    assert "adapter: alone; --merge writes the model" in shown.out and shown.out.endswith("--model alone\n")
    assert small.tree("alone") == ["adapter_config.json", "adapter_model.safetensors"]
    for source in ("adapted", "alone"):
        found, _, adapter = convert(source, f"{source}-merged", merge=True)
        assert adapter is None and sources.format_of(found) == sources.RUN
        for path in (source, found):
            small_models.assert_close(small_models.weights(open_model(path)), merged, 1e-6)
    assert convert("alone", "again").adapter.scales == convert("adapted", "alone2").adapter.scales
    assert small.status("generate", "--model", "alone", "--prompt", "the", "-n", 2) == 0
    assert small.status("info", "alone", "adapted") == 0


@pytest.mark.parametrize("base", ["alone", "adapted"])
def test_a_model_with_an_adapter_can_be_a_base(adapted, here, capsys, base):
    convert(adapted, "alone")
    merged = small_models.weights(open_model(base))
    words = ["--data", "text.txt", "--max-iters", 1, "--batch-size", 2, "--block-size", 8, "--learning-rate", 1e-9]
    assert small.status("finetune", "--base", base, *words, "--lora-rank", 2, "--out-dir", "new") == 0
    small_models.assert_close(small_models.weights(open_model("new")), merged, 1e-6)
    capsys.readouterr()
    assert small.status("evaluate", "--model", base, "--data", "text.txt") == 0
    shown = capsys.readouterr()
    assert re.match(f"{base}(, weights of step 3)?, on text.txt: ", shown.err)


def test_an_adapter_for_llama_cpp(adapted, here, capsys):
    assert small.status("convert", adapted, "adapter.gguf") == 0
    assert "llama.cpp: llama-cli -m BASE.gguf --lora adapter.gguf" in capsys.readouterr().out
    assert not Path("adapter.Modelfile").exists()
    assert "not a model; give it to llama.cpp with --lora" in said(capsys, "generate", "--model", "adapter.gguf")
    convert(adapted, "merged.gguf", dtype="q8_0", merge=True)
    merged = small_models.weights(open_model(adapted))
    small_models.assert_close(merged, small_models.weights(open_model("merged.gguf")), 1 / 200)


def test_bad_input_about_adapters(adapted, here, capsys):
    assert "--merge has no effect on base, which is not an adapter" in said(capsys, "convert", "base", "new", "--merge")
    assert "adaptd is not a model: it does not exist" in said(capsys, "convert", "adaptd", "new", "--merge")
    for words in (["--dtype", "bf16"], ["--tokenizer", "base/tokenizer.json"]):
        assert f"{' '.join(words)} has no effect on an adapter" in said(capsys, "convert", adapted, "new", *words)
    convert(adapted, "alone")
    Path("base").rename("moved")
    for words in (("alone", "new"), ("alone", "new", "--merge"), (adapted, "new"), (adapted, "new.gguf", "--merge")):
        line = said(capsys, "convert", *words)
        assert f"the base of {words[0]}, " in line and "base, is missing; put it back" in line
    assert not [name for name in small.tree(".") if name.startswith("new")]


# What is printed


def test_the_next_commands_are_printed(models, here, capsys):
    assert small.status("convert", "run", "deep/model.gguf", "--dtype", "q8_0") == 0
    shown = capsys.readouterr()
    assert re.search(r"run: [\d,]+ parameters, 1 layer, vocabulary 257\n", shown.err)
    assert "model: deep/model.gguf\nllama.cpp: llama-cli -m deep/model.gguf\n" in shown.out.replace("\\", "/")
    assert "ollama create model -f deep/model.Modelfile && ollama run model" in shown.out.replace("\\", "/")
    assert Path("deep/model.Modelfile").read_text(encoding="utf-8").startswith("FROM ./model.gguf\n")
    assert small.status("convert", "run") == 0
    assert f"run: {Path('runs/run')}\nmore: python -m slm_np.generate" in capsys.readouterr().out
    assert small.status("convert", "run", "half", "--dtype", "f16") == 0
    assert "model: half\nmore: python -m slm_np.generate --model half" in capsys.readouterr().out  # not a run
    assert small.status("convert", "run", "Größe (1).gguf") == 0
    assert "ollama create gr-e-1 -f " in capsys.readouterr().out  # names in Ollama have a-z and digits only
    assert small.status("convert", "run") == 0 and Path("runs/run-2/run.json").is_file()


def test_loading_shows_how_far_it_is(models, here, capsys, monkeypatch):
    monkeypatch.setattr(meter, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(meter, "LINE_S", 0.0)
    shutil.copytree(models["directory bf16"], "base")
    slm_np.load("base")
    assert re.search("loading base: [0-9]+ of [0-9]+ MB, ETA 0s", capsys.readouterr().err)
    words = ("--data", "text.txt", "--max-iters", 1, "--batch-size", 2, "--block-size", 8, "--out-dir", "new")
    assert small.status("finetune", "--base", "base", *words) == 0
    assert "loading base: " in capsys.readouterr().err


# Memory


def test_loading_holds_the_model_once(tmp_path):
    config = ModelConfig(vocab_size=64, block_size=16, n_layer=12, n_head=2, n_embd=128)
    shapes = {tensor.name: tensor.shape for tensor in parameters(config)}
    total = 4 * sum(int(np.prod(shape)) for shape in shapes.values())

    def tensors():
        return ((name, np.ones(shape, np.float32)) for name, shape in shapes.items())

    parts = ModelParts(tmp_path / "x", config, tensors, None, None, SamplingConfig(), "test")
    model = slm_np.Model(config, None)
    tracemalloc.start()
    try:
        sources.fill(model.parameters.weight, parts)
        assert tracemalloc.get_traced_memory()[1] < total / 5
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        conversion.write_run(parts, tmp_path)
        assert tracemalloc.get_traced_memory()[1] - before < total / 3
    finally:
        tracemalloc.stop()
    small_models.assert_close(dict(tensors()), model.parameters.weight)


# Context, tokenizer


def long_context(folder):
    """A Hugging Face directory with a context of 20,000 tokens and no tokenizer."""
    config = ModelConfig(vocab_size=40, block_size=20_000, n_layer=1, n_head=2, n_embd=16, n_hidden=24)
    draw = np.random.default_rng(0)
    made = {tensor.name: draw.normal(0, 0.1, tensor.shape).astype("f4") for tensor in parameters(config)}
    parts = ModelParts(folder, config, lambda: iter(made.items()), None, None, SamplingConfig(), "test")
    hugging_face.write(parts, folder, "f32")
    return folder


def test_a_long_context_is_cut_for_use_and_kept_for_others(here, capsys):
    path = long_context(here / "long")
    run = slm_np.load(path)
    assert run.model.config.block_size == sources.CONTEXT and run.config.full_context == 20_000
    convert(path, "run2"), convert("run2", "x.gguf"), convert("x.gguf", "again")
    for name in ("run2", "again"):
        assert json.loads(Path(name, "config.json").read_text())["max_position_embeddings"] == 20_000
        assert slm_np.load(name).model.config.block_size == sources.CONTEXT
    capsys.readouterr()
    assert small.status("info", "long") == 0
    assert "context    20,000 tokens, used with 4,096 here" in capsys.readouterr().out


def test_a_model_without_a_tokenizer_takes_no_text(here, capsys):
    path = long_context(here / "long")
    run = slm_np.load(path)
    assert run.tokenizer is None
    assert run.model.logits(np.zeros((1, 3), int)).shape == (1, 3, 40)
    for words in (("generate", "--prompt", "a"), ("chat",), ("evaluate", "--data", "text.txt")):
        assert "tokenizer" in said(capsys, words[0], "--model", "long", *words[1:])
    (np.arange(400, dtype="<u2") % 40).tofile("ids.bin")
    assert small.status("evaluate", "--model", "long", "--data", "ids.bin", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] is None
    assert small.status("convert", "long", "out") == 0
    assert "no tokenizer" in capsys.readouterr().out


def test_a_tokenizer_can_be_given(here, capsys, models):
    path = long_context(here / "long")
    assert small.status("train", *small.flags("text.txt", tokenizer="char", out_dir="chars", max_iters=1)) == 0
    tokenizer = Path("chars/tokenizer.json")
    assert open_model(path, tokenizer).tokenizer.vocab_size < 40
    run = slm_np.load(convert(path, "with", tokenizer).path)
    sampling = SamplingConfig(seed=1, temp=2.0)
    assert text_of(run.model, run.tokenizer, "the cat", 30, sampling)  # no id beyond the tokenizer is sampled
    line = said(capsys, "convert", path, "other", "--tokenizer", models["run"] / "tokenizer.json")
    assert re.search(r"the tokenizer of \S+ has 25[67] tokens, but its model 40; use the tokenizer", line)
    assert not Path("other").exists()


def test_evaluating_a_foreign_model_needs_data(models, here, capsys):
    assert "no validation data; name a text with --data" in said(capsys, "evaluate", "--model", models["GGUF f32"])


# Names on the hub


def test_a_name_on_the_hub_stays_the_models_name(models, here, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("slm_np.formats.hub.fetch", lambda name: asked.append(str(name)) or models["directory bf16"])
    run = slm_np.load("org/name@v1")
    assert run.path == Path("org/name@v1") and asked
    assert small.status("info", "org/name") == 0
    assert "org/name: a model, Hugging Face, llama\n" in capsys.readouterr().out.replace("\\", "/")
    assert small.status("convert", "org/name") == 0 and Path("runs/name/run.json").is_file()
    asked.clear()
    for path in ("run/nothing", "runs/nothing"):  # a typo: the folder exists
        with pytest.raises(UserError, match="does not exist"):
            slm_np.load(path)
    assert not asked


# Paths that are not models


def test_paths_that_are_not_models(here, capsys, models):
    shutil.copytree(models["directory bf16"], "hf")
    Path("empty").mkdir()
    Path("folder").mkdir()
    Path("folder/a.gguf").write_bytes(b"GGUF")
    Path("weights").mkdir()
    shutil.copy("hf/model.safetensors", "weights/x.safetensors")
    shutil.copy("hf/model.safetensors", "alone.safetensors")
    for name, content in {
        "old.bin": b"\x80\x02}q\0.",
        "torch.pt": b"PK\x03\x04" + bytes(40),
        "x.gz": b"\x1f\x8b\x08" + bytes(40),
        "old.ggml": b"ggml" + bytes(40),
        "noise": bytes(range(256)),
        "none": b"",
    }.items():
        Path(name).write_bytes(content)
    for path, named in {
        "nowhere": "nowhere is not a model: it does not exist; name a run, a Hugging Face directory",
        "hff": "did you mean hf?",
        "hf/model.safetensors": "not a model but a part of the model hf; name the model: hf",
        "hf/tokenizer.json": "not a model but a part of the model hf; name the model: hf",
        "hf/nothing": "does not exist in the model hf; name the model: hf",
        "run/tokenizer.json": "a part of the run run; name the run: run",
        "empty": "an empty folder, not a model",
        "none": "none is empty, not a model",
        "folder": f"a folder with GGUF files; name one: {Path('folder/a.gguf')}",
        "weights": "has weights but no config.json; copy that file",
        "weights/x.safetensors": "has weights but no config.json beside it",
        "alone.safetensors": "has weights but no config.json beside it",
        "old.bin": "old.bin holds pickled weights of PyTorch, which may run any code, so it is not read; run in Python",
        "torch.pt": "torch.pt holds pickled weights",
        "x.gz": "x.gz is a compressed file, not a model",
        "old.ggml": "old.ggml is a GGML file, the format before GGUF",
        "noise": "noise is a file of unknown format, not a model",
        "text.txt": "text.txt is a text, not a model; train on it with --data text.txt",
        "no/such.gguf": f"{Path('no/such.gguf')} is not a model: it does not exist",  # not a name on the hub
        ".": "is not a model but a folder with models; name one: hf, run",
    }.items():
        assert named in said(capsys, "generate", "--model", path), path
        assert named in said(capsys, "convert", path, "new"), path
    assert not Path("new").exists()
    assert "nowhere does not exist; name a run, a Hugging Face directory" in said(capsys, "info", "nowhere")


def test_a_link_to_nothing(here, capsys):
    try:
        Path("link").symlink_to("gone")
    except OSError:
        pytest.skip("no symlinks here")
    for words in (("generate", "--model", "link"), ("convert", "link", "new"), ("info", "link")):
        assert "link is a link to gone, which does not exist; name a run" in said(capsys, *words)


@pytest.mark.parametrize("target", [".", "..", "run", "run/model.safetensors"])
def test_a_target_that_exists(here, capsys, target):
    before = small.tree(here)
    assert "already exists, and nothing is overwritten" in said(capsys, "convert", "run", target)
    assert small.tree(here) == before


def test_a_model_that_cannot_be_resumed_can_be_finetuned(models, here, capsys):
    shutil.copytree(models["directory bf16"], "hf")
    shutil.copy(models["GGUF f32"], "model.gguf")
    for path in ("hf", "model.gguf"):
        line = said(capsys, "train", "--resume", path)
        assert f"start one from it with python -m slm_np.finetune --base {path}" in line


@pytest.mark.parametrize(
    "source, name",
    [
        ("runs/v1.5", "v1.5"),
        ("org/SmolLM2-1.7B", "SmolLM2-1.7B"),
        ("org/name@v1.0", "name"),
        ("a/model.Q4_1.gguf", "model.Q4_1"),
        ("stories.bin", "stories"),
    ],
)
def test_the_default_name_of_a_target(source, name):
    assert conversion.name_of(source) == name


def test_a_dtype_that_the_target_lacks(here, capsys):
    assert "--dtype q8_0 is a type of GGUF files" in said(capsys, "convert", "run", "new", "--dtype", "q8_0")
    assert "invalid choice: 'q4'" in said(capsys, "convert", "run", "new", "--dtype", "q4")
    recurrent = dict(pattern="S", n_head=None, feed_forward="none", n_hidden=None, positions="none")
    assert small.status("train", *small.flags("text.txt", **recurrent, out_dir="s", max_iters=1)) == 0
    assert "no class of transformers" in said(capsys, "convert", "s", "new", "--dtype", "bf16")
    refusal = said(capsys, "convert", "s", "new.gguf")
    assert "no architecture of llama.cpp" in refusal
    assert "Hugging Face directory" not in refusal  # which cannot hold it either
    assert not Path("new").exists() and not Path("new.gguf").exists()
    said(capsys, "convert", "s", "copy", status=0)  # a run, as it is
    small_models.assert_close(small_models.weights(open_model("s")), small_models.weights(open_model("copy")))


# Failing disks and kills


@pytest.mark.parametrize("target, dtype", [("new", "f32"), ("new", "bf16"), ("new.gguf", "q8_0")])
def test_a_write_that_fails_leaves_nothing(here, monkeypatch, target, dtype):
    before, at, failed = small.tree("."), 0, 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch, at, 28)
            try:
                convert("run", target, dtype=dtype)
            except UserError as error:
                assert re.match(r"cannot write \S*new.*free some space", str(error))
                assert small.tree(".") == before, disk.failed
                failed += 1
                continue
        assert open_model(target).tokenizer is not None
        if not disk.failed:
            break
        assert disk.failed.startswith(("fsync", "mkdir")), disk.failed  # folders that already exist
        shutil.rmtree(target) if dtype != "q8_0" else [Path(name).unlink() for name in ("new.gguf", "new.Modelfile")]
    assert failed > 10


@pytest.mark.parametrize("target", ["deep/new", "deep/new.gguf"])
def test_of_two_conversions_to_one_target_one_is_refused_at_once(here, target, capsys):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TENSORS, target], env=small.environment(), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"tensor\n"
        line = said(capsys, "convert", "run", target)
        assert f"{Path(target)} is in use by process {process.pid} " in line and "choose another name" in line
    finally:
        process.kill()
        process.communicate()
    said(capsys, "convert", "run", target, status=0)
    assert open_model(target).tokenizer is not None
    assert sorted(path.name for path in Path("deep").iterdir()) == ["new.Modelfile"] * target.endswith(".gguf") + [
        Path(target).name
    ]


def test_folders_for_a_target_that_fails_are_removed(here, monkeypatch):
    before = small.tree(".")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_run", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert("run", "one/two/new")
    assert small.tree(".") == before


SLOW_TENSORS = """
import dataclasses, sys, time
from slm_np.formats import conversion
metered = conversion.metered
def slow(parts, verb):
    found = metered(parts, verb)
    def tensors():
        for pair in found.tensors():
            yield pair
            print("tensor", flush=True)
            time.sleep(60)
    return dataclasses.replace(found, tensors=tensors)
conversion.metered = slow
conversion.convert("run", sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
@pytest.mark.parametrize("target", ["new", "new.gguf"])
def test_a_kill_leaves_no_target_and_the_next_start_works(here, target):
    before = small.tree(".")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TENSORS, target], env=small.environment(), stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"tensor\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [path for path in small.tree(".") if path not in before]
    assert left and all(path.startswith((f"{target}.tmp-", f"{target}.lock")) for path in left)
    convert("run", target)
    assert not [*Path().glob("*.tmp-*"), *Path().glob("*.lock")] and open_model(target).tokenizer is not None
