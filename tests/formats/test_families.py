"""Every model family compared with transformers, on small random models in both directions.

Compared are logits, gradients in their names and layouts, AdamW updates, greedy tokens, and the files of each side.
"""

import dataclasses

import numpy as np
import pytest
from parts_of_models import filled, parts_of

from slm_np.config import ModelConfig
from slm_np.errors import UserError
from slm_np.formats import families, hugging_face, weight_files
from slm_np.formats.families.tensor_mapping import by_our_name, to_ours, to_theirs
from slm_np.inference.decoder import Decoder
from slm_np.nn.model import Model, parameters
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread", "numpy_kernels")

V, T = 50, 20
SIZES = dict(
    vocab_size=V,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=T + 12,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"} | dict(hidden_size=32)
GPT2 = dict(vocab_size=V, n_embd=24, n_layer=2, n_head=4, n_positions=T + 12, bos_token_id=None, eos_token_id=None)
NEO = dict(
    vocab_size=V,
    hidden_size=24,
    num_layers=4,
    num_heads=4,
    max_position_embeddings=T + 12,
    attention_types=[[["global", "local"], 2]],
    window_size=5,
    bos_token_id=None,
    eos_token_id=None,
)
MAMBA = dict(vocab_size=V, hidden_size=24, num_hidden_layers=2, bos_token_id=None, eos_token_id=None, pad_token_id=None)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
FULL, SLIDING = "full_attention", "sliding_attention"
# {name: (class of their configuration, its fields)}
CASES = {
    "llama": ("LlamaConfig", SIZES),
    "llama-tied": ("LlamaConfig", dict(SIZES, tie_word_embeddings=True, head_dim=10, rms_norm_eps=0.01)),
    "llama-bias": ("LlamaConfig", dict(SIZES, attention_bias=True, mlp_bias=True)),
    "llama-3.1": ("LlamaConfig", dict(SIZES, rope_parameters=LLAMA3)),
    "mistral": ("MistralConfig", dict(SIZES, sliding_window=None)),
    "mistral-window": ("MistralConfig", dict(SIZES, sliding_window=6)),
    "qwen2": ("Qwen2Config", dict(SIZES, tie_word_embeddings=True)),
    "qwen2-windows": ("Qwen2Config", dict(SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": ("Qwen3Config", dict(SIZES, head_dim=8, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "qwen3-windows": (
        "Qwen3Config",
        dict(SIZES, head_dim=16, use_sliding_window=True, sliding_window=4, layer_types=[SLIDING, FULL, SLIDING]),
    ),
    "smollm3": ("SmolLM3Config", dict(SIZES, no_rope_layer_interval=2)),
    "smollm3-windows": (
        "SmolLM3Config",
        dict(
            SIZES,
            no_rope_layers=[1, 0, 1],
            use_sliding_window=True,
            sliding_window=7,
            layer_types=[SLIDING, FULL, FULL],
            attention_bias=True,
            mlp_bias=True,
        ),
    ),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-other": (
        "GPT2Config",
        dict(GPT2, activation_function="gelu", n_inner=20, scale_attn_weights=False, tie_word_embeddings=False),
    ),
    "gpt2-silu": ("GPT2Config", dict(GPT2, activation_function="silu", layer_norm_epsilon=0.01)),
    "gpt_neox": ("GPTNeoXConfig", NEOX),
    "gpt_neox-sequential": (
        "GPTNeoXConfig",
        dict(
            NEOX,
            use_parallel_residual=False,
            hidden_act="gelu_new",
            tie_word_embeddings=True,
            rope_parameters=dict(rope_theta=100.0, partial_rotary_factor=1.0),
        ),
    ),
    "gpt_neo": ("GPTNeoConfig", NEO),
    "gpt_neo-untied": ("GPTNeoConfig", dict(NEO, intermediate_size=20, tie_word_embeddings=False)),
    "mamba": ("MambaConfig", MAMBA),
    "mamba-other": (
        "MambaConfig",
        dict(
            MAMBA,
            use_bias=True,
            expand=3,
            state_size=5,
            conv_kernel=3,
            time_step_rank=4,
            tie_word_embeddings=False,
        ),
    ),
}
# {name: (our settings, the model_type that computes them)}
ROTARY = dict(vocab_size=V, block_size=T + 12, n_layer=3, n_head=4, n_embd=24, n_hidden=40)
LEARNED = dict(ROTARY, positions="learned", norm="layernorm", feed_forward="gelu-tanh")
OURS = {
    "plain": (ROTARY, "llama"),
    "biases": (dict(ROTARY, bias=True), "llama"),
    "odd-width": (dict(ROTARY, n_embd=26, head_dim=6), "mistral"),
    "window": (dict(ROTARY, pattern="L", window=5), "mistral"),
    "some-windows": (dict(ROTARY, pattern="AL", window=5, rope_theta=50.0), "smollm3"),
    "all-letters": (dict(ROTARY, pattern="ANL", window=5, head="linear"), "smollm3"),
    "no-positions": (dict(ROTARY, positions="none", head_dim=8), "smollm3"),
    "no-positions-windows": (dict(ROTARY, positions="none", pattern="AL", window=5), "smollm3"),
    "qkv-bias": (dict(ROTARY, qkv_bias="on", head_dim=8), "qwen2"),
    "qkv-bias-windows": (dict(ROTARY, qkv_bias="on", pattern="LA", window=3), "qwen2"),
    "qk-norm": (dict(ROTARY, qk_norm=True, n_kv_head=2, rope_scaling="llama3:4,1,2,16"), "qwen3"),
    "qk-norm-windows": (dict(ROTARY, qk_norm=True, pattern="AL", window=5), "qwen3"),
    "gpt2": (dict(LEARNED, bias=True, head="linear"), "gpt2"),
    "gpt2-no-bias": (LEARNED, "gpt2"),
    "gpt2-qkv-bias": (dict(LEARNED, qkv_bias="on", feed_forward="gelu"), "gpt2"),
    "gpt2-no-qkv-bias": (dict(LEARNED, bias=True, qkv_bias="off"), "gpt2"),
    "gpt_neo": (dict(LEARNED, bias=True, qkv_bias="off", score_scale=1.0, pattern="AL", window=5), "gpt_neo"),
    "gpt_neo-no-bias": (dict(LEARNED, score_scale=1.0, pattern="AL", window=5), "gpt_neo"),
    "gpt_neox": (
        dict(ROTARY, norm="layernorm", feed_forward="gelu", parallel=True, rotary_dim=2, bias=True),
        "gpt_neox",
    ),
    "gpt_neox-no-bias": (dict(ROTARY, norm="layernorm", feed_forward="gelu-tanh"), "gpt_neox"),
    "mamba": (
        dict(vocab_size=V, block_size=T + 12, n_layer=2, n_embd=24, pattern="M", feed_forward="none", bias=True),
        "mamba",
    ),
}
# Our settings that no class computes.
ALONE = {
    "recurrence": dict(pattern="S"),
    "mixed": dict(pattern="AM"),
    "mlp-head": dict(head="mlp"),
    "sinusoidal": dict(positions="sinusoidal"),
    "silu": dict(feed_forward="silu"),
    "parallel": dict(parallel=True),
    "odd-scale": dict(score_scale=0.5),
    "part-rotated": dict(rotary_dim=2),
    "norm-and-bias": dict(qk_norm=True, qkv_bias="on"),
    "norm-and-no-rotation": dict(qk_norm=True, pattern="AN"),
    "bias-without-qkv": dict(bias=True, qkv_bias="off"),
    "mamba-width": dict(pattern="M", feed_forward="none", n_inner=20),
}


def theirs(transformers, name, seed=0):
    """A model of transformers in which all weights are random, including norms and biases."""
    import torch

    kind, fields = CASES[name]
    torch.manual_seed(seed)
    fields = {key: list(value) if isinstance(value, list) else value for key, value in fields.items()}
    fields |= {key: dict(value) for key, value in fields.items() if isinstance(value, dict)}  # it changes them
    config = getattr(transformers, kind)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def saved(model, path, **options):
    """The ModelParts of a directory that transformers wrote."""
    model.save_pretrained(path, **options)
    return hugging_face.read(path)


def ours(name, seed=0):
    """A Model of ours with random weights."""
    model = Model(ModelConfig(**OURS[name][0]), None)
    model.parameters.weights[:] = np.random.default_rng(seed).standard_normal(model.parameters.weights.size) * 0.1
    return model


def ids(n=T, batch=2, seed=0):
    return np.random.default_rng(seed).integers(0, V, (batch, n))


def logits(model, tokens):
    """Logits (B, T, V) of a model of transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def loss(model, tokens, targets):
    """The mean cross-entropy of a model of transformers, as a tensor of PyTorch."""
    import torch

    found = model(torch.tensor(tokens)).logits
    return torch.nn.functional.cross_entropy(found.reshape(-1, V), torch.tensor(targets).reshape(-1))


def named(model):
    """{name: Parameter} of a model of transformers, by the names of its family's mappings."""
    aliases = families.family_named(model.config.model_type).ALIASES
    return {aliases.get(name, name): weight for name, weight in model.named_parameters()}


def close(found, wanted, bound=1e-4, name=""):
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound, err_msg=name)


# From theirs to ours


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_of_their_model(transformers, kernel_set, tmp_path, name):
    import torch

    model = theirs(transformers, name)
    mine = filled(saved(model, tmp_path))
    close(mine.logits(ids()), logits(model, ids()))
    prompt = ids(5, 1)
    options = dict(
        do_sample=False, max_new_tokens=T, pad_token_id=0, attention_mask=torch.ones_like(torch.tensor(prompt))
    )
    wanted = model.generate(torch.tensor(prompt), **options)[0, 5:].tolist()
    decoder, found = Decoder(mine), []
    row = decoder.read(prompt)
    for _ in range(T):
        found.append(int(row[0].argmax()))
        row = decoder.step(found[-1:])
    assert found == wanted


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_updates_of_their_model(transformers, kernel_set, tmp_path, name):
    import torch

    model = theirs(transformers, name)
    mine = filled(saved(model, tmp_path), decay="all")
    tokens, targets = ids(), ids(seed=1)
    mappings = list(families.family_named(model.config.model_type).mappings(mine.config))
    loss(model, tokens, targets).backward()
    assert mine.loss_and_gradient(tokens, targets) == pytest.approx(loss(model, tokens, targets).item(), rel=1e-5)
    gradients, weights = {}, named(model)
    for mapping, array in to_theirs(mappings, mine.parameters.gradient.items()):
        gradients[mapping.theirs] = array
    assert gradients.keys() == weights.keys()
    for key, array in gradients.items():
        close(array, weights[key].grad.numpy(), name=key)
    # Epsilon is above the rounding errors of gradients that are zero in exact arithmetic, such as those of key biases.
    options = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    other = torch.optim.AdamW(model.parameters(), **options)
    mine.parameters.gradients.fill(0)
    optimizer = AdamW(mine.parameters, 1e-3, 0.1, 0.9, 0.95, 1e-5, grad_clip=0.0)
    for step in range(10):
        tokens, targets = ids(seed=step), ids(seed=step + 20)
        other.zero_grad()
        loss(model, tokens, targets).backward()
        other.step()
        mine.loss_and_gradient(tokens, targets)
        optimizer.step()
    for mapping, array in to_theirs(mappings, mine.parameters.weight.items()):  # ten updates move weights by up to 1e-2
        np.testing.assert_allclose(array, weights[mapping.theirs].detach().numpy(), atol=1e-5, err_msg=mapping.theirs)


@pytest.mark.parametrize("name", CASES)
def test_what_comes_back_is_what_was_read(transformers, tmp_path, name):
    model = theirs(transformers, name)
    parts = saved(model, tmp_path / "theirs")
    hugging_face.write(parts, tmp_path / "ours")
    again = hugging_face.read(tmp_path / "ours")
    assert again.config == parts.config
    for (key, array), (_, other) in zip(parts.tensors(), again.tensors(), strict=True):
        np.testing.assert_array_equal(array, other, err_msg=key)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_we_read_their_shards_of_any_type(transformers, tmp_path, name, dtype):
    import torch

    model = theirs(transformers, name).to(getattr(torch, dtype))
    parts = saved(model, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    weights = named(model)
    for mapping, array in to_theirs(families.family_of(parts.config).mappings(parts.config), parts.tensors()):
        np.testing.assert_array_equal(array, weights[mapping.theirs].detach().float().numpy(), err_msg=mapping.theirs)


# From ours to theirs


@pytest.mark.parametrize("name", OURS)
def test_transformers_reads_our_model(transformers, tmp_path, name):
    model, kind = ours(name), OURS[name][1]
    hugging_face.write(parts_of(model), tmp_path / "ours")
    found, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert found.config.model_type == kind
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    close(logits(found.eval(), ids()), model.logits(ids()))
    close(filled(hugging_face.read(tmp_path / "ours")).logits(ids()), model.logits(ids()))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_transformers_reads_our_shards(transformers, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 10_000)
    model = ours("qk-norm")
    hugging_face.write(parts_of(model), tmp_path / "ours", dtype)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert str(found.dtype) == f"torch.{weight_files.WRITTEN[dtype][0]}"
    close(logits(found.float().eval(), ids()), model.logits(ids()), 1e-4 if dtype == "f32" else 3e-2)


@pytest.mark.parametrize("name", OURS)
def test_a_round_trip_keeps_our_settings(name):
    config = ModelConfig(**OURS[name][0])
    fields = families.config_json(config)
    found = families.family_named(fields["model_type"]).config_from(fields)
    if "no-" in name or name in ("gpt2-qkv-bias", "gpt2-no-qkv-bias"):  # the file has biases, which are zeros
        assert families.family_of(found) is families.family_of(config)
        found = dataclasses.replace(found, bias=config.bias, qkv_bias=config.qkv_bias)
    assert found == dataclasses.replace(config, qkv_bias=found.qkv_bias)
    assert found.has_qkv_bias == config.has_qkv_bias


@pytest.mark.parametrize("name", ALONE)
def test_a_model_without_a_class_is_refused(tmp_path, name):
    settings = dict(vocab_size=V, block_size=T, n_layer=2, n_embd=24) | ALONE[name]
    if set(settings.get("pattern", "A")) & set("AN"):
        settings |= dict(n_head=4)
    config = ModelConfig(**settings)
    assert families.family_of(config) is None and families.config_json(config) is None
    with pytest.raises(UserError, match="no class of transformers"):
        hugging_face.write(parts_of(Model(config)), tmp_path / "ours")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OURS)
def test_mappings_cover_all_of_our_tensors(name):
    config = ModelConfig(**OURS[name][0])
    mappings = list(families.family_of(config).mappings(config))
    found = by_our_name(mappings)
    for tensor in parameters(config):
        size = sum(np.prod(mapping.shape) for mapping in found.pop(tensor.name))
        assert size == np.prod(tensor.shape), tensor.name
    assert set(found) <= {""}
    assert len({mapping.theirs for mapping in mappings}) == len(mappings)
    arrays = dict(ours(name).parameters.weight)
    written = {mapping.theirs: array for mapping, array in to_theirs(mappings, arrays.items())}
    assert all(
        written[mapping.theirs].shape == mapping.shape and written[mapping.theirs].flags.c_contiguous
        for mapping in mappings
    )
    for key, array in to_ours(config, mappings, lambda mapping: written[mapping.theirs]):
        np.testing.assert_array_equal(array, arrays[key], err_msg=key)


# config.json

KIND = dict(
    llama=SIZES,
    mistral=SIZES,
    qwen2=SIZES,
    qwen3=SIZES,
    smollm3=SIZES,
    gpt_neox=NEOX,
    gpt2=GPT2,
    gpt_neo=NEO,
    mamba=MAMBA,
)


def config_of(kind, **changes):
    """The ModelConfig of a config.json with changed fields. Fields that are ... are left out."""
    fields = dict(KIND[kind], model_type=kind) | changes
    fields = {name: value for name, value in fields.items() if value is not ...}
    return families.family_named(kind).config_from(fields)


@pytest.mark.parametrize(
    "kind, old, new",
    [
        ("llama", dict(rope_theta=5e5), dict(rope_parameters=dict(rope_theta=5e5, rope_type="default"))),
        (
            "llama",
            dict(
                rope_theta=500.0, rope_scaling={name: value for name, value in LLAMA3.items() if name != "rope_theta"}
            ),
            dict(rope_parameters=LLAMA3),
        ),
        (
            "llama",
            dict(rope_theta=500.0, rope_scaling=dict(LLAMA3, rope_type=None, type="llama3")),
            dict(rope_parameters=LLAMA3),
        ),
        ("smollm3", dict(no_rope_layer_interval=2), dict(no_rope_layers=[1, 0, 1])),
        ("smollm3", {}, dict(rope_parameters=dict(rope_theta=2e6, rope_type="default"))),
        ("mistral", dict(sliding_window=...), dict(sliding_window=None)),  # the default is longer than the context
        ("qwen2", dict(sliding_window=4, use_sliding_window=False), dict(layer_types=[FULL] * 3)),
        (
            "qwen2",
            dict(sliding_window=4, use_sliding_window=True, max_window_layers=2),
            dict(sliding_window=4, use_sliding_window=True, layer_types=[FULL, FULL, SLIDING]),
        ),
        (
            "gpt_neox",
            dict(rotary_pct=0.5, rotary_emb_base=77),
            dict(rope_parameters=dict(rope_theta=77.0, partial_rotary_factor=0.5)),
        ),
        (
            "gpt_neox",
            dict(rotary_pct=0.5, partial_rotary_factor=0.5, rope_theta=77, rotary_emb_base=77, head_dim=None),
            dict(rope_parameters=dict(rope_theta=77.0, partial_rotary_factor=0.5)),
        ),
        ("mamba", dict(expand=2.0, time_step_rank="auto"), dict(intermediate_size=48, time_step_rank=2)),
        ("gpt2", dict(torch_dtype="float16", activation_function="gelu_pytorch_tanh"), dict(dtype="float16")),
        ("gpt_neo", dict(attention_layers=["global", "local"] * 2), {}),
    ],
)
def test_fields_of_transformers_4_and_5_mean_the_same(kind, old, new):
    assert config_of(kind, **old) == config_of(kind, **new)


@pytest.mark.parametrize("kind", KIND)
def test_fields_without_effect_are_ignored(kind):
    others = dict(
        use_cache=False,
        initializer_range=0.5,
        transformers_version="4.1",
        torch_dtype="bfloat16",
        attention_dropout=0.1,
        pretraining_tp=4,
        summary_type="cls_index",
        rescale_prenorm_residual=True,
        quantization_config=None,
        something_new=[1],
    )
    if kind in ("gpt2", "gpt_neo", "gpt_neox"):  # they always have as many key-value heads as heads
        others |= dict(num_key_value_heads=2, head_dim=32)
    without = dict(attention_dropout=0.1) if kind in ("gpt_neo", "gpt_neox") else {}
    assert config_of(kind, **others) == config_of(kind, **without)


@pytest.mark.parametrize(
    "kind, field, value",
    [
        *[("llama", "rope_scaling", dict(type=kind, factor=2.0)) for kind in ("linear", "dynamic", "yarn", "longrope")],
        ("llama", "rope_parameters", dict(rope_type="yarn", rope_theta=1e4, factor=4.0)),
        ("qwen3", "rope_parameters", {FULL: dict(rope_theta=1e6), SLIDING: dict(rope_theta=1e4)}),
        ("llama", "rope_parameters", dict(LLAMA3, factor=None)),
        ("llama", "rope_theta", "high"),
        ("llama", "hidden_act", "gelu"),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("qwen3", "attention_bias", True),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "quantization_config", dict(quant_method="gptq")),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "architectures", ["LlamaForSequenceClassification"]),
        ("llama", "num_key_value_heads", 3),
        ("llama", "hidden_size", 25),
        ("llama", "hidden_size", "24"),
        ("llama", "hidden_size", ...),
        ("llama", "num_hidden_layers", 0),
        ("llama", "tie_word_embeddings", 1),
        ("llama", "rms_norm_eps", -1.0),
        ("qwen2", "layer_types", [SLIDING] * 3),
        ("qwen3", "layer_types", ["chunked_attention"] * 3),
        ("smollm3", "no_rope_layers", [1]),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "n_head", 5),
        ("gpt_neox", "attention_bias", False),
        ("gpt_neox", "rotary_pct", 0.7),
        ("gpt_neox", "partial_rotary_factor", 0),
        ("gpt_neox", "hidden_act", "quick_gelu"),
        ("gpt_neo", "attention_types", [[["global"], 3]]),
        ("gpt_neo", "attention_types", [[["sparse"], 4]]),
        ("gpt_neo", "attention_types", 4),
        ("gpt_neo", "num_heads", 7),
        ("mamba", "use_conv_bias", False),
        ("mamba", "hidden_act", "gelu"),
        ("mamba", "intermediate_size", 50),
        ("mamba", "expand", 1.5),
    ],
)
def test_fields_that_change_the_result_are_refused_by_name(kind, field, value):
    with pytest.raises(UserError) as refused:
        config_of(kind, **{field: value})
    named = {
        "rope_scaling": "rope_type",
        "rope_parameters": "factor" if value == dict(LLAMA3, factor=None) else "rope_",
        "n_head": "n_head 5 does not divide n_embd 24",
        "mlp_bias": "attention_bias",
        "hidden_size": "num_attention_heads 4 does not divide hidden_size 25" if value == 25 else "hidden_size",
    }.get(field, field)
    assert named in str(refused.value) and ";" in str(refused.value)


def test_sliding_windows_without_rotation_are_refused():
    with pytest.raises(UserError, match="sliding_window 4 is not supported"):
        config_of("smollm3", use_sliding_window=True, sliding_window=4, no_rope_layers=[1, 0, 1])


ODD = [
    *(None, -1, 0, 1, 1.5, True, False, "x", "", [], {}, 10**30, float("nan"), float("inf"), [1], [None], {"a": 1}),
    {"rope_type": 3},
    {"rope_type": "llama3", "factor": None},
    {"rope_type": ["llama3"]},
    {"rope_theta": {}},
    [[["global"], 10**9]],
    [[[1], 2]],
]


@pytest.mark.parametrize("kind", KIND)
def test_odd_values_are_read_or_refused_in_a_sentence(kind):
    family = families.family_named(kind)
    fields = families.config_json(config_of(kind))
    more = (
        "rope_scaling",
        "rotary_pct",
        "quantization_config",
        "layer_types",
        "no_rope_layers",
        "no_rope_layer_interval",
    )
    for name in (*fields, *more, "attention_types", "partial_rotary_factor", "use_sliding_window", "sliding_window"):
        for value in ODD if name != "model_type" else ():
            try:
                assert isinstance(family.config_from(fields | {name: value}), ModelConfig)
            except UserError as error:
                assert ";" in str(error) and "\n" not in str(error), (name, value)
