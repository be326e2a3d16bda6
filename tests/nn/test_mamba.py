"""Mamba beside transformers' MambaForCausalLM, its scan and convolution beside the oracle, and states that are carried from window to window."""

import tracemalloc

import numba
import numpy as np
import pytest
import reference as ref
import small
from configs import config_of

from slm_np import ops
from slm_np.data.batches import ContiguousOrder
from slm_np.data.token_store import Tokens
from slm_np.errors import UserError
from slm_np.inference.decoder import Decoder
from slm_np.kernels.cpu.scan import CHUNK, GROUP, PASS
from slm_np.nn.mixers import mamba
from slm_np.nn.model import Model, States
from slm_np.ops.device import kernels_of
from slm_np.presets import MAMBA, preset
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(MAMBA, vocab_size=23, block_size=40, n_layer=2, n_embd=24)
several = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this process may use one core only")


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def text(config, batch, steps, seed=0):
    return np.random.default_rng([seed, 2]).integers(0, config.vocab_size, (batch, steps)).astype(np.int32)


def made(dtype=np.float64, noise=0.1, **settings):
    model = Model(config_of(**{**SMALL, **settings}), 3, dtype=dtype)
    model.parameters.weights += (
        noise * np.random.default_rng(4).standard_normal(model.parameters.weights.size)
    ).astype(dtype)
    return model


def near(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * max(1e-3, np.abs(expected).max())


# The scan and the convolution beside the oracle


def scanned(x, delta, selected, projected, a_log, skip, first, dout):
    """(out, every gradient, the states that are kept) by the engine, from arrays (B, T, .)."""
    batch, steps, channels = x.shape
    rows = [a.reshape(batch * steps, -1).copy() for a in (x, delta, selected, projected)]
    states = np.full((batch, kernels_of(x).selective_scan_chunks(steps) + 1, *a_log.shape), np.nan, x.dtype)
    scratch, parts = (
        np.full(shape, np.nan, x.dtype)
        for shape in (
            kernels_of(x).selective_scan_scratch(channels, len(a_log), batch),
            kernels_of(x).selective_scan_partials(batch, steps, channels, len(a_log)),
        )
    )
    states[:, 0] = first
    out, dx, dselected, da_log, dskip = (
        np.full_like(rows[0], np.nan),
        np.full_like(rows[0], np.nan),
        *map(np.zeros_like, (rows[2], a_log, skip)),
    )
    ops.selective_scan_forward(out, states, scratch, *rows, a_log, skip)
    scratch.fill(np.nan)
    ops.selective_scan_backward(
        dx,
        rows[1],
        dselected,
        rows[3],
        da_log,
        dskip,
        parts,
        scratch,
        dout.reshape(out.shape),
        states,
        rows[0],
        rows[2],
        a_log,
        skip,
    )
    rows[3][:, :channels] = 0
    return [out, dx, rows[1], dselected, rows[3], da_log, dskip], states


def scan_inputs(batch, steps, channels, states, rank, dtype):
    one = [
        normal(batch, steps, n, seed=i, dtype=dtype)
        for i, n in enumerate((channels, channels, rank + 2 * states, 2 * channels))
    ]
    a_log = np.log(np.arange(1, states + 1))[:, None] + 0.3 * normal(states, channels)
    return [
        *one,
        a_log.astype(dtype),
        normal(channels, dtype=dtype),
        normal(batch, states, channels, seed=7, dtype=dtype),
        normal(batch, steps, channels, seed=8, dtype=dtype),
    ]


SCANS = [
    (2, 5, 3, 2, 1),
    (1, 1, 1, 1, 1),
    (3, 1, 7, 1, 2),
    (2, CHUNK, 5, PASS, 1),
    (1, CHUNK + 1, GROUP + 3, 3, 1),
    (2, 3 * CHUNK - 1, 17, PASS + 1, 2),
    (1, 70, 2 * GROUP, 16, 1),
]


@pytest.mark.parametrize("shape", SCANS, ids=["x".join(map(str, shape)) for shape in SCANS])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 3e-6)], ids=["float64", "float32"])
def test_scan_is_the_oracles(shape, dtype, tolerance):
    *inputs, dout = scan_inputs(*shape, dtype)
    found, states = scanned(*inputs, dout)
    (out, history), gradients = ref.selective_scan(*inputs), ref.selective_scan_backward(dout, *inputs)
    for one, other in zip(found, (out, *gradients)):
        near(one.reshape(other.shape), other, tolerance)
    for place, time in enumerate([*range(0, shape[1], CHUNK), shape[1]]):
        near(states[:, place], history[:, time], tolerance)


@pytest.mark.parametrize("delta", [-100.0, -20.0, 0.0, 30.0, 1e4])
def test_scan_at_the_ends_of_its_steps(delta):
    """A step of nearly no time keeps the state, an endless one forgets it; nothing overflows."""
    x, _, selected, projected, a_log, skip, first, dout = scan_inputs(1, 40, 20, 3, 1, np.float32)
    inputs = [x, np.full_like(x, delta), selected, projected, a_log, skip, first]
    found, _ = scanned(*inputs, dout)
    (out, _), gradients = ref.selective_scan(*inputs), ref.selective_scan_backward(dout, *inputs)
    for one, other in zip(found, (out, *gradients)):
        near(one.reshape(other.shape), other, 1e-5)


@pytest.mark.parametrize(
    "name, place, column, remembered",
    [("x", 0, 3, True), ("delta", 1, 3, True), ("B", 2, 2, True), ("C", 2, -1, False), ("gate", 3, -1, False)],
)
def test_scan_keeps_nan(name, place, column, remembered):
    *inputs, dout = scan_inputs(1, 40, 20, 3, 1, np.float32)
    inputs[place][0, 35, column] = np.nan
    (out, *_), _ = scanned(*inputs, dout)
    assert np.isfinite(out[:35]).all() and np.isnan(out[35]).any() and np.isnan(out[36:]).any() == remembered


@pytest.mark.parametrize("shape", [(2, 7, 5, 4), (1, 1, 1, 4), (2, 2, 70, 5), (1, 9, 130, 1)], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-6)], ids=["float64", "float32"])
def test_convolution_is_the_oracles(shape, dtype, tolerance):
    batch, steps, channels, size = shape
    x, past, weight, bias, dout = (
        normal(*s, dtype=dtype)
        for s in (
            (batch, steps, channels),
            (batch, size - 1, channels),
            (size, channels),
            (channels,),
            (batch, steps, channels),
        )
    )
    wide = np.concatenate((x, normal(batch, steps, 3, seed=5, dtype=dtype)), axis=2).reshape(batch * steps, -1)
    out, dweight, dbias, dx, down = (
        np.full((batch * steps, channels), np.nan, dtype),
        np.ones_like(weight),
        np.ones_like(bias),
        wide.copy(),
        dout.reshape(-1, channels).copy(),
    )
    ops.convolution_forward(out, wide, past, weight, bias)
    ops.convolution_backward(dx, dweight, dbias, np.full_like(out, np.nan), down, past, weight, bias)
    expected = ref.convolution_backward(dout, x, past, weight, bias)
    near(out.reshape(x.shape), ref.convolution(x, past, weight, bias), tolerance)
    for found, gradient in zip((dx[:, :channels].reshape(x.shape), dweight - 1, dbias - 1), expected):
        near(found, gradient, tolerance)
    np.testing.assert_array_equal(dx[:, channels:], wide[:, channels:])


@several
def test_scan_and_convolution_give_the_same_bits_for_any_number_of_threads(threads):
    *inputs, dout = scan_inputs(3, 70, 2 * GROUP + 20, 5, 2, np.float32)
    model, found = made(np.float32, n_embd=150), []
    tokens = text(model.config, 3, 40)
    for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        threads(count)
        model.parameters.gradients.fill(0)
        model.loss_and_gradient(tokens, tokens)
        found.append(b"".join(a.tobytes() for a in scanned(*inputs, dout)[0]) + model.parameters.gradients.tobytes())
    assert len(set(found)) == 1


# transformers' twin


def hugging_face(model):
    """transformers' model of the same weights, in float32."""
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
    twin.load_state_dict(
        {name: torch.tensor(array) for name, array in named(c, model.parameters.weight).items()}, strict=False
    )
    return torch, twin


NAMES = {
    "input.weight": ("in_proj.weight", lambda a: a.T),
    "input.bias": ("in_proj.bias", None),
    "convolution.weight": ("conv1d.weight", lambda a: a.T[:, None]),
    "convolution.bias": ("conv1d.bias", None),
    "select.weight": ("x_proj.weight", lambda a: a.T),
    "step.weight": ("dt_proj.weight", lambda a: a.T),
    "step.bias": ("dt_proj.bias", None),
    "a_log": ("A_log", lambda a: a.T),
    "skip": ("D", None),
    "output.weight": ("out_proj.weight", lambda a: a.T),
    "output.bias": ("out_proj.bias", None),
}


def named(config, arrays):
    """{transformers' name: array} of our weights or gradients."""
    found = {
        "backbone.embeddings.weight": arrays["embedding.weight"],
        "backbone.norm_f.weight": arrays["norm.weight"],
        "lm_head.weight": arrays["embedding.weight" if config.head == "tied" else "head.weight"],
    }
    for layer in range(config.n_layer):
        found[f"backbone.layers.{layer}.norm.weight"] = arrays[f"layers.{layer}.mixer_norm.weight"]
        for ours, (theirs, turned) in NAMES.items():
            if (array := arrays.get(f"layers.{layer}.mamba.{ours}")) is not None:
                found[f"backbone.layers.{layer}.mixer.{theirs}"] = np.ascontiguousarray(
                    turned(array) if turned else array
                )
    return found


TWINS = {
    "preset": dict(),
    "bias": dict(bias=True, head="linear"),
    "odd": dict(n_embd=25, n_inner=50, ssm_state_size=5, conv_kernel=3, time_step_rank=3),
    "one-state": dict(ssm_state_size=1),
    "one-token": dict(block_size=1),
}


@pytest.mark.parametrize("name", TWINS)
def test_logits_and_gradients_are_transformers(name):
    model = made(np.float32, noise=0.02, **TWINS[name])
    torch, twin = hugging_face(model)
    tokens, targets = (
        text(model.config, 3, model.config.block_size),
        text(model.config, 3, model.config.block_size, seed=1),
    )
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


def test_ten_updates_are_transformers():
    model = made(np.float32, noise=0.0)
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
    tokens, targets, losses = text(model.config, 3, 40), text(model.config, 3, 40, seed=1), []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(
            twin(torch.tensor(tokens).long()).logits.flatten(0, 1), torch.tensor(targets).long().flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        other.step()
        other.zero_grad()
        losses.append(model.loss_and_gradient(tokens, targets))
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_initial_weights_are_transformers_laws():
    config = preset("mamba")[0]
    model, twin = Model(config, seed=1), Model(config, seed=1)
    w = {name[9:]: view for name, view in model.parameters.weight.items() if name.startswith("layers.0.")}
    np.testing.assert_allclose(np.exp(w["mamba.A_log"]), np.arange(1, 17)[:, None] + np.zeros(512), rtol=1e-6)
    steps = np.log1p(np.exp(w["mamba.dt_proj.bias"].astype(float)))
    assert 1e-3 * 0.999 <= steps.min() < 1.3e-3 and 0.08 < steps.max() <= 0.1 * 1.001
    assert abs(np.log(steps).mean() - np.log(1e-2)) < 0.2
    for name, bound in (("convolution.weight", 0.5), ("step.weight", 0.25), ("output.weight", 512**-0.5)):
        assert 0.98 * bound < np.abs(w[f"mamba.{name}"]).max() <= bound
    assert (
        w["mamba.in_proj.weight"].std()
        == pytest.approx(0.1, rel=0.01)
        == pytest.approx(model.parameters.weight["embedding.weight"].std(), rel=0.02)
    )
    assert (w["mamba.D"] == 1).all() and (w["mamba.conv1d.bias"] == 0).all()
    np.testing.assert_array_equal(model.parameters.weights, twin.parameters.weights)
    decayed = {
        name
        for name, view in model.parameters.weight.items()
        if view.ctypes.data < model.parameters.weights.ctypes.data + 4 * model.parameters.n_decayed
    }
    assert "layers.0.mamba.in_proj.weight" in decayed and "layers.0.mamba.A_log" not in decayed
    assert mamba.rates(None, (3, 2)).shape == (3, 2)


# States that are carried

CARRIERS = {
    "mamba": dict(),
    "one-state": dict(ssm_state_size=1, conv_kernel=1),
    "longer-filter": dict(conv_kernel=9, n_inner=17),
    "recurrence": dict(pattern="S", recurrence_size=10),
    "both": dict(pattern="MS", recurrence_size=9, feed_forward="swiglu", bias=True),
    "system-2": dict(pattern="S", norm="none", residual=False, head="none", recurrence_size=12),
}
every_carrier = pytest.mark.parametrize("name", CARRIERS)


@every_carrier
@pytest.mark.parametrize("cut", [1, 7, 20])
def test_windows_that_carry_on_equal_one_long_window(name, cut):
    model = made(**CARRIERS[name])
    tokens, states, found = text(model.config, 2, 40), States(model, 2), []
    whole = model.logits(tokens).copy()
    losses = model.losses(tokens, tokens).copy()
    for start in range(0, 40, cut):
        part = np.ascontiguousarray(tokens[:, start : start + cut])
        n = part.size
        loss = model.loss_and_gradient(part, part, states=states.layers)
        assert loss == pytest.approx(losses[:, start : start + cut].sum() / n, rel=1e-10)
        found.append(states.memory.copy())
    near(Decoder(model, 2).read(tokens), whole[:, -1], 1e-9)
    states.clear()
    model.loss_and_gradient(tokens, tokens, states=states.layers)
    near(states.memory, found[-1], 1e-9)
    states.clear()
    assert not states.memory.any()


@every_carrier
def test_steps_leave_the_state_of_the_scan(name):
    model = made(**CARRIERS[name])
    tokens, one, other = text(model.config, 3, 35), Decoder(model, 3), Decoder(model, 3)
    whole = model.logits(tokens)
    for place in range(35):
        near(one.step(tokens[:, place]), whole[:, place], 1e-9)
    other.read(tokens)
    near(one.step(tokens[:, 0]), other.step(tokens[:, 0]), 1e-9)


@every_carrier
def test_gradients_stop_at_the_edge(name):
    """The gradient of a window that goes on from a state is that of the window alone, the state being a constant."""
    model = made(**CARRIERS[name])
    tokens, states = text(model.config, 2, 30), States(model, 2)
    model.loss_and_gradient(tokens, tokens, states=states.layers)
    kept, later = states.memory.copy(), text(model.config, 2, 9, seed=5)
    model.parameters.gradients.fill(0)
    model.loss_and_gradient(later, later, states=states.layers)
    gradient, direction = (
        model.parameters.gradients.copy(),
        np.random.default_rng(0).standard_normal(model.parameters.weights.size),
    )
    direction /= np.linalg.norm(direction)
    values = []
    for sign in (1, -1):
        model.parameters.weights += sign * 1e-5 * direction
        states.memory[:] = kept
        values.append(model.loss_and_gradient(later, later, states=states.layers))
        model.parameters.weights -= sign * 1e-5 * direction
    assert gradient @ direction == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_a_step_takes_the_same_memory_however_long_the_text():
    model = made(np.float32)
    decoder, tokens = Decoder(model, 1), text(model.config, 1, 300)
    assert States(model, 1).memory.nbytes == 4 * 2 * (16 + 3) * 48
    tracemalloc.start()
    try:
        for place in range(300):  # far beyond the context
            logits = decoder.step(tokens[:, place])
            if place == 100:
                early = tracemalloc.get_traced_memory()[0]
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late < early + 1024 and np.isfinite(logits).all()
    long = made(np.float32, block_size=300)
    near(logits, long.logits(tokens)[:, -1], 1e-4)


# Streams


def test_streams_read_the_text_in_order():
    tokens = Tokens("train", np.arange(103, dtype=np.uint16))
    order, x, y = ContiguousOrder(tokens, 5, 4), np.zeros((4, 5), np.int32), np.zeros((4, 5), np.int32)
    assert order.n_windows == 5
    seen = []
    for i in range(6):
        order.batch(x, y, i)
        np.testing.assert_array_equal(y, x + 1)
        seen.append(x.copy())
    np.testing.assert_array_equal(np.concatenate(seen[:5], axis=1), np.arange(100).reshape(4, 25))
    np.testing.assert_array_equal(seen[5], seen[0])
    with pytest.raises(UserError, match="--carry-state cuts it into --batch-size 30 parts"):
        ContiguousOrder(tokens, 5, 30)


CARRIED = dict(pattern="M", positions="none", feed_forward="none", carry_state=True)


@pytest.mark.parametrize("pattern", ["M", "S"])
def test_training_that_carries_the_state_resumes_with_the_same_bits(pattern, tmp_path):
    data = small.text_file(tmp_path, lines=12)  # few windows a stream, so that streams begin again
    whole = small.trainer(data, tmp_path / "whole", **{**CARRIED, "pattern": pattern})
    assert 1 < whole.batches.n_windows < 12
    whole.train()
    part = small.trainer(data, tmp_path / "part", **{**CARRIED, "pattern": pattern})
    for _ in range(8):
        part.step()
    part.save()
    rest = small.trainer(data, **{**CARRIED, "pattern": pattern})
    small.resume(rest, tmp_path / "part")
    assert rest.states.memory.any()
    rest.train()
    np.testing.assert_array_equal(rest.model.parameters.weights, whole.model.parameters.weights)
    np.testing.assert_array_equal(rest.states.memory, whole.states.memory)


def test_the_state_goes_on_and_begins_again_with_the_streams(tmp_path):
    trainer = small.trainer(small.text_file(tmp_path, lines=12), **CARRIED)
    begun = []
    n_windows = trainer.batches.n_windows
    for _ in range(2 * n_windows):
        before = trainer.states.memory.copy()
        trainer.load_batch(trainer.updates)
        begun.append(not trainer.states.memory.any())
        trainer.states.memory[:] = before
        trainer.step()
    assert begun == ([True] + [False] * (n_windows - 1)) * 2


def test_a_loss_that_is_not_finite_is_not_carried_on(tmp_path):
    trainer = small.trainer(small.text_file(tmp_path), **CARRIED)
    trainer.step()
    kept = trainer.model.parameters.weights.copy()
    trainer.model.parameters.weights[:] = np.nan
    trainer.step()
    assert not trainer.states.memory.any()
    trainer.model.parameters.weights[:] = kept
    assert np.isfinite(trainer.step()[0])


def test_attention_has_no_state_to_carry(tmp_path):
    with pytest.raises(UserError, match="--carry-state needs layers with a recurrent state only"):
        small.trainer(small.text_file(tmp_path), carry_state=True)


# Settings


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(pattern="MX"), "letters A"),
        (dict(head="none"), "--no-residual"),
        (dict(pattern="M", head="none", residual=False), "--feed-forward none"),
        (dict(conv_kernel=0), "--conv-kernel is 0"),
        (dict(ssm_state_size=0), "--ssm-state-size is 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        config_of(**settings)


def test_sizes_have_defaults():
    config = config_of(pattern="M", n_embd=250)
    assert (
        config.n_inner,
        config.time_step_rank,
        config.ssm_state_size,
        config.recurrence_size,
        config.has_attention,
    ) == (
        500,
        16,
        16,
        500,
        False,
    )
    hybrid = dict(pattern="MMMA", n_embd=128, n_head=4)
    assert config_of(**hybrid, n_layer=4).has_attention and not config_of(**hybrid, n_layer=4).unlimited_context
    assert config_of(**hybrid, n_layer=3).unlimited_context


def test_the_spectral_norm_is_logged_and_held_down(tmp_path):
    data, settings = (
        small.text_file(tmp_path),
        dict(pattern="S", positions="none", feed_forward="none", learning_rate=0.05),
    )
    free, held = (
        small.trainer(data, tmp_path / name, **settings, max_spectral_norm=limit)
        for name, limit in (("free", 0.0), ("held", 0.6))
    )
    free.train()
    held.train()
    for name, trainer, low, high in (("free", free, 0.7, 100), ("held", held, 0.5, 0.6001)):
        (row,) = [row for row in small.rows(tmp_path / name) if row["step"] == 12 and "spectral_norms" in row]
        a = trainer.model.parameters.weight["layers.0.recurrence.state.weight"]
        assert low < row["spectral_norms"][0] < high
        assert row["spectral_norms"][0] == pytest.approx(np.linalg.norm(a, 2), rel=0.02)
