"""The GPU's embedding: runs of equal tokens over many blocks, 16-bit gradients, orders of threads."""

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulating
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_cases import on_gpu
from kernel_cases import normal
from sixteen_bit import F16, exact, stored

from slm_np.dtypes import BF16

pytestmark = pytest.mark.usefixtures("cupy")


def skewed_tokens(rng, vocab, n):
    """Tokens whose lower values are more frequent."""
    return np.minimum(rng.integers(0, vocab, (1, n)), rng.integers(0, vocab, (1, n))).astype(np.int32)


@pytest.mark.parametrize(
    "n, vocab, width",
    [(1, 1, 1), (63, 3, 2), (64, 1, 3), (65, 1, 3), (1700, 2, 3), (1100, 256, 5), (1100, 257, 2), (700, 70000, 1)],
)
def test_backward_with_runs_over_many_blocks(n, vocab, width):
    """Integers have exact sums in any order. Runs are in one block, in two or in many; tokens have 1 to 3 bytes."""
    rng = np.random.default_rng(n)
    tokens = skewed_tokens(rng, vocab, n)
    tokens[0, ::5] = vocab - 1
    dout = rng.integers(-9, 10, (n, width)).astype(np.float32)
    dweight, dpositions = np.ones((vocab, width), np.float32), np.ones((n // 2 + 1, width), np.float32)
    expected_dweight, expected_dpositions = dweight.copy(), dpositions.copy()
    on_gpu.embedding_backward(dweight, dpositions, dout, tokens)
    np.add.at(expected_dweight, tokens.reshape(-1), dout)
    np.add.at(expected_dpositions, np.arange(n) % len(dpositions), dout)
    np.testing.assert_array_equal(dweight, expected_dweight)
    np.testing.assert_array_equal(dpositions, expected_dpositions)


def test_backward_has_the_same_bits_in_every_order():
    tokens, dout = skewed_tokens(np.random.default_rng(1), 300, 1200), normal(1200, 3)
    tokens[0, :300] = 7
    found = []
    for order in ORDERS:
        with emulating(order=order):
            found.append(np.ones((300, 3), np.float32))
            on_gpu.embedding_backward(found[-1], None, dout, tokens)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("short", [BF16, F16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("width", [7, 64])
def test_backward_of_16_bit_gradients(width, short):
    dweight, dout = np.zeros((4, width), np.float32), stored(normal(4, width), short)
    on_gpu.embedding_backward(dweight, None, dout, np.array([[3, 1, 3, 3]], np.int32))
    rows = exact(dout)
    expected = np.stack([np.zeros(width), rows[1], np.zeros(width), rows[0] + rows[2] + rows[3]])
    np.testing.assert_allclose(dweight, expected, rtol=1e-6, atol=1e-6)
