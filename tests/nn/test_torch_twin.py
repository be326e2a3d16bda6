"""The benchmarks' PyTorch twin beside the engine in float64: logits, gradients, updates, dropout, loading."""

import numpy as np
import pytest

from slm_np.config import ModelConfig
from slm_np.nn.model import Model
from slm_np.training.optimizer import AdamW

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_twin import Trainer, Twin  # noqa: E402

torch.set_num_threads(1)  # at these sizes more threads gain nothing
pytestmark = pytest.mark.usefixtures("one_thread")

V, T = 11, 5
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
    "attention-only": dict(
        SMALL, positions="none", norm="rmsnorm", feed_forward="none", n_hidden=0, head="linear", n_layer=1
    ),
    "square": dict(SMALL, feed_forward="gelu", n_hidden=8, norm="none", head="mlp", head_hidden=8, vocab_size=8),
}
every_model = pytest.mark.parametrize("name", MODELS)


def case(name, steps=T, decay="matrices"):
    """(model, {name: weight}, tokens, targets): the engine's model in float64 with random weights."""
    config, rng = ModelConfig(**MODELS[name]), np.random.default_rng(3)
    model = Model(config, decay=decay, dtype=np.float64)
    model.parameters.weights[:] = rng.standard_normal(model.parameters.weights.size) * 0.5
    tokens, targets = (rng.integers(0, config.vocab_size, (2, steps)) for _ in range(2))
    return model, dict(model.parameters.weight), tokens, targets


@every_model
@pytest.mark.parametrize("steps", [1, T, T + 2])
def test_logits_and_loss(name, steps):
    model, weights, tokens, targets = case(name, steps)
    twin = Twin(model.config, torch.float64).load(weights)
    assert twin.weights().keys() == weights.keys()
    for key, array in twin.weights().items():
        np.testing.assert_array_equal(array, weights[key])
    logits = model.logits(tokens)
    np.testing.assert_allclose(
        twin(torch.tensor(tokens)).detach().numpy(), logits, rtol=1e-11, atol=1e-12 * np.abs(logits).max()
    )
    loss = twin.loss(torch.tensor(tokens), torch.tensor(targets))
    assert loss.item() == pytest.approx(model.loss(tokens, targets), rel=1e-12)


@every_model
def test_gradients(name):
    model, weights, tokens, targets = case(name)
    twin = Twin(model.config, torch.float64).load(weights)
    twin.loss(torch.tensor(tokens), torch.tensor(targets)).backward()
    model.loss_and_gradient(tokens, targets)
    found = twin.gradients()
    assert {key: x.shape for key, x in found.items()} == {key: x.shape for key, x in weights.items()}
    for key, gradient in found.items():
        expected = model.parameters.gradient[key]
        size = max(1, np.abs(expected).max())
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12 * size, err_msg=key)


@pytest.mark.parametrize(
    "name, decay, grad_clip", [("gpt2", "matrices", 0.5), ("llama", "matrices", 0.0), ("byte-transformer", "all", 1.0)]
)
def test_ten_updates(name, decay, grad_clip):
    model, weights, tokens, targets = case(name, decay=decay)
    recipe = dict(learning_rate=0.01, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.3, grad_clip=grad_clip)
    twin = Twin(model.config, torch.float64).load(weights)
    trainer, optimizer = Trainer(twin, decay=decay, **recipe), AdamW(model.parameters, **recipe)
    for _ in range(10):
        assert trainer.train_step(tokens, targets) == pytest.approx(model.loss_and_gradient(tokens, targets), rel=1e-10)
        assert optimizer.step() > grad_clip
    for key, array in twin.weights().items():
        np.testing.assert_allclose(array, model.parameters.weight[key], rtol=1e-8, atol=1e-10, err_msg=key)


def test_float32_and_bfloat16_stay_near_float64():
    model, weights, tokens, targets = case("llama")
    for bfloat16, tolerance in ((False, 1e-5), (True, 3e-2)):
        trainer = Trainer(Twin(model.config).load(weights), bfloat16=bfloat16)
        assert trainer.train_step(tokens, targets) == pytest.approx(model.loss(tokens, targets), rel=tolerance)


def test_dropout_acts_in_training_only():
    model, weights, tokens, targets = case("gpt2")
    twin = Twin(ModelConfig(**MODELS["gpt2"], dropout=0.5), torch.float64).load(weights)
    loss = model.loss(tokens, targets)
    assert twin.loss(torch.tensor(tokens), torch.tensor(targets)).item() != pytest.approx(loss, rel=1e-6)
    twin.eval()
    assert twin.loss(torch.tensor(tokens), torch.tensor(targets)).item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("norm.weight"),
        lambda weights: weights.update(more=np.zeros(1)),
        lambda weights: weights.update(
            {"layers.0.attention.qkv.weight": weights["layers.0.attention.qkv.weight"].T.copy()}
        ),
    ],
)
def test_weights_of_another_model_are_refused(change):
    model, weights, _, _ = case("gpt2")
    change(weights)
    with pytest.raises(ValueError, match="norm.weight|more|attention.qkv.weight"):
        Twin(model.config).load(weights)
