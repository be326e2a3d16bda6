"""Every derivative against finite differences: each op, each preset, unusual architectures.

The checker itself is tested with wrong derivatives.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import slm_np
from slm_np import gradcheck
from slm_np.config import ModelConfig
from slm_np.nn import gradient_check
from slm_np.nn.gradient_cases import op_cases
from slm_np.nn.gradient_check import TOLERANCE, directional_error, model_error, overwritten, shrunk
from slm_np.nn.model import Model, parameters
from slm_np.presets import PRESETS, preset

pytestmark = pytest.mark.usefixtures("one_thread", "kernel_set")
CASES = list(op_cases())
every_op = pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])

TINY = dict(vocab_size=11, block_size=9, n_layer=2, n_head=2, n_embd=12, n_hidden=10)
MLP = dict(head="mlp", head_hidden=7)
GPT2 = dict(TINY, positions="learned", norm="layernorm", feed_forward="gelu", bias=True)
MODELS = {
    "grouped-queries": dict(TINY, n_head=4, n_kv_head=2, head_dim=4),
    "one-key-value-head": dict(TINY, n_head=3, n_kv_head=1, head_dim=2),
    "wide-heads": dict(TINY, head_dim=10),
    "rotary-base": dict(TINY, rope_theta=50.0),
    "no-positions": dict(TINY, positions="none"),
    "sinusoidal": dict(TINY, positions="sinusoidal"),
    "learned-no-bias": dict(GPT2, bias=False),
    "bias-everywhere": dict({**GPT2, **MLP}, positions="rotary", feed_forward="swiglu"),
    "attention-only": dict(TINY, feed_forward="none", n_hidden=0),
    "dropout": dict(GPT2, dropout=0.2),
    "dropout-grouped-queries": dict(TINY, n_head=4, n_kv_head=2, head_dim=4, dropout=0.4, head="linear"),
    "dropout-no-norm": dict(TINY, norm="none", feed_forward="silu", dropout=0.3),
    "linear-head": dict(TINY, head="linear"),
    "mlp-head": dict(TINY, **MLP),
    "mimetic-weights": dict(TINY, n_head=4, n_kv_head=2, head_dim=4, init="mimetic"),
    "uniform-weights": dict(TINY, **MLP, init="uniform", norm="none"),
    "one-token": dict(TINY, block_size=1),
    "one-token-learned": dict(GPT2, block_size=1),
    "one-token-vocabulary": dict(TINY, vocab_size=1),
    "odd-width": dict(GPT2, n_head=1, n_embd=7),
    "odd-width-no-norm": dict(
        {**TINY, **MLP}, positions="sinusoidal", norm="none", feed_forward="silu", n_head=1, n_embd=7
    ),
    "width-one": dict(TINY, positions="none", n_head=1, n_embd=1, n_hidden=1),
    "longer-than-a-block-of-queries": dict(TINY, block_size=70, n_layer=1),
    "qwen2": dict(TINY, qkv_bias="on", n_head=4, n_kv_head=2, head_dim=4),
    "qwen3": dict(TINY, qk_norm=True, n_head=4, n_kv_head=2, head_dim=6),
    "llama3": dict(TINY, rope_scaling="llama3:4,1,4,6", rope_theta=50.0),
    "smollm3": dict(TINY, pattern="AN"),
    "gpt-neox": dict(TINY, norm="layernorm", feed_forward="gelu", bias=True, parallel=True, rotary_dim=2),
    "gpt-neo": dict(GPT2, pattern="AL", window=3, score_scale=1.0, qkv_bias="off"),
    "all-settings-of-attention": dict(
        TINY,
        n_layer=3,
        pattern="LAN",
        window=4,
        score_scale=0.7,
        dropout=0.2,
        qk_norm=True,
        qkv_bias="on",
        rotary_dim=4,
    ),
    "window-shorter-than-a-block-of-queries": dict(TINY, pattern="L", window=20, block_size=150, n_layer=1),
    "window-longer-than-a-block-of-queries": dict(TINY, pattern="L", window=70, block_size=150, n_layer=1, dropout=0.3),
    "parallel-no-norm": dict(TINY, norm="none", parallel=True, qk_norm=True, dropout=0.2, positions="none"),
    "parallel-mamba": dict(TINY, pattern="AM", parallel=True, n_inner=10, ssm_state_size=3, time_step_rank=2),
    **{
        f"{norm}-{kind}": dict(
            TINY, norm=norm, feed_forward=kind, n_hidden=0 if kind == "none" else 10, bias=kind != "silu"
        )
        for norm in ("none", "layernorm", "rmsnorm")
        for kind in ("none", "silu", "gelu", "gelu-tanh", "swiglu")
    },
}


@every_op
def test_op(case):
    assert case.error() <= TOLERANCE


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name):
    config = shrunk(preset(name)[0])
    errors = model_error(config)
    assert set(errors) == {t.name for t in parameters(config)} | {""}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    errors = model_error(ModelConfig(**MODELS[name]))
    assert max(errors.values()) <= TOLERANCE, errors


# Wrong derivatives, which the checker must find


def scaled(gradient):
    return gradient * 1.001


def one_entry_lost(gradient):
    largest = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    changed = gradient.copy()
    changed[largest] = 0
    return changed


def one_entry_nan(gradient):
    changed = gradient.copy()
    changed.flat[-1] = np.nan
    return changed


@pytest.mark.parametrize("harm", [scaled, one_entry_lost, one_entry_nan])
@every_op
def test_a_wrong_backward_is_caught(case, harm):
    for wrong in range(len(case.inputs)):
        if case.name == "rmsnorm 1 wide" and harm is scaled and wrong == 0:
            continue  # one element over its norm is its sign: the gradient is near zero, and so is its thousandth

        def backward(dout, *inputs):
            return [harm(g) if i == wrong else g for i, g in enumerate(case.backward(dout, *inputs))]

        assert not case._replace(backward=backward).error() <= TOLERANCE, f"gradient {wrong}"


@pytest.mark.parametrize("harm", [scaled, one_entry_lost, one_entry_nan])
def test_a_wrong_tensor_of_a_model_is_caught(harm, monkeypatch):
    config, name = ModelConfig(**MODELS["bias-everywhere"]), "layers.1.attention.qkv.weight"

    class Wrong(Model):
        def loss_and_gradient(self, *args, **named):
            loss = super().loss_and_gradient(*args, **named)
            gradient = self.parameters.gradient[name]
            gradient[...] = 1 + harm(gradient - 1)  # gradients start as ones in the check
            return loss

    monkeypatch.setattr(gradient_check, "Model", Wrong)
    errors = model_error(config)
    assert [n for n, error in errors.items() if not error <= TOLERANCE] == [name, ""]


def test_an_output_left_unwritten_is_caught():
    """The checker fills outputs with NaN, which stays where an op skips a row."""
    silu = next(case for case in CASES if case.name == "silu")

    def forward(x):
        out = overwritten(x.shape)
        out[1:] = silu.forward(x[1:])
        return out

    assert not silu._replace(forward=forward).error() <= TOLERANCE


def test_directional_error_restores_its_inputs_and_measures_slopes():
    x, y, rng = np.array([0.3, -2.0]), np.array(1.5), np.random.default_rng(0)
    before = x.copy(), y.copy()

    def function():
        return float((x**2).sum() * y)

    assert directional_error(function, [x, y], [2 * x * y, (x**2).sum()], rng) < 1e-9
    assert 1e-4 < directional_error(function, [x, y], [2 * x * y * 1.001, (x**2).sum()], rng) < 1e-2
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


# The command


def test_command_prints_a_line_per_tensor(kernel_set):
    done = subprocess.run(
        [sys.executable, "-m", "slm_np.gradcheck", "--preset", "stories", "--kernels", kernel_set],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=Path(slm_np.__file__).resolve().parents[1],
        env={**os.environ, "NUMBA_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[0] for line in lines[:-1]] == list(Model(shrunk(preset("stories")[0])).parameters.weight)
    assert lines[-1][:2] == ["all", "tensors"]
    assert all(line[-1] == "ok" and float(line[-2]) <= TOLERANCE for line in lines)


def test_command_without_a_preset_covers_every_op_and_preset(kernel_set, monkeypatch, capsys):
    monkeypatch.setattr(gradient_check, "shrunk", lambda config: shrunk(config, n_layer=1, block_size=3))
    with pytest.raises(SystemExit) as left:
        gradcheck.main(["--kernels", kernel_set])
    shown = capsys.readouterr().out.splitlines()[1:]
    assert left.value.code == 0
    assert [line[:48].strip() for line in shown] == [case.name for case in CASES] + [
        f"model of {name}" for name in PRESETS
    ]


def test_command_reports_wrong_derivatives(monkeypatch, capsys):
    harmed = CASES[0]._replace(backward=lambda dout, x: [scaled(g) for g in CASES[0].backward(dout, x)])
    monkeypatch.setattr("slm_np.nn.gradient_cases.op_cases", lambda: [harmed, CASES[1]])
    monkeypatch.setattr(gradcheck, "PRESETS", {})
    with pytest.raises(SystemExit) as left:
        gradcheck.main([])
    assert left.value.code == 1
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == ["WRONG", "ok"]


def test_command_refuses_an_unknown_preset(capsys):
    with pytest.raises(SystemExit) as left:
        gradcheck.main(["--preset", "storys"])
    assert left.value.code == 2 and "did you mean stories?" in capsys.readouterr().err
