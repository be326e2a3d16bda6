"""Everything that needs a GPU, in one call: tests of the kernels, their speed, training beside PyTorch, generation.

    python benchmarks/gpu.py [--quick] [--only device,tests,kernels,training,generation] [--json FILE]

It needs CuPy and a GPU, and no data: tokens are random. It takes about eight minutes and at most ten; --quick takes
two. Each section runs in a process of its own and is ended when its time is up, so that a failure, even one that breaks
the GPU's context, does not affect the others. Training times the trainer's own step, batch and update included. Each
engine has a process of its own, and blocks of steps alternate between them, so that a drift of the machine affects them
all. PyTorch computes under autocast to bfloat16 with fused AdamW and flash attention, compiled, with and without CUDA
graphs of its own; models with a time loop run eager, since a compiler would unroll it. Shares refer to the rates that
this device reaches: a bfloat16 matmul of 8192 x 8192 by cuBLAS, and a copy.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import checkout
from cpu import Engine, corpus_of
from measure import write_json
from shapes import SCAN_BACKWARD, SCAN_FORWARD, SHAPES, operations

from slm_np.config import ModelConfig
from slm_np.errors import UserError, command, near
from slm_np.presets import GPT2, PRESETS

TRAINED = {  # name: (settings of the model, B)
    "char10m": (SHAPES["char10m"][0], 64),
    "smallm": (SHAPES["smallm"][0] | dict(block_size=256), 64),
    "gpt2-124m": (dict(GPT2, vocab_size=50257, n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True), 16),
    "mamba": (SHAPES["mamba"][0], 64),
    "byte-ssm-11": (PRESETS["byte-ssm-11"]["model"], 256),
}
QUICK = ("char10m", "mamba")
PEERS = {  # PyTorch: whether compiled, and in which mode
    "eager": (False, None),
    "compiled": (True, None),
    "graphs": (True, "reduce-overhead"),
}
GENERATED = {"smallm": (1, 64), "gpt2-124m": (1, 64), "mamba": (1,), "byte-ssm-11": (1,)}  # name: numbers of sequences
# name: the most seconds that a section may take, together a little less than ten minutes
SECTIONS = dict(device=30, tests=180, kernels=100, training=220, generation=60)
TESTED, TESTED_QUICK = 160, 60  # seconds of pytest
SEVERAL = 8  # calls of a kernel in one graph
ANSWERED = 130  # seconds in which an engine must answer, compilation included
TEST_FILES = "test_gpu_*.py"
EMULATED = ("test_gpu_emulator.py", "test_gpu_fake_cupy.py", "test_gpu_nvrtc.py")  # run nothing on the device


def config_of(name):
    """(ModelConfig, B) of a shape."""
    settings, batch = TRAINED[name]
    return ModelConfig(**settings), batch


def cuda():
    """The Device of the GPU. UserError names what is missing for one."""
    from slm_np.ops.device import device

    return device("cuda")


# The device


def device(args):
    """The GPU, its driver, and versions."""
    import cupy

    runtime = cupy.cuda.runtime

    def dotted(version):
        return f"{version // 1000}.{version % 1000 // 10}"

    found = dict(
        device=str(cuda()),
        driver_cuda=dotted(runtime.driverGetVersion()),
        runtime_cuda=dotted(runtime.runtimeGetVersion()),
        python=sys.version.split()[0],
        **{name: version_of(name) for name in ("cupy", "numpy", "numba", "torch", "transformers", "triton")},
    )
    print(found["device"])
    print(", ".join(f"{name} {value}" for name, value in found.items() if name != "device"))
    return found


def version_of(module):
    """The version of an installed package, "-" if it is not installed."""
    from importlib import metadata

    names = metadata.packages_distributions().get(module)
    return metadata.version(names[0]) if names else "-"


# Tests of the kernels on the device, without and with NVIDIA's checkers


def tests(args):
    """All tests for GPUs and, at the same time, those of the kernels under compute-sanitizer.

    It checks memory accesses, and races in shared memory.
    """
    if not importlib.util.find_spec("pytest"):
        raise UserError("the tests need pytest, which is not installed; install it, or leave them out by --only")
    files = sorted((checkout.ROOT / "tests").rglob(TEST_FILES))
    kernels = [str(path) for path in files if path.parent.name == "kernels" and path.name not in EMULATED]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-rf", "--tb=line"]
    parallel = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    jobs = {"pytest": [*pytest, *parallel, *map(str, files)]}
    cuda_home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.path.join(cuda_home, "bin")
    )
    if not args.quick and sanitizer:
        for tool in ("memcheck", "racecheck"):
            jobs[tool] = [sanitizer, "--tool", tool, "--error-exitcode", "9", *pytest, *kernels]
    elif not args.quick:
        print("compute-sanitizer is neither on the PATH nor in CUDA's folder: memory and races are not checked")
    seconds = TESTED_QUICK if args.quick else TESTED
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        results = pool.map(lambda name: checked(jobs[name], seconds, name != "pytest"), jobs)
        found = dict(zip(jobs, results))
    for name, row in found.items():
        row["sound"] = row["verdict"] == "ok" or (
            row["verdict"] == "timed out" and not row["failed"] and not row["errors"]
        )
        print(
            f"{name:<12}{row['verdict']:<12}{row['passed']:>6} passed {row['failed']:>4} failed "
            f"{row['skipped']:>4} skipped {row['seconds']:>6.0f} s   {row['last']}"
        )
        for line in row["errors"] if row["verdict"] != "ok" else ():
            print(f"    {line}")
    return found


ERRORS = (  # what lines of pytest and of compute-sanitizer begin with that report an error
    "FAILED",
    "ERROR",
    "========= Error",
    "========= Invalid",
    "========= Warning: Race",
    "========= ERROR SUMMARY",
)


def checked(arguments, seconds, separate=False):
    """The verdict, counts and errors of pytest, which is ended after so many seconds; then of the tests that had ended.

    arguments: the command line
    separate: every array is an allocation of its own, so that a memory checker knows where it ends
    """
    started, environment = time.perf_counter(), os.environ | ({"SLM_NP_NO_POOL": "1"} if separate else {})
    process = subprocess.Popen(
        arguments,
        cwd=checkout.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        text, over = process.communicate(timeout=seconds)[0], False
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # the checker and the process that it checks
        else:
            process.kill()
        text, over = process.communicate()[0], True
    lines = text.splitlines()
    last = next((line.strip("= ") for line in reversed(lines) if line.strip()), "")
    verdict = "timed out" if over else "ok" if process.returncode == 0 else f"status {process.returncode}"
    return dict(
        verdict=verdict,
        **counts_of(lines, last),
        seconds=time.perf_counter() - started,
        last="" if over else last[:100],
        errors=[line.strip() for line in lines if line.startswith(ERRORS)][:20],
    )


def counts_of(lines, last):
    """{passed, failed, skipped} from pytest's summary `last` or, if it was ended before that, from a line per test."""
    tests = [line for line in lines if "::" in line]
    counts = {
        word: sum(f" {word.upper()}" in line for line in tests if not line.startswith(word.upper()))
        for word in ("passed", "failed", "skipped")
    }
    words = last.replace(",", "").split()  # 12 passed, 1 skipped in 3.4s
    for number, word in zip(words, words[1:]):
        if word in counts and number.isdigit():
            counts[word] = int(number)
    return counts


# Kernels beside the device's peak rates


class Clock:
    """Times on the device: `seconds(function)` is the median over rounds of the time of a call, after a warmup.

    Several calls are captured as one CUDA graph, as in a training step. Otherwise kernels of some microseconds would
    wait for Python to launch them.   least: seconds of a round
    """

    def __init__(self, rounds, least):
        self.rounds, self.least = rounds, least

    def seconds(self, function):
        import cupy

        from slm_np.kernels.gpu.graph import CapturedGraph

        start, end, graph = cupy.cuda.Event(), cupy.cuda.Event(), CapturedGraph(cupy)

        def several():
            for _ in range(SEVERAL):
                function()

        def timed(count):
            start.record()
            for _ in range(count):
                graph(several)
            end.record()
            end.synchronize()
            return cupy.cuda.get_elapsed_time(start, end) / 1e3 / count

        timed(2)  # runs it and captures it
        count = max(1, min(1000, int(self.least / max(1e-6, timed(2)))))
        return statistics.median(timed(count) for _ in range(self.rounds)) / SEVERAL


def normal(shape, dtype="f4", scale=1.0):
    """Random elements on the device. dtype: f4, or u2 for bfloat16.

    Of a large array one block is drawn and repeated, since drawing all elements would take the host too long.
    """
    import cupy
    import numpy as np

    from slm_np.ops import convert

    n_drawn = min(math.prod(shape), (1 << 22) + 1)
    drawn = np.float32(scale) * np.random.default_rng(0).standard_normal(n_drawn, np.float32)
    drawn = cupy.asarray(np.resize(drawn, shape))
    if dtype == "f4":
        return drawn
    out = cupy.empty(shape, dtype)
    convert(out, drawn)
    return out


def f32(*shape):
    return normal(shape)


def bf16(*shape):
    return normal(shape, "u2")


def below(limit, *shape):
    """Random integers on the device."""
    import cupy
    import numpy as np

    return cupy.asarray(np.random.default_rng(0).integers(0, limit, shape, np.int32))


def peaks(clock, size, length):
    """({dtype: operations per second of a matmul}, bytes per second of a copy, read and written both counted)

    size: of square matrices.   length: bytes of the copy
    """
    import cupy

    from slm_np.kernels.gpu.gemm import gemm

    matmuls = {}
    for name, dtype in (("bfloat16", "u2"), ("float32", "f4")):
        a, b, c = normal((size, size), dtype), normal((size, size), dtype), cupy.empty((size, size), dtype)
        matmuls[name] = 2 * size**3 / clock.seconds(lambda: gemm(c, a, b))
    source, target = cupy.ones(length // 4, cupy.float32), cupy.empty(length // 4, cupy.float32)
    return matmuls, 2 * length / clock.seconds(lambda: copy(target, source))


def copy(target, source):
    """target[...] = source, by the device's copy engine."""
    import cupy

    runtime, stream = cupy.cuda.runtime, cupy.cuda.get_current_stream()
    runtime.memcpyAsync(target.data.ptr, source.data.ptr, source.nbytes, runtime.memcpyDeviceToDevice, stream.ptr)


def nbytes(*arrays):
    return sum(x.nbytes for x in arrays)


class Sizes(NamedTuple):
    """Sizes of the kernels' cases, those of a step of GPT-2 with 124M parameters.

    rows        of one chunk of the head
    swept       elements of the optimizer's sweep
    mamba       (sequences, steps, channels, states, rank, kernel width) of a Mamba layer
    recurrence  (sequences, steps, states) of a linear recurrence
    """

    tokens: int = 16384
    width: int = 768
    heads: int = 12
    steps: int = 1024
    hidden: int = 3072
    vocab: int = 50257
    rows: int = 1024
    swept: int = 1 << 27
    mamba: tuple = (64, 256, 512, 16, 16, 4)
    recurrence: tuple = (256, 256, 512)


SMALL = Sizes(2048, 256, 4, 512, 1024, 5003, 512, 1 << 22, (4, 256, 256, 16, 16, 4), (16, 64, 128))


def cases(sizes):
    """(name, size, bytes or None, operations or None, function) of each kernel, which runs before the next is made.

    A sixth entry "float32" says that its matmuls are not in bfloat16. Bytes are what must be read and written, where an
    accumulated gradient counts twice; operations are those of matmuls.
    """
    yield from linear_cases(sizes)
    yield from head_cases(sizes)
    yield from attention_cases(sizes)
    yield from norm_cases(sizes)
    yield from elementwise_cases(sizes)
    yield from embedding_cases(sizes)
    yield from adamw_cases(sizes.swept)
    yield from mamba_cases(*sizes.mamba)
    yield from recurrence_cases(*sizes.recurrence)


def linear_cases(sizes):
    from slm_np import ops

    n, d, hidden = sizes.tokens, sizes.width, sizes.hidden

    def layer(name, k, m):
        x, weight, out, bias = bf16(n, k), bf16(k, m), bf16(n, m), f32(m)
        dweight, dbias = f32(k, m), f32(m)
        size, work = f"{n} x {k} x {m}", 2 * n * k * m
        yield f"{name} forward", size, None, work, lambda: ops.linear_forward(out, x, weight, bias, None)
        yield f"{name} input", size, None, work, lambda: ops.linear_backward_input(x, out, weight)
        yield f"{name} weight", size, None, work, lambda: ops.linear_backward_weight(dweight, dbias, out, x)

    yield from layer("linear qkv", d, 3 * d)
    yield from layer("linear up", d, hidden)
    yield from layer("linear down", hidden, d)


def head_cases(sizes):
    from slm_np import ops
    from slm_np.ops.device import device_of

    rows, d, vocab = sizes.rows, sizes.width, sizes.vocab
    x, dx, weight, dweight = bf16(rows, d), bf16(rows, d), bf16(vocab, d), f32(vocab, d)
    length = device_of(x).row_length(vocab)
    logits, dlogits = f32(rows, length)[:, :vocab], bf16(rows, length)[:, :vocab]
    targets, losses = below(vocab, rows), f32(rows)
    size, work = f"{rows} x {d} x {vocab}", 2 * rows * d * vocab

    def backward():
        ops.linear_transposed_backward(dx, dweight, dlogits, x, weight)

    def both():
        ops.softmax_cross_entropy_backward(dlogits, losses, logits, targets, 1e-3)

    yield "head forward", size, None, work, lambda: ops.linear_transposed_forward(logits, x, weight)
    yield "head backward", size, None, 2 * work, backward
    size, forward = f"{rows} x {vocab}", lambda: ops.softmax_cross_entropy_forward(losses, logits, targets)
    yield "cross-entropy forward", size, nbytes(logits), None, forward
    yield "cross-entropy backward", size, nbytes(logits, dlogits), None, both


def attention_cases(sizes):
    import cupy

    from slm_np import ops
    from slm_np.ops.device import kernels_of

    n, d, heads, steps = sizes.tokens, sizes.width, sizes.heads, sizes.steps
    batch, w = n // steps, d // heads
    qkv, out, dout, lse = bf16(n, 3 * d), bf16(n, d), bf16(n, d), f32(batch * heads, steps)
    scratch = cupy.empty(kernels_of(qkv).attention_scratch(steps, w, batch * heads), cupy.float32)
    size, work = f"{batch} x {heads} x {steps} x {w}", 2 * batch * heads * steps * (steps + 1) // 2 * w  # of a matmul
    saved = qkv.copy()

    def forward():
        ops.attention_forward(out, lse, scratch, qkv, heads, heads, steps, None)

    def backward():
        copy(qkv, saved)  # backward works in place
        ops.attention_backward(qkv, scratch, dout, out, lse, heads, heads, steps, None)

    yield "attention forward", size, None, 2 * work, forward
    forward()  # backward reads its lse
    yield "attention backward", size, None, 5 * work, backward
    cos, sin = f32(steps, w // 2), f32(steps, w // 2)
    moved = 2 * 2 * n * 2 * d  # two bytes an element, read and written
    yield "rotary", f"{n} x {2 * d}", moved, None, lambda: ops.rotary_forward(qkv, cos, sin, 2 * heads, w)


def norm_cases(sizes):
    from slm_np import ops

    n, d = sizes.tokens, sizes.width
    out, x, dx, dout = bf16(n, d), f32(n, d), f32(n, d), f32(n, d)
    weight, bias, dweight, dbias, mean, rstd = f32(d), f32(d), f32(d), f32(d), f32(n), f32(n)
    size, forward, backward = f"{n} x {d}", nbytes(out, x), nbytes(dx, dx, dout, x)

    def layernorm_backward():
        ops.layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd)

    def rmsnorm_backward():
        ops.rmsnorm_backward(dx, dweight, dout, x, weight, rstd)

    def layernorm_forward():
        ops.layernorm_forward(out, mean, rstd, x, weight, bias, 1e-5)

    yield "layernorm forward", size, forward, None, layernorm_forward
    yield "layernorm backward", size, backward, None, layernorm_backward
    yield "rmsnorm forward", size, forward, None, lambda: ops.rmsnorm_forward(out, rstd, x, weight, 1e-5)
    yield "rmsnorm backward", size, backward, None, rmsnorm_backward


def elementwise_cases(sizes):
    from slm_np import ops

    n, d, hidden = sizes.tokens, sizes.width, sizes.hidden

    def activation(name, columns):
        x, out = bf16(n, columns), bf16(n, hidden)
        forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
        size = f"{n} x {hidden}"
        yield f"{name} forward", size, nbytes(x, out), None, lambda: forward(out, x)
        yield f"{name} backward", size, 2 * nbytes(x, out), None, lambda: backward(x, out)

    for name in ("silu", "gelu", "gelu_tanh"):
        yield from activation(name, hidden)
    yield from activation("swiglu", 2 * hidden)

    size, x, residual, out = f"{n} x {d}", bf16(n, d), f32(n, d), f32(n, d)
    drop = ops.Dropout(0.1, 7)
    moved = nbytes(out, x, residual)
    yield "dropout forward", size, moved, None, lambda: ops.dropout_forward(out, x, residual, drop)
    yield "dropout backward", size, nbytes(x, residual), None, lambda: ops.dropout_backward(x, residual, drop)
    yield "convert", size, nbytes(x, residual), None, lambda: ops.convert(x, residual)
    yield "accumulate", size, 3 * nbytes(out), None, lambda: ops.accumulate(out, residual)


def embedding_cases(sizes):
    from slm_np import ops

    n, d, steps, vocab = sizes.tokens, sizes.width, sizes.steps, sizes.vocab
    tokens, weight, dweight = below(vocab, n // steps, steps), f32(vocab, d), f32(vocab, d)
    positions, dpositions, out, size = f32(steps, d), f32(steps, d), f32(n, d), f"{n} x {d}"

    def forward():
        ops.embedding_forward(out, tokens, weight, positions)

    def backward():
        ops.embedding_backward(dweight, dpositions, out, tokens)

    yield "embedding forward", size, 2 * nbytes(out), None, forward
    moved = nbytes(out) + 2 * nbytes(dpositions) + 2 * min(n, vocab) * d * 4
    yield "embedding backward", size, moved, None, backward


def adamw_cases(n):
    import cupy

    from slm_np.ops.device import kernels_of

    weights, gradients, mean, square = (f32(n) for _ in range(4))
    square *= square
    kernels = kernels_of(weights)
    partial = cupy.zeros(kernels.square_sum_blocks(n), cupy.float64)

    def step():
        kernels.adamw(weights, gradients, mean, square, n, 1.0, 1e-6, 0.1, 0.9, 0.95, 0.5, 0.5, 1e-8)

    yield "gradient norm", f"{n}", nbytes(weights), None, lambda: kernels.square_sum(partial, weights)
    yield "adamw", f"{n}", 8 * nbytes(weights), None, step


def mamba_cases(batch, steps, channels, states, rank, width):
    """The convolution and the selective scan of a Mamba layer. width: of the convolution's kernel"""
    import cupy

    from slm_np import ops
    from slm_np.ops.device import kernels_of

    n, size = batch * steps, f"{batch} x {steps} x {channels}"
    x, delta, out, projected = f32(n, channels), f32(n, channels), f32(n, channels), f32(n, 2 * channels)
    ssm_parameters, A_log, D = f32(n, rank + 2 * states), normal((states, channels), scale=0.5), f32(channels)
    dx, dout = f32(n, channels), normal((n, channels), scale=1e-3)
    dssm_parameters, dA_log, dD = f32(n, rank + 2 * states), f32(states, channels), f32(channels)
    past, weight, bias = f32(batch, width - 1, channels), normal((width, channels), scale=0.1), f32(channels)
    dweight, dbias = f32(width, channels), f32(channels)
    kernels = kernels_of(x)
    kept = cupy.zeros((batch, kernels.selective_scan_chunks(steps) + 1, states, channels), cupy.float32)
    scratch = cupy.empty(kernels.selective_scan_scratch(channels, states, batch), cupy.float32)
    partials = cupy.empty(kernels.selective_scan_partials(batch, steps, channels, states), cupy.float32)

    def convolution_forward():
        ops.convolution_forward(x, projected, past, weight, bias)

    def scan_forward():
        ops.selective_scan_forward(out, kept, scratch, x, delta, ssm_parameters, projected, A_log, D)

    def scan_backward():
        gradients = dx, delta, dssm_parameters, projected, dA_log, dD
        ops.selective_scan_backward(*gradients, partials, scratch, dout, kept, x, ssm_parameters, A_log, D)

    def convolution_backward():
        ops.convolution_backward(projected, dweight, dbias, dx, dout, past, weight, bias)

    yield "convolution forward", size, 2 * nbytes(x), None, convolution_forward
    work = x.size * states
    yield "scan forward", size, 4 * nbytes(x) + nbytes(ssm_parameters), SCAN_FORWARD * work, scan_forward
    yield "scan backward", size, 8 * nbytes(x) + 2 * nbytes(ssm_parameters), SCAN_BACKWARD * work, scan_backward
    yield "convolution backward", size, 5 * nbytes(x), None, convolution_backward


def recurrence_cases(batch, steps, states):
    """The linear recurrence, and its layout with time before batch."""
    import cupy

    from slm_np import ops
    from slm_np.ops.device import kernels_of

    size, work = f"{batch} x {steps} x {states}", 2 * steps * batch * states * states
    h, dh = (normal((steps + 1, batch, states), scale=scale) for scale in (0.1, 1e-3))
    weight, dweight = normal((states, states), scale=0.01 * states**-0.5), f32(states, states)
    scratch = cupy.empty(kernels_of(h).linear_recurrence_scratch(batch, states), cupy.float32)

    def forward():
        ops.linear_recurrence_forward(h, scratch, weight)

    def backward():
        ops.linear_recurrence_backward(dh, dweight, scratch, h, weight)

    yield "recurrence forward", size, None, work, forward, "float32"
    yield "recurrence backward", size, None, 2 * work, backward, "float32"
    out, x = f32(steps, batch, states), f32(batch * steps, states)
    yield "time-major", size, 2 * nbytes(x), None, lambda: ops.time_major(out, x, 0)


def kernels(args):
    """The time and the rate of each kernel, and its share of the peak rate that limits it."""
    cuda()
    clock = Clock(3, 0.005) if args.quick else Clock(7, 0.03)
    matmuls, copied = peaks(clock, *((4096, 1 << 28) if args.quick else (8192, 1 << 30)))
    print(
        f"peaks here: {matmuls['bfloat16'] / 1e12:,.0f} TFLOP/s in bfloat16 and {matmuls['float32'] / 1e12:,.0f} in "
        f"float32 by cuBLAS, {copied / 1e12:.2f} TB/s of a copy"
    )
    print(f"{'kernel':<26}{'size':<24}{'µs':>10}{'TB/s':>8}{'TFLOP/s':>9}{'of its peak':>13}")
    rows, left = [], cases(SMALL if args.quick else Sizes())
    while True:
        name, size = "the next kernel", ""
        try:
            name, size, moved, work, function, *kind = next(left)
            seconds = clock.seconds(function)
        except StopIteration:
            break
        except Exception as error:  # keep the figures of all others
            rows.append(dict(kernel=name, size=size, error=f"{type(error).__name__}: {error}"))
            print(f"{name:<26}{size:<24}  {rows[-1]['error'].splitlines()[0][:100]}", flush=True)
            continue
        if moved:
            share = moved / seconds / copied
        else:
            share = work / seconds / matmuls[kind[0] if kind else "bfloat16"]
        rows.append(
            dict(
                kernel=name,
                size=size,
                us=1e6 * seconds,
                tb_per_s=moved and moved / seconds / 1e12,
                tflop_per_s=work and work / seconds / 1e12,
                share=share,
            )
        )
        print(
            f"{name:<26}{size:<24}{1e6 * seconds:>10.1f}"
            + (f"{moved / seconds / 1e12:>8.2f}" if moved else f"{'':>8}")
            + (f"{work / seconds / 1e12:>9.1f}" if work else f"{'':>9}")
            + f"{100 * share:>11.0f} %",
            flush=True,
        )
    return dict(
        matmul_flop_per_s=matmuls["bfloat16"],
        float32_matmul_flop_per_s=matmuls["float32"],
        copy_bytes_per_s=copied,
        rows=rows,
    )


# Training: engines in processes of their own


def our_step(name, dtype):
    """(step, function that waits for all steps, function that returns the device memory in MB) of slm_np."""
    import cupy

    from slm_np.config import TrainConfig
    from slm_np.formats.run_config import RunConfig
    from slm_np.training.trainer import Trainer

    config, batch = config_of(name)
    train = TrainConfig(batch_size=batch, max_iters=10**6, learning_rate=1e-4, min_lr=1e-5, dtype=dtype, device="cuda")
    trainer = Trainer(RunConfig(config, train), corpus_of(config))
    return (
        trainer.step,
        lambda: cupy.cuda.Device().synchronize(),
        lambda: cupy.get_default_memory_pool().total_bytes() / 1e6,
    )


def torch_step(name, compiled, mode):
    """The same of the PyTorch twin. It draws the same batches and copies them from pinned memory."""
    import numpy as np
    import torch
    from torch_twin import Trainer, Twin

    from slm_np.data.batches import random_batch

    config, batch = config_of(name)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    twin = Twin(config).cuda()
    trainer = Trainer(twin, learning_rate=1e-4, compiled=compiled, bfloat16=True, mode=mode)
    corpus, updates = corpus_of(config), 0
    x, y = (np.zeros((batch, config.block_size), np.int32) for _ in range(2))

    def step():
        nonlocal updates
        random_batch(x, y, corpus.train, 0, 0, updates)
        updates += 1
        trainer.train_step(*(torch.from_numpy(z.astype(np.int64)).pin_memory() for z in (x, y)))

    return step, torch.cuda.synchronize, lambda: torch.cuda.max_memory_allocated() / 1e6


def serve(name, shape_name, dtype):
    """Inside an engine's process: build, warm up, then answer requests.

    The host synchronizes once per block of steps and answers with their mean.
    """
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    step, synchronize, memory = (
        our_step(shape_name, dtype) if name == "slm_np" else torch_step(shape_name, *PEERS[name])
    )
    for _ in range(6):
        step()
    synchronize()
    if name != "slm_np":
        import torch

        torch.cuda.empty_cache()  # all engines share the memory, and each waits for its turn
    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if request[0] == "end":
            return answer(memory())
        started = time.perf_counter()
        for _ in range(request[1]):
            step()
        synchronize()
        answer([(time.perf_counter() - started) / request[1]])


def peers_of(name, quick):
    """PyTorch's engines for a shape: compiled with and without graphs, or eager where there is a time loop."""
    if not importlib.util.find_spec("torch"):
        return []
    letters = config_of(name)[0].letters
    if set(letters) != {"A"}:
        return ["eager"] if "M" not in letters or importlib.util.find_spec("transformers") else []
    return ["graphs"] if quick else ["compiled", "graphs"]


class Limited(Engine):
    """An engine that is ended if it does not answer in time."""

    def answer(self):
        timer = threading.Timer(ANSWERED, self.process.kill)
        timer.start()
        try:
            return super().answer()
        finally:
            timer.cancel()


def started(name, shape_name, dtype):
    """An engine that is ready, or the message that says why there is none."""
    try:
        return Limited(name, shape_name, dtype, 0, Path(__file__).resolve())
    except (UserError, OSError, ValueError) as error:
        return str(error)


def training(args):
    """Tokens per second of slm_np and of PyTorch on each shape, and their shares of the peak matmul rate."""
    names = args.shapes.split(",") if args.shapes else list(QUICK if args.quick else TRAINED)
    for name in names:
        if name not in TRAINED:
            raise UserError(f"--shapes {name!r} is unknown; {near(name, TRAINED)}")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    peak = args.found.get("kernels", {}).get("matmul_flop_per_s")
    wanted = [(engine, name) for name in names for engine in ["slm_np", *peers_of(name, args.quick)]]
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:  # all compile at once, before any is timed
        engines = dict(zip(wanted, pool.map(lambda one: started(*one, args.dtype), wanted)))
    rounds, seconds, rows = (3, 0.3, []) if args.quick else (6, 0.8, [])
    print(
        f"{'shape':<14}{'B':>5}{'T':>6}  {'engine':<10}{'tokens/s':>12}{'ms/step':>10}{'TFLOP/s':>9}{'of peak':>9}"
        f"{'MB':>9}{'ratio':>8}"
    )
    for name in names:
        config, batch = config_of(name)
        tokens, work = batch * config.block_size, operations(config, batch)
        here = {engine: made for (engine, shape_name), made in engines.items() if shape_name == name}
        running = {engine: made for engine, made in here.items() if isinstance(made, Engine)}
        steps = measured(running, rounds, seconds)
        ours = steps.get("slm_np", {}).get("seconds")
        for engine, made in here.items():
            row = dict(shape=name, batch=batch, steps=config.block_size, engine=engine)
            if engine not in steps or "error" in steps[engine]:
                row["error"] = made if isinstance(made, str) else steps[engine]["error"]
            else:
                s = steps[engine]["seconds"]
                row.update(
                    tokens_per_s=tokens / s,
                    step_ms=1e3 * s,
                    tflop_per_s=work / s / 1e12,
                    memory_mb=steps[engine]["memory"],
                    ratio=s / ours if ours and engine != "slm_np" else None,
                    share=work / s / peak if peak else None,
                )
            print(training_line(row), flush=True)
            rows.append(row)
    return rows


def training_line(row):
    """A row of `training` as text."""
    line = f"{row['shape']:<14}{row['batch']:>5}{row['steps']:>6}  {row['engine']:<10}"
    if "error" in row:
        return f"{line}  {row['error']}"
    return (
        f"{line}{row['tokens_per_s']:>12,.0f}{row['step_ms']:>10.2f}{row['tflop_per_s']:>9.1f}"
        + (f"{100 * row['share']:>7.0f} %" if row["share"] else f"{'':>9}")
        + f"{row['memory_mb']:>9,.0f}"
        + (f"{row['ratio']:>8.2f}" if row["ratio"] else "")
    )


def measured(engines, rounds, seconds):
    """{engine: dict(seconds of a step, memory), or dict(error)} of engines that take turns. Ends them."""
    times, sizes, found = {name: [] for name in engines}, {}, {}

    def attempt(name, ask):
        if name in found:
            return None
        try:
            return ask(engines[name])
        except (UserError, OSError, ValueError) as error:  # ValueError: a library printed something else
            found[name] = dict(error=str(error))

    for name in engines:
        first = attempt(name, lambda engine: engine.block(2))
        sizes[name] = max(1, round(seconds / first[0])) if first else 1
    for _ in range(rounds):
        for name in engines:
            times[name] += attempt(name, lambda engine: engine.block(sizes[name])) or []
    for name in engines:
        memory = attempt(name, lambda engine: engine.close())
        if name not in found:
            found[name] = dict(seconds=statistics.median(times[name]), memory=memory)
    return found


# Generation


def generated(name, batch, gpu, steps):
    """The row of a shape: so many sequences decoded greedily for so many steps. weights: their bytes"""
    import numpy as np

    from slm_np.inference.decoder import Decoder
    from slm_np.nn.model import Model

    config = config_of(name)[0]
    model = Model(config, device=gpu)
    decoder, half = Decoder(model, batch), config.block_size // 2
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, (batch, half), np.int32)
    decoder.read(prompt)
    started = time.perf_counter()
    logits = decoder.read(prompt)
    read = time.perf_counter() - started
    times = []
    for _ in range(min(steps, half - 1)):
        ids = logits.argmax(1)
        started = time.perf_counter()
        logits = decoder.step(ids)
        times.append(time.perf_counter() - started)
    step = statistics.median(times)
    return dict(
        shape=name,
        sequences=batch,
        tokens_per_s=batch / step,
        step_ms=1e3 * step,
        prompt_tokens_per_s=prompt.size / read,
        weights=model.parameters.weights.nbytes,
    )


def generation(args):
    """Tokens per second of greedy decoding and of reading a prompt. The floor of a step is reading the weights once."""
    gpu, rows, steps = cuda(), [], 32 if args.quick else 128
    copied = args.found.get("kernels", {}).get("copy_bytes_per_s")
    print(f"{'shape':<14}{'sequences':>10}{'tokens/s':>12}{'ms/step':>10}{'floor ms':>10}{'prompt tokens/s':>17}")
    for name, batches in GENERATED.items():
        if args.quick and name not in ("smallm", "mamba"):
            continue
        for batch in batches:
            try:
                row = generated(name, batch, gpu, steps)
            except Exception as error:  # keep the figures of all others
                rows.append(dict(shape=name, sequences=batch, error=f"{type(error).__name__}: {error}"))
                print(f"{name:<14}{batch:>10}  {rows[-1]['error'].splitlines()[0][:100]}", flush=True)
                continue
            row["floor_ms"] = 1e3 * row.pop("weights") / copied if copied else None
            rows.append(row)
            print(
                f"{name:<14}{batch:>10}{row['tokens_per_s']:>12,.0f}{row['step_ms']:>10.3f}"
                + (f"{row['floor_ms']:>10.3f}" if copied else f"{'':>10}")
                + f"{row['prompt_tokens_per_s']:>17,.0f}",
                flush=True,
            )
    return rows


# All of it


def send(name, args, end):
    """Inside a section's process: run it, and send what it returns or its error through the `end` of a pipe."""
    try:
        found = globals()[name](args)
    except Exception as error:
        traceback.print_exc()
        found = dict(error=f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    end.send(found)


def in_own_process(name, args):
    """What a section returns, or dict(error)."""
    context = multiprocessing.get_context("spawn")  # the GPU's context does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=send, args=(name, args, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECTIONS[name]) else dict(error=f"not finished after {SECTIONS[name]} s")
    except EOFError:
        process.join()
        return dict(error=f"ended with exit status {process.exitcode}")
    finally:
        process.kill()
        process.join()


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections to run, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--shapes", default="", help=f"shapes to train, separated by commas (default: {','.join(TRAINED)})"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="precision of slm_np in training (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, no compute-sanitizer: about two minutes"
    )
    parser.add_argument("--json", metavar="FILE", help="write all results to FILE")
    parser.add_argument("--engine", choices=("slm_np", *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--threads", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.engine:
        return serve(args.engine, args.shapes, args.dtype)
    wanted = args.only.split(",")
    for name in wanted:
        if name not in SECTIONS:
            raise UserError(f"--only {name!r} is unknown; {near(name, SECTIONS)}")
    from slm_np.kernels.gpu.device import use_device

    use_device()
    args.found, failed = {}, []
    for name in (section for section in SECTIONS if section in wanted):
        begun = time.perf_counter()
        print(f"\n== {name}", flush=True)
        args.found[name] = in_own_process(name, args)
        if "error" in args.found[name]:
            print(f"   {name}: {args.found[name]['error']}")
            failed.append(name)
        print(f"   ({time.perf_counter() - begun:.0f} s)", flush=True)
        if args.json:
            write_json(args.json, args.found)
    failed += ["tests"] * any(not row["sound"] for row in args.found.get("tests", {}).values() if isinstance(row, dict))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
