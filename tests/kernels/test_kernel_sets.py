"""The three kernel sets, op by op over the same cases.

The NumPy set judges the other two. It is judged itself by finite differences and by Jacobians that are written out.
"""

import inspect
import math
import pkgutil

import numpy as np
import pytest
from fake_cupy import cupy  # noqa: F401  the fixture
from kernel_cases import CASES, ULP, Kernels, assert_exact, assert_precise
from scipy.special import ndtr

from slm_np import ops
from slm_np.kernels import cpu as cpu_kernels
from slm_np.kernels import gpu as gpu_kernels
from slm_np.kernels import numpy as numpy_kernels

pytestmark = pytest.mark.usefixtures("one_thread")
SINGLE, DOUBLE = Kernels(numpy_kernels, np.float32), Kernels(numpy_kernels, np.float64, start=1)


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id.replace(" ", "-") for case in cases])


# Names and parameters


def functions(module):
    """{name: function} of what a module exports, functions of Numba's included."""
    return {name: f for name, f in vars(module).items() if not name.startswith("_") and callable(f)}


SETS = [functions(kernels) for kernels in (numpy_kernels, cpu_kernels, gpu_kernels)]
CONTRACT = sorted(SETS[0].keys() - {"enter_thread", "matmul_name", "thread_count", "use_threads"})
SHARED = sorted(name for name in set().union(*SETS) if sum(name in kernels for kernels in SETS) > 1)
STEP = "attention_step"  # kernels/cpu may lack it: its compiled step decodes all layers in one call


def test_every_kernel_that_an_op_names_is_in_every_set():
    named = set()
    for module in pkgutil.iter_modules(ops.__path__, "slm_np.ops."):
        for function in vars(pkgutil.resolve_name(module.name)).values():
            if inspect.isfunction(function) and function.__module__ == module.name:
                named.update(function.__code__.co_names)
    named &= set().union(*SETS)
    assert len(named) > 30 and named <= set(CONTRACT)
    for kernels in SETS:
        assert set(CONTRACT) - kernels.keys() <= {STEP}


@pytest.mark.parametrize("name", SHARED)
def test_a_kernel_has_the_same_parameters_in_every_set(name):
    first, *others = [list(inspect.signature(kernels[name]).parameters) for kernels in SETS if name in kernels]
    assert others == [first] * len(others)


def test_every_kernel_has_a_case():
    """The cases call every kernel of the contract."""
    called = set()

    class Recorder(Kernels):
        def __getattr__(self, name):
            called.add(name)
            return super().__getattr__(name)

    for case in CASES:
        Recorder(numpy_kernels, np.float32).results(case)
    assert called == set(CONTRACT)


# Results


@each(CASES)
def test_numpys_float32_is_near_its_float64(case):
    exact = Kernels(numpy_kernels, np.float64).results(case)
    for name, x in SINGLE.results(case).items():
        size = max(np.abs(exact[name]).max(), case.cancels)
        assert np.abs(x - exact[name]).max() <= 64 * ULP * size + np.finfo(np.float32).tiny, name


CPU_CASES = [case for case in CASES if not case.id.startswith(STEP) or hasattr(cpu_kernels, STEP)]


@each(CPU_CASES)
def test_cpu_in_float32_is_as_precise_as_numpy(case):
    exact = Kernels(numpy_kernels, np.float64).results(case)
    assert_precise(Kernels(cpu_kernels, np.float32).results(case), SINGLE.results(case), exact, case.cancels)


@pytest.mark.slow
@each(CPU_CASES)
def test_cpu_in_float64_is_numpys(case):
    """Results that are overwritten held NaN before, results that accumulate held one."""
    assert_exact(Kernels(cpu_kernels, np.float64, start=1).results(case), DOUBLE.results(case))


@each(CASES)
def test_gpu_in_float32_is_as_precise_as_numpy(case, cupy):  # noqa: F811
    exact = Kernels(numpy_kernels, np.float64).results(case)
    assert_precise(
        Kernels(gpu_kernels, np.float32, arrays=cupy).results(case), SINGLE.results(case), exact, case.cancels
    )


@each(CASES)
def test_gpu_in_float64_is_numpys(case, cupy):  # noqa: F811
    assert_exact(Kernels(gpu_kernels, np.float64, start=1, arrays=cupy).results(case), DOUBLE.results(case))


# NumPy's gradients against finite differences


def differentiable(case):
    """Whether finite differences are precise: large values lose digits, a step of 1e-5 is too long for small ones."""
    sizes = [np.abs(x).max() for x in case.inputs.values() if x.size and x.dtype.kind == "f"]
    return "dout" in case.inputs and all(size == 0 or 0.01 < size < 50 for size in sizes)


DIFFERENTIABLE = [case for case in CASES if differentiable(case)]


@each(DIFFERENTIABLE)
def test_numpys_gradients_are_slopes(case):
    """For f = <dout, out> and a unit direction d of one input or all: <gradient, d> = (f(x + hd) - f(x - hd)) / 2h."""
    inputs = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in case.inputs.items()}
    found, rng, h = DOUBLE.results(case), np.random.default_rng(0), 1e-5
    gradients = {name: found[f"d{name}"] - (f"d{name}" in case.sums) for name in inputs if f"d{name}" in found}
    assert gradients
    for moved in [[name] for name in gradients] + [list(gradients)]:
        directions = {name: rng.standard_normal(inputs[name].shape) for name in moved}
        length = math.sqrt(sum((d * d).sum() for d in directions.values()))
        values = []
        for sign in (h, -h):
            near = inputs | {name: inputs[name] + sign / length * d for name, d in directions.items()}
            values.append((DOUBLE.results(case, near)["out"] * inputs["dout"]).sum())
        slope = (values[0] - values[1]) / (2 * h)
        analytic = sum((gradients[name] * d).sum() for name, d in directions.items()) / length
        assert abs(analytic - slope) <= 1e-7 * max(1, abs(analytic)), moved


# NumPy's gradients against Jacobians: J[i, j] is the derivative of out_i by x_j, so dx = J^T dout

rng = np.random.default_rng(7)
X, DOUT = rng.standard_normal((2, 3, 8))


def assert_jacobian(dx, jacobian, x=X, dout=DOUT):
    """dx = J(x)^T dout, row by row."""
    np.testing.assert_allclose(dx, [jacobian(row).T @ d for row, d in zip(x, dout)], rtol=1e-12, atol=1e-14)


def activated(backward):
    x, dout = X.copy(), DOUT.copy()
    backward(x, dout)
    return x, dout


def test_the_jacobian_of_silu():
    def jacobian(x):
        s = 1 / (1 + np.exp(-x))
        return np.diag(s + x * s * (1 - s))

    dx, out = activated(numpy_kernels.silu_backward)
    assert_jacobian(dx, jacobian)
    np.testing.assert_allclose(out, X / (1 + np.exp(-X)), rtol=1e-14)


def test_the_jacobian_of_gelu():
    dx, out = activated(numpy_kernels.gelu_backward)
    assert_jacobian(dx, lambda x: np.diag(ndtr(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)))
    np.testing.assert_allclose(out, X * ndtr(X), rtol=1e-13)


def test_gelu_has_the_exact_normal_distribution():
    x = np.linspace(-40, 40, 100_001)
    out = np.empty_like(x)
    numpy_kernels.gelu_forward(out, x)
    np.testing.assert_allclose(out, x * ndtr(x), rtol=1e-13, atol=1e-20)


def test_the_jacobian_of_rmsnorm():
    """d xhat_i / d x_j = r delta_ij - r^3 x_i x_j / D,   r = (mean(x^2) + eps)^(-1/2)"""
    weight, eps = rng.standard_normal(8), 0.1
    r = 1 / np.sqrt((X**2).mean(1) + eps)
    out, rstd, dx, dweight = np.empty_like(X), np.empty(3), np.zeros_like(X), np.zeros(8)
    numpy_kernels.rmsnorm_forward(out, rstd, X, weight, eps)
    numpy_kernels.rmsnorm_backward(dx, dweight, DOUT, X, weight, rstd)

    def jacobian(x):
        r = 1 / np.sqrt((x**2).mean() + eps)
        return np.diag(weight) @ (r * np.eye(8) - r**3 * np.outer(x, x) / 8)

    assert_jacobian(dx, jacobian)
    np.testing.assert_allclose(rstd, r, rtol=1e-14)
    np.testing.assert_allclose(dweight, (DOUT * X * r[:, None]).sum(0), rtol=1e-13)


def test_the_jacobian_of_layernorm():
    """d xhat_i / d x_j = r (delta_ij - 1/D) - r^3 c_i c_j / D,   c = x - mean,   r = (mean(c^2) + eps)^(-1/2)"""
    weight, eps = rng.standard_normal(8), 0.1
    out, mean, rstd = np.empty_like(X), np.empty(3), np.empty(3)
    dx, dweight, dbias = np.zeros_like(X), np.zeros(8), np.zeros(8)
    numpy_kernels.layernorm_forward(out, mean, rstd, X, weight, None, eps)
    numpy_kernels.layernorm_backward(dx, dweight, dbias, DOUT, X, weight, mean, rstd)

    def jacobian(x):
        c = x - x.mean()
        r = 1 / np.sqrt((c**2).mean() + eps)
        return np.diag(weight) @ (r * (np.eye(8) - 1 / 8) - r**3 * np.outer(c, c) / 8)

    assert_jacobian(dx, jacobian)
    np.testing.assert_allclose(out, (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1) + eps)[:, None] * weight)
    np.testing.assert_allclose(dbias, DOUT.sum(0), rtol=1e-13)


def test_the_jacobian_of_softmax_cross_entropy():
    """The loss is -log p[target], p = softmax(x): d p_i / d x_j = p_i (delta_ij - p_j)."""
    targets, losses, dlogits = np.array([5, 0, 7]), np.empty(3), np.empty_like(X)
    numpy_kernels.softmax_cross_entropy_backward(dlogits, losses, X, targets, 0.5)
    for x, target, loss, dx in zip(X, targets, losses, dlogits):
        p = np.exp(x) / np.exp(x).sum()
        jacobian = np.diag(p) - np.outer(p, p)
        np.testing.assert_allclose(loss, -np.log(p[target]), rtol=1e-13)
        np.testing.assert_allclose(dx, -0.5 / p[target] * jacobian[target], rtol=1e-12, atol=1e-14)


def test_the_jacobian_of_head_norm():
    """That of rmsnorm for each query and key head, with the weight of queries or keys, and the identity for values."""
    eps, out, rstd, dx, dweights = 0.1, np.empty_like(X), np.empty((3, 3)), X.copy(), np.zeros((2, 2))
    weights = rng.standard_normal((2, 2))  # of heads of two columns: two queries, a key and a value
    numpy_kernels.head_norm_forward(out, rstd, X, *weights, 2, 1, eps)
    numpy_kernels.head_norm_backward(dx, *dweights, DOUT, *weights, rstd, 2, 1)

    def jacobian(x):
        found = np.eye(8)
        for head, weight in enumerate((weights[0], weights[0], weights[1])):
            part = x[2 * head : 2 * head + 2]
            r = 1 / np.sqrt((part**2).mean() + eps)
            block = np.diag(weight) @ (r * np.eye(2) - r**3 * np.outer(part, part) / 2)
            found[2 * head : 2 * head + 2, 2 * head : 2 * head + 2] = block
        return found

    assert_jacobian(dx, jacobian)
    xhat = X[:, :6].reshape(3, 3, 2) * rstd[..., None]
    by_head = (DOUT[:, :6].reshape(3, 3, 2) * xhat).sum(0)
    np.testing.assert_allclose(dweights, [by_head[:2].sum(0), by_head[2]], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(out[:, 6:], X[:, 6:])


@pytest.mark.parametrize("rotated", [8, 6, 2])
def test_the_jacobian_of_rotary(rotated):
    """A head is multiplied by the matrix that turns each pair (i, i + r/2) of its first r columns."""
    angle = rng.uniform(0, 7, (3, rotated // 2))  # (T, r/2)
    out, dx = X.copy(), DOUT.copy()
    numpy_kernels.rotary_forward(out, np.cos(angle), np.sin(angle), 1, 8)
    numpy_kernels.rotary_backward(dx, np.cos(angle), np.sin(angle), 1, 8)
    for t in range(3):
        cos, sin, jacobian = np.diag(np.cos(angle[t])), np.diag(np.sin(angle[t])), np.eye(8)
        jacobian[:rotated, :rotated] = np.block([[cos, -sin], [sin, cos]])
        np.testing.assert_allclose(out[t], jacobian @ X[t], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(dx[t], jacobian.T @ DOUT[t], rtol=1e-12, atol=1e-14)


def test_the_jacobians_of_a_linear_layer():
    """out_e = sum_d x_d W_de + b_e: by x it is W^T, by W_de it is x_d, by b_e it is 1."""
    weight, bias = rng.standard_normal((8, 5)), rng.standard_normal(5)
    out, dout, dx, dweight, dbias = np.empty((3, 5)), DOUT[:, :5], np.empty_like(X), np.zeros((8, 5)), np.zeros(5)
    numpy_kernels.linear_forward(out, X, weight, bias, None)
    numpy_kernels.linear_backward_input(dx, dout, weight)
    numpy_kernels.linear_backward_weight(dweight, dbias, dout, X)
    assert_jacobian(dx, lambda x: weight.T, dout=dout)
    np.testing.assert_allclose(dweight, sum(np.outer(x, d) for x, d in zip(X, dout)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dbias, sum(dout), rtol=1e-13)
    np.testing.assert_allclose(out, [[x @ column + b for column, b in zip(weight.T, bias)] for x in X], rtol=1e-12)
