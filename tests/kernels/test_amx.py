"""AMX: gemms on tiles, and the decision whether to use them.

On a processor without AMX, `test_on_emulated_tiles` runs this file again on emulated tiles.
"""

import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import amx_stress
import numpy as np
import pytest
from amx_emulator import POSSIBLE, emulated_environment, install, lose_tiles, performed
from llvmlite import binding

from slm_np.kernels.cpu import amx, processor
from slm_np.kernels.cpu.amx import COLUMNS, PAIRS, ROWS, TILES, configure_tiles, multiply_tile, release_tiles
from slm_np.kernels.cpu.gemm_check import projection, projection_error
from slm_np.kernels.cpu.jit import row

EMULATED = "SLM_NP_TEST_EMULATED_AMX" in os.environ
if EMULATED:
    install()
tiles = pytest.mark.skipif(not EMULATED and bool(amx.refusal()), reason="needs AMX: test_on_emulated_tiles runs it")
emulated = pytest.mark.skipif(not EMULATED, reason="tests the emulator: test_on_emulated_tiles runs it")


@pytest.mark.slow
@pytest.mark.skipif(not POSSIBLE, reason="the emulator runs on Linux on x86-64 only")
@pytest.mark.skipif(EMULATED or not amx.refusal(), reason="this process has AMX")
def test_on_emulated_tiles():
    environment = emulated_environment(SLM_NP_TEST_EMULATED_AMX="1")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:faulthandler", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "needs AMX" not in run.stdout and "tests the emulator" not in run.stdout


@row
def multiply_configured(
    config,
    c,
    c_offset,
    c_row,
    a,
    a_offset,
    a_row,
    b,
    b_offset,
    b_step,
    k,
    accumulate,
):
    configure_tiles(config)
    multiply_tile(
        c,
        c_offset,
        c_row,
        a,
        a_offset,
        a_row,
        1,
        b,
        b_offset,
        b_step,
        k,
        accumulate,
    )
    release_tiles()


@row
def multiply_unconfigured(c, a, b, k):
    multiply_tile(
        c,
        0,
        COLUMNS,
        a,
        0,
        k,
        1,
        b,
        0,
        COLUMNS,
        k,
        0,
    )


def truncated(x):
    """x as float32, truncated to values that bfloat16 holds."""
    return (np.asarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def pairs(x):
    """int32 pairs of neighbors along a row: (m, k) float32 as (m, k / 2)."""
    halves = (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return halves.view(np.int32)


def matrices(k, seed=0, draw=None):
    """A (ROWS, 2 k), B (2 k, COLUMNS) and C (ROWS, COLUMNS) in float32, then A and B as flat pairs.

    draw: draw(*shape) gives values that bfloat16 holds, by default normal ones.
    """
    rng = np.random.default_rng([seed, k])
    draw = draw or (lambda *shape: truncated(rng.standard_normal(shape)))
    a, b, before = draw(ROWS, 2 * k), draw(2 * k, COLUMNS), draw(ROWS, COLUMNS)
    return a, b, before, pairs(a).reshape(-1), np.ascontiguousarray(pairs(b.T).T).reshape(-1)


def multiply(c, a, b, k, accumulate=0, config=TILES):
    multiply_configured(
        config,
        c.reshape(-1),
        0,
        COLUMNS,
        a,
        0,
        k,
        b,
        0,
        COLUMNS,
        k,
        accumulate,
    )


def multiply_as_in_the_manual(a, b, c):
    """The bits of A B + C. Of each 16 pairs, first and second elements are summed apart; then come both sums, then C.

    Sums run in order, and every step is rounded to float32. The result is exact where a float64 holds each product plus
    the sum that it is added to.
    """
    c = c.astype(np.float32)
    for start in range(0, a.shape[1], 2 * PAIRS):
        first, second = np.zeros((2, *c.shape), np.float32)
        for k in range(start, start + 2 * PAIRS, 2):
            first = (first + np.outer(a[:, k].astype(float), b[k])).astype(np.float32)
            second = (second + np.outer(a[:, k + 1].astype(float), b[k + 1])).astype(np.float32)
        c += first + second
    return c


@tiles
@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("k", [PAIRS, 3 * PAIRS, 640])
def test_gemm_against_float64(k, accumulate):
    a, b, before, a_pairs, b_pairs = matrices(k)
    c = before.copy() if accumulate else np.full_like(before, np.nan)
    multiply(c, a_pairs, b_pairs, k, accumulate)
    before = before * accumulate
    bound = (PAIRS + 2 + k // PAIRS) * 2.0**-24 * (np.abs(a).astype(float) @ np.abs(b) + np.abs(before))
    error = np.abs(c - (a.astype(float) @ b + before))
    assert (error <= bound).all() and error.max() > 0


@tiles
@pytest.mark.parametrize("accumulate", [0, 1])
def test_integers_are_exact(accumulate):
    rng = np.random.default_rng(0)
    a, b, before, a_pairs, b_pairs = matrices(512, draw=lambda *shape: rng.integers(-99, 100, shape).astype(np.float32))
    exact = a.astype(int) @ b.astype(int) + before.astype(int) * accumulate
    assert np.abs(exact).max() < 2**24
    c = before.copy()
    multiply(c, a_pairs, b_pairs, 512, accumulate)
    assert (c == exact).all()


@tiles
def test_order_and_rounding_follow_the_manual():
    rng = np.random.default_rng(1)
    a, b, before, a_pairs, b_pairs = matrices(
        4 * PAIRS, draw=lambda *shape: truncated(rng.standard_normal(shape) * 2.0 ** rng.integers(-5, 6, shape))
    )
    c = before.copy()
    multiply(c, a_pairs, b_pairs, 4 * PAIRS, 1)
    expected = multiply_as_in_the_manual(a, b, before)
    assert (c == expected).all()
    assert (expected != (a.astype(float) @ b + before).astype(np.float32)).any()


@tiles
def test_denormals_are_flushed_to_zero():
    tiny, small = 2.0**-130, 2.0**-70
    for left, right, before, expected in (
        (tiny, 1, 0, 0),
        (1, tiny, 0, 0),
        (small, small, 0, 0),
        (1, 1, tiny, 2),
        (0, 0, -tiny, 0),
        (0, 0, 2.0**-126, 2.0**-126),
    ):
        a, b, c, a_pairs, b_pairs = matrices(PAIRS, draw=lambda *shape: np.zeros(shape, np.float32))
        a[:, :2], b[:2], c[:] = left, right, before
        multiply(c, pairs(a).reshape(-1), np.ascontiguousarray(pairs(b.T).T).reshape(-1), PAIRS, 1)
        assert (c == expected).all(), (left, right, before, c[0, 0])


@tiles
def test_nan_and_infinity_propagate():
    a, b, c, *_ = matrices(PAIRS)
    a[3, 7], a[20, 1] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        expected = a.astype(float) @ b
    multiply(c, pairs(a).reshape(-1), np.ascontiguousarray(pairs(b.T).T).reshape(-1), PAIRS)
    assert np.isnan(c[3]).all() and (c[20] == expected[20]).all() and np.isfinite(np.delete(c, [3, 20], 0)).all()


@tiles
@pytest.mark.parametrize("accumulate", [0, 1])
def test_offsets_and_strides_leave_other_elements_alone(accumulate):
    k, c_row, a_row, b_step = 2 * PAIRS, COLUMNS + 5, 2 * PAIRS + 3, COLUMNS + 7
    a, b, before, a_pairs, b_pairs = matrices(k)
    c = np.full((ROWS + 2, c_row), np.nan, np.float32)
    big_a, big_b = np.full((ROWS + 1, a_row), -1, np.int32), np.full((k + 1, b_step), -1, np.int32)
    c[1:-1, 2 : 2 + COLUMNS] = before
    big_a[1:, 1 : 1 + k], big_b[1:, 4 : 4 + COLUMNS] = a_pairs.reshape(ROWS, k), b_pairs.reshape(k, COLUMNS)
    multiply_configured(
        TILES,
        c.reshape(-1),
        c_row + 2,
        c_row,
        big_a.reshape(-1),
        a_row + 1,
        a_row,
        big_b.reshape(-1),
        b_step + 4,
        b_step,
        k,
        accumulate,
    )
    contiguous = before.copy()
    multiply(contiguous, a_pairs, b_pairs, k, accumulate)
    assert (c[1:-1, 2 : 2 + COLUMNS] == contiguous).all()
    c[1:-1, 2 : 2 + COLUMNS] = np.nan
    assert np.isnan(c).all()


def before_a_guard_page(x):
    """A copy of x that ends right before a page without access rights."""
    pages = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = np.frombuffer(memory, x.dtype, x.size, pages - x.nbytes)
    copy[:] = x.reshape(-1)
    return copy


@tiles
def test_nothing_past_the_arrays_is_accessed():
    a, b, before, a_pairs, b_pairs = matrices(3 * PAIRS)
    c = before_a_guard_page(np.zeros((ROWS, COLUMNS), np.float32))
    multiply(c, before_a_guard_page(a_pairs), before_a_guard_page(b_pairs), 3 * PAIRS)
    np.testing.assert_allclose(c.reshape(ROWS, -1), a @ b, atol=1e-4)


@tiles
def test_gemm_check_passes_and_finds_a_lost_tile():
    a, b, before, a_pairs, b_pairs = matrices(256)
    c = before.copy()
    multiply(c, a_pairs, b_pairs, 256, 1)
    projected = projection(before, 3)
    assert projection_error(c, a_pairs.reshape(ROWS, -1), b_pairs.reshape(-1, COLUMNS), 3, projected) < 1
    c[:16, 16:] = before[:16, 16:]
    assert projection_error(c, a_pairs.reshape(ROWS, -1), b_pairs.reshape(-1, COLUMNS), 3, projected) > 1


@tiles
def test_concurrent_threads_have_their_own_tiles():
    count = performed()
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(amx.multiply_integers, [0.3, 0.3], [1, 2]))
    assert all(total and not wrong for total, wrong in results)
    assert not EMULATED or performed() > count


def outcome_in_a_fork(function):
    """Call `function` in a forked process. Returns (the signal that ended the process or 0, its stderr)."""
    with tempfile.TemporaryFile() as errors:
        process = os.fork()
        if process == 0:
            status = 1
            try:
                os.dup2(errors.fileno(), 2)
                function()
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(process, 0)[1]
        errors.seek(0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, errors.read().decode(errors="replace")


@tiles
def test_fork_after_use():
    def exact():
        assert amx.multiply_integers(0)[1] == 0

    exact()
    assert outcome_in_a_fork(exact)[0] == 0
    exact()


@tiles
def test_tiles_must_be_configured():
    a, b, c, a_pairs, b_pairs = matrices(PAIRS)

    def multiply_after_release():
        multiply(c, a_pairs, b_pairs, PAIRS)
        multiply_unconfigured(c.reshape(-1), a_pairs, b_pairs, PAIRS)

    ended_by, message = outcome_in_a_fork(multiply_after_release)
    assert ended_by == signal.SIGILL and (not EMULATED or "no tiles are configured" in message)


@tiles
@pytest.mark.parametrize(
    "index, value", [(0, 2), (2, 1), (15, 1), (16, 65), (16, 0), (17, 1), (32, 64), (48, 17), (48, 0), (56, 16)]
)
def test_invalid_configurations_are_refused(index, value):
    config = TILES.copy()
    config[index] = value
    a, b, c, a_pairs, b_pairs = matrices(PAIRS)
    ended_by, message = outcome_in_a_fork(lambda: multiply(c, a_pairs, b_pairs, PAIRS, config=config))
    assert ended_by == signal.SIGSEGV and (not EMULATED or "the configuration is invalid" in message)


@tiles
@pytest.mark.parametrize(
    "index, value", [(16 + 2 * 4, 60), (48 + 6, 15), (48 + 0, 8), (16 + 2 * 0, 32), (16 + 2 * 7, 62)]
)
def test_tiles_whose_shapes_disagree_are_refused(index, value):
    config = TILES.copy()
    config[index] = value
    a, b, c, a_pairs, b_pairs = matrices(PAIRS)
    ended_by, message = outcome_in_a_fork(lambda: multiply(c, a_pairs, b_pairs, PAIRS, config=config))
    assert ended_by == signal.SIGILL and (not EMULATED or "do not agree" in message)


@tiles
def test_a_k_that_is_not_a_multiple_of_pairs_reads_past_the_arrays():
    a, b, c, a_pairs, b_pairs = matrices(PAIRS)
    k = PAIRS - 1
    a_pairs, b_pairs = before_a_guard_page(a_pairs[: ROWS * k]), before_a_guard_page(b_pairs[: k * COLUMNS])
    assert outcome_in_a_fork(lambda: multiply(c, a_pairs, b_pairs, k))[0] == signal.SIGSEGV


@emulated
def test_other_illegal_instructions_end_the_process():
    engine, illegal = compiled('define void @illegal() { call void asm sideeffect "ud2", ""() ret void }', "illegal")
    ended_by, message = outcome_in_a_fork(illegal)
    assert ended_by == signal.SIGILL and "not an AMX instruction" in message


def compiled(module, name, *arguments):
    """Compile LLVM assembly. Returns (the engine that owns the code, a Python function that calls `name`)."""
    binding.initialize_native_asmparser()
    features = os.environ["NUMBA_CPU_FEATURES"]
    engine = binding.create_mcjit_compiler(
        binding.parse_assembly(module), binding.Target.from_default_triple().create_target_machine(features=features)
    )
    engine.finalize_object()
    return engine, ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address(name))


BASES, INDICES = (
    ("rax", "rbx", "rbp", "rsi", "r8", "r12", "r13", "r15"),
    ("rax", "rcx", "rbp", "r9", "r12", "r13", "r14", ""),
)


@emulated
def test_every_addressing_mode():
    """LLVM encodes them: all kinds of base and index registers, scales, displacements of 0, 1 or 4 bytes, all tiles."""
    cases = [
        (base, index, 1 << i % 4, (0, 8, -8, 0x1234, -0x5678)[i % 5], i % 8, "t1" * (i % 3 == 0))
        for i, (base, index) in enumerate((base, index) for base in BASES for index in INDICES if base != index)
    ]
    source = np.random.default_rng(0).integers(0, 256, 16 * 96).astype(np.uint8)
    target = np.zeros((len(cases), 16, 80), np.uint8)
    code = [
        "movq %rbp, %xmm0",
        "jmp 1f",
        f"2: .byte {', '.join(map(str, TILES))}",
        "1: ldtilecfg 2b(%rip)",
        "ldtilecfg (%rdi)",
    ]
    for number, (base, index, scale, displacement, tile, hint) in enumerate(cases):
        code += [f"lea {-displacement}(%rdx), %{base}"]
        if index:
            code += [f"mov $$ {96 // scale}, %{index}"]
        code += [
            f"tileloadd{hint} {displacement}(%{base}" + (f",%{index},{scale})" if index else ")") + f", %tmm{tile}",
            "mov $$ 20, %r10",
            f"tilestored %tmm{tile}, {number * 1280}(%r11,%r10,4)",
        ]
    code += ["tilezero %tmm3", "movq %xmm0, %rbp", "tilerelease"]
    registers = "rax rbx rcx rsi r8 r9 r10 r12 r13 r14 r15 xmm0".split()
    text = "\\0A".join(code).replace('"', "")
    clobbers = ",".join(f"~{{{name}}}" for name in [*registers, "memory"])
    pointers = "(ptr %config, ptr %source, ptr %target)"
    module = f"""define void @run{pointers} {{
        call void asm sideeffect "{text}", "{{rdi}},{{rdx}},{{r11}},{clobbers}"{pointers}
        ret void
    }}"""
    before = performed()
    engine, run = compiled(module, "run", *[ctypes.c_void_p] * 3)
    run(TILES.ctypes.data, source.ctypes.data, target.ctypes.data)
    assert performed() - before == 2 * len(cases) + 4
    rows = source.reshape(16, 96)
    for case, found in zip(cases, target):
        assert (found[:, :64] == (rows[:, :64] if case[1] else rows[:1, :64])).all(), case
        assert (found[:, 64:] == 0).all()


# The decision whether to use AMX

AMX_FEATURES = {"amx-tile": True, "amx-bf16": True}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A freshly booted machine with AMX: features, permission and an empty cache. Tests patch it further."""
    monkeypatch.delenv("SLM_NP_AMX", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(amx.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(amx.binding, "get_host_cpu_features", lambda: AMX_FEATURES)
    monkeypatch.setattr(amx, "compiled_features", lambda: AMX_FEATURES)
    monkeypatch.setattr(amx, "ask_permission", lambda: 0)
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(amx, "readable_folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(amx, "writable_folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(amx, "boot", lambda: "first")
    amx.refusal.cache_clear()
    yield monkeypatch
    amx.refusal.cache_clear()


@tiles
def test_available(machine):
    assert amx.available() == (True, "this processor has AMX and its self-test passed")


def test_switched_off(machine):
    machine.setenv("SLM_NP_AMX", "0")
    assert amx.available() == (False, "SLM_NP_AMX=0 disables AMX")


def test_other_systems(machine):
    machine.setattr(sys, "platform", "darwin")
    machine.setattr(amx.platform, "system", lambda: "Darwin")
    assert amx.available() == (False, "AMX requires Linux on x86-64, and this is Darwin on x86_64")


def test_processor_without_the_feature(machine):
    machine.setattr(amx.binding, "get_host_cpu_features", lambda: {"amx-tile": True, "amx-bf16": False})
    assert amx.available() == (False, "this processor has no amx-bf16")


def test_instruction_set_without_the_feature(machine):
    machine.setattr(amx, "compiled_features", lambda: {"avx2": True, "amx-tile": False})
    assert amx.available() == (False, "the chosen instruction set has no amx-tile and no amx-bf16")


def test_features_follow_the_setting_of_numba(monkeypatch):
    monkeypatch.setattr(processor, "CHOSEN", None)  # these tests may run with SLM_NP_CPU=avx2
    monkeypatch.setattr(processor.numba.config, "CPU_FEATURES", "+avx2,-amx-tile")
    assert processor.compiled_features() == {"avx2": True, "amx-tile": False}


INSTRUCTION_SETS = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "SLM_NP_CPU"


def in_a_process(code, **environment):
    """Run Python code in a process of its own, without this process's choice of an instruction set."""
    kept = {key: value for key, value in os.environ.items() if key not in INSTRUCTION_SETS}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, encoding="utf-8"
    )


AVX2 = """
import numba
import numpy as np
from slm_np.kernels.cpu import amx, bfloat16, microkernel_f32, threads
from slm_np.kernels.cpu.processor import for_this_processor
assert (microkernel_f32.ROWS, microkernel_f32.COLUMNS, microkernel_f32.LANES) == (6, 16, 8)
assert not bfloat16.NATIVE and not amx.available()[0]
assert threads.matmul_name() == "AVX2 register tiles"
def add(x, y):
    for i in range(x.size):
        x[i] += y[i]
def code_of(function):
    function(np.zeros(64, np.float32), np.zeros(64, np.float32))
    return next(iter(function.inspect_asm().values()))
code = code_of(for_this_processor(numba.njit(add)))
assert "ymm" in code and "zmm" not in code
assert numba.config.CPU_NAME is numba.config.CPU_FEATURES is None
print(code_of(numba.njit(add)).count("zmm"))
"""


LAST = AVX2.splitlines()[-1]


@pytest.mark.skipif(not binding.get_host_cpu_features().get("avx2"), reason="this processor has no AVX2")
def test_avx2_can_be_chosen(tmp_path):
    """For the kernels: a function of the user's is compiled as if they were not there."""
    run = in_a_process(AVX2, SLM_NP_CPU="avx2", SLM_NP_CACHE=str(tmp_path))
    alone = in_a_process(AVX2[: AVX2.index("from slm_np")] + AVX2[AVX2.index("def add") : AVX2.index("code =")] + LAST)
    assert run.stdout == alone.stdout != "", run.stderr + alone.stderr


def test_an_unknown_instruction_set_is_refused(tmp_path):
    run = in_a_process("import slm_np.kernels.cpu", SLM_NP_CPU="avx3", SLM_NP_CACHE=str(tmp_path))
    assert "UserError: SLM_NP_CPU=avx3 is unknown; set SLM_NP_CPU=avx2 or unset it" in run.stderr


LOOP = """
from llvmlite import binding
features, tiles = binding.get_host_cpu_features(), {tiles}
def with_tiles():
    return type(features)(features | {{"amx-tile": tiles, "amx-bf16": tiles}})
binding.get_host_cpu_features = with_tiles
import numba
import numpy as np
from slm_np.kernels.cpu import processor
assert numba.config.CPU_FEATURES is None
@processor.for_this_processor
@numba.njit
def add(x, y):
    for i in range(x.size):
        x[i] += y[i]
add(np.zeros(64, np.float32), np.zeros(64, np.float32))
code = next(iter(add.inspect_asm().values()))
print(next(name for name in ("zmm", "ymm", "xmm") if name in code) if tiles else processor.CHOSEN)
"""


@pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx512f"), reason="this processor has no 512-bit registers"
)
@pytest.mark.parametrize("tiles, found", [(True, "zmm"), (False, "None")])
def test_loops_use_512_bit_registers_on_processors_with_amx(tiles, found, tmp_path):
    """By default LLVM uses 256 bits of them on Intel's processors. Without AMX, the default stays."""
    run = in_a_process(LOOP.format(tiles=tiles), NUMBA_CPU_NAME="sapphirerapids", SLM_NP_CACHE=str(tmp_path))
    assert run.stdout.strip() == found, run.stderr


@pytest.mark.parametrize("error, reason", [(22, "the kernel is older than Linux 5.16"), (1, os.strerror(1))])
def test_permission_denied(machine, error, reason):
    machine.setattr(amx, "ask_permission", lambda: error)
    assert amx.available() == (False, f"the operating system does not provide AMX tiles: {reason}")


def test_permission_is_asked_once(machine):
    asked = []
    machine.setattr(amx, "ask_permission", lambda: asked.append(1) or 0)
    machine.setattr(amx, "self_test", lambda: True)
    assert amx.available() == amx.available() and len(asked) == 1 and amx.available()[0]


@pytest.mark.skipif(
    not POSSIBLE or any(binding.get_host_cpu_features().get(name) for name in amx.NEEDED),
    reason="this is not Linux, or it may grant tiles",
)
def test_the_system_refuses_what_the_processor_lacks():
    assert amx.ask_permission() > 0


@emulated
def test_a_self_test_that_fails_is_remembered_until_the_next_start(machine):
    lose_tiles(499)
    try:
        assert amx.available() == (
            False,
            "AMX failed its self-test on this machine and stays disabled until the next reboot",
        )
    finally:
        lose_tiles(0)
    assert not amx.available()[0]
    machine.setattr(amx, "boot", lambda: "second")
    assert amx.available()[0]
    machine.setattr(amx, "multiply_integers", None)  # the self-test does not run again
    assert amx.available()[0]
    assert sorted(path.name for path in amx.readable_folder().iterdir()) == ["amx-first", "amx-second"]


@emulated
def test_a_system_without_a_boot_id_is_tested_each_time(machine):
    machine.setattr(amx, "boot", lambda: None)
    assert amx.available()[0] and not list(amx.readable_folder().iterdir())


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="this is not Linux")
def test_boot():
    assert len(amx.boot()) == 36


@tiles
def test_stress_counts_matmuls(machine, capsys):
    with pytest.raises(SystemExit) as stopped:
        amx_stress.main(["--seconds", "1"])
    assert not stopped.value.code
    assert re.fullmatch(r"[\d,]+ matmuls by 4 processes on \d cores? in 1 s, 0 wrong\n", capsys.readouterr().out)


@emulated
def test_stress_counts_wrong_matmuls(machine, capsys):
    lose_tiles(499)
    try:
        with pytest.raises(SystemExit) as stopped:
            amx_stress.main(["--seconds", "1"])
    finally:
        lose_tiles(0)
    assert (
        stopped.value.code == 1 and int(re.search(r"([\d,]+) wrong", capsys.readouterr().out)[1].replace(",", "")) > 0
    )


def test_stress_without_tiles(machine, capsys):
    machine.setenv("SLM_NP_AMX", "0")
    with pytest.raises(SystemExit) as stopped:
        amx_stress.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "slm_np: AMX is unavailable: SLM_NP_AMX=0 disables AMX\n"
