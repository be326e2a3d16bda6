"""The GPU benchmark, all in one call: kernels tested on the device, their share of its peaks, training and generation, ours against PyTorch.

    python benchmarks/gpu.py [--quick] [--only device,tests,kernels,training,generation] [--json FILE]

It needs CuPy and a GPU, brings its data (random tokens) and takes about eight minutes, two with --quick, ten at most. Each section has a process of its
own and is ended when its time is up: what fails, even with the GPU's context, costs no other's figures. Training is the trainer's own step, batch and
update included; every engine has a process of its own, and their blocks of steps alternate, so that a drift of the machine meets them all. PyTorch
computes under autocast to bfloat16 with fused AdamW and flash attention, compiled, with and without CUDA graphs of its own; what loops
over time, which a compiler would unroll, as it is. Shares are of what this device reaches here: cuBLAS' product of 8192 x 8192 bfloat16 numbers, and a copy.
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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from cpu import Engine, corpus_of  # noqa: E402
from measure import write_json  # noqa: E402
from shapes import SCAN_BACKWARD, SCAN_FORWARD, SHAPES, operations  # noqa: E402

from slm_np.config import ModelConfig  # noqa: E402
from slm_np.errors import UserError, exit_with_sentence, near  # noqa: E402
from slm_np.presets import GPT2, PRESETS  # noqa: E402

TRAINED = {  # name: (settings of the model, B)
    "char10m": (SHAPES["char10m"][0], 64),
    "smallm": (SHAPES["smallm"][0] | dict(block_size=256), 64),
    "gpt2-124m": (dict(GPT2, vocab_size=50257, n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True), 16),
    "mamba": (SHAPES["mamba"][0], 64),
    "byte-ssm-11": (PRESETS["byte-ssm-11"]["model"], 256),
}
QUICK = ("char10m", "mamba")
PEERS = {
    "eager": (False, None),
    "compiled": (True, None),
    "graphs": (True, "reduce-overhead"),
}  # PyTorch: whether compiled, and how
GENERATED = {"smallm": (1, 64), "gpt2-124m": (1, 64), "mamba": (1,), "byte-ssm-11": (1,)}  # name: numbers of texts
SECTIONS = dict(
    device=30, tests=180, kernels=100, training=220, generation=60
)  # name: the most seconds it may take, ten minutes less ten seconds in all
TESTED, TESTED_QUICK = 160, 60  # seconds of pytest
SEVERAL = 8  # calls of a kernel in one graph
ANSWERED = 130  # seconds in which an engine answers, what it compiles first included
FAMILIES = "test_gpu_*.py"


def config_of(name):
    """(ModelConfig, B) of a shape."""
    settings, batch = TRAINED[name]
    return ModelConfig(**settings), batch


# The device


def device(args):
    """What runs here: the GPU, its driver, versions."""
    import cupy

    from slm_np.machine import gpu

    runtime = cupy.cuda.runtime

    def dotted(version):
        return f"{version // 1000}.{version % 1000 // 10}"

    found = dict(
        device=str(gpu()),
        driver_cuda=dotted(runtime.driverGetVersion()),
        runtime_cuda=dotted(runtime.runtimeGetVersion()),
        python=sys.version.split()[0],
        **{name: version_of(name) for name in ("cupy", "numpy", "numba", "torch", "transformers", "triton")},
    )
    print(found["device"])
    print(", ".join(f"{name} {value}" for name, value in found.items() if name != "device"))
    return found


def version_of(module):
    """Its version, "-" where it is not installed."""
    from importlib import metadata

    names = metadata.packages_distributions().get(module)
    return metadata.version(names[0]) if names else "-"


# Tests of the kernels on the device, plain and under NVIDIA's checkers


def tests(args):
    """pytest over the GPU's tests and, beside it, the kernels' under compute-sanitizer: memory, and races in shared memory."""
    if not importlib.util.find_spec("pytest"):
        raise UserError("the tests need pytest, which is not installed; install it, or leave them out by --only")
    files = [str(path) for path in sorted((HERE.parent / "tests").glob(FAMILIES))]
    kernels = [path for path in files if not path.endswith(("test_gpu_model.py", "test_gpu_commands.py"))]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-rf", "--tb=line"]
    jobs = {"pytest": [*pytest, *(["-n", "4"] if importlib.util.find_spec("xdist") else []), *files]}
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    )
    if not args.quick and sanitizer:
        for tool in ("memcheck", "racecheck"):
            jobs[tool] = [sanitizer, "--tool", tool, "--error-exitcode", "9", *pytest, "-k", "not compiles", *kernels]
    elif not args.quick:
        print("compute-sanitizer is neither on the PATH nor with CUDA: memory and races are not checked")
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        found = dict(
            zip(
                jobs,
                pool.map(
                    lambda name: checked(jobs[name], TESTED_QUICK if args.quick else TESTED, name != "pytest"), jobs
                ),
            )
        )
    for name, row in found.items():
        row["sound"] = (
            row["verdict"] == "ok" or row["verdict"] == "time is up" and not row["failed"] and not row["errors"]
        )
        print(
            f"{name:<12}{row['verdict']:<12}{row['passed']:>6} passed {row['failed']:>4} failed {row['skipped']:>4} skipped {row['seconds']:>6.0f} s   {row['last']}"
        )
        for line in row["errors"] if row["verdict"] != "ok" else ():
            print(f"    {line}")
    return found


def checked(words, seconds, apart=False):
    """A run of pytest: its verdict, counts and complaints; one that is stopped at its time has checked what had passed by then.

    apart: each array is an allocation of its own, so that a checker of memory knows where it ends.
    """
    begun, environment = time.perf_counter(), os.environ | ({"SLM_NP_NO_POOL": "1"} if apart else {})
    process = subprocess.Popen(
        words,
        cwd=HERE.parent,
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
            os.killpg(process.pid, signal.SIGKILL)  # the checker and what it checks
        else:
            process.kill()
        text, over = process.communicate()[0], True
    lines = text.splitlines()
    last = next((line.strip("= ") for line in reversed(lines) if line.strip()), "")
    counts = {
        word: sum(f" {word.upper()}" in line for line in lines if "::" in line and not line.startswith(word.upper()))
        for word in ("passed", "failed", "skipped")
    }
    for number, word in zip(
        last.replace(",", "").split(), last.replace(",", "").split()[1:]
    ):  # "12 passed 1 skipped in 3.4s"
        if word in counts and number.isdigit():
            counts[word] = int(number)
    errors = [
        line.strip()
        for line in lines
        if line.startswith(
            (
                "FAILED",
                "ERROR",
                "========= Error",
                "========= Invalid",
                "========= Warning: Race",
                "========= ERROR SUMMARY",
            )
        )
    ]
    verdict = "time is up" if over else "ok" if process.returncode == 0 else f"status {process.returncode}"
    return dict(
        verdict=verdict,
        **counts,
        seconds=time.perf_counter() - begun,
        last="" if over else last[:100],
        errors=errors[:20],
    )


# Kernels beside the device's peaks


class Clock:
    """Times on the device: `seconds(function)` is the median over rounds of calls between two events, after a warm-up. Several calls are captured as a
    graph, as those of a step are: kernels of some microseconds would wait for Python to launch them."""

    def __init__(self, rounds, least):
        self.rounds, self.least = rounds, least

    def seconds(self, function):
        import cupy

        from slm_np.kernels.gpu.graph import CapturedGraph

        begun, ended, replayed = cupy.cuda.Event(), cupy.cuda.Event(), CapturedGraph(cupy)

        def several():
            for _ in range(SEVERAL):
                function()

        def timed(count):
            begun.record()
            for _ in range(count):
                replayed(several)
            ended.record()
            ended.synchronize()
            return cupy.cuda.get_elapsed_time(begun, ended) / 1e3 / count

        timed(2)  # runs it and captures it
        count = max(1, min(1000, int(self.least / max(1e-6, timed(2)))))
        return statistics.median(timed(count) for _ in range(self.rounds)) / SEVERAL


def normal(shape, dtype="f4", scale=1.0):
    """Random numbers on the device, in a storage type: f4, or u2 for bfloat16. A block of them is repeated, as the host would take long for all."""
    import cupy
    import numpy as np

    from slm_np.ops import convert

    drawn = np.float32(scale) * np.random.default_rng(0).standard_normal(
        min(math.prod(shape), (1 << 22) + 1), np.float32
    )
    drawn = cupy.asarray(np.resize(drawn, shape))
    if dtype == "f4":
        return drawn
    out = cupy.empty(shape, dtype)
    convert(out, drawn)
    return out


def below(limit, *shape):
    """Random integers on the device."""
    import cupy
    import numpy as np

    return cupy.asarray(np.random.default_rng(0).integers(0, limit, shape, np.int32))


def peaks(clock, size, length):
    """({type: operations per second of its product}, bytes per second of a copy, read and written both counted)        size: of square matrices.   length: bytes"""
    import cupy

    from slm_np.kernels.gpu.gemm import gemm

    products = {}
    for name, dtype in (("bfloat16", "u2"), ("float32", "f4")):
        a, b, c = normal((size, size), dtype), normal((size, size), dtype), cupy.empty((size, size), dtype)
        products[name] = 2 * size**3 / clock.seconds(lambda: gemm(c, a, b))
    source, target = cupy.ones(length // 4, cupy.float32), cupy.empty(length // 4, cupy.float32)
    stream = cupy.cuda.get_current_stream()
    copied = (
        2
        * length
        / clock.seconds(
            lambda: cupy.cuda.runtime.memcpyAsync(
                target.data.ptr, source.data.ptr, length, cupy.cuda.runtime.memcpyDeviceToDevice, stream.ptr
            )
        )
    )
    return products, copied


def nbytes(*arrays):
    return sum(x.nbytes for x in arrays)


class Sizes(NamedTuple):
    """Of the kernels' cases: a step of GPT-2 with 124M parameters; numbers of an optimiser's sweep; (texts, steps, channels, states, rank, taps) of a Mamba
    layer; (texts, steps, states) of a linear recurrence."""

    tokens: int = 16384
    width: int = 768
    heads: int = 12
    steps: int = 1024
    hidden: int = 3072
    pieces: int = 50257
    rows: int = 1024
    swept: int = 1 << 27
    mamba: tuple = (64, 256, 512, 16, 16, 4)
    recurrence: tuple = (256, 256, 512)


SMALL = Sizes(2048, 256, 4, 512, 1024, 5003, 512, 1 << 22, (4, 256, 256, 16, 16, 4), (16, 64, 128))


def cases(sizes):
    """(name, size, bytes or None, operations or None, function, and "float32" where products are not of bfloat16) of each kernel, in turn.

    Bytes are what must be read and written, operations those of products; a gradient that is added to is read and written.
    """
    import cupy

    from slm_np import ops
    from slm_np.ops.device import kernels_of, row_length

    n, d, heads, steps, hidden, pieces, rows = sizes[:7]
    batch, w = n // steps, d // heads
    f, u = lambda *shape: normal(shape), lambda *shape: normal(shape, "u2")
    size = f"{n} x {d}"

    x, y, stream = u(n, d), u(n, d), f(n, d)
    for name, k, m in (("linear qkv", d, 3 * d), ("linear up", d, hidden), ("linear down", hidden, d)):
        a, weight, out, dweight, bias, dbias = u(n, k), u(k, m), u(n, m), f(k, m), f(m), f(m)
        work, label = 2 * n * k * m, f"{n} x {k} x {m}"
        yield (
            f"{name} forward",
            label,
            None,
            work,
            lambda a=a, weight=weight, out=out, bias=bias: ops.linear_forward(out, a, weight, bias, None),
        )
        yield (
            f"{name} input",
            label,
            None,
            work,
            lambda a=a, weight=weight, out=out: ops.linear_backward_input(a, out, weight),
        )
        yield (
            f"{name} weight",
            label,
            None,
            work,
            lambda a=a, out=out, dweight=dweight, dbias=dbias: ops.linear_backward_weight(dweight, dbias, out, a),
        )
    table, dtable, length = u(pieces, d), f(pieces, d), row_length(cupy, pieces)
    logits, dlogits = f(rows, length)[:, :pieces], u(rows, length)[:, :pieces]
    label, work = f"{rows} x {d} x {pieces}", 2 * rows * d * pieces
    yield "head forward", label, None, work, lambda: ops.linear_transposed_forward(logits, x[:rows], table)
    yield (
        "head backward",
        label,
        None,
        2 * work,
        lambda: ops.linear_transposed_backward(y[:rows], dtable, dlogits, x[:rows], table),
    )

    qkv, out, dout, lse = u(n, 3 * d), u(n, d), u(n, d), f(batch * heads, steps)
    scratch = cupy.empty(kernels_of(qkv).attention_scratch(steps, w, batch * heads), cupy.float32)
    pairs, label = batch * heads * steps * (steps + 1) // 2 * w, f"{batch} x {heads} x {steps} x {w}"
    yield (
        "attention forward",
        label,
        None,
        4 * pairs,
        lambda: ops.attention_forward(out, lse, scratch, qkv, heads, heads, steps, None),
    )
    kept = qkv.copy()

    def attention_backward():
        cupy.cuda.runtime.memcpyAsync(
            qkv.data.ptr,
            kept.data.ptr,
            kept.nbytes,
            cupy.cuda.runtime.memcpyDeviceToDevice,
            cupy.cuda.get_current_stream().ptr,
        )
        ops.attention_backward(qkv, scratch, dout, out, lse, heads, heads, steps, None)

    ops.attention_forward(out, lse, scratch, qkv, heads, heads, steps, None)
    yield "attention backward", label, None, 10 * pairs, attention_backward

    weight, bias, dweight, dbias, mean, rstd = f(d), f(d), f(d), f(d), f(n), f(n)
    yield (
        "layernorm forward",
        size,
        nbytes(x, stream),
        None,
        lambda: ops.layernorm_forward(x, mean, rstd, stream, weight, bias, 1e-5),
    )
    dx = f(n, d)
    dy = f(n, d)
    yield (
        "layernorm backward",
        size,
        nbytes(dx, dx, dy, stream),
        None,
        lambda: ops.layernorm_backward(dx, dweight, dbias, dy, stream, weight, mean, rstd),
    )
    yield "rmsnorm forward", size, nbytes(x, stream), None, lambda: ops.rmsnorm_forward(x, rstd, stream, weight, 1e-5)
    yield (
        "rmsnorm backward",
        size,
        nbytes(dx, dx, dy, stream),
        None,
        lambda: ops.rmsnorm_backward(dx, dweight, dy, stream, weight, rstd),
    )
    wide, active = u(n, hidden), u(n, hidden)
    for name in ("silu", "gelu", "gelu_tanh"):
        forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
        yield (
            f"{name} forward",
            f"{n} x {hidden}",
            nbytes(wide, active),
            None,
            lambda forward=forward: forward(active, wide),
        )
        yield (
            f"{name} backward",
            f"{n} x {hidden}",
            2 * nbytes(wide, active),
            None,
            lambda backward=backward: backward(wide, active),
        )
    gates = u(n, 2 * hidden)
    yield "swiglu forward", f"{n} x {hidden}", nbytes(gates, active), None, lambda: ops.swiglu_forward(active, gates)
    yield (
        "swiglu backward",
        f"{n} x {hidden}",
        2 * nbytes(gates, active),
        None,
        lambda: ops.swiglu_backward(gates, active),
    )
    cos, sin = f(steps, w // 2), f(steps, w // 2)
    yield "rotary", f"{n} x {2 * d}", 2 * 2 * n * 2 * d, None, lambda: ops.rotary_forward(qkv, cos, sin, 2 * heads)
    yield "dropout forward", size, nbytes(stream, x, stream), None, lambda: ops.dropout_forward(dx, x, stream, (0.1, 7))
    yield "dropout backward", size, nbytes(x, stream), None, lambda: ops.dropout_backward(x, stream, (0.1, 7))
    yield "convert", size, nbytes(x, stream), None, lambda: ops.convert(x, stream)
    yield "accumulate", size, 3 * nbytes(dx), None, lambda: ops.accumulate(dx, stream)

    tokens, embedding, dembedding = below(pieces, batch, steps), f(pieces, d), f(pieces, d)
    places, dplaces = f(steps, d), f(steps, d)
    yield (
        "embedding forward",
        size,
        2 * nbytes(stream),
        None,
        lambda: ops.embedding_forward(dx, tokens, embedding, places),
    )
    yield (
        "embedding backward",
        size,
        nbytes(dx) + 2 * nbytes(dplaces) + 2 * min(n, pieces) * d * 4,
        None,
        lambda: ops.embedding_backward(dembedding, dplaces, dx, tokens),
    )
    targets, losses = below(pieces, rows), f(rows)
    yield (
        "cross-entropy forward",
        f"{rows} x {pieces}",
        nbytes(logits),
        None,
        lambda: ops.softmax_cross_entropy_forward(losses, logits, targets),
    )
    yield (
        "cross-entropy backward",
        f"{rows} x {pieces}",
        nbytes(logits, dlogits),
        None,
        lambda: ops.softmax_cross_entropy_backward(dlogits, losses, logits, targets, 1e-3),
    )

    count = sizes.swept
    weights, gradients, first, second = (f(count) for _ in range(4))
    kernels = kernels_of(weights)
    second *= second
    partial = cupy.zeros(kernels.square_sum_blocks(count), cupy.float64)
    yield "gradient norm", f"{count}", nbytes(weights), None, lambda: kernels.square_sum(partial, weights)
    yield (
        "adamw",
        f"{count}",
        8 * nbytes(weights),
        None,
        lambda: kernels.adamw(weights, gradients, first, second, count, 1.0, 1e-6, 0.1, 0.9, 0.95, 0.5, 0.5, 1e-8),
    )
    del weights, gradients, first, second

    texts, time_steps, channels, states, rank, taps = sizes.mamba
    n, label = texts * time_steps, f"{texts} x {time_steps} x {channels}"
    inner, delta, projected, selected = f(n, channels), f(n, channels), f(n, 2 * channels), f(n, rank + 2 * states)
    past, taken, filters = f(texts, taps - 1, channels), f(n, channels), normal((taps, channels), scale=0.1)
    a_log, skip, channel_bias = normal((states, channels), scale=0.5), f(channels), f(channels)
    yield (
        "convolution forward",
        label,
        2 * nbytes(inner),
        None,
        lambda: ops.convolution_forward(inner, projected, past, filters, channel_bias),
    )
    kept_states = cupy.zeros(
        (texts, kernels_of(inner).selective_scan_chunks(time_steps) + 1, states, channels), cupy.float32
    )
    room = cupy.empty(kernels_of(inner).selective_scan_scratch(channels, states, texts), cupy.float32)
    parts = cupy.empty(kernels_of(inner).selective_scan_partials(texts, time_steps, channels, states), cupy.float32)
    moved = 4 * nbytes(inner) + nbytes(selected)
    yield (
        "scan forward",
        label,
        moved,
        SCAN_FORWARD * inner.size * states,
        lambda: ops.selective_scan_forward(taken, kept_states, room, inner, delta, selected, projected, a_log, skip),
    )
    da_log, dskip, dselected, dinner, dtaken = (
        f(states, channels),
        f(channels),
        f(n, rank + 2 * states),
        f(n, channels),
        normal((n, channels), scale=1e-3),
    )
    yield (
        "scan backward",
        label,
        8 * nbytes(inner) + 2 * nbytes(selected),
        SCAN_BACKWARD * inner.size * states,
        lambda: ops.selective_scan_backward(
            dinner,
            delta,
            dselected,
            projected,
            da_log,
            dskip,
            parts,
            room,
            dtaken,
            kept_states,
            inner,
            selected,
            a_log,
            skip,
        ),
    )
    dfilters, dchannel_bias = f(taps, channels), f(channels)
    yield (
        "convolution backward",
        label,
        5 * nbytes(inner),
        None,
        lambda: ops.convolution_backward(
            projected, dfilters, dchannel_bias, dinner, dtaken, past, filters, channel_bias
        ),
    )

    texts, time_steps, width = sizes.recurrence
    label = f"{texts} x {time_steps} x {width}"
    walked, matrix, dmatrix = (
        normal((time_steps + 1, texts, width), scale=0.1),
        normal((width, width), scale=0.01 * width**-0.5),
        f(width, width),
    )
    walk, dwalked = (
        cupy.empty(kernels_of(walked).linear_recurrence_scratch(texts, width), cupy.float32),
        normal((time_steps + 1, texts, width), scale=1e-3),
    )
    work = 2 * time_steps * texts * width * width
    yield (
        "recurrence forward",
        label,
        None,
        work,
        lambda: ops.linear_recurrence_forward(walked, walk, matrix),
        "float32",
    )
    yield (
        "recurrence backward",
        label,
        None,
        2 * work,
        lambda: ops.linear_recurrence_backward(dwalked, dmatrix, walk, walked, matrix),
        "float32",
    )
    turned, source = f(time_steps, texts, width), f(texts * time_steps, width)
    yield "time-major", label, 2 * nbytes(source), None, lambda: ops.time_major(turned, source, 0)


def kernels(args):
    """Each kernel's time, rate, and share of the peak that bounds it."""
    from slm_np.machine import use

    use("cuda")
    clock = Clock(3, 0.005) if args.quick else Clock(7, 0.03)
    products, copied = peaks(clock, *((4096, 1 << 28) if args.quick else (8192, 1 << 30)))
    print(
        f"peaks here: {products['bfloat16'] / 1e12:,.0f} TFLOP/s of bfloat16 and {products['float32'] / 1e12:,.0f} of float32 by cuBLAS, {copied / 1e12:.2f} TB/s of a copy"
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
        except Exception as error:  # the others are worth their figures, as are those before what cannot even be made
            rows.append(dict(kernel=name, size=size, error=f"{type(error).__name__}: {error}"))
            print(f"{name:<26}{size:<24}  {rows[-1]['error'].splitlines()[0][:100]}", flush=True)
            continue
        share = max(
            moved / seconds / copied if moved else 0.0,
            work / seconds / products[kind[0] if kind else "bfloat16"] if work and not moved else 0.0,
        )
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
        product_flop_per_s=products["bfloat16"],
        exact_flop_per_s=products["float32"],
        copy_bytes_per_s=copied,
        rows=rows,
    )


# Training: engines in processes of their own


def our_step(name, dtype):
    """(step, function that waits for all of them, function that tells the device's memory in MB)"""
    import cupy

    from slm_np.config import TrainConfig
    from slm_np.formats.run_config import RunConfig
    from slm_np.machine import use
    from slm_np.training.trainer import Trainer

    config, batch = config_of(name)
    use("cuda")
    train = TrainConfig(batch_size=batch, max_iters=10**6, learning_rate=1e-4, min_lr=1e-5, dtype=dtype, device="cuda")
    trainer = Trainer(RunConfig(config, train), corpus_of(config))
    return (
        trainer.step,
        lambda: cupy.cuda.Device().synchronize(),
        lambda: cupy.get_default_memory_pool().total_bytes() / 1e6,
    )


def torch_step(name, compiled, mode):
    """The same of PyTorch's twin: batches drawn as ours, sent from pinned memory."""
    import numpy as np
    import torch
    from torch_twin import Trainer, Twin

    from slm_np.data.batches import random_batch

    config, batch = config_of(name)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    trainer, corpus = (
        Trainer(Twin(config).cuda(), learning_rate=1e-4, compiled=compiled, bfloat16=True, mode=mode),
        corpus_of(config),
    )
    x, y = (np.zeros((batch, config.block_size), np.int32) for _ in range(2))
    state = [0]

    def step():
        random_batch(x, y, corpus.train, 0, 0, state[0])
        state[0] += 1
        trainer.train_step(*(torch.from_numpy(z.astype(np.int64)).pin_memory() for z in (x, y)))

    return step, torch.cuda.synchronize, lambda: torch.cuda.max_memory_allocated() / 1e6


def serve(name, shape_name, dtype):
    """Inside an engine's process: build, warm up, then answer requests; a block of n steps is waited for once, and its mean is the answer."""
    answers, sys.stdout = sys.stdout, sys.stderr
    step, settle, memory = our_step(shape_name, dtype) if name == "slm_np" else torch_step(shape_name, *PEERS[name])
    for _ in range(6):
        step()
    settle()
    if name != "slm_np":
        import torch

        torch.cuda.empty_cache()  # while it waits, its memory is the others', who are all there
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request[0] == "end":
            print(json.dumps(memory()), file=answers, flush=True)
            return
        begun = time.perf_counter()
        for _ in range(request[1]):
            step()
        settle()
        print(json.dumps([(time.perf_counter() - begun) / request[1]]), file=answers, flush=True)


def peers_of(name, quick):
    """PyTorch's engines for a shape: compiled with and without graphs; a loop over time as it is."""
    if not importlib.util.find_spec("torch"):
        return []
    if set(config_of(name)[0].letters) != {"A"}:
        return ["eager"] if "M" not in config_of(name)[0].letters or importlib.util.find_spec("transformers") else []
    return ["graphs"] if quick else ["compiled", "graphs"]


class Limited(Engine):
    """An engine that is ended where it does not answer in time."""

    def answer(self):
        timer = threading.Timer(ANSWERED, self.process.kill)
        timer.start()
        try:
            return super().answer()
        finally:
            timer.cancel()


def started(name, shape_name, dtype):
    """An engine, ready, or the words that say why there is none."""
    try:
        return Limited(name, shape_name, dtype, 0, "gpu.py")
    except (UserError, OSError, ValueError) as error:
        return str(error)


def training(args):
    """Tokens per second of each shape, ours and PyTorch's, and what share of the product's peak ours is."""
    names = args.shapes.split(",") if args.shapes else list(QUICK if args.quick else TRAINED)
    for name in names:
        if name not in TRAINED:
            raise UserError(f"--shapes {name!r} is unknown; {near(name, TRAINED)}")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    peak = args.found.get("kernels", {}).get("product_flop_per_s")
    wanted = [(engine, name) for name in names for engine in ["slm_np", *peers_of(name, args.quick)]]
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:  # all compile at once: nothing is timed meanwhile
        engines = dict(zip(wanted, pool.map(lambda one: started(*one, args.dtype), wanted)))
    rounds, seconds, rows = (3, 0.3, []) if args.quick else (6, 0.8, [])
    print(
        f"{'shape':<14}{'B':>5}{'T':>6}  {'engine':<10}{'tokens/s':>12}{'ms/step':>10}{'TFLOP/s':>9}{'of peak':>9}{'MB':>9}{'ratio':>8}"
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
                print(f"{name:<14}{batch:>5}{config.block_size:>6}  {engine:<10}  {row['error']}", flush=True)
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
                print(
                    f"{name:<14}{batch:>5}{config.block_size:>6}  {engine:<10}{row['tokens_per_s']:>12,.0f}{row['step_ms']:>10.2f}{row['tflop_per_s']:>9.1f}"
                    + (f"{100 * row['share']:>7.0f} %" if peak else f"{'':>9}")
                    + f"{row['memory_mb']:>9,.0f}"
                    + (f"{row['ratio']:>8.2f}" if row["ratio"] else ""),
                    flush=True,
                )
            rows.append(row)
    return rows


def measured(engines, rounds, seconds):
    """{engine: dict(seconds of a step, memory), or dict(error)} of engines in turns, each of which ends."""
    times, sizes, found = {name: [] for name in engines}, {}, {}

    def attempt(name, ask):
        if name in found:
            return None
        try:
            return ask(engines[name])
        except (UserError, OSError, ValueError) as error:  # ValueError: words of a library's where the answer should be
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


def written(name, batch, arrays, steps):
    """A row of the table: so many texts of a shape, the likeliest token in each of so many steps. weights: bytes of them"""
    import numpy as np

    from slm_np.inference.decoder import Decoder
    from slm_np.nn.model import Model

    config = config_of(name)[0]
    model = Model(config, arrays=arrays)
    decoder, half = Decoder(model, batch), config.block_size // 2
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, (batch, half), np.int32)
    decoder.read(prompt)
    begun = time.perf_counter()
    logits = decoder.read(prompt)
    read = time.perf_counter() - begun
    times = []
    for _ in range(min(steps, half - 1)):
        ids = logits.argmax(1)
        begun = time.perf_counter()
        logits = decoder.step(ids)
        times.append(time.perf_counter() - begun)
    step = statistics.median(times)
    return dict(
        shape=name,
        texts=batch,
        tokens_per_s=batch / step,
        step_ms=1e3 * step,
        prompt_tokens_per_s=prompt.size / read,
        weights=model.parameters.weights.nbytes,
    )


def generation(args):
    """Tokens per second of a decoder that always takes the likeliest, and of reading a prompt; its floor is reading the weights once a step."""
    from slm_np.machine import use

    arrays, rows, steps = use("cuda"), [], 32 if args.quick else 128
    copied = args.found.get("kernels", {}).get("copy_bytes_per_s")
    print(f"{'shape':<14}{'texts':>6}{'tokens/s':>12}{'ms/step':>10}{'floor ms':>10}{'prompt tokens/s':>17}")
    for name, batches in GENERATED.items():
        if args.quick and name not in ("smallm", "mamba"):
            continue
        for batch in batches:
            try:
                row = written(name, batch, arrays, steps)
            except Exception as error:  # the others are worth their figures
                rows.append(dict(shape=name, texts=batch, error=f"{type(error).__name__}: {error}"))
                print(f"{name:<14}{batch:>6}  {rows[-1]['error'].splitlines()[0][:100]}", flush=True)
                continue
            row["floor_ms"] = 1e3 * row.pop("weights") / copied if copied else None
            rows.append(row)
            print(
                f"{name:<14}{batch:>6}{row['tokens_per_s']:>12,.0f}{row['step_ms']:>10.3f}"
                + (f"{row['floor_ms']:>10.3f}" if copied else f"{'':>10}")
                + f"{row['prompt_tokens_per_s']:>17,.0f}",
                flush=True,
            )
    return rows


# All of it


def send(name, args, end):
    """In the process of a section: what it found, or how it failed, through `end` of a pipe."""
    try:
        found = globals()[name](args)
    except Exception as error:
        traceback.print_exc()
        found = dict(error=f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    end.send(found)


def apart(name, args):
    """What a section found in a process of its own, or dict(error)."""
    context = multiprocessing.get_context("spawn")  # a context of the GPU does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=send, args=(name, args, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECTIONS[name]) else dict(error=f"its {SECTIONS[name]} seconds are up")
    except EOFError:
        process.join()
        return dict(error=f"it ended with exit status {process.exitcode}")
    finally:
        process.kill()
        process.join()


@exit_with_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="which sections, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--shapes", default="", help=f"which shapes to train, separated by commas (default: {','.join(TRAINED)})"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="ours in training (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, no compute-sanitizer: about two minutes"
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was found there")
    parser.add_argument("--engine", choices=("slm_np", *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--threads", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.engine:
        return serve(args.engine, args.shapes, args.dtype)
    for name in args.only.split(","):
        if name not in SECTIONS:
            raise UserError(f"--only {name!r} is unknown; {near(name, SECTIONS)}")
    from slm_np.machine import gpu

    gpu()
    args.found, failed = {}, []
    for name in (section for section in SECTIONS if section in args.only.split(",")):
        begun = time.perf_counter()
        print(f"\n== {name}", flush=True)
        args.found[name] = apart(name, args)
        if "error" in args.found[name]:
            print(f"   {name}: {args.found[name]['error']}")
            failed.append(name)
        print(f"   ({time.perf_counter() - begun:.0f} s)", flush=True)
        if args.json:
            write_json(args.json, args.found)
    failed += ["tests"] * any(not row["sound"] for row in args.found.get("tests", {}).values() if isinstance(row, dict))
    if failed:
        print(f"\nnot all went well: {', '.join(failed)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
