"""Decoding: steps equal the whole sequence for every choice of the model, and both kinds of step agree."""

import itertools
import subprocess
import sys
import tracemalloc

import numba
import numpy as np
import pytest
import small

from slm_np import ops
from slm_np.config import ATTENTION, ModelConfig
from slm_np.errors import UserError
from slm_np.inference import decoder as decoder_module
from slm_np.inference import positions as positions_module
from slm_np.inference.compiled_step import CompiledStep
from slm_np.inference.decoder import Decoder
from slm_np.inference.generic_step import GenericStep
from slm_np.nn import mixers
from slm_np.nn.arena import Request
from slm_np.nn.model import Model
from slm_np.nn.parameters import matmul_weight
from slm_np.ops.device import CPU
from slm_np.presets import PRESETS, preset

TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}
T, V = 9, 13
several = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this process may use one core only")


@pytest.fixture
def generic(monkeypatch):
    """Decoders take the generic step."""
    monkeypatch.setattr(decoder_module, "choose_step", GenericStep)


def made(dtype=np.float64, **settings):
    """A model of random weights, biases and norms, large enough that its logits differ."""
    defaults = dict(vocab_size=V, block_size=T, n_layer=2, n_embd=16)
    if set(settings.get("pattern", "A")) & set(ATTENTION):
        defaults["n_head"] = 4
    if settings.get("feed_forward") != "none":
        defaults["n_hidden"] = 10
    return randomized(Model(ModelConfig(**{**defaults, **settings}), dtype=dtype))


def randomized(model):
    draw = np.random.default_rng(4)
    for name, view in model.parameters.weight.items():
        columns = view.shape[-1] if "head" in name or "embedding" in name else view.shape[0]
        scale = 0.3 if view.ndim == 1 else 0.6 * columns**-0.5
        view[...] = draw.normal(float("norm.weight" in name), scale, view.shape)
    return model


def random_tokens(batch, steps, vocab_size=V, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, (batch, steps), np.int32)


def decoded(decoder, tokens, prompt):
    """Logits at each position from the prompt's last on, (B, positions, V)."""
    found = [decoder.read(tokens[:, :prompt]).copy()]
    found += [decoder.step(tokens[:, position]).copy() for position in range(prompt, tokens.shape[1])]
    return np.stack(found, axis=1)


def poison(decoder, tokens):
    """Leave NaN in all memory of a decoder, by decoding with weights of NaN."""
    weights = decoder.model.parameters.weights
    kept = weights.copy()
    weights.fill(np.nan)
    assert np.isnan(decoded(decoder, tokens, max(1, tokens.shape[1] // 2))).all()
    weights[:] = kept


def assert_near(found, expected, dtype):
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * max(1, np.abs(expected).max())


# Steps equal the whole sequence

CHOICES = {
    **{
        f"{positions}-{norm}": dict(positions=positions, norm=norm, bias=norm == "layernorm")
        for positions, norm in itertools.product(
            ("none", "sinusoidal", "learned", "rotary"), ("none", "layernorm", "rmsnorm")
        )
    },
    **{
        f"{activation}{'-bias' * bias}": dict(feed_forward=activation, bias=bias)
        for activation, bias in itertools.product(("none", "silu", "gelu", "gelu-tanh", "swiglu"), (False, True))
    },
    **{
        f"{head}-head{'-bias' * bias}": dict(head=head, bias=bias, **(dict(head_hidden=7) if head == "mlp" else {}))
        for head, bias in itertools.product(("tied", "linear", "mlp"), (False, True))
    },
    **{
        f"{heads}-heads-{groups}-groups-of-{width}": dict(n_head=heads, n_kv_head=groups, head_dim=width)
        for heads, groups, width in ((1, 1, 6), (6, 3, 2), (4, 1, 10), (3, 3, 4))
    },
    "mamba": dict(pattern="M", feed_forward="none", n_inner=10, ssm_state_size=3),
    "mamba-swiglu-bias": dict(pattern="M", bias=True, n_inner=200, ssm_state_size=3),
    "recurrence": dict(pattern="S", feed_forward="none", recurrence_size=7),
    "recurrence-gelu-bias": dict(pattern="S", feed_forward="gelu", bias=True, recurrence_size=200),
    "mamba-attention": dict(pattern="MA", feed_forward="silu", n_inner=10, ssm_state_size=3),
    "recurrence-mamba": dict(
        pattern="SM", feed_forward="none", bias=True, n_inner=130, ssm_state_size=3, recurrence_size=130
    ),
    **{
        f"no-residual-{pattern}-{head}": dict(
            pattern=pattern, residual=False, norm=norm, feed_forward="none", head=head, init="uniform"
        )
        for pattern, norm, head in (
            ("S", "none", "none"),
            ("M", "rmsnorm", "none"),
            ("A", "none", "none"),
            ("AS", "layernorm", "linear"),
        )
    },
    "no-residual-feed-forward": dict(pattern="SM", residual=False, feed_forward="swiglu"),
    "convolution-of-one": dict(pattern="M", conv_kernel=1),
    "longer-convolution": dict(pattern="M", conv_kernel=7),
    "layernorm-without-bias": dict(norm="layernorm"),
    "odd-widths": dict(n_embd=7, n_head=1, n_hidden=5, positions="none", head="mlp", head_hidden=3),
    "several-splits": dict(n_embd=24, n_hidden=200, feed_forward="swiglu", bias=True),
    "qwen2": dict(n_kv_head=2, qkv_bias="on"),
    "qwen3": dict(n_kv_head=2, head_dim=6, qk_norm=True),
    "llama3": dict(rope_scaling="llama3:4,1,4,6"),
    "smollm3": dict(n_layer=3, pattern="AN", n_kv_head=1),
    "gpt-neox": dict(norm="layernorm", feed_forward="gelu", bias=True, parallel=True, rotary_dim=2, head="linear"),
    "gpt-neo": dict(
        positions="learned", norm="layernorm", bias=True, qkv_bias="off", pattern="AL", window=3, score_scale=1.0
    ),
    "window-of-one": dict(pattern="L", window=1),
    "window-of-the-context": dict(pattern="L", window=T),
    "window-beyond-the-context": dict(pattern="L", window=T + 4),
    "parallel-hybrid": dict(
        n_layer=3,
        pattern="MLS",
        parallel=True,
        window=4,
        qk_norm=True,
        norm="none",
        n_inner=10,
        ssm_state_size=3,
        recurrence_size=7,
    ),
    "one-layer": dict(n_layer=1),
    "one-token": dict(block_size=1),
}


def check_choice(name, dtype, kind):
    model = made(dtype, **CHOICES[name])
    steps = model.config.block_size
    tokens = random_tokens(3, steps)
    expected, decoder = model.logits(tokens), Decoder(model, 3)
    assert type(decoder.token_step) is kind
    poison(decoder, tokens)  # nothing of an earlier sequence is read
    for prompt in {1, min(4, steps), steps}:
        assert_near(decoded(decoder, tokens, prompt), expected[:, prompt - 1 :], dtype)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_compiled_step_supports_every_setting(name, dtype, one_thread):
    check_choice(name, dtype, CompiledStep)


@pytest.mark.parametrize("name", CHOICES)
def test_the_generic_step_supports_every_setting(name, one_thread, generic):
    check_choice(name, np.float64, GenericStep)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, one_thread):
    """With its own widths and vocabulary, but two layers and a short context."""
    config = preset(name, dict(n_layer=2, block_size=24))[0]
    model, tokens = Model(config, seed=1), random_tokens(2, 24, config.vocab_size)
    model.parameters.weights *= 3
    assert_near(decoded(Decoder(model, 2), tokens, 5), model.logits(tokens)[:, 4:], np.float32)


@pytest.mark.parametrize("kind", ["rotary", "sinusoidal"])
def test_position_tables_refill(kind, one_thread, monkeypatch):
    monkeypatch.setattr(positions_module, "ROWS", 4)
    model, tokens = made(positions=kind), random_tokens(2, T)
    assert_near(decoded(Decoder(model, 2), tokens, 2), model.logits(tokens)[:, 1:], np.float64)


# Two implementations of a step


def shrunk(name):
    """The configuration of a preset, smaller."""
    sizes = dict(n_layer=2, n_embd=48, block_size=T, vocab_size=V)
    sizes |= {key: 40 for key in ("n_hidden", "recurrence_size") if PRESETS[name]["model"].get(key)}
    return preset(name, sizes)[0]


HYBRID = ModelConfig(
    pattern="MAS",
    n_layer=3,
    n_embd=48,
    n_head=4,
    n_kv_head=2,
    bias=True,
    n_hidden=200,
    recurrence_size=130,
    vocab_size=V,
    block_size=T,
)


SLIDING = ModelConfig(  # the ring of keys is not a multiple of the window
    pattern="LAN",
    n_layer=4,
    n_embd=48,
    n_head=4,
    n_kv_head=2,
    n_hidden=40,
    qk_norm=True,
    parallel=True,
    rotary_dim=4,
    rope_scaling="llama3:4,1,4,6",
    score_scale=0.5,
    window=4,
    vocab_size=V,
    block_size=T,
)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", [*PRESETS, "hybrid", "sliding"])
def test_the_compiled_and_the_generic_step_give_the_same_logits(name, batch, one_thread):
    """In float32, beyond the context too, where the newest keys overwrite the oldest."""
    config = dict(hybrid=HYBRID, sliding=SLIDING).get(name) or shrunk(name)
    model = randomized(Model(config))
    steps = T if config.positions in ("learned", "sinusoidal") else 3 * T + 2
    compiled, generic = CompiledStep(model, batch), GenericStep(model, batch)
    for position, tokens in enumerate(random_tokens(batch, steps).T):
        compiled.step(np.ascontiguousarray(tokens), position)
        generic.step(tokens, position)
        assert compiled.logits.dtype == generic.logits.dtype == np.float32
        error = np.abs(compiled.logits - generic.logits).max() / np.abs(generic.logits).max()
        assert error <= 1e-5, position


@pytest.mark.parametrize(
    "settings",
    [
        dict(n_kv_head=2, feed_forward="swiglu"),
        dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True),
        dict(pattern="MAS", n_layer=3, head="mlp"),
        dict(pattern="S", norm="none", feed_forward="none", residual=False, head="none"),
    ],
    ids=["llama", "gpt2", "hybrid", "recurrence"],
)
def test_ops_of_the_generic_step_get_the_new_token_only(settings, one_thread, monkeypatch, generic):
    batch, calls = 3, []

    def counted(name, kernel):
        def call(out, *inputs):
            calls.append((name, out.size // out.shape[-1]))
            return kernel(out, *inputs)

        return call

    decoder, tokens = Decoder(made(**settings), batch), random_tokens(batch, 3 * T)
    decoder.read(tokens[:, :2])
    for name in set(dir(ops)) & set(dir(CPU.kernels)):
        if callable(kernel := getattr(CPU.kernels, name)):
            monkeypatch.setattr(CPU.kernels, name, counted(name, kernel))
    first = None
    for position in range(2, T if settings.get("positions") == "learned" else 3 * T):
        decoder.step(tokens[:, position])
        first = first or calls.copy()
        assert calls == first  # the same calls at every position
        calls.clear()
    assert len(first) >= 5
    for name, rows in first:  # the array of a recurrence holds the states before the token and after it
        assert rows == (2 * batch if name == "linear_recurrence_forward" else batch), name


class RunningMean:
    """A mixer that the compiled step does not know: the mean of x W over the tokens so far."""

    @staticmethod
    def parameters(config, columns):
        yield matmul_weight(config, "mean.weight", (config.n_embd, columns), config.n_embd)

    @staticmethod
    def plan(config, batch, steps, device):
        yield Request("mean.y", (batch * steps, config.n_embd), "scratch")

    @staticmethod
    def state_elements(config, batch):
        return batch * config.n_embd

    class State:
        def __init__(self, config, batch, memory):
            self.total, self.count = memory.reshape(batch, config.n_embd), 0

        def clear(self):
            self.total.fill(0)
            self.count = 0

    @staticmethod
    def forward(config, w, a, out, x, residual, dropout, state=None):
        batch = len(state.total) if state else len(x) // config.block_size
        ops.linear_forward(a["mean.y"], x, w["mean.weight"], None, None)
        totals = np.cumsum(a["mean.y"].reshape(batch, -1, config.n_embd), axis=1)  # (B, T, D)
        count = state.count if state else 0
        if state:
            totals += state.total[:, None]
            state.total[:], state.count = totals[:, -1], count + totals.shape[1]
        means = totals / np.arange(count + 1, count + 1 + totals.shape[1])[:, None]
        out[...] = residual + means.reshape(out.shape)

    @classmethod
    def step(cls, config, w, a, out, x, residual, state, position):
        cls.forward(config, w, a, out, x, residual, None, state)


def test_a_mixer_that_the_compiled_step_does_not_know(one_thread, monkeypatch):
    monkeypatch.setitem(mixers.MIXERS, "S", RunningMean)
    model, tokens = made(pattern="SA"), random_tokens(2, T)
    decoder = Decoder(model, 2)
    assert type(decoder.token_step) is GenericStep
    for prompt in (1, 4):
        assert_near(decoded(decoder, tokens, prompt), model.logits(tokens)[:, prompt - 1 :], np.float64)


# Beyond the context


def test_a_window_of_one_layer_slides_exactly(one_thread):
    """The logits of a model of one local layer depend on the newest `window` tokens only, at any position."""
    model, tokens = made(pattern="L", n_layer=1, window=4), random_tokens(2, 5 * T)
    for make_step in (CompiledStep, GenericStep):
        decoder = Decoder(model, 2, make_step)
        logits = decoded(decoder, tokens, 2)
        for position in range(4, tokens.shape[1]):
            expected = model.logits(tokens[:, position - 3 : position + 1])[:, -1]
            assert_near(logits[:, position - 1], expected, np.float64)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_absolute_positions_read_the_last_tokens_again(kind, one_thread):
    model, tokens = made(positions=kind), random_tokens(2, 3 * T)
    for position, logits in enumerate(decoded(Decoder(model, 2), tokens, 3).swapaxes(0, 1), 3):
        assert_near(logits, model.logits(tokens[:, max(0, position - T) : position])[:, -1], np.float64)


def check_sliding(kind):
    model, tokens = made(positions=kind, n_layer=1, n_kv_head=2), random_tokens(2, 5 * T)
    for position, logits in enumerate(decoded(Decoder(model, 2), tokens, 2).swapaxes(0, 1), 2):
        assert_near(logits, model.logits(tokens[:, max(0, position - T) : position])[:, -1], np.float64)


@pytest.mark.parametrize("kind", ["rotary", "none"])
def test_one_sliding_layer_attends_to_the_last_tokens(kind, one_thread, monkeypatch):
    """Angles keep growing, but scores depend on their differences only."""
    monkeypatch.setattr(positions_module, "ROWS", 5)  # no divisor of T: tables and cache wrap at different positions
    check_sliding(kind)


@pytest.mark.parametrize("kind", ["rotary", "none"])
def test_one_sliding_layer_attends_to_the_last_tokens_generically(kind, one_thread, generic):
    check_sliding(kind)


# The same bits


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True),
        dict(head="mlp", n_kv_head=2),
    ],
    ids=["llama", "gpt2", "grouped"],
)
def test_decoding_is_batch_invariant(settings, one_thread):
    model, tokens = made(np.float32, **settings), random_tokens(5, 3 * T)
    decoders = [Decoder(model, batch) for batch in (1, 2, 5)]
    # Beyond the context learned positions read a window, whose matmuls may round differently.
    for position in range(T if "positions" in settings else 3 * T):
        alone, *others = (decoder.step(tokens[: decoder.batch, position]).copy() for decoder in decoders)
        for logits in others:
            assert logits[0].tobytes() == alone[0].tobytes()


@several
@pytest.mark.parametrize(
    "settings",
    [
        dict(n_embd=96, n_head=6, n_hidden=328),
        dict(n_embd=90, n_head=3, n_hidden=327, feed_forward="gelu", bias=True, head="mlp", n_kv_head=1),
        dict(pattern="MS", n_embd=96, n_inner=330, recurrence_size=300, n_hidden=700),
    ],
    ids=["swiglu", "gelu-mlp", "recurrent"],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_bits_for_any_number_of_threads(settings, dtype, threads):
    model, tokens = made(dtype, vocab_size=301, **settings), random_tokens(3, 2 * T, 301)
    found = []
    for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        threads(count)
        found.append(decoded(Decoder(model, 3), tokens, 2))
    for other in found[1:]:
        assert np.isfinite(other).all() and other.tobytes() == found[0].tobytes()


# Memory, imports, bad input


@pytest.mark.parametrize("kind", ["rotary", "none", "learned"])
def test_a_warm_step_allocates_almost_nothing(kind, one_thread):
    model = made(np.float32, n_embd=64, n_hidden=256, block_size=64, vocab_size=4099, positions=kind)
    decoder, tokens = Decoder(model, 4), random_tokens(4, 8)
    decoded(decoder, tokens, 3)
    tracemalloc.start()
    try:
        logits = decoder.step(tokens[:, 0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 10 < logits.nbytes


@pytest.mark.parametrize("step", [CompiledStep, GenericStep])
def test_weights_may_change_between_steps(step, one_thread, monkeypatch):
    """A step reads the model's own weights, not a copy."""
    monkeypatch.setattr(decoder_module, "choose_step", step)
    model, tokens = made(), random_tokens(1, T)
    decoder = Decoder(model)
    decoder.read(tokens[:, :2])
    model.parameters.weights *= 0.5
    assert_near(decoded(decoder, tokens, 3), model.logits(tokens)[:, 2:], np.float64)


NUMPY = """
import sys
from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.inference.generation import text_of
from slm_np.nn.model import Model

for settings in (dict(n_head=2), dict(pattern="MS"), dict(positions="learned", norm="layernorm", n_head=2)):
    model = Model(ModelConfig(vocab_size=256, block_size=8, n_layer=2, n_embd=16, **settings), seed=3)
    model.parameters.weights *= 20
    print(ascii(text_of(model, ByteTokenizer(), "ab", 20, SamplingConfig(temp=0))))
print("numba" in sys.modules)
"""


def test_numpy_kernels_write_the_same_text_without_numba():
    found = {}
    for kernels in ("numpy", "numba"):
        environment = small.environment(SLM_NP_KERNELS=kernels)
        done = subprocess.run([sys.executable, "-c", NUMPY], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *found[kernels], loaded = done.stdout.splitlines()
        assert loaded == str(kernels == "numba")
    assert found["numpy"] == found["numba"] and len(set(found["numpy"])) == 3


@pytest.mark.parametrize("bad", [-1, V, 2**31 - 1])
def test_ids_outside_the_vocabulary_are_refused(bad, one_thread):
    decoder = Decoder(made(), 2)
    decoder.read(np.zeros((2, 1), int))
    with pytest.raises(UserError, match=f"not all in the vocabulary of {V}"):
        decoder.step(np.array([0, bad]))
    with pytest.raises(UserError, match="not all in the vocabulary"):
        decoder.read(np.array([[0, bad], [1, 1]]))
