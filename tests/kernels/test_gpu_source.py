"""How GPU kernels are made and launched, the prelude, the emulator and the fake CuPy. Where there is a device, what concerns kernels runs on it."""

import ast
import ctypes
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import cuda_emulator
import fake_cupy
import numpy as np
import nvrtc
import pytest
from cuda_emulator import LaunchError, Memory, emulating
from fake_cupy import cupy  # noqa: F401, the fixture

import slm_np.kernels.gpu
from slm_np.kernels.gpu.source import ARCHITECTURES, BF16, Kernel, grid

emulated = pytest.mark.skipif(
    cuda_emulator.missing() is not None or fake_cupy.real() is not None,
    reason="needs the emulator, and no device in its place",
)


def local(*arguments, **named):
    """A kernel of a test, which the test of all kernels need not find."""
    kernel = Kernel(*arguments, **named)
    Kernel.KERNELS.remove(kernel)
    return kernel


copied = local(
    "copied",
    r"""
extern "C" __global__ void copied(To* out, const From* x, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) out[i] = store<To>(load(x[i]));
}""",
)


# Kernels


def test_blocks_of_a_grid():
    assert (
        [grid(n) for n in (0, 1, 256, 257, 10**9)] == [1, 1, 1, 2, 4096]
        and grid(100, threads=32) == 4
        and grid(10**9, most=7) == 7
    )


def test_cupy_is_imported_when_a_kernel_is_launched():
    code = "import sys; sys.modules['cupy'] = None; import slm_np.kernels.gpu.source"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0


@pytest.mark.parametrize("n", (1, 255, 1000))
@pytest.mark.parametrize("dtype", (np.float32, np.float64, BF16, np.float16))
def test_types_follow_arrays(cupy, dtype, n):
    x = np.arange(n) % 128  # exact in every type
    stored = x.astype(np.float32).view(np.uint32) >> 16 if dtype is BF16 else x
    out, given = cupy.empty(n, np.float64), cupy.asarray(stored.astype(dtype))
    copied(grid(n), (out, given, n), To=out, From=given)
    np.testing.assert_array_equal(cupy.asnumpy(out), x)
    back = cupy.empty(n, dtype)
    copied(grid(n), (back, out, n), To=np.dtype(dtype), From="double")
    np.testing.assert_array_equal(cupy.asnumpy(back), cupy.asnumpy(given))


def test_arguments_become_what_the_signature_declares(cupy):
    every = local(
        "every",
        r"""
    extern "C" __global__ void __launch_bounds__(COUNT)
    every(double* out, int a, unsigned b, size_t c,  // a comment, with a comma
          float d, double e, Compute f, bool g, const float* __restrict__ absent, long long h) {
        if (threadIdx.x) return;
        double all[] = {(double)a, (double)b, (double)c, d, e, (double)f, (double)g, (double)(absent == nullptr), (double)h, (double)COUNT};
        for (int i = 0; i < 10; i++) out[i] = all[i];
    }""",
    )
    assert (
        every.parameters[0] == ("double*", "out")
        and every.parameters[8] == ("float*", "absent")
        and every.parameters[9] == ("long long", "h")
    )
    out = cupy.empty(10)
    every(1, (out, -3, 2**32 - 1, 2**40, 0.5, 1 / 3, 0.25, True, None, -(2**40)), threads=64, COUNT=64, Kind="double")
    assert cupy.asnumpy(out).tolist() == [-3, 2**32 - 1, 2**40, 0.5, 1 / 3, 0.25, 1, 1, -(2**40), 64]
    every(
        1,
        (out, np.int64(7), np.uint8(1), np.int32(2), 1, 2, np.float32(3), False, None, 0),
        threads=32,
        COUNT=np.int64(32),
    )  # Compute is float here
    assert cupy.asnumpy(out).tolist() == [7, 1, 2, 1, 2, 3, 0, 1, 0, 32]
    good = [out, 1, 1, 1, 1.0, 1.0, 1.0, True, None, 1]
    for place, bad, error in (
        (0, cupy.empty(10, np.float32), TypeError),
        (1, 2**31, OverflowError),
        (2, -1, OverflowError),
        (3, -1, OverflowError),
        (1, 1.5, TypeError),
        (4, out, TypeError),
        (8, out, TypeError),
        (3, out, TypeError),
    ):
        with pytest.raises(error):
            every(1, (*good[:place], bad, *good[place + 1 :]), COUNT=32)
    with pytest.raises(TypeError, match="takes 10 arguments, not 9"):
        every(1, good[:-1], COUNT=32)
    with pytest.raises(Exception, match="at most 32|CUDA_ERROR"):
        every(1, good, threads=64, COUNT=32)  # more than the kernel's __launch_bounds__


def test_a_kernel_that_is_not_in_its_source():
    with pytest.raises(ValueError, match="no kernel other"):
        local("other", copied.text)


def test_blocks_and_threads_of_three_dimensions(cupy):
    places = local(
        "places",
        r"""
    extern "C" __global__ void places(int* out) {
        size_t block = blockIdx.x + gridDim.x * (blockIdx.y + (size_t)gridDim.y * blockIdx.z);
        out[block * threads_of_block() + thread_of_block()] = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z
            + 1000 * blockIdx.x + 10000 * blockIdx.y + 100000 * blockIdx.z;
    }""",
    )
    out = cupy.empty((2, 3, 4, 2, 3, 5), np.int32)
    places((4, 3, 2), (out,), threads=(5, 3, 2))
    weight = (100000, 10000, 1000, 100, 10, 1)
    np.testing.assert_array_equal(cupy.asnumpy(out), sum(w * i for w, i in zip(weight, np.indices(out.shape))))


scaled = local(
    "scaled",
    r"""
extern "C" __global__ void scaled(float* out, Scalar<float> rate, Scalar<unsigned> key, Scalar<Compute> small) {
    out[threadIdx.x] = rate() * threadIdx.x + key() % 1000 + small();
}""",
    threads=32,
)


def test_scalars_by_value_and_by_array(cupy):
    out, index = cupy.empty(32, np.float32), np.arange(32)
    scaled(1, (out, 0.5, 2**32 - 1, 0.25))
    np.testing.assert_array_equal(cupy.asnumpy(out), 0.5 * index + (2**32 - 1) % 1000 + 0.25)
    rates = cupy.asarray(np.array([1, 2, 4], np.float32))
    scaled(1, (out, rates[2], cupy.asarray(np.array([7], np.uint32)), rates[:1]))
    np.testing.assert_array_equal(cupy.asnumpy(out), 4 * index + 8)
    for bad in (rates, cupy.zeros(1), "x", None):
        with pytest.raises(TypeError):
            scaled(1, (out, bad, 0, 0))


def test_a_captured_graph_is_replayed_with_the_scalars_of_the_day(cupy):
    out, rate, stream = cupy.zeros(32, np.float32), cupy.full(1, 2, np.float32), cupy.cuda.Stream(non_blocking=True)
    scaled(1, (out, rate, 0, 0))  # compiled before
    out += 1
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        scaled(1, (out, rate, 0, 0))
        out += 1
        graph = stream.end_capture()
    for value in (3, 5):
        rate.fill(value)
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(cupy.asnumpy(out), value * np.arange(32) + 1)


def test_shared_memory_by_the_launch(cupy):
    turned = local(
        "turned",
        r"""
    extern "C" __global__ void turned(float* out, const float* x, int n) {
        extern __shared__ float room[];
        for (int i = threadIdx.x; i < n; i += blockDim.x) room[i] = x[i];
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = room[n - 1 - i];
    }""",
    )
    for n in (100, 15000, 100):  # 15000 numbers are more than a block has unasked
        x = np.random.default_rng(n).normal(size=n).astype(np.float32)
        out = cupy.empty(n, np.float32)
        turned(1, (out, cupy.asarray(x), n), shared=4 * n)
        np.testing.assert_array_equal(cupy.asnumpy(out), x[::-1])


# The prelude

reduced = local(
    "reduced",
    r"""
extern "C" __global__ void reduced(Number* out, const Number* x) {
    __shared__ Number room[32];
    const Number v = x[blockIdx.x * threads_of_block() + thread_of_block()];
    Number all[] = {warp_sum(v), warp_max(v), block_sum(v, room), block_max(v, room)};
    for (int i = 0; i < 4; i++) out[(4 * blockIdx.x + i) * threads_of_block() + thread_of_block()] = all[i];
}""",
)


@pytest.mark.parametrize("threads", (32, 96, (16, 4, 2), 1024))
@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.int32))
def test_reductions_reach_every_thread(cupy, dtype, threads):
    count = int(np.prod(threads))
    x = (np.random.default_rng(0).normal(size=(3, count)) * 100).astype(dtype)
    out = cupy.empty((3, 4, count), dtype)
    reduced(3, (out, cupy.asarray(x)), threads=threads, Number=out)
    warps, wide = x.reshape(3, -1, 32), x.astype(np.float64)
    expected = [
        warps.astype(np.float64).sum(2).repeat(32, 1),
        warps.max(2).repeat(32, 1),
        wide.sum(1)[:, None].repeat(count, 1),
        wide.max(1)[:, None].repeat(count, 1),
    ]
    np.testing.assert_allclose(
        cupy.asnumpy(out), np.stack(expected, 1), rtol=1e-5, atol=1e-3 if dtype == np.float32 else 1e-9
    )


def test_reductions_with_nan_and_infinity(cupy):
    x = np.full((4, 64), -np.inf, np.float32)
    x[1, 5], x[2, 40], x[3, :] = np.nan, np.inf, np.nan
    out = cupy.empty((4, 4, 64), np.float32)
    reduced(4, (out, cupy.asarray(x)), threads=64, Number=out)
    sums, largest = cupy.asnumpy(out)[:, 2], cupy.asnumpy(out)[:, 3]
    np.testing.assert_array_equal(sums[:, 0], [-np.inf, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(largest, np.array([-np.inf, -np.inf, np.inf, np.nan])[:, None].repeat(64, 1))


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_functions_of_numbers(cupy, dtype):
    functions = local(
        "functions",
        r"""
    extern "C" __global__ void functions(Compute* out, const Compute* x, int n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = sigmoid(x[i]), out[n + i] = exp_(x[i]), out[2 * n + i] = -INF;
        fill_nan(out + 3 * n, n);
    }""",
    )
    x = np.array([-np.inf, -200, -30, -1, -1e-6, 0, 0.5, 3, 80, 200, np.inf, np.nan], dtype)
    out = cupy.zeros((4, len(x)), dtype)
    functions(1, (out, cupy.asarray(x), len(x)), Number=out)
    out = cupy.asnumpy(out)
    with np.errstate(over="ignore"):
        wide, tolerance = x.astype(np.float64), 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(
            out[0], 1 / (1 + np.exp(-wide)), rtol=tolerance, atol=2e-38 if dtype == np.float32 else 0
        )
        np.testing.assert_allclose(out[1], np.exp(wide).astype(dtype), rtol=tolerance, atol=2e-38)
    assert (out[2] == -np.inf).all() and np.isnan(out[3]).all()


def cpu_kept():
    """`kept` of the CPU's dropout as plain NumPy: the function's source without its decorator, as the kernels' compilation would take a minute."""
    source = Path(__file__).resolve().parents[2] / "kernels" / "cpu" / "dropout.py"
    function = next(
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "kept"
    )
    function.decorator_list, names = [], {"np": np}
    exec(compile(ast.Module([function], []), str(source), "exec"), names)
    return names["kept"]


def test_dropout_draws_the_bits_of_the_cpu(cupy):
    drawn = local(
        "drawn",
        r"""
    extern "C" __global__ void drawn(unsigned* out, unsigned key, size_t first) { out[threadIdx.x] = hash(key, first + threadIdx.x); }""",
    )
    kept, out = cpu_kept(), cupy.empty(256, np.uint32)
    for key, first in ((0, 0), (1, 0), (2**31 - 1, 12345), (123456789, 2**32 - 128), (7, 5 * 2**32)):
        drawn(1, (out, key, first))
        bits, index = cupy.asnumpy(out).astype(np.uint64), np.arange(first, first + 256, dtype=np.uint64) % 2**32
        assert kept(index, key, bits).all()
        assert not kept(index[bits < 2**32 - 1], key, bits[bits < 2**32 - 1] + 1).any()


def patterns():
    """float32 numbers of every kind: every exponent and sign with mantissas around the ties of both 16-bit types, and random bits."""
    ties = [*range(0, 1 << 23, 1 << 15), *range(0x1000, 1 << 17, 1 << 13)]
    edges = np.array([mantissa + off for mantissa in ties for off in (-1, 0, 1)][1:] + [(1 << 23) - 1], np.uint32)
    exponents = np.array([*range(0, 256, 16), *range(96, 148), 254, 255], np.uint32)
    drawn = np.random.default_rng(1).integers(0, 2**32, 50000, np.uint64).astype(np.uint32)
    bits = np.concatenate([np.add.outer(exponents << 23, edges).ravel(), drawn])
    return np.concatenate([bits, bits ^ np.uint32(1 << 31)]).view(np.float32)


@pytest.mark.parametrize("dtype", (BF16, np.dtype(np.float16)))
def test_rounding_to_sixteen_bits(cupy, dtype):
    x = patterns()
    out = cupy.empty(len(x), dtype)
    copied(grid(len(x)), (out, cupy.asarray(x), len(x)), To=out, From="float")
    found, nan = cupy.asnumpy(out).view(np.uint16), np.isnan(x)
    with np.errstate(over="ignore"):
        if dtype == BF16:
            bits = x.view(np.uint32).astype(np.uint64)
            expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        else:
            expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(found[~nan], expected[~nan])
    infinity = 0x7F80 if dtype == BF16 else 0x7C00
    assert ((found[nan] & 0x7FFF) > infinity).all()


@pytest.mark.parametrize("dtype", (BF16, np.dtype(np.float16)))
def test_every_number_of_sixteen_bits_is_read_exactly(cupy, dtype):
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    out = cupy.empty(len(bits), np.float64)
    copied(grid(len(bits)), (out, cupy.asarray(bits.view(dtype)), len(bits)), To=out, From=cupy.empty(0, dtype))
    exact = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == BF16 else bits.view(np.float16)
    finite = (np.abs(exact) >= 2.0**-126) | (exact == 0) | np.isnan(exact)  # what is smaller, CuPy has flushed to zero
    np.testing.assert_array_equal(cupy.asnumpy(out)[finite], exact[finite])


@pytest.mark.parametrize("dtype", (BF16, np.dtype(np.float16)))
def test_tensor_cores_product(cupy, dtype):
    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("mma of 16 x 8 x 16 numbers needs compute capability 8.0")
    product = local(
        "product",
        r"""
    extern "C" __global__ void product(float* D, const Operand* A, const Operand* B) {  // A (16, 16), B (8, 16), transposed, D (16, 8), one of each a warp
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = lane / 4, j = lane % 4;
        A += 256 * warp, B += 128 * warp, D += 128 * warp;
        auto pair = [](const Operand* x) { return *(const unsigned*)x; };
        unsigned a[4], b[2];
        for (int r = 0; r < 4; r++) a[r] = pair(A + (i + r % 2 * 8) * 16 + 2 * j + r / 2 * 8);
        for (int r = 0; r < 2; r++) b[r] = pair(B + i * 16 + 2 * j + r * 8);
        float d[4];
        for (int r = 0; r < 4; r++) d[r] = D[(i + r / 2 * 8) * 8 + 2 * j + r % 2];
        mma<Operand>(d, a, b);
        for (int r = 0; r < 4; r++) D[(i + r / 2 * 8) * 8 + 2 * j + r % 2] = d[r];
    }""",
    )
    draw = np.random.default_rng(2)
    a, b, d = (draw.normal(size=shape).astype(np.float32) for shape in ((3, 16, 16), (3, 8, 16), (3, 16, 8)))
    if dtype == BF16:
        a, b = ((x.view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (a, b))
        stored = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
    else:
        a, b = (x.astype(np.float16).astype(np.float32) for x in (a, b))
        stored = [x.astype(np.float16) for x in (a, b)]
    out = cupy.asarray(d)
    product(1, (out, *map(cupy.asarray, stored)), threads=96, Operand=dtype)
    np.testing.assert_allclose(
        cupy.asnumpy(out), d + a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1), rtol=1e-5, atol=1e-5
    )


# The emulator

faulty = local(
    "faulty",
    r"""
__device__ float below(const float* x, int i) { return x[i]; }
extern "C" __global__ void faulty(float* out, const float* x, int n) {
    __shared__ float room[64];
    const int i = threadIdx.x;
    room[i] = x[i];
    if (FAULT == 0) { if (i != 3) __syncthreads(); }
    if (FAULT == 1) { if (i < 32) {
        __syncthreads(); out[0] = 1;
    } else {
        __syncthreads(); } }
    if (FAULT == 2) out[n + i] = 1;
    if (FAULT == 3) room[0] = below(x, n + i);
    if (FAULT == 4) out[i - 40] = 1;
    if (FAULT == 5) room[i + n] = 1;
    if (FAULT == 6 && i < 16) room[i] = warp_sum(room[i]);
    if (FAULT == 7) room[i] = __shfl_sync(0xffu, room[i], 0);
    if (FAULT == 8) out[0] = n / (n - 64);
    if (FAULT == 9) *(float*)nullptr = 1;
    if (FAULT == 10) { if (i % 2) room[i] = __shfl_xor_sync(0xffffffffu, room[i], 1); else room[i] = warp_max(room[i]); }
    if (FAULT == 11) __trap();
    if (FAULT == 12) room[i] = ((const float4*)(x + 1))->w;
    __syncthreads();
    out[i] = room[63 - i];
}""",
    threads=64,
)
FAULTS = (
    "divergent barrier",
    "divergent barrier",
    "past the end of an array of 256 bytes",
    "bytes past the end of an array of 256 bytes",
    "before the start of an array of 256 bytes",
    "index outside an array of shared memory",
    "waits for lanes ffffffff, of which only 0000ffff come",
    "mask 000000ff",
    "an integer is divided by zero",
    "a null pointer",
    "wait for each other at different operations",
    "__trap",
    "at no multiple of their size",
)


@emulated
@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_the_emulator_finds_what_a_gpu_may_not_do(cupy, fault):
    out, x = cupy.zeros(64, np.float32), cupy.asarray(np.arange(64, dtype=np.float32))
    with pytest.raises(LaunchError, match=FAULTS[fault]):
        faulty(1, (out, x, 64), FAULT=fault)
    faulty(1, (out, x, 64), FAULT=-1)  # and goes on
    np.testing.assert_array_equal(cupy.asnumpy(out), np.arange(64)[::-1])


@emulated
def test_a_line_of_the_source_is_named(cupy):
    out, x = cupy.zeros(64, np.float32), cupy.zeros(64, np.float32)
    with pytest.raises(LaunchError, match="63 of 64 threads .* in `if .FAULT == 0. . if .i != 3. __syncthreads"):
        copy = local("faulty", faulty.text.replace("    __syncthreads();\n    out", "    out"), threads=64)
        copy(1, (out, x, 64), FAULT=0)


@emulated
@pytest.mark.parametrize(
    "blocks,threads,shared",
    ((1, 1025, 0), (1, (1, 1, 65), 0), ((1, 65536), 1, 0), (1, 32, cuda_emulator.MOST_SHARED + 16)),
)
def test_launches_no_gpu_takes(cupy, blocks, threads, shared):
    with pytest.raises((LaunchError, RuntimeError)):
        faulty(
            blocks,
            (cupy.zeros(64, np.float32), cupy.zeros(64, np.float32), 64),
            threads=threads,
            shared=shared,
            FAULT=-1,
        )


@emulated
def test_another_order_of_threads_shows_a_race(cupy):
    race = local(
        "race",
        r"""
    extern "C" __global__ void race(float* out) {
        __shared__ float room[64];
        room[threadIdx.x] = threadIdx.x;
        if (GUARDED) __syncthreads();
        out[blockIdx.x * 64 + threadIdx.x] = room[(threadIdx.x + 33) % 64];
    }""",
        threads=64,
    )
    found = {}
    for guarded in (0, 1):
        for order, seed in (("forward", 0), ("reversed", 0), ("shuffled", 1), ("shuffled", 2)):
            out = cupy.empty((7, 64), np.float32)
            with emulating(order=order, seed=seed):
                race(7, (out,), GUARDED=guarded)
            found[guarded, order, seed] = cupy.asnumpy(out)
    right = found[1, "forward", 0]
    assert all((found[key] == right).all() for key in found if key[0])
    assert not any((found[key] == right).all() for key in found if not key[0])  # unwritten shared memory is NaN


@emulated
@pytest.mark.parametrize("blocks", (1, 2, 12, 30))
def test_every_order_runs_every_block_once(cupy, blocks):
    counted = local(
        "counted",
        'extern "C" __global__ void counted(int* out) { out[blockIdx.x + gridDim.x * blockIdx.y] += 1; }',
        threads=1,
    )
    for seed in range(20):
        out = cupy.zeros((3, blocks), np.int32)
        with emulating(order="shuffled", seed=seed):
            counted((blocks, 3), (out,))
        assert (cupy.asnumpy(out) == 1).all()


@emulated
def test_votes_and_shuffles(cupy):
    votes = local(
        "votes",
        r"""
    extern "C" __global__ void votes(int* out) {
        const int i = threadIdx.x;
        const unsigned every = 0xffffffffu;
        int all[] = {(int)__ballot_sync(every, i % 3 == 0), (int)__any_sync(every, i == 40), (int)__all_sync(every, i < 40), __shfl_sync(every, i, 5),
                     __shfl_up_sync(every, i, 2), __shfl_down_sync(every, i, 3, 8), __shfl_xor_sync(every, i, 7), __syncthreads_count(i < 40),
                     (int)__syncthreads_or(i == 63), (int)__syncthreads_and(i < 63)};
        __syncwarp();
        for (int k = 0; k < 10; k++) out[k * 64 + i] = all[k];
    }""",
        threads=64,
    )
    out = cupy.empty((10, 64), np.int32)
    votes(1, (out,))
    out, i = cupy.asnumpy(out), np.arange(64)
    lane, warp = i % 32, i // 32
    ballot = [sum(1 << n for n in range(32) if (32 * w + n) % 3 == 0) for w in (0, 1)]
    np.testing.assert_array_equal(out[0].astype(np.uint32), np.array(ballot, np.uint32)[warp])
    for row, expected in (
        (1, warp == 1),
        (2, warp == 0),
        (3, 32 * warp + 5),
        (4, np.where(lane < 2, i, i - 2)),
        (5, np.where(i % 8 + 3 < 8, i + 3, i)),
        (6, i ^ 7),
        (7, 40),
        (8, 1),
        (9, 0),
    ):
        np.testing.assert_array_equal(out[row], expected)


@emulated
def test_older_devices_have_no_tensor_cores(cupy):
    asked = local("asked", 'extern "C" __global__ void asked(int* out) { out[0] = TENSOR_CORES; }', threads=1)
    out = cupy.empty(1, np.int32)
    for cores, capability in ((True, "90"), (False, "75"), (True, "90")):
        with emulating(tensor_cores=cores):
            asked(1, (out,))
            assert int(out[0]) == cores and cupy.cuda.Device().compute_capability == capability


@emulated
def test_memory_begins_as_nan(cupy):
    assert (
        all(np.isnan(cupy.asnumpy(cupy.empty(5, dtype))).all() for dtype in (np.float16, np.float32, np.float64))
        and len(Memory(5).buffer) == 5
    )


# The fake CuPy


@emulated
def test_arrays_do_not_mix_with_numpys(cupy):
    x, host = cupy.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    for refused in (
        lambda: np.asarray(x),
        lambda: np.matmul(x, x),
        lambda: np.add(x, x),
        lambda: np.sum(x),
        lambda: x + host,
        lambda: host + x,
        lambda: cupy.add(x, host),
        lambda: x.__setitem__(0, host[0]),
        lambda: x.__iadd__(host),
        lambda: np.copyto(host, x),
        lambda: host.__setitem__(..., x),
        lambda: cupy.multiply(x, 2, out=host),
    ):
        with pytest.raises(TypeError):
            refused()


@emulated
def test_arrays_compute_as_numpys(cupy):
    host = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = cupy.asarray(host)
    for function in (
        lambda x: x[1:3, ::2] * 2 - 1,
        lambda x: 3 / (x + 1),
        lambda x: x.T @ x,
        lambda x: x[2],
        lambda x: x[1, 2],
        lambda x: x.max(),
        lambda x: x.reshape(6, 4).sum(0),
        lambda x: x.astype(np.float64).mean(axis=1),
        lambda x: np.float32(2) * x,
        lambda x: -x,
        lambda x: x >= 5,
        lambda x: x.view(np.uint32)[0],
        lambda x: x.ravel()[3:],
    ):
        found = function(x)
        assert isinstance(found, cupy.ndarray) and found.dtype == function(host).dtype
        np.testing.assert_allclose(found.get(), function(host))
    x[1:3] = 5
    x[0] += x[1]
    cupy.multiply(x[3], 2, out=x[3])
    host[1:3], host[0], host[3] = 5, host[0] + 5, host[3] * 2
    np.testing.assert_array_equal(cupy.asnumpy(x), host)
    assert (
        float(x[0, 0]) == 5
        and x[1].data.ptr == x.data.ptr + 24
        and x.T.strides == (4, 24)
        and x.T.flags.f_contiguous
        and not x[:, 1:].flags.c_contiguous
    )
    x.set(np.ones((4, 6), np.float32))
    assert cupy.asnumpy(x).sum() == 24


@emulated
def test_a_captured_stream_only_records(cupy):
    x, y, stream = cupy.zeros(8, np.float32), cupy.ones(8, np.float32), cupy.cuda.Stream()
    host = cupy.cuda.alloc_pinned_memory(x.nbytes)
    numbers = np.frombuffer(host, np.float32)
    with stream:
        stream.begin_capture()
        cupy.cuda.runtime.memcpyAsync(
            y.data.ptr, numbers.ctypes.data, y.nbytes, cupy.cuda.runtime.memcpyHostToDevice, stream.ptr
        )
        x += y
        x[:4] = y[4:]
        copied(1, (y, x, 8), To=y, From=x)
        graph = stream.end_capture()
    assert (cupy.asnumpy(x) == 0).all() and (cupy.asnumpy(y) == 1).all()
    numbers[:] = 3
    graph.launch()
    graph.launch(stream)
    np.testing.assert_array_equal(cupy.asnumpy(x), [3] * 4 + [6] * 4)
    np.testing.assert_array_equal(cupy.asnumpy(y), cupy.asnumpy(x))


@emulated
@pytest.mark.parametrize("what", ("get", "set", "float", "synchronise", "device", "allocate", "add", "asarray"))
def test_what_a_captured_stream_may_not_do(cupy, what):
    x, stream, host = cupy.zeros(1, np.float32), cupy.cuda.Stream(), np.zeros(1, np.float32)
    forbidden = dict(
        get=x.get,
        set=lambda: x.set(host),
        float=lambda: float(x),
        synchronise=stream.synchronize,
        device=cupy.cuda.Device().synchronize,
        allocate=lambda: cupy.empty(1),
        add=lambda: x + 1,
        asarray=lambda: cupy.asarray(host),
    )[what]
    with stream:
        stream.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            forbidden()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()
    forbidden()
    with pytest.raises(RuntimeError):
        cupy.cuda.Stream.null.begin_capture()


@emulated
def test_a_graph_does_not_keep_arrays(cupy):
    x, y, stream = cupy.zeros(8, np.float32), cupy.zeros(8, np.float32), cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        copied(1, (y, x, 8), To=y, From=x)
        graph = stream.end_capture()
    del x
    with pytest.raises(LaunchError, match="an array that is gone"):
        graph.launch()


@emulated
def test_waiting_and_allocating_is_counted(cupy):
    counts = fake_cupy.counts
    before = dict(vars(counts))
    x = cupy.zeros(4, np.float32)
    copied(1, (x, x, 4), To=x, From=x)
    x.get()
    cupy.cuda.Device().synchronize()
    assert {name: value - before[name] for name, value in vars(counts).items()} == dict(
        synchronisations=2, allocations=1, launches=1, copies=0, own=0
    )


@emulated
def test_memory_is_limited(cupy):
    pool = cupy.get_default_memory_pool()
    free, total = cupy.cuda.runtime.memGetInfo()
    pool.set_limit(size=pool.used_bytes() + 1000)
    try:
        x = cupy.empty(100)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(100)
        assert cupy.cuda.runtime.memGetInfo() == (free - 800, total)
        del x
        assert cupy.empty(100).size == 100
    finally:
        pool.set_limit(size=0)


R_32F, R_64F, R_16F, R_16BF, SUM_32F, SUM_64F = 0, 1, 2, 14, 68, 70


@emulated
@pytest.mark.parametrize(
    "kind,output", ((R_32F, R_32F), (R_64F, R_64F), (R_16F, R_16F), (R_16F, R_32F), (R_16BF, R_16BF), (R_16BF, R_32F))
)
@pytest.mark.parametrize("flip_a,flip_b", ((0, 0), (0, 1), (1, 0), (1, 1)))
def test_cublas_counts_in_columns(cupy, kind, output, flip_a, flip_b):
    from cupy_backends.cuda.libs import cublas

    draw, types = np.random.default_rng(3), {R_32F: np.float32, R_64F: np.float64, R_16F: np.float16, R_16BF: np.uint16}
    batch, m, n, k, lda, ldb, ldc = 2, 5, 3, 4, 7, 6, 8

    def numbers(*shape):  # small multiples of 1/8: exact in every type
        return draw.integers(-15, 16, shape) / 8

    def stored(x, kind):
        return cupy.asarray(
            (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if kind == R_16BF else x.astype(types[kind])
        )

    a, b, c = (
        numbers(batch, m if flip_a else k, lda),
        numbers(batch, k if flip_b else n, ldb),
        numbers(batch, n, ldc),
    )  # columns, one after another
    A, B = a[:, :, : k if flip_a else m].transpose(0, 2, 1), b[:, :, : n if flip_b else k].transpose(0, 2, 1)
    expected = np.matmul(A.transpose(0, 2, 1) if flip_a else A, B.transpose(0, 2, 1) if flip_b else B)
    number, sums = (ctypes.c_double, SUM_64F) if kind == R_64F else (ctypes.c_float, SUM_32F)
    device_a, device_b = stored(a, kind), stored(b, kind)
    for alpha, beta, kept in ((2, 0, np.nan), (1, 0.5, 1)):
        device_c, factors = stored(c * kept, output), (number(alpha), number(beta))
        scale, keep = map(ctypes.addressof, factors)
        cublas.gemmStridedBatchedEx(
            cupy.cuda.get_cublas_handle(),
            flip_a,
            flip_b,
            m,
            n,
            k,
            scale,
            device_a.data.ptr,
            kind,
            lda,
            a[0].size,
            device_b.data.ptr,
            kind,
            ldb,
            b[0].size,
            keep,
            device_c.data.ptr,
            output,
            ldc,
            c[0].size,
            batch,
            sums,
            -1,
        )
        found = cupy.asnumpy(device_c)
        found = ((found.astype(np.uint32) << 16).view(np.float32) if output == R_16BF else found).astype(np.float64)
        right = alpha * expected.transpose(0, 2, 1) + (beta * c[:, :, :m] if beta else 0)
        np.testing.assert_allclose(
            found[:, :, :m], right, rtol=2.0**-8 if output == R_16BF else 2.0**-10 if output == R_16F else 1e-6
        )
        np.testing.assert_array_equal(found[:, :, m:], c[:, :, m:] * kept)  # between the columns
        one = stored(c * kept, output)
        cublas.gemmEx(
            1,
            flip_a,
            flip_b,
            m,
            n,
            k,
            scale,
            device_a.data.ptr,
            kind,
            lda,
            device_b.data.ptr,
            kind,
            ldb,
            keep,
            one.data.ptr,
            output,
            ldc,
            sums,
            -1,
        )
        np.testing.assert_array_equal(cupy.asnumpy(one)[0], cupy.asnumpy(device_c)[0])


@emulated
def test_cublas_refuses_types_and_what_lies_outside(cupy):
    from cupy_backends.cuda.libs import cublas

    x, one = cupy.zeros((4, 4), np.float32), ctypes.c_float(1)
    pointer = ctypes.addressof(one)
    for kind, output, sums in ((R_32F, R_16BF, SUM_32F), (R_64F, R_64F, SUM_32F), (R_16F, R_16BF, SUM_32F)):
        with pytest.raises(cublas.CUBLASError):
            cublas.gemmEx(
                1,
                0,
                0,
                4,
                4,
                4,
                pointer,
                x.data.ptr,
                kind,
                4,
                x.data.ptr,
                kind,
                4,
                pointer,
                x.data.ptr,
                output,
                4,
                sums,
                -1,
            )
    with pytest.raises(LaunchError, match="not within one array"):
        cublas.gemmEx(
            1, 0, 0, 4, 4, 5, pointer, x.data.ptr, 0, 4, x.data.ptr, 0, 5, pointer, x.data.ptr, 0, 4, SUM_32F, -1
        )


# All kernels, on the machines they are for


@pytest.mark.skipif(nvrtc.library() is None, reason="the package nvidia-cuda-nvrtc-cu12 is not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(architecture):
    for module in pkgutil.iter_modules(slm_np.kernels.gpu.__path__):
        importlib.import_module(f"slm_np.kernels.gpu.{module.name}")
    for kernel in Kernel.KERNELS:
        for types in kernel.variants:
            nvrtc.check(kernel, types, architecture)


@pytest.mark.skipif(nvrtc.library() is None, reason="the package nvidia-cuda-nvrtc-cu12 is not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prelude_compiles(architecture):
    for types in [
        dict(To=to, From=of)
        for to in ("float", "double", "bfloat16", "half")
        for of in ("float", "double", "bfloat16", "half")
    ]:
        nvrtc.check(copied, types, architecture)
    nvrtc.check(scaled, {}, architecture)
    for number in ("float", "double", "int"):
        nvrtc.check(reduced, dict(Number=number), architecture)
    with pytest.raises(ValueError, match='identifier "unknown" is undefined'):
        nvrtc.compile(
            copied.code(To="float", From="float").replace("load(x[i])", "unknown(x[i])"), architecture, ("-std=c++17",)
        )


@pytest.mark.skipif(nvrtc.library() is None, reason="the package nvidia-cuda-nvrtc-cu12 is not installed")
def test_a_block_that_wants_too_many_registers_is_found():
    hungry = local(
        "hungry",
        r"""
    extern "C" __global__ void hungry(float* x) {
        float held[100];
        #pragma unroll
        for (int i = 0; i < 100; ++i) held[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 100; ++i) x[(99 - i) * 1024 + threadIdx.x] = held[i];
    }""",
        threads=1024,
    )
    with pytest.raises(ValueError, match="1024 threads of .* registers do not fit"):
        nvrtc.check(hungry, {}, ARCHITECTURES[0])
