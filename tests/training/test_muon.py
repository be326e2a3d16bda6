"""Muon against the SVD, a plain float64 version and PyTorch's; copies, resumed runs, and models of every kind."""

import copy
import math
import pickle

import numpy as np
import pytest
import small
from configs import config_of
from thread_counts import over_threads, several

from slm_np.config import LoraConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.nn.model import Model
from slm_np.ops.device import CPU
from slm_np.training import muon
from slm_np.training.muon import MOMENTUM, Muon
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(1, 1), (1, 9), (9, 1), (16, 16), (17, 33), (70, 31), (48, 130)]
LLAMA = dict(n_embd=24, n_head=4, head_dim=6, n_kv_head=2, positions="rotary", feed_forward="swiglu", n_hidden=35)
MODELS = {
    "llama": LLAMA,
    "gpt2": dict(n_head=2, n_hidden=30, positions="learned", norm="layernorm", feed_forward="gelu-tanh", bias=True),
    "hybrid": dict(pattern="MS", n_hidden=35, n_inner=20, ssm_state_size=3, recurrence_size=18, head="mlp", bias=True),
}


def made(name="llama", dtype=np.float64, **more):
    config = config_of(**dict(vocab_size=13, block_size=8, n_layer=2, n_embd=16) | MODELS[name])
    return Model(config, seed=3, dtype=dtype, **more)


def batch(seed=0):
    return np.random.default_rng(seed).integers(0, 13, (2, 3, 8))


def train(model, optimizer, n, first=0):
    """The bytes of weights and moments after n updates."""
    for seed in range(first, first + n):
        model.loss_and_gradient(*batch(seed), key=(seed,))
        optimizer.step()
    return [x.tobytes() for x in (model.parameters.weights, optimizer.mean, optimizer.square)]


# O(u)


def orthogonalized(u):
    """O(u) by the kernel."""
    w, g, m = np.zeros(u.size, u.dtype), u.reshape(-1).copy(), np.zeros(u.size, u.dtype)
    matrices, rate = np.array([(0, *u.shape, 0, u.shape[1])]), -1 / math.sqrt(max(u.shape))
    CPU.kernels.orthogonal_update(w, g, m, matrices, 1.0, rate, 0.0, MOMENTUM, 1.0, muon.MARGIN, muon.COEFFICIENTS)
    assert not g.any()
    return w.reshape(u.shape)


def with_singular_values(shape, values, dtype, seed=0):
    """(u, U, V^T), U S V^T with these singular values."""
    u, _, v = np.linalg.svd(np.random.default_rng(seed).standard_normal(shape), full_matrices=False)
    return (u * values @ v).astype(dtype), u, v


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e10])
def test_singular_values_become_about_one(shape, dtype, size):
    """Those from 0.05 of the norm on. Smaller ones grow less, and no vector changes its direction."""
    k = min(shape)
    values = np.geomspace(1, 0.001, k)
    u, left, right = with_singular_values(shape, size * values, dtype)
    found = left.T @ orthogonalized(u).astype(float) @ right.T
    diagonal, share = np.diag(found), values / np.linalg.norm(values)
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found - np.diag(diagonal), 0, atol=tolerance)
    assert (np.abs(diagonal - 1)[share > 0.05] < 1 / 3).all()
    assert (diagonal > np.minimum(share, 2 / 3)).all() and (diagonal < 4 / 3).all()
    np.testing.assert_allclose(orthogonalized(-u), -orthogonalized(u), atol=tolerance)


def test_the_kernel_follows_the_svd_of_the_coefficients():
    """Each singular value passes through the polynomials x (a + b x^2 + c x^4)."""
    u, left, right = with_singular_values((20, 30), np.linspace(1, 0.01, 20), np.float64)
    x = np.linalg.svd(u, compute_uv=False) / (muon.MARGIN * np.linalg.norm(u))
    for a, b, c in muon.COEFFICIENTS:
        x = x * (a + b * x**2 + c * x**4)
    np.testing.assert_allclose(orthogonalized(u), left * x @ right, atol=1e-12)


def test_a_matrix_without_gradient_only_decays():
    model = made()
    before = model.parameters.weights.copy()
    Muon(model.parameters, model.config, 2.0, weight_decay=0.5, learning_rate=0.1).step()
    like, weight = model.parameters.like(before), model.parameters.weight
    np.testing.assert_allclose(weight["layers.0.attention.qkv.weight"], 0.9 * like["layers.0.attention.qkv.weight"])
    np.testing.assert_allclose(weight["embedding.weight"], 0.95 * like["embedding.weight"])


# Updates


def columns_of(name, shape):
    """The columns of each matrix of a tensor of the models above; None for a tensor that AdamW updates."""
    others = ("norm", "conv1d", "recurrence.state", "A_log")
    if "layers." not in name or len(shape) != 2 or any(other in name for other in others):
        return None
    if name.endswith("attention.qkv.weight"):
        query = shape[0]
        key = (shape[1] - query) // 2
        return slice(0, query), slice(query, query + key), slice(query + key, shape[1])
    if shape[1] == 70:  # gate and up
        return slice(0, 35), slice(35, 70)
    return (slice(0, shape[1]),)


def plain_muon(w, g, m, rate, decay):
    """(w, m) after an update, by matrices of the shape of w only."""
    m = MOMENTUM * m + (1 - MOMENTUM) * g
    u = MOMENTUM * m + (1 - MOMENTUM) * g
    x = u / (muon.MARGIN * np.linalg.norm(u))
    for a, b, c in muon.COEFFICIENTS:
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return (1 - rate * decay) * w - 0.2 * rate * math.sqrt(max(w.shape)) * x, m


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 2e-3)], ids=["float64", "float32"])
@pytest.mark.parametrize("decay, grad_clip", [("matrices", 0.05), ("all", 0.0)], ids=["clipped", "all-decay"])
@pytest.mark.parametrize("name", MODELS)
def test_five_updates_follow_the_formula(name, decay, grad_clip, dtype, tolerance):
    model = made(name, dtype, decay=decay)
    p, other = model.parameters, made(name, dtype, decay=decay)
    settings = dict(learning_rate=0.01, weight_decay=0.3, grad_clip=grad_clip)
    optimizer, adamw = Muon(p, model.config, 3.0, **settings), AdamW(other.parameters, **settings)
    weights = {key: w.astype(float) for key, w in p.trained.items()}
    moments = {key: np.zeros_like(w) for key, w in weights.items()}
    matrices = {key: columns for key, w in weights.items() if (columns := columns_of(key, w.shape))}
    assert len(optimizer.matrices) == sum(map(len, matrices.values())) > 4
    for seed in range(5):
        model.loss_and_gradient(*batch(seed))
        other.parameters.gradients[:] = p.gradients
        gradients = {key: g.astype(float) for key, g in p.gradient.items()}
        norm = adamw.step()
        assert optimizer.step() == norm
        assert not p.gradients.any()
        scale = min(1, grad_clip / (norm + 1e-6)) if grad_clip else 1
        for key, columns in matrices.items():
            for part in columns:
                w, m = (x[key][:, part] for x in (weights, moments))
                w[...], m[...] = plain_muon(w, scale * gradients[key][:, part], m, 0.03, 0.3)
        for key, w in p.trained.items():
            expected = weights[key] if key in matrices else other.parameters.trained[key]
            np.testing.assert_allclose(w, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=key)
        for key in matrices:
            found = optimizer.state()[f"mean.{key}"]
            np.testing.assert_allclose(found, moments[key], rtol=0, atol=tolerance * np.abs(moments[key]).max())


def test_large_matrices_come_first():
    found = Muon(made().parameters, made().config).matrices
    work = [m * (stop - first) * min(m, stop - first) for _, m, _, first, stop in found]
    assert work == sorted(work, reverse=True)


@pytest.mark.parametrize("shape", [(16, 16), (24, 35), (35, 24)], ids=str)
def test_ten_updates_equal_pytorchs(shape, monkeypatch):
    """PyTorch's Muon has one triple of coefficients and computes in bfloat16, here in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle of this test, is not installed")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    triple, rng = (3.4445, -4.775, 2.0315), np.random.default_rng(4)
    start = rng.standard_normal(shape)
    weight = torch.nn.Parameter(torch.tensor(start))
    settings = dict(lr=0.02, weight_decay=0.3, momentum=MOMENTUM, ns_coefficients=triple, ns_steps=5)
    optimizer = torch.optim.Muon([weight], **settings, adjust_lr_fn="match_rms_adamw")
    w, m, matrices = start.reshape(-1).copy(), np.zeros(start.size), np.array([(0, *shape, 0, shape[1])])
    for _ in range(10):
        gradient = rng.standard_normal(shape)
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        g, coefficients = gradient.reshape(-1).copy(), np.array([triple] * 5)
        CPU.kernels.orthogonal_update(w, g, m, matrices, 1.0, 0.02, 0.3, MOMENTUM, 0.2, 1.0, coefficients)
        np.testing.assert_allclose(w.reshape(shape), weight.detach().numpy(), rtol=0, atol=1e-10)


@several
@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_threads_does_not_matter(name):
    def run():
        model = made(name, np.float32)
        optimizer = Muon(model.parameters, model.config, learning_rate=0.01)
        train(model, optimizer, 3)
        return model.parameters.weights, optimizer.mean

    over_threads(run)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_updates_nothing(bad):
    model = made()
    optimizer = Muon(model.parameters, model.config)
    before = train(model, optimizer, 1)
    model.parameters.gradients[:] = 1
    model.parameters.gradients[-1] = bad
    assert not math.isfinite(optimizer.step())
    assert not model.parameters.gradients.any() and optimizer.updates == 1
    assert train(model, optimizer, 0) == before


# Copies and runs


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_a_model_and_its_optimizer(copied):
    model = made()
    optimizer = Muon(model.parameters, model.config, 3.0, learning_rate=0.01)
    train(model, optimizer, 2)
    other, copied_optimizer = copied((model, optimizer))
    assert copied_optimizer.parameters is other.parameters and copied_optimizer.matrix_rate == 3.0
    before = other.parameters.weights.copy()
    expected = train(model, optimizer, 2, 2)
    np.testing.assert_array_equal(other.parameters.weights, before)  # independent
    assert train(other, copied_optimizer, 2, 2) == expected


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("settings", [{}, dict(dtype="bf16")], ids=["fp32", "bf16"])
def test_a_trainer_resumes_with_the_same_bits(tmp_path, data, settings):
    whole, part = (small.trainer(data, tmp_path / name, optimizer="muon", **settings) for name in ("whole", "part"))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        part.step()
    part.save()
    whole.save()
    again = small.trainer(data, optimizer="muon", **settings)
    small.resume(again, tmp_path / "part")
    for _ in range(3):
        again.step()
    assert isinstance(again.optimizer, Muon)
    again.save()
    small.assert_same_state(tmp_path / "whole", tmp_path / "part", 6)


RUNS = {
    "llama": dict(positions="rotary", feed_forward="swiglu", n_kv_head=1),
    "bf16": dict(dtype="bf16"),
    "recompute": dict(recompute=True, n_layer=2),
    "mamba": dict(pattern="M", positions="none", feed_forward="none"),
    "recurrence": dict(pattern="S", positions="none", feed_forward="none", max_spectral_norm=0.9),
    "decay-all": dict(decay="all", grad_accumulation_steps=2),
}


def losses(trainer, n=40):
    return [trainer.step()[0] for _ in range(n)]


@pytest.mark.parametrize("name", RUNS)
def test_models_of_every_kind_learn(data, name):
    found = losses(small.trainer(data, optimizer="muon", warmup_iters=0, max_iters=40, **RUNS[name]))
    assert np.isfinite(found).all() and np.mean(found[-5:]) < found[0] - 1


def test_recomputation_gives_the_same_bits(data):
    one, other = (small.trainer(data, optimizer="muon", n_layer=2, recompute=on) for on in (False, True))
    assert losses(one, 4) == losses(other, 4)
    np.testing.assert_array_equal(one.model.parameters.weights, other.model.parameters.weights)


def test_numpys_kernels_learn_alike(data):
    numba = losses(small.trainer(data, optimizer="muon"), 10)
    CPU.use_kernels("numpy")
    try:
        numpy = losses(small.trainer(data, optimizer="muon"), 10)
    finally:
        CPU.use_kernels()
    np.testing.assert_allclose(numpy, numba, rtol=1e-4)


# Refusals


def test_a_model_without_matrices_is_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert small.status("train", *small.flags(data, max_iters=2, eval_interval=2, save_interval=2, out_dir="base")) == 0
    words = ["--base", "base", "--data", data, "--lora-rank", 2, "--optimizer", "muon", "--max-iters", 2]
    printed = small.refusal(capsys, "finetune", *words, "--threads", 1)
    assert "--optimizer muon has no effect" in printed


def test_adapters_alone_have_no_matrices():
    model = made(lora=LoraConfig(lora_rank=2))
    assert not len(Muon(model.parameters, model.config).matrices)


def test_a_matrix_rate_needs_muon(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = small.refusal(capsys, "train", *small.flags(data, matrix_rate=3.0, out_dir="run"))
    assert "--matrix-rate" in printed and "--optimizer adamw" in printed


@pytest.mark.parametrize("wrong", [-1.0, math.nan, 2e3, "1"], ids=str)
def test_wrong_matrix_rates_are_refused(wrong):
    with pytest.raises(UserError, match="matrix-rate"):
        TrainConfig(optimizer="muon", matrix_rate=wrong)
