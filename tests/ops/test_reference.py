"""The oracle of `reference.py` against central differences, against PyTorch's float64 autograd, and the PyTorch twin against the oracle."""

import math

import numpy as np
import pytest
import reference as ref

from slm_np.config import ModelConfig

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None
else:
    from torch_twin import Trainer, Twin

    torch.set_num_threads(1)  # at these sizes a second thread only waits
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")

B, T, D, V = 2, 5, 7, 11


def turn_pairs(x, theta, start=0):
    """Rotary positions in PyTorch as products of complex numbers."""
    W = x.shape[3]
    angle = torch.arange(start, start + x.shape[1])[:, None] * theta ** (
        -torch.arange(W // 2, dtype=torch.float64) * 2 / W
    )
    turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((turned.real, turned.imag), -1)


def attend(q, k, v):
    """PyTorch's attention in the oracle's (B, T, H, W)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def normal(*shape):
    return lambda rng: rng.standard_normal(shape)


def tokens(below, *shape):
    return lambda rng: rng.integers(0, below, shape)


def fixed(value):
    return lambda rng: value


# name: (oracle, its backward, the same in PyTorch, makers of the arguments)
OPS = {
    "embedding": (
        ref.embedding,
        ref.embedding_backward,
        lambda i, w: F.embedding(i, w),
        [tokens(V, B, T), normal(V, D)],
    ),
    "embedding-places": (
        ref.embedding,
        ref.embedding_backward,
        lambda i, w, p: F.embedding(i, w) + p[:T],
        [tokens(V, B, T), normal(V, D), normal(T + 3, D)],
    ),
    "linear": (ref.linear, ref.linear_backward, lambda x, w: x @ w, [normal(B, T, D), normal(D, 3)]),
    "linear-bias": (
        ref.linear,
        ref.linear_backward,
        lambda x, w, b: x @ w + b,
        [normal(4, D), normal(D, 3), normal(3)],
    ),
    "layernorm": (
        ref.layernorm,
        ref.layernorm_backward,
        lambda x, w, b: F.layer_norm(x, (D,), w, b, 1e-5),
        [normal(B, T, D), normal(D), normal(D)],
    ),
    "layernorm-no-bias": (
        ref.layernorm,
        ref.layernorm_backward,
        lambda x, w, b, eps: F.layer_norm(x, (D,), w, b, eps),
        [normal(4, D), normal(D), fixed(None), fixed(0.3)],
    ),
    "rmsnorm": (
        ref.rmsnorm,
        ref.rmsnorm_backward,
        lambda x, w, eps: F.rms_norm(x, (D,), w, eps),
        [normal(B, T, D), normal(D), fixed(0.3)],
    ),
    "rmsnorm-one": (
        ref.rmsnorm,
        ref.rmsnorm_backward,
        lambda x, w, eps: F.rms_norm(x, (1,), w, eps),
        [normal(1, 1), normal(1), fixed(0.3)],
    ),
    "rotary": (ref.rotary, ref.rotary_backward, turn_pairs, [normal(B, T, 3, 6), fixed(100.0)]),
    "rotary-later": (ref.rotary, ref.rotary_backward, turn_pairs, [normal(1, 1, 1, 2), fixed(10000.0), fixed(40)]),
    "attention": (ref.attention, ref.attention_backward, attend, [normal(B, T, 3, 4)] * 3),
    "attention-grouped": (
        ref.attention,
        ref.attention_backward,
        attend,
        [normal(B, T, 6, 4)] + [normal(B, T, 2, 4)] * 2,
    ),
    "attention-one": (ref.attention, ref.attention_backward, attend, [normal(1, 1, 1, 1)] * 3),
    "silu": (ref.silu, ref.silu_backward, lambda x: F.silu(x), [normal(B, T, D)]),
    "gelu": (ref.gelu, ref.gelu_backward, lambda x: F.gelu(x), [normal(B, T, D)]),
    "gelu-tanh": (ref.gelu_tanh, ref.gelu_tanh_backward, lambda x: F.gelu(x, approximate="tanh"), [normal(B, T, D)]),
    "swiglu": (ref.swiglu, ref.swiglu_backward, lambda x: F.silu(x[..., :D]) * x[..., D:], [normal(B, T, 2 * D)]),
    "cross-entropy": (
        ref.cross_entropy,
        ref.cross_entropy_backward,
        lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten()),
        [normal(B, T, V), tokens(V, B, T)],
    ),
    "cross-entropy-one": (
        ref.cross_entropy,
        ref.cross_entropy_backward,
        lambda x, y: F.cross_entropy(x, y),
        [normal(1, 1), tokens(1, 1)],
    ),
}
every_op = pytest.mark.parametrize("name", OPS)


def example(name):
    """forward, backward, PyTorch's function, arguments, places of the differentiable ones, an output gradient."""
    forward, backward, other, makers = OPS[name]
    rng = np.random.default_rng(7)
    arguments = [make(rng) for make in makers]
    places = [i for i, x in enumerate(arguments) if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
    return forward, backward, other, arguments, places, rng.standard_normal(np.shape(forward(*arguments)))


def gradients(backward, dout, arguments):
    found = backward(dout, *arguments)
    return [x for x in (found if isinstance(found, tuple) else (found,)) if x is not None]


@every_op
def test_backward_is_the_slope_of_forward(name):
    forward, backward, _, arguments, places, dout = example(name)
    found = gradients(backward, dout, arguments)
    assert len(found) == len(places)
    rng, eps = np.random.default_rng(8), 1e-5
    for place, gradient in zip(places, found):
        direction = rng.standard_normal(arguments[place].shape)
        up, down = (
            [x + sign * eps * direction if i == place else x for i, x in enumerate(arguments)] for sign in (1, -1)
        )
        slope = np.sum(dout * (forward(*up) - forward(*down))) / (2 * eps)
        assert abs(slope - np.sum(gradient * direction)) <= 1e-8 * max(1, abs(slope))


@needs_torch
@every_op
def test_op_and_gradients_equal_pytorch(name):
    forward, backward, other, arguments, places, dout = example(name)
    tensors = [
        torch.tensor(x, requires_grad=i in places) if isinstance(x, np.ndarray) else x for i, x in enumerate(arguments)
    ]
    out = other(*tensors)
    out.backward(torch.tensor(dout))
    np.testing.assert_allclose(forward(*arguments), out.detach().numpy(), rtol=1e-12, atol=1e-13)
    for place, gradient in zip(places, gradients(backward, dout, arguments), strict=True):
        np.testing.assert_allclose(gradient, tensors[place].grad.numpy(), rtol=1e-12, atol=1e-13)


@every_op
def test_float32_arguments_are_computed_in_float64(name):
    forward, backward, _, arguments, places, dout = example(name)
    single = [x.astype(np.float32) if i in places else x for i, x in enumerate(arguments)]
    double = [x.astype(np.float64) if i in places else x for i, x in enumerate(single)]
    np.testing.assert_array_equal(forward(*single), forward(*double))
    for a, b in zip(gradients(backward, dout, single), gradients(backward, dout, double)):
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a, b)


def test_known_values():
    assert ref.gelu(np.array(1.0)) == pytest.approx(0.8413447460685429, rel=1e-14)
    assert ref.gelu_tanh(np.array(1.0)) == pytest.approx(0.8411919906082768, rel=1e-14)
    assert ref.silu(np.array(1.0)) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-14)
    assert ref.cross_entropy(np.zeros((3, V)), np.arange(3)) == pytest.approx(math.log(V), rel=1e-14)
    np.testing.assert_allclose(
        ref.rotary(np.array([1.0, 0.0]).reshape(1, 1, 1, 2), start=1).ravel(), [math.cos(1), math.sin(1)], rtol=1e-14
    )
    np.testing.assert_allclose(
        ref.sinusoidal(2, 3), [[0, 1, 0], [math.sin(1), math.cos(1), math.sin(10000 ** (-2 / 3))]], rtol=1e-14
    )


@pytest.mark.parametrize("op", ["silu", "gelu", "gelu_tanh"])
def test_activations_survive_their_tails(op):
    x = np.array([-1e3, -40.0, 0.0, 40.0, 1e3])
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_allclose(getattr(ref, op)(x), np.maximum(x, 0), atol=1e-15)
        np.testing.assert_allclose(getattr(ref, f"{op}_backward")(1.0, x), [0, 0, 0.5, 1, 1], atol=1e-15)


def test_cross_entropy_survives_large_logits():
    with np.errstate(over="raise", invalid="raise"):
        assert ref.cross_entropy(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([1, 0])) == pytest.approx(5e3, rel=1e-14)


def test_attention_does_not_see_the_future():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, B, T, 2, 4))
    before = ref.attention(q, k, v)
    for x in (q, k, v):
        x[:, 3] += 1
    np.testing.assert_array_equal(ref.attention(q, k, v)[:, :3], before[:, :3])


def test_clip_scales_the_whole_gradient():
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    clipped, norm = ref.clip(gradients, 1.0)
    assert (
        norm == 5
        and clipped["a"][0] == pytest.approx(0.6, rel=1e-6)
        and clipped["b"][0, 0] == pytest.approx(0.8, rel=1e-6)
    )
    for limit in (6.0, 0.0):
        np.testing.assert_array_equal(ref.clip(gradients, limit)[0]["b"], gradients["b"])


# Whole models

SMALL = dict(vocab_size=V, block_size=T + 2, n_layer=2, n_head=2, n_embd=8, n_hidden=12)
GPT2 = dict(SMALL, positions="learned", norm="layernorm", feed_forward="gelu", head="tied", bias=True)
MODELS = {
    "gpt2": GPT2,
    "gpt2-no-bias": dict(GPT2, bias=False, feed_forward="gelu-tanh"),
    "llama": dict(SMALL, head="linear", n_head=4, n_kv_head=2, norm_eps=0.1, rope_theta=50.0),
    "llama-wide-heads": dict(SMALL, n_head=3, n_kv_head=1, head_dim=6, bias=True),
    "byte-transformer": dict(
        SMALL, positions="sinusoidal", norm="none", feed_forward="silu", head="mlp", n_head=1, head_hidden=5
    ),
    "odd": dict(
        SMALL, positions="sinusoidal", norm="layernorm", feed_forward="silu", head="mlp", n_head=1, n_embd=7, bias=True
    ),
    "attention-only": dict(SMALL, positions="none", norm="rmsnorm", feed_forward="none", head="linear", n_layer=1),
    "square": dict(SMALL, feed_forward="gelu", n_hidden=8, norm="none", head="mlp", head_hidden=8, vocab_size=8),
}
every_model = pytest.mark.parametrize("name", MODELS)


def case(name, T=T):
    """config, random weights, tokens, targets"""
    config, rng = ModelConfig(**MODELS[name]), np.random.default_rng(3)
    arrays = {key: rng.standard_normal(shape) * 0.5 for key, shape in ref.shapes(config).items()}
    return config, arrays, rng.integers(0, config.vocab_size, (B, T)), rng.integers(0, config.vocab_size, (B, T))


@every_model
def test_model_does_not_see_the_future(name):
    config, arrays, tokens, _ = case(name)
    before = ref.reference_logits(config, arrays, tokens)
    tokens[:, 3] = (tokens[:, 3] + 1) % config.vocab_size
    after = ref.reference_logits(config, arrays, tokens)
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert not np.array_equal(after[:, 3:], before[:, 3:])


@every_model
def test_model_without_weights_is_uniform(name):
    config, arrays, tokens, targets = case(name)
    empty = {key: np.zeros_like(array) for key, array in arrays.items()}
    assert ref.reference_loss(config, empty, tokens, targets) == pytest.approx(math.log(config.vocab_size), rel=1e-14)


@needs_torch
@every_model
@pytest.mark.parametrize("length", [1, T, T + 2])
def test_twin_equals_the_reference(name, length):
    config, arrays, tokens, targets = case(name, length)
    twin = Twin(config, torch.float64).load(arrays)
    assert twin.weights().keys() == arrays.keys()
    for key, array in twin.weights().items():
        np.testing.assert_array_equal(array, arrays[key])
    logits = ref.reference_logits(config, arrays, tokens)
    np.testing.assert_allclose(
        twin(torch.tensor(tokens)).detach().numpy(), logits, rtol=1e-11, atol=1e-12 * np.abs(logits).max()
    )
    loss = twin.loss(torch.tensor(tokens), torch.tensor(targets))
    assert loss.item() == pytest.approx(ref.reference_loss(config, arrays, tokens, targets), rel=1e-12)


@needs_torch
@every_model
def test_twins_gradients_are_the_slopes_of_the_reference(name):
    config, arrays, tokens, targets = case(name)
    twin, rng, eps = Twin(config, torch.float64).load(arrays), np.random.default_rng(4), 1e-5
    twin.loss(torch.tensor(tokens), torch.tensor(targets)).backward()
    found = twin.gradients()
    assert {key: array.shape for key, array in found.items()} == ref.shapes(config)
    for key, gradient in found.items():
        direction = rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        up, down = (
            ref.reference_loss(config, {**arrays, key: arrays[key] + sign * eps * direction}, tokens, targets)
            for sign in (1, -1)
        )
        slope = (up - down) / (2 * eps)
        assert abs(slope - np.sum(gradient * direction)) <= 1e-8 * max(1, abs(slope)), key


@needs_torch
@pytest.mark.parametrize(
    "name, decay, grad_clip", [("gpt2", "matrices", 0.5), ("llama", "matrices", 0.0), ("byte-transformer", "all", 1.0)]
)
def test_ten_updates_equal_the_references(name, decay, grad_clip):
    config, arrays, tokens, targets = case(name)
    rates = dict(learning_rate=0.01, beta1=0.8, beta2=0.9, eps=1e-6)
    twin = Twin(config, torch.float64).load(arrays)
    trainer = Trainer(twin, weight_decay=0.3, decay=decay, grad_clip=grad_clip, **rates)
    witness = Twin(config, torch.float64)  # only tells the gradient at the oracle's own weights
    m, v = ({key: np.zeros_like(array) for key, array in arrays.items()} for _ in range(2))
    for step in range(1, 11):
        loss = ref.reference_loss(config, arrays, tokens, targets)
        assert trainer.train_step(tokens, targets) == pytest.approx(loss, rel=1e-10)
        witness.load(arrays).zero_grad()
        witness.loss(torch.tensor(tokens), torch.tensor(targets)).backward()
        clipped, norm = ref.clip(witness.gradients(), grad_clip)
        assert norm > grad_clip
        for key, array in arrays.items():
            weight_decay = 0.3 if array.ndim >= 2 or decay == "all" else 0.0
            arrays[key], m[key], v[key] = ref.adamw(
                array, clipped[key], m[key], v[key], step, weight_decay=weight_decay, **rates
            )
    for key, array in twin.weights().items():
        np.testing.assert_allclose(array, arrays[key], rtol=1e-8, atol=1e-10, err_msg=key)


@needs_torch
def test_twin_in_float32_and_bfloat16_stays_near_the_reference():
    config, arrays, tokens, targets = case("llama")
    loss = ref.reference_loss(config, arrays, tokens, targets)
    for bfloat16, tolerance in ((False, 1e-5), (True, 3e-2)):
        trainer = Trainer(Twin(config).load(arrays), bfloat16=bfloat16)
        assert trainer.train_step(tokens, targets) == pytest.approx(loss, rel=tolerance)


@needs_torch
def test_twins_dropout_acts_only_in_training():
    config, arrays, tokens, targets = case("gpt2")
    twin = Twin(ModelConfig(**MODELS["gpt2"], dropout=0.5), torch.float64).load(arrays)
    loss = ref.reference_loss(config, arrays, tokens, targets)
    assert twin.loss(torch.tensor(tokens), torch.tensor(targets)).item() != pytest.approx(loss, rel=1e-6)
    twin.eval()
    assert twin.loss(torch.tensor(tokens), torch.tensor(targets)).item() == pytest.approx(loss, rel=1e-12)


@needs_torch
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("norm.weight"),
        lambda a: a.update(more=np.zeros(1)),
        lambda a: a.update({"layers.0.attention.qkv.weight": a["layers.0.attention.qkv.weight"].T}),
    ],
)
def test_twin_refuses_weights_of_another_model(change):
    config, arrays, _, _ = case("gpt2")
    change(arrays)
    with pytest.raises(ValueError, match="norm.weight|more|attention.qkv.weight"):
        Twin(config).load(arrays)
