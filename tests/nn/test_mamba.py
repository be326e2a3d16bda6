"""Mamba beside transformers' MambaForCausalLM, with the same weights: logits, gradients, updates, initial weights."""

import numpy as np
import pytest
from configs import config_of

from slm_np.nn.model import Model
from slm_np.presets import MAMBA, preset
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(MAMBA, vocab_size=23, block_size=40, n_layer=2, n_embd=24)
TWINS = {
    "preset": dict(),
    "bias": dict(bias=True, head="linear"),
    "odd-sizes": dict(n_embd=25, n_inner=50, ssm_state_size=5, conv_kernel=3, time_step_rank=3),
    "one-state": dict(ssm_state_size=1),
    "one-token": dict(block_size=1),
}


def random_tokens(config, batch, steps, seed=0):
    return np.random.default_rng([seed, 2]).integers(0, config.vocab_size, (batch, steps)).astype(np.int32)


def made(noise=0.02, **settings):
    """A model whose biases are not zero and whose norms are not one."""
    model = Model(config_of(**{**SMALL, **settings}), 3)
    size = model.parameters.weights.size
    model.parameters.weights += (noise * np.random.default_rng(4).standard_normal(size)).astype(np.float32)
    return model


def hugging_face(model):
    """(torch, transformers' model with the same weights), in float32."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.set_num_threads(1)
    c = model.config
    twin = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.n_embd,
            state_size=c.ssm_state_size,
            num_hidden_layers=c.n_layer,
            layer_norm_epsilon=c.norm_eps,
            expand=c.n_inner // c.n_embd,
            conv_kernel=c.conv_kernel,
            use_bias=c.bias,
            time_step_rank=c.time_step_rank,
            tie_word_embeddings=c.head == "tied",
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    weights = {name: torch.tensor(array) for name, array in named(c, model.parameters.weight).items()}
    twin.load_state_dict(weights, strict=False)
    return torch, twin


def named(config, arrays):
    """{transformers' name: array} of our weights or gradients: its matrices are (out, in)."""
    found = {
        "backbone.embeddings.weight": arrays["embedding.weight"],
        "backbone.norm_f.weight": arrays["norm.weight"],
        "lm_head.weight": arrays["embedding.weight" if config.head == "tied" else "head.weight"],
    }
    for name, array in arrays.items():
        if name.startswith("layers."):
            _, layer, part, *rest = name.split(".")
            theirs = ".".join([dict(mixer_norm="norm", mamba="mixer")[part], *rest])
            array = array.T[:, None] if "conv1d.weight" in name else array.T
            found[f"backbone.layers.{layer}.{theirs}"] = np.ascontiguousarray(array)
    return found


@pytest.mark.parametrize("name", TWINS)
def test_logits_and_gradients_equal_those_of_transformers(name):
    model = made(**TWINS[name])
    torch, twin = hugging_face(model)
    steps = model.config.block_size
    tokens, targets = random_tokens(model.config, 3, steps), random_tokens(model.config, 3, steps, seed=1)
    logits = twin(torch.tensor(tokens).long()).logits
    assert np.abs(model.logits(tokens) - logits.detach().numpy()).max() <= 1e-4
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).long().flatten())
    loss.backward()
    assert model.loss_and_gradient(tokens, targets) == pytest.approx(loss.item(), rel=1e-5)
    theirs = {n: p.grad.numpy() for n, p in twin.named_parameters()}
    ours = named(model.config, model.parameters.gradient)
    whole = np.linalg.norm(model.parameters.gradients)
    assert ours.keys() - {"lm_head.weight"} == theirs.keys() - {"lm_head.weight"}
    for key, gradient in theirs.items():
        assert np.linalg.norm(ours[key] - gradient) <= 1e-4 * np.linalg.norm(gradient) + 1e-6 * whole, key


def test_ten_updates_equal_those_of_transformers():
    model = made(noise=0.0)
    torch, twin = hugging_face(model)
    optimizer = AdamW(model.parameters, 3e-3, 0.1, 0.9, 0.95, grad_clip=1.0)
    decayed = [p for n, p in twin.named_parameters() if p.ndim > 1 and "A_log" not in n]
    rest = [p for n, p in twin.named_parameters() if p.ndim < 2 or "A_log" in n]
    other = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=0.1), dict(params=rest, weight_decay=0.0)],
        lr=3e-3,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    tokens, targets = random_tokens(model.config, 3, 40), random_tokens(model.config, 3, 40, seed=1)
    losses = []
    for _ in range(10):
        logits = twin(torch.tensor(tokens).long()).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).long().flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        other.step()
        other.zero_grad()
        losses.append(model.loss_and_gradient(tokens, targets))
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_initial_weights_have_the_distributions_of_transformers():
    config = preset("mamba")[0]
    parameters, again = Model(config, seed=1).parameters, Model(config, seed=1).parameters
    w = {name[9:]: view for name, view in parameters.weight.items() if name.startswith("layers.0.")}
    np.testing.assert_allclose(np.exp(w["mamba.A_log"]), np.arange(1, 17)[:, None] + np.zeros(512), rtol=1e-6)
    steps = np.log1p(np.exp(w["mamba.dt_proj.bias"].astype(float)))
    assert 1e-3 * 0.999 <= steps.min() < 1.3e-3 and 0.08 < steps.max() <= 0.1 * 1.001
    assert abs(np.log(steps).mean() - np.log(1e-2)) < 0.2
    for name, bound in (("conv1d", 0.5), ("dt_proj", 0.25), ("out_proj", 512**-0.5)):
        assert 0.98 * bound < np.abs(w[f"mamba.{name}.weight"]).max() <= bound
    assert w["mamba.in_proj.weight"].std() == pytest.approx(0.1, rel=0.01)
    assert parameters.weight["embedding.weight"].std() == pytest.approx(0.1, rel=0.02)
    assert (w["mamba.D"] == 1).all() and (w["mamba.conv1d.bias"] == 0).all()
    np.testing.assert_array_equal(parameters.weights, again.weights)


def test_decay_rates_do_not_decay():
    parameters = Model(preset("mamba")[0], seed=None).parameters
    for name, view in parameters.weight.items():
        decays = view.ctypes.data < parameters.weights[parameters.n_decayed :].ctypes.data
        assert decays == (view.ndim > 1 and "A_log" not in name), name
