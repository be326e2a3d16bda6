"""Results have the same bits for any number of threads, and for a cold or a warm kernel cache."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    ACTIVATIONS,
    Kernels,
    accumulate,
    activation,
    attend,
    attention,
    convolution,
    drop,
    embedding,
    fused_head,
    layernorm,
    linear,
    linear_recurrence,
    linear_transposed,
    normal,
    rmsnorm,
    rotary,
    selective_scan,
    softmax_cross_entropy,
)
from thread_counts import over_threads, several

import slm_np
from slm_np import ops
from slm_np.config import ModelConfig
from slm_np.kernels.cpu.gemm_f32 import BLOCK_ROWS, ENOUGH, SMALL
from slm_np.kernels.cpu.processor import FEATURES
from slm_np.nn.model import Model
from slm_np.ops.device import kernels_of
from slm_np.presets import preset
from slm_np.training.optimizer import AdamW

NESTED = "SLM_NP_TEST_OTHER_KERNELS"  # set in the process that runs this file again
first_process = pytest.mark.skipif(NESTED in os.environ, reason="the first process runs it")


# Gemms


def gemms(m, n, k, dtype=np.float32):
    """A function that runs every kind of gemm with a result (m, n) and sums over k."""
    rng = np.random.default_rng([m, n, k])
    a, b, bias, residual = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (n,), (m, n)))
    at, bt = (np.ascontiguousarray(x.T) for x in (a, b))

    def run():
        outs = [np.full((m, n), np.nan, dtype) for _ in range(4)] + [residual.copy(), residual.copy()]
        dx = np.full((k, n), np.nan, dtype)
        ops.linear_forward(outs[0], a, b, None, None)
        ops.linear_forward(outs[1], a, b, bias, residual)
        ops.linear_backward_input(outs[2], a, bt)
        ops.linear_transposed_forward(outs[3], a, bt)
        ops.linear_backward_weight(outs[4], None, b, at)
        ops.linear_transposed_backward(dx, outs[5], at, b, residual)
        return outs + [dx]

    return run


def near_thresholds():
    """Shapes (m, n, k) around the work that pays for a second thread, with sides near those that are split."""
    for side in (ENOUGH, 2 * ENOUGH - 1, 2 * ENOUGH, 2 * ENOUGH + 1, 3 * ENOUGH, 2 * BLOCK_ROWS + 1):
        for other in (1, 2, 31, 65):
            k = -(-SMALL // (side * other))
            for change in (-1, 0, 1):
                yield side, other, k + change
                yield other, side, k + change


SHAPES = [
    (1, 1, 1),
    (7, 11, 5),
    (2048, 384, 128),
    (384, 2048, 128),
    (128, 384, 2048),
    (2048, 128, 384),
    (256, 1000, 129),
    (4096, 65, 64),
    (1, 4099, 2100),
    (4099, 1, 2100),
    (3001, 2, 1501),
    (17, 3000, 700),
    (1025, 1023, 33),
    (300, 1500, 257),
    (130, 70, 4003),
]


@several
@pytest.mark.parametrize("m, n, k", SHAPES, ids=[f"{m}x{n}x{k}" for m, n, k in SHAPES])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gemms(m, n, k, dtype):
    over_threads(gemms(m, n, k, dtype))


@several
def test_gemms_near_the_thresholds():
    for shape in near_thresholds():
        over_threads(gemms(*shape))


@several
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
def test_any_gemms(m, n, k):
    over_threads(gemms(m, n, k))


@several
@settings(max_examples=25, deadline=None)
@given(
    st.permutations([st.integers(1, 3000), st.integers(1, 600), st.integers(1, 300)]).flatmap(
        lambda sides: st.tuples(*sides)
    )
)
def test_any_long_gemms(sides):
    over_threads(gemms(*sides))


# Ops and training steps

LARGE = [
    *(activation(name, "133x514", normal(133, 514)) for name in ACTIVATIONS),
    linear(1030, 257, 130, bias=True, residual=True),
    linear_transposed(1030, 130, 257),
    rmsnorm(133, 514),
    layernorm(133, 514),
    embedding(7, 70, 11, 514),
    rotary(3, 70, 4, 16),
    accumulate(133, 514),
    attention(3, 130, 4, 2, 16),
    convolution(3, 70, 276, 4),
    selective_scan(3, 70, 276, 5, 2),
    *(linear_recurrence(*size) for size in ((5, 40, 70), (3, 24, 257), (2, 9, 33))),
    softmax_cross_entropy("133x514", normal(133, 514)),
]


@several
@pytest.mark.parametrize("case", LARGE, ids=[case.id.replace(" ", "-") for case in LARGE])
def test_ops_give_the_same_bits(case):
    over_threads(lambda: Kernels(kernels_of(np.empty(0)), np.float32).results(case).values())


@several
def test_head_cross_entropy_gives_the_same_bits():
    x, weight, targets = normal(300, 130), normal(514, 130), np.arange(300, dtype=np.int32)
    over_threads(lambda: fused_head(ops, x, weight, targets, 128, 1 / 300, 0).values())


@several
def test_dropout_gives_the_same_bits():
    x, residual = normal(133, 514), normal(133, 514, seed=1)
    qkv, kernels = normal(260, 8 * 16), kernels_of(x)

    def run():
        dqkv, scratch = qkv.copy(), np.full(kernels.attention_scratch(130, 16, 8), np.nan, np.float32)
        out, lse = attend(kernels, qkv, 4, 2, 130, 0.2, 3)
        ops.attention_backward(
            dqkv,
            scratch,
            out,
            out,
            lse,
            4,
            2,
            130,
            (0.2, 3),
        )
        return drop(ops, x, 0.3, 5), drop(ops, x, 0.3, 5, residual), out, dqkv

    over_threads(run)


MODELS = {
    "stories": preset("stories", dict(n_layer=2))[0],
    "gpt2-dropout": preset("gpt2-stories", dict(n_layer=2, vocab_size=1003, n_embd=96, n_head=6))[0],
    "byte-transformer": preset("byte-transformer", dict(n_layer=2, n_embd=128, n_hidden=256, block_size=256))[0],
    "grouped-queries": ModelConfig(
        n_layer=1, n_embd=192, n_head=6, n_kv_head=2, block_size=130, head="linear", vocab_size=300
    ),
    "mamba": preset("mamba", dict(n_layer=2, n_embd=150, block_size=40))[0],
    "recurrence": ModelConfig(
        pattern="S", positions="none", feed_forward="none", n_layer=2, n_embd=65, recurrence_size=130, block_size=40
    ),
}


def training_steps(config, updates=2):
    """Losses, gradients, norms and weights of some updates with two micro-batches each."""
    model = Model(config, seed=1)
    optimizer, rng = AdamW(model.parameters, 1e-2, grad_clip=0.5), np.random.default_rng(2)
    found = []
    for update in range(updates):
        for micro in range(2):
            tokens, targets = rng.integers(0, config.vocab_size, (2, 4, config.block_size), np.int32)
            found.append(model.loss_and_gradient(tokens, targets, 2 * targets.size, (1, update, micro)))
        found.append(model.parameters.gradients.copy())
        found += [optimizer.step(), model.parameters.weights.copy()]
    return found + [optimizer.mean, optimizer.square, model.loss(tokens, targets)]


@several
@pytest.mark.parametrize("name", MODELS)
def test_training_gives_the_same_bits(name):
    over_threads(lambda: training_steps(MODELS[name]))


# Another instruction set


def run_python(*arguments, **environment):
    roots = [str(Path(slm_np.__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1])]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=1200,  # compiling all kernels of training takes minutes on a busy machine
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@first_process
@pytest.mark.skipif(not FEATURES.get("avx512f"), reason="the tests above run with AVX2 already, or there is none")
def test_all_tests_above_with_avx2_and_three_threads():
    """They run in a process that compiles for an older processor generation."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).name]
    output = run_python(*command, SLM_NP_CPU="avx2", NUMBA_NUM_THREADS="3", **{NESTED: "1"})
    assert " skipped" in output and " passed" in output and "failed" not in output


# The user's NumPy

NEUTRAL = """\
import sys
sys.modules["scipy"] = None  # as if it were not installed: Numba would import it
import numpy as np
from threadpoolctl import threadpool_info
def threads():
    return {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}
before = threads()
from slm_np.config import ModelConfig
from slm_np.nn.model import Model
from slm_np.training.optimizer import AdamW
model = Model(ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=8, vocab_size=20))
optimizer = AdamW(model.parameters, 1e-2)
model.loss_and_gradient(*np.zeros((2, 8, 8), np.int32), key=(1,))
optimizer.step()
assert before == threads(), (before, threads())
assert sys.platform == "darwin" or "slm_np.kernels.cpu.gemm_blas" not in sys.modules
print("right")
"""


def test_training_leaves_the_threads_of_numpys_blas_and_needs_no_scipy():
    assert run_python("-c", NEUTRAL).endswith("right\n")


# A cold and a warm kernel cache

TRAINING = """\
import hashlib, sys
import numpy as np
sys.stderr = sys.stdout
import test_threads
for x in test_threads.training_steps(test_threads.MODELS["grouped-queries"]):
    print(hashlib.sha256(np.asarray(x).tobytes()).hexdigest())
"""


@pytest.mark.slow
@first_process
def test_training_on_a_cold_cache_is_announced_once_and_gives_the_same_bits(tmp_path):
    """Numba may optimize a kernel that it just compiled differently from one that it loads from its cache."""
    environment = dict(SLM_NP_CACHE=str(tmp_path), NUMBA_NUM_THREADS="1")
    cold, warm = (run_python("-c", TRAINING, **environment) for _ in range(2))
    assert cold.count("for this processor, once\n") == 1
    results = [line for line in cold.splitlines() if not line.startswith("compiling")]
    assert results == warm.splitlines() != []
