"""Elementary functions of kernels/cpu in float32, which do not call the C library."""

import math

import numpy as np
import pytest
from kernel_cases import normal
from scipy.special import ndtr


@pytest.fixture(scope="module")
def elementary():
    """{name: function of a float32 array} for exp, exp_scaled (by 1/4), sigmoid and normal (distribution, density)."""
    from slm_np.kernels.cpu.jit import row
    from slm_np.kernels.cpu.math import exp, exp_scaled, normal, sigmoid

    @row
    def exp_of(out, x):
        for i in range(x.size):
            out[i] = exp(x[i])

    @row
    def exp_scaled_of(out, x):
        for i in range(x.size):
            out[i] = exp_scaled(x[i], np.float32(0.25))

    @row
    def sigmoid_of(out, x):
        for i in range(x.size):
            out[i] = sigmoid(x[i])

    @row
    def normal_of(out, density, x):
        for i in range(x.size):
            out[i], density[i] = normal(x[i])

    def over(function, outputs=1):
        def run(x):
            found = [np.full_like(x, np.nan) for _ in range(outputs)]
            function(*found, x)
            return found if outputs > 1 else found[0]

        return run

    return dict(exp=over(exp_of), exp_scaled=over(exp_scaled_of), sigmoid=over(sigmoid_of), normal=over(normal_of, 2))


def grid(low, high):
    """A million floats evenly in [low, high], and every power of two in it from 2^-149 on with its neighbors."""
    powers = np.ldexp(np.float32(1), np.arange(-149, 10)).astype(np.float32)
    special = np.concatenate([np.nextafter(powers, np.float32(to)) for to in (-np.inf, np.inf)] + [powers, [0]]).astype(
        np.float32
    )
    x = np.concatenate([np.linspace(low, high, 1_000_003, dtype=np.float32), special, -special])
    return x[(x >= low) & (x <= high)]


def relative_error(found, exact):
    assert found.dtype == np.float32
    return np.abs(found / exact - 1)


def test_exp(elementary):
    x = grid(-87, 88)
    assert relative_error(elementary["exp"](x), np.exp(x.astype(float))).max() < 2e-7


def test_exp_outside_its_range(elementary):
    x = np.array([-87.5, -1e30, -np.inf, 88.5, 1e30, np.inf], np.float32)
    np.testing.assert_allclose(elementary["exp"](x), np.exp([-87.0] * 3 + [88.0] * 3), rtol=2e-7)
    assert elementary["exp"](np.zeros(1, np.float32)) == 1


def test_exp_scaled(elementary):
    x = grid(-348, 352)
    exponent = x.astype(float) / 4
    error = relative_error(elementary["exp_scaled"](x), np.exp(exponent))
    assert (error / (2e-7 + 1.2e-7 * np.abs(exponent))).max() < 1
    low = np.array([-350, -1e30, -np.inf], np.float32)
    np.testing.assert_allclose(elementary["exp_scaled"](low), [2.0**-126] * 3, rtol=1e-7)
    found = elementary["exp_scaled"](np.array([0, np.nan], np.float32))
    np.testing.assert_array_equal(found, [1, np.nan])


def test_sigmoid(elementary):
    """Two more roundings and a division than exp."""
    x = grid(-87, 200)
    assert relative_error(elementary["sigmoid"](x), 1 / (1 + np.exp(-x.astype(float)))).max() < 3.5e-7
    below = elementary["sigmoid"](np.array([-88.5, -1e4, -np.inf], np.float32))
    assert (below >= 0).all() and (below < 1e-38).all()


def test_normal(elementary):
    """The exponent x^2/2 is rounded to float32, so in the tails the error grows with it."""
    x = grid(-12.9, 12.9)
    distribution, density = elementary["normal"](x)
    exact, wide = ndtr(x.astype(float)), 1 + x.astype(float) ** 2 / 2
    assert np.abs(distribution - exact).max() < 3e-7
    assert (relative_error(distribution, exact) / wide).max() < 6e-7
    assert (relative_error(density, np.exp(-(x.astype(float) ** 2) / 2) / math.sqrt(2 * math.pi)) / wide).max() < 2e-7


def test_elementary_functions_keep_nan(elementary):
    for length in (1, 33):  # alone, and inside a vector
        x = normal(length)
        x[-1] = np.nan
        for found in (elementary["exp"](x), elementary["sigmoid"](x), *elementary["normal"](x)):
            assert np.isnan(found[-1]) and np.isfinite(found[:-1]).all()
