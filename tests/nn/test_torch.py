"""The engine beside PyTorch, both in float32: the same losses, gradients and updates from the same weights."""

import numpy as np
import pytest
from configs import config_of

from slm_np.nn.model import Model
from slm_np.presets import BYTE_SSM, BYTE_TRANSFORMER, GPT2, LLAMA, MAMBA
from slm_np.training.optimizer import AdamW

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch_twin import Trainer, Twin  # noqa: E402

torch.set_num_threads(1)  # at these sizes more threads gain nothing
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = dict(vocab_size=97, block_size=70, n_layer=2, n_head=4, n_embd=64, n_hidden=96)
MODELS = {
    "gpt2": dict(SMALL, **GPT2, bias=True),
    "gpt2-no-bias": dict(SMALL, **GPT2),
    "gpt2-tanh": dict(SMALL, **{**GPT2, "feed_forward": "gelu-tanh"}, bias=True),
    "llama": dict(SMALL, **LLAMA, head="tied"),
    "llama-grouped-queries": dict(SMALL, **LLAMA, head="linear", n_kv_head=2, head_dim=24),
    "byte-transformer": {**SMALL, **BYTE_TRANSFORMER, "head_hidden": 80},
    "byte-ssm": {**SMALL, **BYTE_SSM, "recurrence_size": 48},
    "mamba": {**SMALL, **MAMBA, "ssm_state_size": 5},
    "hybrid": {
        **SMALL,
        **LLAMA,
        "pattern": "MAS",
        "n_layer": 3,
        "n_inner": 50,
        "recurrence_size": 48,
        "bias": True,
        "init": "uniform",
    },
    "byte-transformer-bias": {**SMALL, **BYTE_TRANSFORMER, "bias": True},
}
every_model = pytest.mark.parametrize("name", MODELS)


def pair(name, seed=3, decay="matrices"):
    """A model whose biases are not zero, and its twin with the same weights."""
    config = config_of(**MODELS[name])
    model = Model(config, seed, decay)
    noise = np.random.default_rng(seed).standard_normal(model.parameters.weights.size, np.float32)
    model.parameters.weights += 0.02 * noise
    return model, Twin(config).load(model.parameters.weight)


def batch(config, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (2, 3, config.block_size)).astype(np.int32)


@pytest.fixture(autouse=True)
def needs_transformers(request):
    """The twin takes its Mamba layers from transformers."""
    if "M" in MODELS[request.node.callspec.params["name"]].get("pattern", "A"):
        pytest.importorskip("transformers", reason="transformers is not installed")


@every_model
def test_loss_logits_and_gradients_equal_pytorchs(name):
    model, twin = pair(name)
    tokens, targets = batch(model.config)
    loss = twin.loss(torch.tensor(tokens).long(), torch.tensor(targets).long())
    loss.backward()
    assert model.loss_and_gradient(tokens, targets) == pytest.approx(loss.item(), rel=1e-5)
    assert model.loss(tokens, targets) == pytest.approx(loss.item(), rel=1e-5)
    gradients = twin.gradients()
    assert gradients.keys() == model.parameters.gradient.keys()
    whole = np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradients.values()))
    for key, gradient in gradients.items():
        error = np.linalg.norm((model.parameters.gradient[key] - gradient).astype(float))
        assert error <= 1e-4 * np.linalg.norm(gradient.astype(float)) + 1e-6 * whole, key
    logits = twin(torch.tensor(tokens).long()).detach().numpy()
    assert np.abs(model.logits(tokens) - logits).max() <= 1e-5 * max(1, np.abs(logits).max())


@every_model
@pytest.mark.parametrize("decay, grad_clip", [("matrices", 0.05), ("all", 0.0)], ids=["clipped", "all-decay"])
def test_ten_updates_equal_pytorchs(name, decay, grad_clip):
    model, twin = pair(name, decay=decay)
    recipe = dict(learning_rate=3e-3, weight_decay=0.2, beta1=0.9, beta2=0.95, grad_clip=grad_clip)
    optimizer, trainer = AdamW(model.parameters, **recipe), Trainer(twin, decay=decay, **recipe)
    tokens, targets = batch(model.config)
    losses = []
    for _ in range(10):
        losses.append(model.loss_and_gradient(tokens, targets))
        assert trainer.train_step(tokens, targets) == pytest.approx(losses[-1], rel=1e-4)
        assert optimizer.step() > grad_clip
    assert losses[-1] < losses[0] - 0.1
    assert model.loss(tokens, targets) == pytest.approx(
        twin.loss(torch.tensor(tokens).long(), torch.tensor(targets).long()).item(), rel=1e-4
    )
