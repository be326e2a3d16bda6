"""The CUDA emulator (tests/cuda_emulator.py): it finds invalid kernels and races, and its warps behave as a GPU's."""

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from cuda_emulator import LaunchError, Memory, emulating
from fake_cupy import cupy  # noqa: F401  a fixture
from gpu_kernels import local_kernel

pytestmark = pytest.mark.skipif(
    cuda_emulator.missing() is not None or fake_cupy.real() is not None,
    reason="needs the emulator, and no GPU that takes precedence",
)

faulty = local_kernel(
    "faulty",
    r"""
__device__ float read(const float* x, int i) { return x[i]; }
extern "C" __global__ void faulty(float* out, const float* x, int n) {
    __shared__ float shared[64];
    const int i = threadIdx.x;
    shared[i] = x[i];
    if (FAULT == 0) { if (i != 3) __syncthreads(); }
    if (FAULT == 1) { if (i < 32) {
        __syncthreads(); out[0] = 1;
    } else {
        __syncthreads(); } }
    if (FAULT == 2) out[n + i] = 1;
    if (FAULT == 3) shared[0] = read(x, n + i);
    if (FAULT == 4) out[i - 40] = 1;
    if (FAULT == 5) shared[i + n] = 1;
    if (FAULT == 6 && i < 16) shared[i] = warp_sum(shared[i]);
    if (FAULT == 7) shared[i] = __shfl_sync(0xffu, shared[i], 0);
    if (FAULT == 8) out[0] = n / (n - 64);
    if (FAULT == 9) *(float*)nullptr = 1;
    if (FAULT == 10) {
        if (i % 2) shared[i] = __shfl_xor_sync(0xffffffffu, shared[i], 1); else shared[i] = warp_max(shared[i]);
    }
    if (FAULT == 11) __trap();
    if (FAULT == 12) shared[i] = ((const float4*)(x + 1))->w;
    __syncthreads();
    out[i] = shared[63 - i];
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
    "waits for lanes ffffffff, but only 0000ffff arrive",
    "mask 000000ff",
    "an integer is divided by zero",
    "a null pointer",
    "wait for each other at different operations",
    "__trap",
    "no multiple of its size",
)


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_invalid_kernels_are_found(cupy, fault):  # noqa: F811
    out, x = cupy.zeros(64, np.float32), cupy.asarray(np.arange(64, dtype=np.float32))
    with pytest.raises(LaunchError, match=FAULTS[fault]):
        faulty(1, (out, x, 64), FAULT=fault)
    faulty(1, (out, x, 64), FAULT=-1)  # the next launch works
    np.testing.assert_array_equal(cupy.asnumpy(out), np.arange(64)[::-1])


def test_messages_quote_the_source_line(cupy):  # noqa: F811
    out, x = cupy.zeros(64, np.float32), cupy.zeros(64, np.float32)
    text = faulty.text.replace("    __syncthreads();\n    out", "    out")
    with pytest.raises(LaunchError, match="63 of 64 threads .* in `if .FAULT == 0. . if .i != 3. __syncthreads"):
        local_kernel("faulty", text, threads=64)(1, (out, x, 64), FAULT=0)


@pytest.mark.parametrize(
    "blocks, threads, shared",
    ((1, 1025, 0), (1, (1, 1, 65), 0), ((1, 65536), 1, 0), (1, 32, cuda_emulator.MAX_SHARED + 16)),
)
def test_invalid_launches_are_refused(cupy, blocks, threads, shared):  # noqa: F811
    arguments = cupy.zeros(64, np.float32), cupy.zeros(64, np.float32), 64
    with pytest.raises((LaunchError, RuntimeError)):
        faulty(blocks, arguments, threads=threads, shared=shared, FAULT=-1)


def test_other_orders_of_threads_reveal_a_race(cupy):  # noqa: F811
    race = local_kernel(
        "race",
        r"""
    extern "C" __global__ void race(float* out) {
        __shared__ float shared[64];
        shared[threadIdx.x] = threadIdx.x;
        if (GUARDED) __syncthreads();
        out[blockIdx.x * 64 + threadIdx.x] = shared[(threadIdx.x + 33) % 64];
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
    expected = found[1, "forward", 0]
    assert all((x == expected).all() for (guarded, *_), x in found.items() if guarded)
    assert not any(
        (x == expected).all() for (guarded, *_), x in found.items() if not guarded
    )  # unwritten memory is NaN


@pytest.mark.parametrize("blocks", (1, 2, 12, 30))
def test_every_order_runs_every_block_once(cupy, blocks):  # noqa: F811
    count = local_kernel(
        "count",
        'extern "C" __global__ void count(int* out) { out[blockIdx.x + gridDim.x * blockIdx.y] += 1; }',
        threads=1,
    )
    for seed in range(20):
        out = cupy.zeros((3, blocks), np.int32)
        with emulating(order="shuffled", seed=seed):
            count((blocks, 3), (out,))
        assert (cupy.asnumpy(out) == 1).all()


def test_votes_and_shuffles(cupy):  # noqa: F811
    votes = local_kernel(
        "votes",
        r"""
    extern "C" __global__ void votes(int* out) {
        const int i = threadIdx.x;
        const unsigned mask = 0xffffffffu;
        int all[] = {(int)__ballot_sync(mask, i % 3 == 0), (int)__any_sync(mask, i == 40),
                     (int)__all_sync(mask, i < 40), __shfl_sync(mask, i, 5), __shfl_up_sync(mask, i, 2),
                     __shfl_down_sync(mask, i, 3, 8), __shfl_xor_sync(mask, i, 7), __syncthreads_count(i < 40),
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


def test_tensor_cores_can_be_switched_off(cupy):  # noqa: F811
    cores = local_kernel("cores", 'extern "C" __global__ void cores(int* out) { out[0] = TENSOR_CORES; }', threads=1)
    out = cupy.empty(1, np.int32)
    for tensor_cores, capability in ((True, "90"), (False, "75"), (True, "90")):
        with emulating(tensor_cores=tensor_cores):
            cores(1, (out,))
            assert int(out[0]) == tensor_cores and cupy.cuda.Device().compute_capability == capability


def test_new_memory_is_nan(cupy):  # noqa: F811
    for dtype in (np.float16, np.float32, np.float64):
        assert np.isnan(cupy.asnumpy(cupy.empty(5, dtype))).all()
    assert len(Memory(5).buffer) == 5
