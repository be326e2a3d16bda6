"""Low-rank adapters: gradients by finite differences, frozen weights, precision, threads, and merging."""

import dataclasses
import pickle

import numpy as np
import pytest

from slm_np import ops
from slm_np.config import LoraConfig, ModelConfig
from slm_np.dtypes import BF16
from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder, uncompiled_step
from slm_np.nn import head, lora
from slm_np.nn.model import Model, weight_bytes
from slm_np.nn.parameters import FrozenWeight
from slm_np.ops.device import CPU
from slm_np.training.optimizer import AdamW

SIZES = dict(vocab_size=13, block_size=7, n_layer=2, n_embd=8)
ATTENTION = dict(n_head=2, n_kv_head=1)
CONFIGS = {
    "attention": ModelConfig(**SIZES, **ATTENTION),
    "q/k norm": ModelConfig(**SIZES, **ATTENTION, qk_norm=True),
    "parallel": ModelConfig(**SIZES, n_head=2, parallel=True, bias=True, norm="layernorm", feed_forward="gelu"),
    "gpt2": ModelConfig(
        **SIZES, n_head=2, positions="learned", bias=True, norm="layernorm", feed_forward="gelu-tanh", dropout=0.1
    ),
    "mlp head": ModelConfig(**SIZES, **ATTENTION, head="mlp"),
    "mamba": ModelConfig(**SIZES, pattern="M"),
    "recurrence": ModelConfig(**SIZES, pattern="S"),
    "mixed": ModelConfig(**(SIZES | dict(n_layer=3)), **ATTENTION, pattern="AMS", bias=True, dropout=0.1),
    "no head": ModelConfig(**SIZES, pattern="S", head="none", residual=False, feed_forward="none"),
}
SMALL = ModelConfig(vocab_size=300, block_size=64, n_layer=2, n_embd=64, n_head=4, n_kv_head=2)


def batch(config, seed=0, size=3):
    draw = np.random.default_rng(seed)
    shape = size, config.block_size
    return draw.integers(0, config.vocab_size, shape), draw.integers(0, config.vocab_size, shape)


def adapted(config, dtype=np.float64, compute_dtype=None, recompute=False, noise=0.3, **settings):
    """A model with adapters in which B is not zero."""
    targets = "all,dt_proj,out_proj" if "M" in config.letters else "all"
    settings = dict(lora_rank=3, lora_alpha=5.0, lora_targets=targets) | settings
    model = Model(config, 1, dtype=dtype, compute_dtype=compute_dtype, recompute=recompute, lora=LoraConfig(**settings))
    draw = np.random.default_rng(7)
    for view in lora.parts(model.adapters, model.parameters.trained).values():
        view += noise * draw.standard_normal(view.shape)
    model.parameters.update_cast_copies()
    return model


def gradient(model, key=(1, 2)):
    model.parameters.gradients.fill(0)
    loss = model.loss_and_gradient(*batch(model.config), key=key)
    return loss, model.parameters.gradients.copy()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_match_finite_differences(name, dropout):
    model = adapted(CONFIGS[name], lora_dropout=dropout)
    parameters, draw = model.parameters, np.random.default_rng(3)
    _, found = gradient(model)
    gradients = lora.parts(model.adapters, parameters.like(found))
    for part, view in lora.parts(model.adapters, parameters.trained).items():
        direction, values, losses = draw.standard_normal(view.shape), view.copy(), []
        for step in (1e-6, -1e-6):
            view[...] = values + step * direction
            losses.append(gradient(model)[0])
        view[...] = values
        expected = (losses[0] - losses[1]) / 2e-6
        assert (gradients[part] * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-8), part


@pytest.mark.parametrize("targets", ["all", "attention", "q,v", "v_proj,gate,down", "qkv,o", "up"])
def test_only_the_targets_have_adapters_and_parts_do_not_mix(targets):
    model = adapted(CONFIGS["attention"], lora_targets=targets)
    found = {name.split(".", 2)[2] for name in lora.parts(model.adapters, model.parameters.trained)}
    attention = ["attention.q", "attention.k", "attention.v", "attention.output"]
    wanted = {
        "all": [*attention, "feed_forward.gate", "feed_forward.up", "feed_forward.output"],
        "attention": attention,
        "q,v": ["attention.q", "attention.v"],
        "v_proj,gate,down": ["attention.v", "feed_forward.gate", "feed_forward.output"],
        "qkv,o": ["attention.qkv", "attention.output"],
        "up": ["feed_forward.up"],
    }
    assert found == {f"{part}.{kind}" for part in wanted[targets] for kind in ("lora_A", "lora_B")}
    _, gradients = gradient(model)
    model.parameters.gradients[...] = gradients
    AdamW(model.parameters, weight_decay=0.1).step(0.1)
    inside = sum(np.count_nonzero(view) for view in lora.parts(model.adapters, model.parameters.trained).values())
    assert inside == np.count_nonzero(model.parameters.weights) == lora.parameter_count(model.adapters)


def test_gpt2_and_gpt_neox_have_one_adapter_for_queries_keys_and_values():
    for name in ("gpt2", "parallel"):
        model = adapted(CONFIGS[name])
        assert "layers.0.attention.qkv.lora_A" in lora.parts(model.adapters, model.parameters.trained)


def test_all_means_the_layers_of_mamba_that_peft_adapts():
    model = adapted(CONFIGS["mamba"], lora_targets="all")
    names = {adapter.name for own in model.adapters for adapter in own}
    assert {name for name in names if name.startswith("mamba.")} == {"mamba.in_proj", "mamba.x_proj"}


def test_unknown_and_absent_targets_are_named():
    with pytest.raises(UserError, match="--lora-targets 'gaet' is unknown; did you mean gate"):
        adapted(CONFIGS["attention"], lora_targets="q,gaet")
    for targets, absent in (("in_proj", "in_proj"), ("attention,out_proj", "out_proj")):
        with pytest.raises(UserError, match=f"--lora-targets {absent} is not in this model"):
            adapted(CONFIGS["attention"], lora_targets=targets)
    with pytest.raises(UserError, match="--lora-targets gate is not in this model"):
        adapted(CONFIGS["gpt2"], lora_targets="q,gate")  # its activation has no gate


@pytest.mark.parametrize("name", CONFIGS)
def test_merging_gives_the_same_model(name):
    model = adapted(CONFIGS[name], rslora=True)
    plain = Model(model.config, None, dtype=np.float64)
    for tensor, view in plain.parameters.weight.items():
        view[...] = model.parameters.weight[tensor]
    for layer, own in enumerate(model.adapters):
        for adapter in own:
            linear = f"layers.{layer}.{adapter.name}"
            a, b = (model.parameters.trained[f"{linear}.{kind}"] for kind in ("lora_A", "lora_B"))
            plain.parameters.weight[f"{linear}.weight"][...] += adapter.scale * (a @ b)
    tokens, _ = batch(model.config)
    np.testing.assert_allclose(plain.logits(tokens), model.logits(tokens), rtol=1e-12, atol=1e-12)
    scale = model.adapters[0][0].scale
    assert scale == pytest.approx(5 / 3**0.5)


def test_training_starts_from_the_base():
    """A is uniform within 1 / sqrt(inputs), as PEFT's, and B is zero. Both depend on the seed only."""
    model, plain = Model(SMALL, 3, lora=LoraConfig(lora_rank=4)), Model(SMALL, 3)
    tokens, _ = batch(SMALL)
    np.testing.assert_allclose(model.logits(tokens), plain.logits(tokens), rtol=0, atol=1e-6)
    for name, view in lora.parts(model.adapters, model.parameters.trained).items():
        if name.endswith("lora_B"):
            assert not view.any()
        else:
            bound = len(view) ** -0.5
            assert np.abs(view).max() <= bound and view.std() == pytest.approx(bound / 3**0.5, rel=0.15)
    again, other = (Model(SMALL, seed, lora=LoraConfig(lora_rank=4)).parameters.weights for seed in (3, 4))
    np.testing.assert_array_equal(model.parameters.weights, again)
    assert (model.parameters.weights != other).any()


# What is frozen


@pytest.mark.parametrize("name", CONFIGS)
def test_no_gradient_of_a_frozen_weight_is_computed(name, monkeypatch):
    """Frozen tensors have no gradient, and no op gets memory for one. Mixers are exempt: they compute some with dx."""
    model, shapes = adapted(CONFIGS[name]), []
    trained = {view.shape for view in model.parameters.trained.values()}
    for op, index in (
        ("linear_backward_weight", 0),
        ("linear_transposed_backward", 1),
        ("rmsnorm_backward", 1),
        ("layernorm_backward", 1),
    ):
        original = getattr(CPU.kernels, op)

        def spy(*arguments, original=original, index=index):
            shapes.append(None if arguments[index] is None else arguments[index].shape)
            original(*arguments)

        monkeypatch.setattr(CPU.kernels, op, spy)
    monkeypatch.setattr(ops, "embedding_backward", None)
    gradient(model)
    matmuls = sum(len(own) for own in model.adapters)
    assert {shape for shape in shapes if shape} <= trained and sum(map(bool, shapes)) >= 2 * matmuls
    assert model.parameters.gradient.keys() == model.parameters.trained.keys()
    assert (
        model.parameters.gradients.size
        == model.parameters.weights.size
        == sum(view.size for view in model.parameters.trained.values())
    )


def test_a_model_for_inference_has_no_gradients():
    model = Model(SMALL, 1)
    model.loss(*batch(SMALL))
    full = model.full_precision()
    full.logits(batch(SMALL)[0])
    assert "gradients" not in model.parameters.__dict__ and "gradients" not in full.parameters.__dict__
    full.parameters.gradients[3] = 2
    assert model.parameters.gradients[3] == 2 and model.parameters.gradients is full.parameters.gradients
    with pytest.raises(UserError, match="gradients of a Parameters cannot be replaced"):
        model.parameters.gradients = np.zeros_like(model.parameters.weights)
    with pytest.raises(UserError, match="gradients of a Parameters cannot be replaced"):
        Model(SMALL, 1).parameters.gradients = np.zeros_like(model.parameters.weights)


def test_recomputing_gives_the_same_bits():
    for name in ("attention", "mixed", "parallel"):
        plain, recomputing = (adapted(CONFIGS[name], lora_dropout=0.2, recompute=flag) for flag in (False, True))
        loss, expected = gradient(plain)
        other, found = gradient(recomputing)
        assert loss == other
        np.testing.assert_array_equal(found, expected)


def test_micro_batches_add_up_to_the_gradient_of_their_batch():
    model = adapted(CONFIGS["mixed"])
    tokens, targets = batch(model.config, size=4)
    loss, expected = model.loss_and_gradient(tokens, targets), model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    halves = [model.loss_and_gradient(tokens[rows], targets[rows], targets.size) for rows in (slice(0, 2), slice(2, 4))]
    assert sum(halves) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(model.parameters.gradients, expected, rtol=0, atol=1e-14)


def test_results_do_not_depend_on_chunks_of_the_feed_forward(monkeypatch):
    model = adapted(CONFIGS["attention"])
    _, expected = gradient(model)
    monkeypatch.setattr("slm_np.nn.feed_forward.ROWS", 5)
    _, found = gradient(adapted(CONFIGS["attention"]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


# Mixed precision


@pytest.fixture
def bfloat16():
    if CPU.kernel_set != "numba":
        pytest.skip("the NumPy kernels have no bfloat16")


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        ModelConfig(
            vocab_size=300, block_size=64, n_layer=2, n_embd=64, n_head=4, pattern="AM", bias=True, dropout=0.1
        ),
        ModelConfig(vocab_size=300, block_size=64, n_layer=2, n_embd=64, pattern="S"),
    ],
)
def test_bfloat16_is_close_to_float32_on_any_number_of_threads(config, bfloat16):
    settings = dict(dtype=np.float32, noise=0.05, lora_rank=8, lora_dropout=0.1)
    loss, exact = gradient(adapted(config, **settings))
    found = []
    for threads in (1, 2):
        CPU.use_threads(threads)
        found.append(gradient(adapted(config, compute_dtype=BF16, **settings)))
    assert found[0][0] == found[1][0] == pytest.approx(loss, rel=1e-3)
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert np.linalg.norm(found[0][1] - exact) < 0.02 * np.linalg.norm(exact)


def test_frozen_weights_are_kept_in_two_bytes(bfloat16):
    model = adapted(dataclasses.replace(SMALL, n_layer=12), np.float32, BF16)
    parameters, frozen = model.parameters, model.parameters.cast_only
    assert set(frozen) == {tensor.name for tensor in parameters.tensors if tensor.matmul and not tensor.trained}
    assert isinstance(frozen["layers.1.feed_forward.input.weight"], FrozenWeight)
    assert frozen["layers.1.attention.qkv.weight"].values.dtype == BF16
    layers = [one.values for name, one in frozen.items() if name != "embedding.weight"]
    head = frozen["embedding.weight"]
    shared = [array for copy in parameters.shared.values() for array in copy]
    assert len(shared) == 3 * 4  # four shapes
    held = sum(array.nbytes for array in [parameters.frozen, *layers, head.forward, head.backward, *shared])
    tensors = [tensor for tensor in parameters.tensors if not tensor.trained]
    expected = weight_bytes(tensors, np.dtype(np.float32), BF16, CPU)
    assert held == pytest.approx(expected, rel=0.1)  # panels are padded
    assert expected < weight_bytes(tensors, np.dtype(np.float32), None, CPU)


def test_the_embedding_is_read_from_its_copy(bfloat16):
    """The frozen embedding of a tied head exists as panels only."""
    plain = Model(SMALL, 1)
    model = Model(SMALL, 1, compute_dtype=BF16, lora=LoraConfig(lora_rank=2))
    tokens = np.array([0, 5, 299, 17, 16, 31, 5])
    rows = CPU.kernels.cast_copy_rows(model.parameters.weight["embedding.weight"], tokens, SMALL.n_embd)
    expected = np.empty(rows.shape, BF16)
    ops.convert(expected, plain.parameters.weight["embedding.weight"][tokens])
    np.testing.assert_array_equal(rows, expected)


def test_copies_and_samples_of_a_model_with_frozen_bfloat16(bfloat16):
    model = adapted(SMALL, np.float32, BF16)
    loss, expected = gradient(model)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.parameters.gradients, expected)
    assert gradient(copy)[0] == loss
    tokens, targets = batch(SMALL)
    assert model.full_precision().loss(tokens, targets) == pytest.approx(model.loss(tokens, targets), rel=1e-3)
    whole, stepped = (Decoder(model, make_step=uncompiled_step) for _ in range(2))
    stepped.read(tokens[:1, :8])
    np.testing.assert_allclose(stepped.step(tokens[0, 8:9]), whole.read(tokens[:1, :9]), rtol=0, atol=1e-4)


# Masked targets


@pytest.mark.parametrize("name", ["attention", "mlp head", "no head"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_only_rows_with_a_target_go_through_a_frozen_head(name, share, monkeypatch):
    """Losses and gradients equal those of a head that all rows go through."""
    config = CONFIGS[name]
    tokens, targets = batch(config)
    targets = np.where(np.random.default_rng(5).random(targets.shape) < share, targets, -1)
    gathered, found, rows = head.gathered, [], []

    def counted(*arguments):
        result = gathered(*arguments)
        rows.append(len(result))
        return result

    monkeypatch.setattr(head, "gathered", counted)
    for sparse in (True, False):
        if not sparse:
            monkeypatch.setattr(head, "target_runs", lambda targets: None)
        model = adapted(config)
        loss = model.loss_and_gradient(tokens, targets, key=(1,))
        found.append([loss, model.parameters.gradients, model.losses(tokens, targets).copy()])
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
    assert not found[0][2][targets < 0].any()
    assert set(rows) == (set() if name == "no head" else {np.count_nonzero(targets >= 0)})


def test_rows_are_gathered_and_put_back():
    draw = np.random.default_rng(2)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        targets = np.where(draw.random(97) < share, 1, -1)
        runs, x = head.target_runs(targets), draw.standard_normal((97, 3))
        if runs is None:
            assert (targets >= 0).all()
            continue
        packed, original = x.copy(), x.copy()
        np.testing.assert_array_equal(head.gathered(packed, runs), original[targets >= 0])
        head.scatter(packed, runs)
        np.testing.assert_array_equal(packed, np.where(targets[:, None] >= 0, original, 0))
