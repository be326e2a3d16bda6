"""Promises beyond the formulas: NaN is seen, targets of -1 do not count, attention is causal, masks replay."""

import math

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  the fixture
from kernel_cases import ACTIVATIONS, OnDevice, attend, drop, normal

from slm_np.kernels import cpu as cpu_kernels
from slm_np.kernels import gpu as gpu_kernels
from slm_np.kernels import numpy as numpy_kernels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def kernels(request):
    """A kernel set by its name, for NumPy arrays."""
    if request.param == "gpu":
        request.getfixturevalue("cupy")
        return OnDevice(gpu_kernels)
    return dict(cpu=cpu_kernels, numpy=numpy_kernels)[request.param]


every_set = pytest.mark.parametrize("kernels", ["numpy", "cpu", "gpu"], indirect=True)
either_set = pytest.mark.parametrize("kernels", ["numpy", "cpu"], indirect=True)


def empty(shape, like):
    return np.full(shape, np.nan, like.dtype)


# Sums


@pytest.mark.parametrize("width", [1, 7, 130, 384])
@pytest.mark.parametrize("value", [0.1, 1000.1, 1e10])
def test_layernorm_of_equal_elements_is_its_bias(value, width):
    """The mean of equal elements is exact, whatever the width of the registers that sum them."""
    x, weight, bias = np.full((2, width), value, np.float32), normal(width), normal(width, seed=1)
    out, mean, rstd = empty(x.shape, x), empty(2, x), empty(2, x)
    cpu_kernels.layernorm_forward(out, mean, rstd, x, weight, bias, 1e-5)
    np.testing.assert_array_equal(out, np.broadcast_to(bias, x.shape))
    np.testing.assert_array_equal(mean, x[:, 0])


# Values that are not finite


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("column", [0, 5, 10])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_set
@pytest.mark.filterwarnings("ignore:invalid value")
def test_cross_entropy_of_a_bad_logit_is_nan(kernels, bad, column, dtype):
    logits = normal(3, 11).astype(dtype)
    logits[1, column] = bad
    targets, losses, again = np.array([4, 5, 6], np.int32), np.zeros(3, dtype), np.zeros(3, dtype)
    kernels.softmax_cross_entropy_forward(losses, logits, targets)
    kernels.softmax_cross_entropy_backward(logits, again, logits, targets, 1.0)
    for found in (losses, again, logits.sum(1)):
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_set
def test_a_target_of_minus_one_is_not_counted_whatever_its_logits(kernels, dtype):
    logits = normal(4, 11).astype(dtype)
    logits[1:3] = np.nan
    targets, losses, again = np.array([4, -1, 5, -1], np.int32), np.full(4, np.nan, dtype), np.full(4, np.nan, dtype)
    kernels.softmax_cross_entropy_forward(losses, logits, targets)
    kernels.softmax_cross_entropy_backward(logits, again, logits, targets, 0.5)
    np.testing.assert_array_equal(losses, again)
    assert losses[0] > 0 and np.isnan(losses[2]) and losses[1] == losses[3] == 0
    assert (
        (logits[1] == 0).all() and (logits[3] == 0).all() and np.isnan(logits[2]).all() and np.isfinite(logits[0]).all()
    )


@pytest.mark.parametrize("position", [0, 3, 7])
@either_set
def test_attention_to_a_bad_key_is_nan(kernels, position):
    steps, width = 8, 4
    qkv = normal(steps, 3 * width)
    qkv[position, width] = np.nan
    out, lse = empty((steps, width), qkv), empty((1, steps), qkv)
    kernels.attention_forward(out, lse, empty(kernels.attention_scratch(steps, width, 1), qkv), qkv, 1, 1, steps, None)
    np.testing.assert_array_equal(np.isnan(out).all(1), np.arange(steps) >= position)
    np.testing.assert_array_equal(np.isnan(lse[0]), np.arange(steps) >= position)
    assert np.isfinite(out[:position]).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
@every_set
def test_activations_far_out_and_of_nan(kernels, name):
    x = np.array([[-1e4, -200, 0, 200, 1e4, np.nan, 1]], np.float32)
    given = np.hstack((x, np.ones_like(x))) if name == "swiglu" else x
    out, dx, again = empty(x.shape, x), given.copy(), np.ones_like(x)
    getattr(kernels, f"{name}_forward")(out, given)
    getattr(kernels, f"{name}_backward")(dx, again)
    for found in (out, again):
        np.testing.assert_allclose(found[0, :5], np.maximum(x[0, :5], 0), rtol=1e-6, atol=1e-20)
        assert np.isnan(found[0, 5]) and np.isfinite(found[0, 6])
    np.testing.assert_allclose(dx[0, :5], [0, 0, 0.5, 1, 1], rtol=1e-6, atol=1e-20)
    assert np.isnan(dx[0, 5]) and np.isfinite(dx[0, 6])


# Embedding


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@either_set
def test_embedding_backward_of_one_token_is_numpys(kernels, dtype):
    dout, tokens = normal(4 * 70, 33).astype(dtype), np.full((4, 70), 5, np.int32)
    dweight, expected = np.ones((11, 33), dtype), np.ones((11, 33), dtype)
    kernels.embedding_backward(dweight, None, dout, tokens)
    np.add.at(expected, tokens.reshape(-1), dout)
    np.testing.assert_array_equal(dweight, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
@every_set
def test_tokens_may_be_any_integers(kernels, kind):
    weight, tokens = normal(11, 7), np.array([[0, 10, 3], [10, 10, 0]], kind)
    out, dweight = empty((6, 7), weight), np.zeros_like(weight)
    kernels.embedding_forward(out, tokens, weight, None)
    kernels.embedding_backward(dweight, None, out, tokens)
    np.testing.assert_array_equal(out, weight[tokens.reshape(-1)])
    np.testing.assert_allclose(
        dweight[[0, 10, 3, 1]], weight[[0, 10, 3, 1]] * np.array([[2], [3], [1], [0]], np.float32), rtol=1e-6
    )


# Attention


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("changed", [0, 1, 63, 64, 65, 129])
@either_set
def test_attention_does_not_see_the_future(kernels, changed, dropout):
    steps, heads = 130, 2
    qkv = normal(2 * steps, 4 * 8)
    before, lse = attend(kernels, qkv, heads, 1, steps, dropout, 7)
    qkv[changed::steps] += 1
    after, lse_after = attend(kernels, qkv, heads, 1, steps, dropout, 7)
    earlier = np.arange(2 * steps) % steps < changed
    np.testing.assert_array_equal(after[earlier], before[earlier])
    np.testing.assert_array_equal(lse_after[:, :changed], lse[:, :changed])
    assert (after[~earlier] != before[~earlier]).any(1).all() or dropout


@pytest.mark.parametrize("window", [1, 20, 64, 70])
@pytest.mark.parametrize("changed", [0, 1, 40, 64])
@either_set
def test_attention_does_not_see_beyond_its_window(kernels, changed, window):
    steps = 150
    qkv, settings = normal(2 * steps, 4 * 8), (2, 1, steps, None, window)

    def attended():
        out, lse = empty((2 * steps, 16), qkv), empty((4, steps), qkv)
        kernels.attention_forward(out, lse, empty(kernels.attention_scratch(steps, 8, 4), qkv), qkv, *settings)
        return out.reshape(2, steps, 16)

    before = attended()
    qkv[changed::steps] += 1
    after, seen = attended(), (np.arange(steps) >= changed) & (np.arange(steps) < changed + window)
    np.testing.assert_array_equal(after[:, ~seen], before[:, ~seen])
    assert (after[:, seen] != before[:, seen]).any(2).all()


@either_set
def test_dropout_in_attention_replays_its_mask(kernels):
    """If v is the identity, out is the matrix of dropped probabilities; if dout is, too, dv is its transpose."""
    steps, share = 64, 0.3
    qkv = np.hstack((normal(steps, 2 * steps, scale=0.3), np.eye(steps, dtype=np.float32)))
    whole, lse = attend(kernels, qkv, 1, 1, steps)
    dropped, same_lse = attend(kernels, qkv, 1, 1, steps, share, 5)
    np.testing.assert_array_equal(dropped, attend(kernels, qkv, 1, 1, steps, share, 5)[0])
    np.testing.assert_array_equal(same_lse, lse)
    causal = np.tril(np.ones((steps, steps), bool))
    kept = dropped[causal] != 0
    np.testing.assert_allclose(dropped[causal][kept], whole[causal][kept] / (1 - share), rtol=1e-5)
    assert (dropped[~causal] == 0).all()
    assert abs(kept.mean() - (1 - share)) < 4 * math.sqrt(share * (1 - share) / kept.size)
    other = attend(kernels, qkv, 1, 1, steps, share, 6)[0][causal] != 0
    assert abs((kept != other).mean() - 2 * share * (1 - share)) < 4 * math.sqrt(0.25 / kept.size)
    dqkv = qkv.copy()
    kernels.attention_backward(
        dqkv,
        empty(kernels.attention_scratch(steps, steps, 1), qkv),
        np.eye(steps, dtype=np.float32),
        dropped,
        lse,
        1,
        1,
        steps,
        (share, 5),
    )
    np.testing.assert_allclose(dqkv[:, 2 * steps :], dropped.T, rtol=1e-5, atol=1e-7)


# Dropout


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.95])
@either_set
def test_dropout_keeps_its_share_and_the_mean(kernels, share):
    x = np.ones((100, 2003), np.float32)
    out = drop(kernels, x, share, 1234567)
    kept = out != 0
    np.testing.assert_allclose(out[kept], 1 / (1 - share), rtol=1e-6)
    sigma = math.sqrt(share * (1 - share) / x.size)
    assert abs(kept.mean() - (1 - share)) < 4 * sigma
    assert abs(out.mean(dtype=float) - 1) < 4 * sigma / (1 - share)
    for axis, size in ((0, 100), (1, 2003)):  # no row and no column is favored
        assert np.abs(kept.mean(axis) - (1 - share)).max() < 5.5 * math.sqrt(share * (1 - share) / size)


@either_set
def test_dropout_mask_is_a_function_of_the_key(kernels):
    x = np.ones(70001, np.float32)
    masks = [drop(kernels, x, 0.3, key) != 0 for key in (0, 1, 2, 1 << 30, (1 << 31) - 1)]
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, drop(kernels, x, 0.3, (0, 1, 2, 1 << 30, (1 << 31) - 1)[i]) != 0)
        np.testing.assert_array_equal(
            mask, drop(kernels, x.astype(float), 0.3, (0, 1, 2, 1 << 30, (1 << 31) - 1)[i]) != 0
        )
        for other in [np.roll(mask, 1), *masks[:i]]:  # neighbors are independent, and so are keys
            assert abs((mask != other).mean() - 2 * 0.3 * 0.7) < 5 * math.sqrt(0.25 / x.size)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (130, 70)])
@either_set
def test_dropout_backward_draws_the_mask_of_forward(kernels, shape):
    x, dout, residual = normal(*shape) + 10, normal(*shape, seed=1) + 10, normal(*shape, seed=2)
    out, dx = drop(kernels, x, 0.4, 9), empty(shape, x)
    kernels.dropout_backward(dx, dout, (0.4, 9))
    np.testing.assert_array_equal(dx != 0, out != 0)
    np.testing.assert_allclose(dx, dout * (out != 0) / 0.6, rtol=1e-6)
    np.testing.assert_allclose(drop(kernels, x, 0.4, 9, residual), out + residual, rtol=1e-6)
    np.testing.assert_array_equal(drop(kernels, x, 0.0, 9), x)
