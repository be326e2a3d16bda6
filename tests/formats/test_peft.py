"""Adapters in PEFT's format, compared with PEFT in both directions: patterns, rslora, merging, and refusals."""

import json
import shutil

import numpy as np
import pytest
import small
from damaged_files import edit_json
from parts_of_models import filled, parts_of

import slm_np
from slm_np.config import LoraConfig, ModelConfig
from slm_np.errors import UserError
from slm_np.formats import hugging_face, peft
from slm_np.formats.lora_adapter import LoraAdapter
from slm_np.formats.sources import open_model
from slm_np.nn import lora
from slm_np.nn.model import Model

pytestmark = pytest.mark.usefixtures("one_thread", "numpy_kernels")

V, T = 50, 20
ROTARY = dict(vocab_size=V, block_size=T + 12, n_layer=2, n_head=4, n_embd=24, n_hidden=40)
LEARNED = dict(ROTARY, positions="learned", norm="layernorm", feed_forward="gelu-tanh", bias=True)
BASES = {
    "llama": dict(ROTARY, n_kv_head=2, head="linear"),
    "qwen3": dict(ROTARY, qk_norm=True, head_dim=8),
    "gpt2": LEARNED,
    "gpt_neo": dict(LEARNED, qkv_bias="off", score_scale=1.0, pattern="AL", window=5),
    "gpt_neox": dict(LEARNED, positions="rotary", parallel=True),
    "mamba": dict(vocab_size=V, block_size=T + 12, n_layer=2, n_embd=24, pattern="M", feed_forward="none"),
}
# {base: settings of PEFT}
THEIRS = {
    "llama": dict(target_modules=["q_proj", "v_proj", "up_proj", "layers.1.mlp.down_proj"], use_rslora=True),
    "qwen3": dict(target_modules="all-linear", rank_pattern={"q_proj": 3, r"layers\.1\.mlp\.\w+": 2}, lora_alpha=16),
    "gpt2": dict(target_modules=r".*\.(c_attn|mlp\.c_proj)", fan_in_fan_out=True, alpha_pattern={"c_attn": 5}),
    "gpt_neo": dict(target_modules=["q_proj", "c_fc"]),
    "gpt_neox": dict(
        target_modules=["query_key_value", "dense"],
        use_rslora=True,
        rank_pattern={"layers.0.attention.dense": 1},
        alpha_pattern={"query_key_value": 3, "attention.dense": 7},
    ),
    "mamba": dict(target_modules=["in_proj", "x_proj"]),
}
# {base: values of --lora-targets}
OURS = {
    "llama": ["all", "q,v", "qkv,down"],
    "qwen3": ["attention"],
    "gpt2": ["all", "q,v,o", "k"],
    "gpt_neox": ["all", "q,k", "up"],
    "mamba": ["in_proj,x_proj"],
}
CASES = [(base, targets) for base, all_targets in OURS.items() for targets in all_targets]


@pytest.fixture(scope="module")
def oracle(transformers):
    """The package PEFT."""
    return pytest.importorskip("peft", reason="PEFT, the oracle of these tests, is not installed")


def base_model(name, path):
    """(Model, ModelParts) with random weights, also written to `path` as a Hugging Face directory."""
    model = Model(ModelConfig(**BASES[name]))
    model.parameters.weights[:] += np.random.default_rng(0).standard_normal(model.parameters.weights.size) * 0.2
    parts = parts_of(model, path=path)
    hugging_face.write(parts, path)
    return model, parts


def their_model(path):
    """The model of transformers in a directory."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path)


def their_adapter(oracle, base, path, **settings):
    """A model of PEFT with a random adapter, saved in `path`."""
    import torch

    torch.manual_seed(0)
    config = oracle.LoraConfig(**dict(r=4, lora_alpha=8, task_type="CAUSAL_LM") | settings)
    model = oracle.get_peft_model(their_model(base), config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.25)
    model.save_pretrained(path)
    return model


def ids():
    return np.random.default_rng(0).integers(0, V, (2, T))


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(ids())).logits.numpy()


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", THEIRS)
def test_their_adapter_is_merged(oracle, tmp_path, name):
    _, parts = base_model(name, tmp_path / "base")
    model = their_adapter(oracle, tmp_path / "base", tmp_path / "adapter", **THEIRS[name])
    found = open_model(tmp_path / "adapter")
    wanted = logits(model)
    assert np.abs(wanted - filled(parts).logits(ids())).max() > 0.05  # the adapter makes a difference
    close(filled(found).logits(ids()), wanted)
    hugging_face.write(found, tmp_path / "merged")
    close(logits(their_model(tmp_path / "merged")), logits(model.merge_and_unload()))


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_round_trip_keeps_their_adapter(oracle, tmp_path, name, rslora):
    _, parts = base_model(name, tmp_path / "base")
    wanted = logits(their_adapter(oracle, tmp_path / "base", tmp_path / "adapter", **THEIRS[name]))
    adapter = peft.read_adapter(tmp_path / "adapter", parts.config)
    peft.write(parts.config, adapter, tmp_path / "again", rslora=rslora, dropout=0.25)
    again = peft.read_adapter(tmp_path / "again", parts.config)
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all((again.tensors[key] == adapter.tensors[key]).all() for key in adapter.tensors)
    assert again.scales == pytest.approx(adapter.scales)
    model = oracle.PeftModel.from_pretrained(their_model(tmp_path / "base"), tmp_path / "again")
    close(logits(model), wanted)
    assert model.peft_config["default"].lora_dropout == 0.25


@pytest.mark.parametrize("name, targets", CASES)
@pytest.mark.parametrize("rslora", [False, True])
def test_they_load_our_adapter(oracle, tmp_path, name, targets, rslora):
    base, parts = base_model(name, tmp_path / "base")
    settings = LoraConfig(lora_rank=4, lora_alpha=6.0, lora_targets=targets, rslora=rslora)
    model = Model(base.config, 0, lora=settings)
    weights, draw = model.parameters.weight, np.random.default_rng(1)
    for key, array in base.parameters.weight.items():
        weights[key][...] = array
    views = lora.parts(model.adapters, weights)
    for array in views.values():
        array[...] = draw.standard_normal(array.shape) * 0.25
    scales = {key.rpartition(".")[0]: lora.scale_of(settings) for key in views}
    adapter = LoraAdapter(tmp_path, str(tmp_path / "base"), views, scales)
    peft.write(base.config, adapter, tmp_path / "adapter", rslora=rslora)
    wanted = model.logits(ids())
    assert np.abs(wanted - base.logits(ids())).max() > 0.05
    theirs = oracle.PeftModel.from_pretrained(their_model(tmp_path / "base"), tmp_path / "adapter")
    close(logits(theirs), wanted)
    close(filled(open_model(tmp_path / "adapter")).logits(ids()), wanted)
    close(filled(peft.merged(parts, adapter)).logits(ids()), wanted)


def test_an_adapter_of_a_model_that_transformers_lacks(tmp_path):
    config = ModelConfig(**dict(ROTARY, positions="sinusoidal", feed_forward="gelu"))
    draw = np.random.default_rng(0).standard_normal
    tensors = {"layers.1.feed_forward.input.lora_A": draw((24, 2)), "layers.1.feed_forward.input.lora_B": draw((2, 40))}
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    adapter = LoraAdapter(tmp_path, "base", tensors, {"layers.1.feed_forward.input": 2.0})
    peft.write(config, adapter, tmp_path / "adapter")
    found = peft.read_adapter(tmp_path / "adapter", config)
    assert found.scales == adapter.scales and found.base == "base"
    assert all((found.tensors[key] == tensors[key]).all() for key in tensors | found.tensors)


# Refusals, with an adapter that is written here, so that no other package is needed


@pytest.fixture
def adapter(tmp_path):
    """A directory with an adapter of layers.0's q and down, of the base beside it."""
    _, parts = base_model("llama", tmp_path / "base")
    draw = np.random.default_rng(0).standard_normal
    shapes = {"attention.q": (24, 24), "feed_forward.output": (40, 24)}
    tensors = {}
    for name, (inputs, outputs) in shapes.items():
        tensors[f"layers.0.{name}.lora_A"] = draw((inputs, 3)).astype(np.float32)
        tensors[f"layers.0.{name}.lora_B"] = draw((3, outputs)).astype(np.float32)
    made = LoraAdapter(tmp_path, "../base", tensors, {f"layers.0.{name}": 2.0 for name in shapes})
    peft.write(parts.config, made, tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(path):
    """The sentence that refuses an adapter."""
    with pytest.raises(UserError) as refused:
        open_model(path)
    assert ";" in str(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


def edit(path, **changes):
    """Change fields of adapter_config.json."""
    edit_json(path / "adapter_config.json", **changes)


def test_the_base_is_found_beside_the_adapter(adapter):
    assert open_model(adapter).config == ModelConfig(**BASES["llama"])
    edit(adapter, base_model_name_or_path="../nowhere")
    assert "nowhere" in refusal(adapter)
    for missing in (None, "", 3):
        edit(adapter, base_model_name_or_path=missing)
        assert "'base_model_name_or_path'" in refusal(adapter)


@pytest.mark.parametrize(
    "field, value",
    [
        ("peft_type", "LOHA"),
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("target_parameters", ["experts.weight"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("target_modules", None),
        ("target_modules", "(q_proj"),
        ("rank_pattern", {"(": 3}),
        ("rank_pattern", [3]),
        ("rank_pattern", {"q_proj": 0}),
        ("lora_alpha", "much"),
        ("use_rslora", "yes"),
    ],
)
def test_settings_that_change_the_result_are_refused_by_name(adapter, field, value):
    edit(adapter, **{field: value})
    name = {"rank_pattern": "r is" if value == {"q_proj": 0} else field}.get(field, field)
    assert name in refusal(adapter) and "adapter_config.json" in refusal(adapter)


def test_odd_values_are_read_or_refused_in_a_sentence(adapter, capsys):
    config, file = ModelConfig(**BASES["llama"]), adapter / "adapter_config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    odd = (
        None,
        -1,
        0,
        1.5,
        True,
        False,
        "x",
        "(",
        "",
        [],
        {},
        10**30,
        [1],
        [None],
        [[1]],
        {"a": 1},
        {"(": 1},
        {"q_proj": []},
    )
    for name in (*fields, "use_dora", "modules_to_save", "target_parameters", "layer_replication", "exclude_modules"):
        for value in odd:
            file.write_text(json.dumps(fields | {name: value}), encoding="utf-8")
            try:
                assert isinstance(peft.read_adapter(adapter, config), LoraAdapter)
            except UserError as error:
                assert ";" in str(error) and "\n" not in str(error), (name, value)
    capsys.readouterr()


def test_unknown_settings_are_ignored_with_a_message(adapter, capsys):
    edit(adapter, brand_new=True, exclude_modules=None, modules_to_save=[], use_dora=False, peft_version="9")
    open_model(adapter)
    assert "unknown settings, which are ignored: brand_new\n" in capsys.readouterr().err


def test_tensors_that_do_not_fit_are_refused(adapter, tmp_path):
    edit(adapter, r=4)
    assert "holds" in refusal(adapter) and "(4, 24)" in refusal(adapter)
    edit(adapter, r=3, target_modules=["k_proj", "down_proj"])
    assert "not in the target_modules" in refusal(adapter)
    edit(adapter, target_modules=["q_proj", "down_proj"])
    shutil.rmtree(tmp_path / "base")
    base_model("gpt2", tmp_path / "base")
    assert "is not a low-rank adapter of a linear layer" in refusal(adapter)


def test_files_that_are_not_adapters(adapter):
    file = adapter / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert "is cut short" in refusal(adapter)
    file.unlink()
    assert "adapter_model.safetensors is missing" in refusal(adapter)
    (adapter / "adapter_model.bin").write_bytes(b"PK")
    assert "is a pickle" in refusal(adapter)
    (adapter / "adapter_config.json").write_text("[", encoding="utf-8")
    assert "is not valid JSON" in refusal(adapter)


# Runs


@pytest.mark.parametrize("targets", ["all", "q,v"])
@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_a_run_with_adapters_is_a_directory_of_peft(oracle, tmp_path, preset, targets):
    shape = {} if preset == "llama" else dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True)
    data = small.text_file(tmp_path)
    flags = small.flags(data, out_dir=tmp_path / "base", kernels="numpy", block_size=32, **shape)
    assert small.status("train", *flags) == 0
    words = ["--base", tmp_path / "base", "--data", data, "--out-dir", tmp_path / "run", "--kernels", "numpy"]
    words += ["--lora-rank", 2, "--lora-alpha", 8, "--lora-targets", targets, "--rslora", "--max-iters", 20]
    assert small.status("finetune", *words, "--eval-interval", 10, "--warmup-iters", 0, "--learning-rate", 0.01) == 0
    base, found = open_model(tmp_path / "base"), slm_np.load(tmp_path / "run")
    wanted = found.model.logits(ids())
    assert np.abs(wanted - filled(base).logits(ids())).max() > 0.01
    theirs = oracle.PeftModel.from_pretrained(their_model(tmp_path / "base"), tmp_path / "run")
    close(logits(theirs), wanted)
    adapter = peft.read_adapter(tmp_path / "run", base.config)
    close(filled(peft.merged(base, adapter)).logits(ids()), wanted)
