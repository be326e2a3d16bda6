"""GPU products against float64: every type, shapes of any size, views of rows, what lies under a product, NaN around it; sums of rows; the device."""

import itertools
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from cuda_emulator import emulating
from fake_cupy import cupy  # noqa: F401  the fixture

from slm_np.dtypes import BF16
from slm_np.errors import UserError
from slm_np.kernels.gpu import device, linear
from slm_np.kernels.gpu.gemm import gemm

pytestmark = pytest.mark.usefixtures("cupy")
F32, F64, F16 = map(np.dtype, (np.float32, np.float64, np.float16))
UNIT = {F32: 2.0**-24, F64: 2.0**-53}  # of sums
SHORT = {BF16: 2.0**-8, F16: 2.0**-11, F32: 0.0, F64: 0.0}  # what rounding to a type adds to that
SMALLEST = {BF16: 0.0, F16: 2.0**-24, F32: 0.0, F64: 0.0}
PRODUCTS = [(F32, F32), (F64, F64), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16)]
TYPES = pytest.mark.parametrize("operand, output", PRODUCTS, ids=["f32", "f64", "bf16-f32", "bf16", "f16-f32", "f16"])
OPERANDS = pytest.mark.parametrize("operand", [F32, F64, BF16, F16], ids=["f32", "f64", "bf16", "f16"])
SHAPES = [(1, 1, 1), (1, 3, 2), (5, 1, 7), (16, 8, 24), (33, 65, 17), (7, 64, 96), (3, 1500, 2)]


def number(operand):
    """The type in which products of `operand` are summed."""
    return F64 if operand == F64 else F32


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def stored(x, dtype):
    """Numbers in a storage type, to nearest even."""
    if dtype != BF16:
        return np.asarray(x, dtype)
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(BF16)


def exact(x):
    """What is stored, as float64."""
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == BF16 else x).astype(np.float64)


def there(x):
    """A copy on the device."""
    import cupy

    return cupy.asarray(x)


def back(x):
    """A copy on the host."""
    import cupy

    return cupy.asnumpy(x)


class Guarded:
    """An array on the device amid NaN: `array` has the shape of x, rows `gap` numbers apart; it holds x, or NaN where x is a shape."""

    def __init__(self, x, dtype, gap=0, shift=0):
        shape = x if isinstance(x, tuple) else x.shape
        self.inside = np.s_[1 : 1 + shape[0], shift : shift + shape[1]]
        whole = np.empty((shape[0] + 2, shift + shape[1] + gap), dtype)
        whole.view(np.uint8).fill(0xFF)
        if shape is not x:
            whole[self.inside] = stored(x, dtype)
        self.before, self.whole = whole, there(whole)
        self.array = self.whole[self.inside]

    def numbers(self):
        """What the array holds as float64, after a look at what is around it."""
        found, outside = back(self.whole), np.ones(self.before.shape, bool)
        outside[self.inside] = False
        bits = f"u{found.itemsize}"
        np.testing.assert_array_equal(found.view(bits)[outside], self.before.view(bits)[outside])
        return exact(found[self.inside])


def on_device(x, dtype):
    return there(stored(x, dtype))


def given(x):
    return exact(back(x))


def assert_sum_of_products(found, a, b, dtype, under=0.0, more=0.0, compute_dtype=None):
    """found = under + a b but for the rounding of sums and of the result; `more` is what else was rounded to the output's type."""
    right, unit = under + a @ b, UNIT[number(operand or dtype)]
    bound = (
        8 * unit * (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0) + np.abs(under))
        + SHORT[dtype] * more
    )
    bound = bound + SHORT[dtype] * (np.abs(right) + bound) + SMALLEST[dtype]
    assert np.isfinite(found).all() and (np.abs(found - right) <= bound).all()


# Products


@TYPES
@pytest.mark.parametrize("m, k, n", SHAPES)
def test_product(operand, output, m, k, n):
    for ta, tb, gap in itertools.product((False, True), (False, True), (0, 3)):
        a, b = (
            Guarded(normal(*((k, m) if ta else (m, k))), operand, gap, gap),
            Guarded(normal(*((n, k) if tb else (k, n)), seed=1), operand, gap),
        )
        A, B = (exact(x.before[x.inside]) for x in (a, b))
        A, B = A.T if ta else A, B.T if tb else B
        c = Guarded((m, n), output, gap)
        gemm(c.array, a.array, b.array, ta, tb)  # the NaN in C does not count
        assert_sum_of_products(c.numbers(), A, B, output, compute_dtype=operand)
        before = normal(m, n, seed=2)
        c = Guarded(before, output, gap)
        gemm(c.array, a.array, b.array, ta, tb, alpha=-0.5, beta=2.0)
        before = exact(stored(before, output))
        assert_sum_of_products(c.numbers(), -0.5 * A, B, output, 2 * before, compute_dtype=operand)


def test_float32_is_not_rounded_to_tf32(cupy):
    """TF32 keeps 10 bits of a number, so that these would be 1."""
    a, c = cupy.full((64, 64), 1 + 2.0**-12, F32), cupy.empty((64, 64), F32)
    gemm(c, a, a)
    np.testing.assert_allclose(given(c), 64 * (1 + 2.0**-12) ** 2, rtol=4 * UNIT[F32])


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_sums_of_short_numbers_are_rounded_once(cupy, dtype):
    """Were the parts of long sums, which cuBLAS may share out, rounded too, most results would not be the nearest."""
    a, b, c = on_device(normal(24, 8192), dtype), on_device(normal(8192, 24), dtype), cupy.empty((24, 24), dtype)
    gemm(c, a, b)
    assert (back(c) == stored(given(a) @ given(b), dtype)).mean() > 0.98


def test_products_that_do_not_fit_are_refused(cupy):
    f, d, h = (cupy.zeros((4, 4), dtype) for dtype in (F32, F64, BF16))
    for c, a, b in (
        (d, f, f),
        (f, f, h),
        (h, f, f),
        (f, d, d),
        (f, h, cupy.zeros((4, 4), F16)),
        (cupy.zeros((4, 4), np.int32), f, f),
    ):
        with pytest.raises(TypeError, match="no product of"):
            gemm(c, a, b)
    for c, a, b in ((f, f[:2], f), (f, f[:, :2], f), (f[:2], f, f)):
        with pytest.raises(ValueError, match="does not fit"):
            gemm(c, a, b)
    column = cupy.ones((4, 1), F32)
    gemm(f[:1], column.T, f)  # one row's stride means nothing
    with pytest.raises(ValueError, match="side by side"):
        gemm(f, f, f.T)
    with pytest.raises(ValueError, match="side by side"):
        gemm(f[:, :2], f, cupy.zeros((4, 4), F32)[:, ::2])


# Linear layers


def weights(w, operand, pack):
    """A weight as products take it, and what it is then."""
    if not pack:
        return on_device(w, operand), exact(stored(w, operand))
    packed = linear.cast_copy(there(w.astype(np.float32)), operand)
    linear.update_cast_copy(packed)
    return packed, exact(stored(w.astype(np.float32), operand))


@TYPES
@pytest.mark.parametrize("m, k, n", SHAPES)
def test_forward_lies_on_bias_and_residual(operand, output, m, k, n):
    x, (w, W), bias, residual = (
        normal(m, k),
        weights(normal(k, n, seed=1), operand, operand in (BF16, F16)),
        normal(n, seed=2),
        normal(m, n, seed=3),
    )
    X = exact(stored(x, operand))
    for with_bias, with_residual, gap in itertools.product((False, True), ("none", "other", "same", "number"), (0, 4)):
        out = Guarded(residual if with_residual == "same" else (m, n), output, gap)
        kind = number(operand) if with_residual == "number" else output
        other = (
            out.array
            if with_residual == "same"
            else Guarded(residual, kind, gap).array
            if with_residual != "none"
            else None
        )
        b, r = (
            with_bias * exact(stored(bias, number(operand))),
            (with_residual != "none") * exact(stored(residual, kind)),
        )
        linear.linear_forward(
            out.array, on_device(x, operand), w, on_device(bias, number(operand)) if with_bias else None, other
        )
        assert_sum_of_products(out.numbers(), X, W, output, b + r, np.abs(b + r), operand)


@TYPES
@pytest.mark.parametrize("m, k, n", SHAPES)
def test_the_other_products_of_a_layer(operand, output, m, k, n):
    packs = operand in (BF16, F16)
    x, dout, (w, W), (turned, T) = (
        normal(m, k),
        normal(m, n, seed=1),
        weights(normal(k, n, seed=2), operand, packs),
        weights(normal(n, k, seed=3), operand, packs),
    )
    X, D = exact(stored(x, operand)), exact(stored(dout, operand))
    longer = Guarded(np.pad(dout, ((0, 0), (0, 3)), constant_values=np.nan), operand, 8).array  # what no product counts
    sums, x, dout = number(operand), Guarded(x, operand, 8).array, Guarded(dout, operand, 8).array
    dx, out, dx_turned = Guarded((m, k), output), Guarded((m, n), output), Guarded((m, k), output)
    dweight, dturned, dbias = (
        Guarded(np.ones((k, n)), sums),
        Guarded(np.ones((n, k)), sums),
        Guarded(np.ones((1, n)), sums, 1),
    )
    linear.linear_backward_input(dx.array, dout, w)
    linear.linear_backward_weight(dweight.array, dbias.array[0], dout, x)
    linear.linear_transposed_forward(out.array, x, turned)
    linear.linear_transposed_backward(dx_turned.array, dturned.array, longer, x, turned)
    for found, a, b in ((dx, D, W.T), (out, X, T.T), (dx_turned, D, T)):
        assert_sum_of_products(found.numbers(), a, b, output, compute_dtype=operand)
    for found, a, b in ((dweight, X.T, D), (dturned, D.T, X), (dbias, np.ones((1, m)), D)):
        assert_sum_of_products(found.numbers(), a, b, sums, 1.0)
    linear.linear_backward_weight(dweight.array, None, dout, x)
    assert_sum_of_products(dweight.numbers(), 2 * X.T, D, sums, 1.0)


@pytest.mark.parametrize("operand", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("d, e", [(1, 1), (3, 5), (32, 48)])
def test_a_packed_weight_is_rounded_once(operand, d, e):
    w = normal(d, e).astype(np.float32)
    flat = there(np.concatenate([np.zeros(1, np.float32), w.reshape(-1)]))  # not where four numbers may be read at once
    packed = linear.cast_copy(flat[1:].reshape(d, e), operand)
    assert (packed.shape, packed.size, packed.nbytes) == ((d, e), d * e, 2 * d * e) and packed.rounded.dtype == operand
    linear.update_cast_copy(packed)
    np.testing.assert_array_equal(back(packed.rounded), stored(w, operand))


@OPERANDS
def test_what_is_laid_is_rounded_once(operand):
    for (m, n), gap, shift in itertools.product([(1, 1), (3, 5), (5, 64), (300, 12), (2, 1028)], (0, 4, 1), (0, 1)):
        sums, residual, bias = number(operand), normal(m, n), normal(n, seed=1)
        for kind in {operand, sums}:
            out, other = Guarded((m, n), operand, gap, shift), Guarded(residual, kind, gap)
            R, B = stored(residual, kind), stored(bias, sums)
            linear.lay(out.array, there(B), other.array)
            np.testing.assert_array_equal(out.numbers(), exact(stored(exact(R).astype(sums) + B, operand)))
            linear.lay(out.array, None, other.array)
            np.testing.assert_array_equal(out.numbers(), exact(stored(exact(R), operand)))
        linear.lay(out.array, there(B), None)
        np.testing.assert_array_equal(out.numbers(), np.broadcast_to(exact(stored(B, operand)), (m, n)))


def test_a_thread_walks_over_rows_when_blocks_are_few(cupy):
    for m, n in ((37, 65), (300, 7), (2, 3000), (1, 1)):
        residual, bias, out = normal(m, n), normal(n), cupy.zeros((m, n), F64)
        linear.lay_kernel(3, (out, there(bias), there(residual), m, n, n, n), Out=F64, Residual=F64, COUNT=1)
        np.testing.assert_array_equal(back(out), residual + bias)


def test_numbers_are_taken_at_once_only_where_they_lie_for_it(cupy):
    """A GPU refuses to load 8 or 16 bytes from an address that is no multiple of it."""
    for dtype, count in ((F32, 4), (BF16, 8), (F64, 2)):
        flat = cupy.zeros(16 * 64 + count, dtype)
        for start in range(count + 1):
            x = flat[start : start + 16 * 64].reshape(16, 64)
            assert linear.divides(count, x) == linear.divides(count, x[1:, :count]) == (start % count == 0)
            assert not linear.divides(count, x[:, : count + 1]) and not linear.divides(
                count, flat[: 60 * 17].reshape(60, 17)[:, : 2 * count]
            )


def test_a_residual_that_is_the_output_is_not_moved(cupy, monkeypatch):
    monkeypatch.setattr(linear, "lay", None)
    out = cupy.ones((3, 5), F32)
    linear.linear_forward(out, cupy.ones((3, 2), F32), cupy.ones((2, 5), F32), None, out)
    assert (back(out) == 3).all()


@OPERANDS
def test_sums_of_rows(cupy, operand):
    """Any shape and any place in memory; the same bits in whatever order threads run; NaN stays in its column."""
    for (m, n), gap, shift in itertools.product([(1, 1), (3, 5), (700, 16), (2100, 40), (515, 33)], (0, 8), (0, 1)):
        sums, x = number(operand), normal(m, n)
        dout, found = Guarded(x, operand, gap, shift), []
        for order in ("forward", "reversed", "shuffled"):
            dbias = Guarded(np.ones((1, n)), sums)
            with emulating(order=order):
                linear.add_rows(dbias.array[0], dout.array)
            found.append(dbias.numbers())
        X = exact(stored(x, operand))
        assert (np.abs(found[0][0] - (1 + X.sum(0))) <= 4 * UNIT[sums] * (1 + np.abs(X).sum(0))).all()
        np.testing.assert_array_equal(found[1], found[0])
        np.testing.assert_array_equal(found[2], found[0])
    x[m // 2, 1] = np.nan
    dbias = cupy.zeros(n, sums)
    linear.add_rows(
        dbias,
        there(
            np.where(np.isnan(x), 0x7FC0, stored(np.nan_to_num(x), BF16)).astype(BF16)
            if operand == BF16
            else stored(x, operand)
        ),
    )
    np.testing.assert_array_equal(np.isnan(given(dbias)), np.arange(n) == 1)


@pytest.mark.parametrize("operand", [F32, BF16], ids=["f32", "bf16"])
def test_a_layer_is_captured_and_replayed(cupy, operand):
    """No wrapper allocates or waits, which a capture refuses; a replay reads what the arrays hold then, and gives the bits of plain calls."""
    m, k, n = 33, 24, 40
    w, _ = weights(normal(k, n), operand, operand == BF16)
    x, dout, residual, bias = (
        on_device(normal(m, k), operand),
        on_device(normal(m, n), operand),
        on_device(normal(m, n, seed=1), F32),
        on_device(normal(n), F32),
    )
    out, hidden, dx, dweight, dbias = (
        cupy.zeros(shape, dtype)
        for shape, dtype in (((m, n), F32), ((m, n), operand), ((m, k), F32), ((k, n), F32), ((n,), F32))
    )

    def layer():
        if operand == BF16:
            linear.update_cast_copy(w)
        linear.linear_forward(out, x, w, bias, residual)
        linear.linear_forward(hidden, x, w, bias, None)
        linear.linear_backward_input(dx, dout, w)
        linear.linear_backward_weight(dweight, dbias, dout, x)

    def results():
        found = [back(array).copy() for array in (out, hidden, dx, dweight, dbias)]
        dweight.fill(0)
        dbias.fill(0)
        return found

    stream, new = cupy.cuda.Stream(non_blocking=True), on_device(normal(m, k, seed=7), operand)
    with stream:
        layer()  # kernels are compiled, cuBLAS takes its room
        first = results()
        stream.begin_capture()
        layer()
        graph = stream.end_capture()
        x[...] = new
        graph.launch(stream)
        stream.synchronize()
        replayed = results()
        layer()
        stream.synchronize()
        for a, b, before in zip(replayed, results(), first):
            np.testing.assert_array_equal(a, b)
            assert (a != before).any() or before is first[2] or before is first[4]  # which do not depend on x


# The device


class Refusal(RuntimeError):
    def __init__(self, status, text="cudaErrorUnknown: unknown error"):
        super().__init__(text)
        self.status = status


def stand_in(monkeypatch, count=2, driver=13000, runtime=12090, refusal=None, capability=(9, 0), missing=None):
    """A module `cupy` of so many devices, or one that fails as CuPy does."""

    def getDeviceCount():
        if refusal:
            raise refusal
        return count

    def getVersion():
        if missing == "nvrtc":
            raise RuntimeError('Failure finding "libnvrtc.so.12"\nNo such file')
        return 12, 9

    used, cupy = [], ModuleType("cupy")
    properties = dict(
        name=b"NVIDIA H200", major=capability[0], minor=capability[1], multiProcessorCount=132, totalGlobalMem=140 << 30
    )
    interface = SimpleNamespace(
        CUDARuntimeError=Refusal,
        getDeviceCount=getDeviceCount,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
        getDeviceProperties=lambda number: properties,
        memGetInfo=lambda: (100 << 30, 140 << 30),
    )

    class Cuda:
        runtime, nvrtc, Device = (
            interface,
            SimpleNamespace(getVersion=getVersion),
            staticmethod(lambda number: SimpleNamespace(use=lambda: used.append(number))),
        )

        @property
        def cublas(self):
            if missing == "cublas":
                raise ImportError('Failure finding "libcublas.so.12"\nNo such file')

    cupy.cuda, cupy.get_default_memory_pool = Cuda(), lambda: SimpleNamespace(free_bytes=lambda: 5 << 30)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return used


def test_a_device_is_described(monkeypatch):
    used = stand_in(monkeypatch)
    found = device.use_device(1)
    assert used == [1] and str(found) == "NVIDIA H200 (cuda:1, compute capability 9.0, 132 multiprocessors, 140.0 GiB)"
    assert found.bytes == 140 << 30 and found.bfloat16 and not found._replace(capability=(7, 5)).bfloat16
    assert device.free_bytes() == 105 << 30


@pytest.mark.parametrize(
    "sentence, number, what",
    [
        ("NVIDIA's driver, which GPUs need, is missing here; install it", 0, dict(driver=0, refusal=Refusal(35))),
        (
            "NVIDIA's driver here is for CUDA 12 and this CuPy needs one for CUDA 13; update the driver",
            0,
            dict(driver=12080, runtime=13000, refusal=Refusal(35)),
        ),
        ("NVIDIA's driver finds no GPU here; CUDA_VISIBLE_DEVICES=7 may hide it", 0, dict(refusal=Refusal(100))),
        ("NVIDIA's driver finds no GPU here", 0, dict(count=0)),
        ("NVIDIA's driver fails (cudaErrorUnknown: unknown error)", 0, dict(refusal=Refusal(999))),
        ("there is no GPU cuda:2; choose one of cuda:0 to cuda:1", 2, {}),
        ("there is no GPU cuda:1; choose cuda:0", 1, dict(count=1)),
        ("older than compute capability 7.5", 0, dict(capability=(6, 1))),
        ('CuPy finds no cuBLAS of CUDA\'s (Failure finding "libcublas.so.12"); pip install', 0, dict(missing="cublas")),
        ('CuPy finds no NVRTC of CUDA\'s (Failure finding "libnvrtc.so.12"); pip install', 0, dict(missing="nvrtc")),
    ],
)
def test_one_sentence_says_what_is_missing(monkeypatch, sentence, number, what):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    stand_in(monkeypatch, **what)
    with pytest.raises(UserError) as error:
        device.use_device(number)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_cupy_that_is_missing_or_broken_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)  # an import fails then
    with pytest.raises(UserError, match="CuPy.*is not installed.*gpu-cuda12.*gpu-cuda13"):
        device.use_device()
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "path", [os.fspath(tmp_path), *sys.path])
    for text, sentence in (
        (
            "raise ImportError('\\n=====\\n banner') from ImportError('libcudart.so: none')",
            r"does not load \(libcudart.so: none\)",
        ),
        ("import no_such_package_at_all", "lacks the package no_such_package_at_all"),
    ):
        (tmp_path / "cupy.py").write_text(text + "\n", encoding="utf-8")
        with pytest.raises(UserError, match=sentence):
            device.use_device()
        sys.dont_write_bytecode = True
