"""The GPU's softmax cross-entropy: 16-bit gradients, long rows, and logits of minus infinity."""

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_cases import on_gpu
from kernel_cases import normal
from sixteen_bit import F16, HALF_ULP, exact, stored

from slm_np.dtypes import BF16
from slm_np.kernels import numpy as numpy_kernels

pytestmark = pytest.mark.usefixtures("cupy")


def run(logits, targets, scale):
    """The GPU's (losses of forward, losses of backward, dlogits); the gradient overwrites a copy of the logits."""
    dlogits = logits.copy()
    losses, again = (np.full(len(logits), np.nan, logits.dtype) for _ in range(2))
    on_gpu.softmax_cross_entropy_forward(losses, dlogits, targets)
    on_gpu.softmax_cross_entropy_backward(dlogits, again, dlogits, targets, scale)
    return losses, again, dlogits


def expected(logits, targets, scale):
    """(losses, dlogits) in float64."""
    dlogits, losses = exact(logits), np.empty(len(logits))
    numpy_kernels.softmax_cross_entropy_backward(dlogits, losses, dlogits, targets, scale)
    return losses, dlogits


@pytest.mark.parametrize("short", [BF16, F16], ids=["bf16", "fp16"])
def test_the_gradient_may_have_16_bits(short):
    logits, targets = 3 * normal(5, 70), np.array([0, 69, -1, 3, 3], np.int32)
    losses, dlogits = np.full(5, np.nan, np.float32), stored(np.full((5, 70), np.nan), short)
    on_gpu.softmax_cross_entropy_backward(dlogits, losses, logits.copy(), targets, 8.0)
    expected_losses, expected_dlogits = expected(logits, targets, 8.0)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(exact(dlogits), expected_dlogits, rtol=HALF_ULP[short] + 2e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", [257, 9001])
@pytest.mark.parametrize("falling", [False, True])
def test_rows_longer_than_a_block(vocab, falling):
    """The largest logits are the last that threads read, or the first."""
    logits = normal(2, vocab) + np.linspace(-30, 30, vocab).astype(np.float32)
    if falling:
        logits = np.ascontiguousarray(logits[:, ::-1])
    targets = np.array([1, vocab - 1], np.int32)
    losses, again, dlogits = run(logits, targets, 0.5)
    expected_losses, expected_dlogits = expected(logits, targets, 0.5)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    np.testing.assert_allclose(dlogits, expected_dlogits, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(losses, again)


def test_a_logit_may_be_minus_infinity():
    """A row of nothing else has a NaN loss."""
    logits, targets = normal(4, 11), np.array([4, 5, 0, 4], np.int32)
    logits[:, :4], logits[2, 1:], logits[2, 0] = -np.inf, -np.inf, 0
    logits[3] = -np.inf
    losses, again, dlogits = run(logits, targets, 1.0)
    with np.errstate(all="ignore"):
        _, expected_dlogits = expected(logits, targets, 1.0)
    np.testing.assert_allclose(dlogits[:3], expected_dlogits[:3], atol=1e-6)
    np.testing.assert_array_equal(losses, again)
    assert np.isfinite(losses[:3]).all() and losses[2] == 0
    assert np.isnan(losses[3]) and np.isnan(dlogits[3]).all()
