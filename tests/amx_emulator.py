"""An emulator of AMX for processors without it.

Compiled code runs as it is. The processor refuses each tile instruction, and a signal handler performs it in memory.
`install()` takes SIGILL. Numba compiles the handler, so that it needs neither Python nor the GIL. It decodes the
instruction that trapped, performs it on the tiles of the thread that trapped, and continues after it. An instruction
that hardware would refuse ends the process: a message on stderr, then the signal that Linux sends for #UD or #GP. A
process in which Numba generates such code needs the variables of `emulated_environment()`.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (LDTILECFG ... TDPBF16PS) and volume 1,
chapter 18. What no compiler emits is left out: restarting an instruction halfway (start_row), segment and address-size
prefixes.
"""

import ctypes
import os
import platform
import signal
import sys

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"
REGISTERS = 13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7  # indices of rax, rcx ... r15 in the saved registers
RIP, SAVED = 16, 40  # index of the instruction pointer among them, and their byte offset in a ucontext
# A slot of SLOT bytes for each of THREADS threads: the thread's id, at CONFIG its configuration, at TILE its tiles.
THREADS, CONFIG, TILE, SLOT = 1024, 64, 1024, 9 * 1024
COUNT, LOSE = 0, 8  # offsets before the slots: number of instructions performed, and the interval of `lose_tiles`
HEAD = 64
SIGILL, SIGSEGV = 4, 11

MESSAGES = [
    "",
    "not an AMX instruction that the emulator knows",
    "no tiles are configured",
    "the configuration is invalid",
    "the tile has no rows or columns",
    "one tile is used twice",
    "the shapes of the tiles do not agree",
    "too many threads use tiles",
    "a configuration that starts halfway is not emulated",
]
UNKNOWN, NOT_CONFIGURED, INVALID, NO_SHAPE, SAME, DISAGREE, CROWDED, HALFWAY = range(1, len(MESSAGES))

_syscall = types.ExternalFunction("syscall", types.int64(types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))
_signal = types.ExternalFunction("signal", types.int64(types.int32, types.int64))
_raise = types.ExternalFunction("raise", types.int32(types.int32))
_copy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))
_fill = types.ExternalFunction("memset", types.int64(types.int64, types.int32, types.int64))
GETTID = 186

_memory = np.zeros(64 + HEAD + THREADS * SLOT, np.uint8)
MEMORY = _memory.ctypes.data + -_memory.ctypes.data % 64
_messages = [np.frombuffer(f"AMX emulator: {message}\n".encode(), np.uint8) for message in MESSAGES]
ADDRESSES = tuple(message.ctypes.data for message in _messages)
LENGTHS = tuple(message.size for message in _messages)
VECTOR, WORDS = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)


def _at(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _reader(bits, extend):
    """An intrinsic that reads an integer of `bits` bits at an address."""

    @intrinsic
    def read(typingctx, address):
        def codegen(context, builder, signature, args):
            value = builder.load(_at(builder, args[0], ir.IntType(bits)), align=1)
            return value if bits == 64 else getattr(builder, extend)(value, ir.IntType(64))

        return types.int64(types.int64), codegen

    return read


_byte, _signed_byte, _signed_word, _long = _reader(8, "zext"), _reader(8, "sext"), _reader(32, "sext"), _reader(64, "")


@intrinsic
def _set(typingctx, address, value):
    """Write the int64 at an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _at(builder, args[0], ir.IntType(64)), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _claim(typingctx, address, owner):
    """Atomically write `owner` to the int64 at an address if that is 0. Returns the value before."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        return builder.extract_value(
            builder.cmpxchg(_at(builder, args[0], word), ir.Constant(word, 0), args[1], "seq_cst", "seq_cst"), 0
        )

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _dot_row(typingctx, c, a, b, pairs):
    """A row of 16 elements of C += a row of A times `pairs` rows of B, all given by address.

    Products of the first elements of pairs and of the second ones are summed apart, with one rounding a step. Then both
    sums are added, and the result is added to C. Rounding is to nearest even. Denormal inputs and results become zero.
    """

    def codegen(context, builder, signature, args):
        c, a, b, pairs = args
        word, fused_type = ir.IntType(64), ir.FunctionType(VECTOR, [VECTOR] * 3)
        fused = cgutils.get_or_insert_function(builder.module, fused_type, "llvm.fma.v16f32")

        def lanes(number):
            return ir.Constant(WORDS, [number] * 16)

        def flushed(vector):
            bits = builder.bitcast(vector, WORDS)
            denormal = builder.icmp_unsigned("==", builder.and_(bits, lanes(0x7F800000)), lanes(0))
            return builder.bitcast(builder.select(denormal, builder.and_(bits, lanes(0x80000000)), bits), VECTOR)

        def halves(pairs):
            return [
                flushed(builder.bitcast(bits, VECTOR))
                for bits in (builder.shl(pairs, lanes(16)), builder.and_(pairs, lanes(0xFFFF0000)))
            ]

        sums = [cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * 16)) for _ in range(2)]
        for total in sums:
            builder.store(ir.Constant(VECTOR, [0.0] * 16), total)
        with cgutils.for_range(builder, pairs) as loop:
            pair = builder.load(
                _at(builder, builder.add(a, builder.mul(loop.index, ir.Constant(word, 4))), ir.IntType(32)), align=4
            )
            spread = builder.shuffle_vector(
                builder.insert_element(ir.Constant(WORDS, ir.Undefined), pair, ir.Constant(ir.IntType(32), 0)),
                ir.Constant(WORDS, ir.Undefined),
                lanes(0),
            )
            row = builder.load(
                _at(builder, builder.add(b, builder.mul(loop.index, ir.Constant(word, 64))), WORDS), align=4
            )
            for total, x, y in zip(sums, halves(spread), halves(row)):
                builder.store(flushed(builder.call(fused, [x, y, builder.load(total)])), total)
        target = _at(builder, c, VECTOR)
        both = flushed(builder.fadd(*map(builder.load, sums)))
        builder.store(flushed(builder.fadd(flushed(builder.load(target, align=4)), both)), target, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


_inner = numba.njit(error_model="numpy")


@_inner
def _slot(adds):
    """Address of the calling thread's slot. A thread without one takes a free one if `adds`, else the result is 0."""
    thread = _syscall(GETTID)
    for i in range(THREADS):
        slot = MEMORY + HEAD + (thread + i) % THREADS * SLOT
        if _long(slot) == thread:
            return slot
    if adds:
        for i in range(THREADS):
            slot = MEMORY + HEAD + (thread + i) % THREADS * SLOT
            if _long(slot) == 0 and _claim(slot, thread) == 0:
                return slot
    return 0


@_inner
def _configure(address):
    """LDTILECFG. Returns the reason of a refusal, or 0."""
    if _byte(address) == 0:
        return _release()
    if _byte(address) > 1:
        return INVALID
    if _byte(address + 1):
        return HALFWAY
    for i in range(64):
        if _byte(address + i) and (2 <= i < 16 or 32 <= i < 48 or 56 <= i):
            return INVALID
    for tile in range(8):
        columns, rows = (
            _byte(address + 16 + 2 * tile) + 256 * _byte(address + 17 + 2 * tile),
            _byte(address + 48 + tile),
        )
        if columns > 64 or rows > 16 or (columns == 0) != (rows == 0):
            return INVALID
    slot = _slot(True)
    if slot == 0:
        return CROWDED
    _copy(slot + CONFIG, address, 64)
    _fill(slot + TILE, 0, 8 * 1024)
    return 0


@_inner
def _release():
    """TILERELEASE"""
    slot = _slot(False)
    if slot:
        _set(slot, 0)
    return 0


@_inner
def _shape(slot, tile):
    """(rows, bytes in a row)"""
    return _byte(slot + CONFIG + 48 + tile), _byte(slot + CONFIG + 16 + 2 * tile)


@_inner
def _move(slot, tile, address, stride, stores):
    """TILELOADD and TILESTORED. Past its rows and columns a tile is zero from its configuration on."""
    (rows, columns), start = _shape(slot, tile), slot + TILE + tile * 1024
    if rows == 0:
        return NO_SHAPE
    for r in range(rows):
        if stores:
            _copy(address + r * stride, start + r * 64, columns)
        else:
            _copy(start + r * 64, address + r * stride, columns)
    return 0


@_inner
def _dot(slot, to, left, right):
    """TDPBF16PS"""
    if to == left or to == right or left == right:
        return SAME
    (rows, columns), (left_rows, left_columns), (right_rows, right_columns) = (
        _shape(slot, to),
        _shape(slot, left),
        _shape(slot, right),
    )
    if rows == 0 or left_rows == 0 or right_rows == 0:
        return NO_SHAPE
    if (
        columns % 4
        or left_columns % 4
        or right_columns % 4
        or rows != left_rows
        or columns != right_columns
        or left_columns // 4 != right_rows
    ):
        return DISAGREE
    c, a, b = slot + TILE + to * 1024, slot + TILE + left * 1024, slot + TILE + right * 1024
    for m in range(rows):
        _dot_row(c + m * 64, a + m * 64, b, right_rows)
    interval = _long(MEMORY + LOSE)
    if interval and _long(MEMORY + COUNT) % interval == 0:
        _fill(c, 0, 1024)
    return 0


@_inner
def _perform(registers):
    """Perform the instruction at RIP and move RIP past it. Returns the reason of a refusal, or 0.

    registers: the address of the saved registers.
    """
    at = _long(registers + 8 * RIP)
    # A VEX prefix of three bytes: C4; inverted R, X, B and the map 0F38; W, inverted vvvv, L and the implied prefix.
    if _byte(at) != 0xC4 or _byte(at + 1) & 0x1F != 2 or _byte(at + 2) & 0x84:
        return UNKNOWN
    r, x, b = (~_byte(at + 1) >> 7) & 1, (~_byte(at + 1) >> 6) & 1, (~_byte(at + 1) >> 5) & 1
    operand, prefix = (~_byte(at + 2) >> 3) & 15, _byte(at + 2) & 3  # prefixes: none, 66, F3, F2
    opcode, modrm = _byte(at + 3), _byte(at + 4)
    mode, reg, rm = modrm >> 6, (modrm >> 3) & 7, modrm & 7
    if r or (operand and opcode != 0x5C):
        return UNKNOWN
    _set(MEMORY + COUNT, _long(MEMORY + COUNT) + 1)
    size = 5
    if mode == 3:
        _set(registers + 8 * RIP, at + size)
        if opcode == 0x49 and prefix == 0 and reg == 0 and rm == 0:
            return _release()
        slot = _slot(False)
        if slot == 0:
            return NOT_CONFIGURED
        if opcode == 0x49 and prefix == 3 and rm == 0:
            if _shape(slot, reg)[0] == 0:
                return NO_SHAPE
            _fill(slot + TILE + reg * 1024, 0, 1024)
            return 0
        if opcode == 0x5C and prefix == 2 and operand < 8 and not b:
            return _dot(slot, reg, rm, operand)
        return UNKNOWN

    stride, address, base, sib = 0, 0, rm, rm == 4
    if sib:
        scale, index, base = _byte(at + 5) >> 6, ((_byte(at + 5) >> 3) & 7) | (x << 3), _byte(at + 5) & 7
        size += 1
        if index != 4:
            stride = _long(registers + 8 * REGISTERS[index]) << scale
    without_base = mode == 0 and base == 5
    if not without_base:
        address = _long(registers + 8 * REGISTERS[base | (b << 3)])
    if mode == 1:
        address += _signed_byte(at + size)
        size += 1
    elif mode == 2 or without_base:
        address += _signed_word(at + size)
        size += 4
    if without_base and not sib:
        address += at + size
    _set(registers + 8 * RIP, at + size)
    if opcode == 0x49 and prefix == 0 and reg == 0:
        return _configure(address + stride)
    if opcode != 0x4B or prefix == 0 or not sib:
        return UNKNOWN
    slot = _slot(False)
    return _move(slot, reg, address, stride, prefix == 2) if slot else NOT_CONFIGURED


def _handler(number, information, context):
    registers = context + SAVED
    at = _long(registers + 8 * RIP)
    reason = _perform(registers)
    if reason:
        _set(registers + 8 * RIP, at)
        _write(2, ADDRESSES[reason], LENGTHS[reason])
        fatal = SIGSEGV if reason == INVALID else SIGILL
        _signal(fatal, 0)
        _raise(fatal)


class _Action(ctypes.Structure):
    """struct sigaction of glibc and musl."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_installed = []


def install():
    """Give AMX to all threads of this process and to processes forked from it."""
    if not _installed:
        _installed.append(numba.cfunc(types.void(types.int32, types.int64, types.int64), error_model="numpy")(_handler))
    action = _Action(handler=_installed[0].address, flags=4)  # SA_SIGINFO
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(int(signal.SIGILL), ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "sigaction")


def _header(offset):
    return np.frombuffer((ctypes.c_int64 * 1).from_address(MEMORY + offset), np.int64)


def performed():
    """The number of instructions performed. Concurrent threads may miss some."""
    return int(_header(COUNT)[0])


def lose_tiles(interval):
    """Set a tile to zero about every `interval` instructions, never if 0.

    So do machines on which tiles do not survive an interrupt.
    """
    _header(LOSE)[0] = interval


def emulated_environment(**more):
    """Environment variables of a process in which Numba generates AMX code."""
    return {
        **os.environ,
        "NUMBA_CPU_FEATURES": binding.get_host_cpu_features().flatten() + ",+amx-tile,+amx-bf16",
        **more,
    }


def pretend():
    """Install the emulator and report AMX and the permission to use it to all modules imported from now on."""
    install()
    features, library = binding.get_host_cpu_features, ctypes.CDLL

    class Permitting(library):
        def __getattr__(self, name):
            return (lambda *request: 0) if name == "syscall" else super().__getattr__(name)

    def with_tiles():
        found = features()
        found.update({"amx-tile": True, "amx-bf16": True})
        return found

    binding.get_host_cpu_features, ctypes.CDLL = with_tiles, Permitting
