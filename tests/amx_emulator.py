"""AMX where the processor has none: compiled code runs as it is, and each tile instruction, which such a processor refuses, is done in memory.

`install()` takes SIGILL. Its handler is compiled by Numba, so that it needs neither Python nor the GIL: it decodes the instruction that trapped,
performs it on the tiles of the thread that trapped, and goes on after it. What hardware would refuse ends the process: a sentence on stderr, then
the signal that Linux sends for #UD or #GP. `emulated_environment()` is what a process needs in which Numba is to generate such code.

What each instruction does follows Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (LDTILECFG ... TDPBF16PS) and
volume 1, chapter 18. Left out are what no compiler emits: restarting an instruction halfway (start_row), segment and address-size prefixes.
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
from numba.extending import intrinsic

POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"
REGISTERS = 13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7  # where rax, rcx ... r15 lie among the saved registers
RIP, SAVED = 16, 40                                               # the next instruction among them, and the bytes before them in a ucontext
THREADS, CONFIG, TILE, SUMS, SLOT = 1024, 64, 1024, 9 * 1024, 10 * 1024  # a thread's slot: its number, its configuration, tiles, partial sums
COUNT, LOSE = 0, 8                                                # before the slots: instructions performed; every how manieth sum loses a tile
HEAD = 64
SIGILL, SIGSEGV = 4, 11

SENTENCES = ["", "not an AMX instruction that the emulator knows", "no tiles are configured", "the configuration is invalid", "the tile has no rows or columns",
             "one tile is used twice", "the shapes of the tiles do not agree", "too many threads use tiles", "a configuration that starts halfway is not emulated"]
UNKNOWN, NOT_CONFIGURED, INVALID, NO_SHAPE, SAME, DISAGREE, CROWDED, HALFWAY = range(1, len(SENTENCES))

_syscall = types.ExternalFunction("syscall", types.int64(types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.voidptr, types.int64))
_signal = types.ExternalFunction("signal", types.voidptr(types.int32, types.voidptr))
_raise = types.ExternalFunction("raise", types.int32(types.int32))
GETTID = 186

_memory = np.zeros(HEAD + (THREADS + 1) * SLOT, np.uint8)
_start = -_memory.ctypes.data % 64
MEMORY = _memory.ctypes.data + _start
_texts = [np.frombuffer(f"AMX emulator: {sentence}\n".encode(), np.uint8) for sentence in SENTENCES]
TEXTS = tuple(text.ctypes.data for text in _texts)
LENGTHS = tuple(text.size for text in _texts)


def _one_instruction(result, argument, emit):
    @intrinsic
    def instruction(typingctx, value):
        return result(argument), lambda context, builder, signature, args: emit(builder, args[0])
    return instruction


_pointer = _one_instruction(types.voidptr, types.int64, lambda builder, value: builder.inttoptr(value, ir.IntType(8).as_pointer()))
_address = _one_instruction(types.int64, types.voidptr, lambda builder, value: builder.ptrtoint(value, ir.IntType(64)))
_number = _one_instruction(types.float32, types.uint32, lambda builder, value: builder.bitcast(value, ir.FloatType()))
_bits = _one_instruction(types.uint32, types.float32, lambda builder, value: builder.bitcast(value, ir.IntType(32)))


@intrinsic
def _fused(typingctx, x, y, z):
    """x y + z, rounded once."""
    real = types.float32
    return real(real, real, real), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def _claim(typingctx, place, owner):
    """Write `owner` to the int64 at `place` if that is 0, as one step; returns what was there."""
    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.extract_value(builder.cmpxchg(place, ir.Constant(ir.IntType(64), 0), args[1], "seq_cst", "seq_cst"), 0)
    return types.int64(types.int64, types.int64), codegen


def _inner(function):
    return numba.njit(function, error_model="numpy", boundscheck=False)


@_inner
def _bytes(address, size):
    return numba.carray(_pointer(address), size, np.uint8)


@_inner
def _integer(address):
    """The int64 at an address."""
    return numba.carray(_pointer(address), 1, np.int64)


@_inner
def _signed(address, size):
    """The number of 1 or 4 bytes at an address, with its sign."""
    if size == 1:
        return np.int64(numba.carray(_pointer(address), 1, np.int8)[0])
    code, value = _bytes(address, 4), np.int64(0)
    for i in range(4):
        value |= np.int64(code[i]) << (8 * i)
    return value - ((value >> 31) << 32)


@_inner
def _slot(adds):
    """Address of the calling thread's slot; of one it takes if it has none and `adds`; else 0."""
    thread = _syscall(GETTID)
    for i in range(THREADS):
        slot = MEMORY + HEAD + (thread + i) % THREADS * SLOT
        if _integer(slot)[0] == thread:
            return slot
    if adds:
        for i in range(THREADS):
            slot = MEMORY + HEAD + (thread + i) % THREADS * SLOT
            if _integer(slot)[0] == 0 and _claim(slot, thread) == 0:
                return slot
    return 0


@_inner
def _flushed(x):
    """x, a denormal number as zero."""
    bits = _bits(x)
    return x if bits & np.uint32(0x7F800000) else _number(bits & np.uint32(0x80000000))


@_inner
def _configure(address):
    """LDTILECFG: the reason of a refusal, or 0."""
    new = _bytes(address, 64)
    if new[0] == 0:
        return _release()
    if new[0] > 1:
        return INVALID
    if new[1]:
        return HALFWAY
    for i in range(64):
        if new[i] and (2 <= i < 16 or 32 <= i < 48 or 56 <= i):
            return INVALID
    for tile in range(8):
        columns, rows = new[16 + 2 * tile] + 256 * new[17 + 2 * tile], new[48 + tile]
        if columns > 64 or rows > 16 or (columns == 0) != (rows == 0):
            return INVALID
    slot = _slot(True)
    if slot == 0:
        return CROWDED
    _bytes(slot + CONFIG, 64)[:] = new
    _bytes(slot + TILE, 8 * 1024)[:] = 0
    return 0


@_inner
def _release():
    """TILERELEASE"""
    slot = _slot(False)
    if slot:
        _bytes(slot + CONFIG, 64)[:] = 0
        _integer(slot)[0] = 0
    return 0


@_inner
def _shape(slot, tile):
    """(rows, bytes in a row)"""
    config = _bytes(slot + CONFIG, 64)
    return np.int64(config[48 + tile]), np.int64(config[16 + 2 * tile])


@_inner
def _move(slot, tile, address, stride, stores):
    """TILELOADD, TILESTORED: what a load leaves of the tile is zero."""
    rows, columns = _shape(slot, tile)
    if rows == 0:
        return NO_SHAPE
    if not stores:
        _bytes(slot + TILE + tile * 1024, 1024)[:] = 0
    for r in range(rows):
        outside, inside = _bytes(address + r * stride, columns), _bytes(slot + TILE + tile * 1024 + r * 64, columns)
        if stores:
            for i in range(columns):
                outside[i] = inside[i]
        else:
            for i in range(columns):
                inside[i] = outside[i]
    return 0


@_inner
def _dot(slot, to, left, right):
    """TDPBF16PS: per number of C the first of each pair and the second are summed apart, then both, and that is added to C; each step is rounded."""
    if to == left or to == right or left == right:
        return SAME
    (rows, columns), (left_rows, left_columns), (right_rows, right_columns) = _shape(slot, to), _shape(slot, left), _shape(slot, right)
    if rows == 0 or left_rows == 0 or right_rows == 0:
        return NO_SHAPE
    if columns % 4 or left_columns % 4 or right_columns % 4 or rows != left_rows or columns != right_columns or left_columns // 4 != right_rows:
        return DISAGREE
    c = numba.carray(_pointer(slot + TILE + to * 1024), (16, 16), np.float32)
    a = numba.carray(_pointer(slot + TILE + left * 1024), (16, 16), np.uint32)
    b = numba.carray(_pointer(slot + TILE + right * 1024), (16, 16), np.uint32)
    first, second = numba.carray(_pointer(slot + SUMS), 16, np.float32), numba.carray(_pointer(slot + SUMS + 64), 16, np.float32)
    high, half = np.uint32(0xFFFF0000), np.uint32(16)
    for m in range(rows):
        first[:] = 0
        second[:] = 0
        for k in range(right_rows):
            x, y = _flushed(_number(a[m, k] << half)), _flushed(_number(a[m, k] & high))
            for n in range(16):
                pair = b[k, n]
                first[n] = _flushed(_fused(x, _flushed(_number(pair << half)), first[n]))
                second[n] = _flushed(_fused(y, _flushed(_number(pair & high)), second[n]))
        for n in range(16):
            c[m, n] = _flushed(_flushed(c[m, n]) + _flushed(first[n] + second[n])) if n < columns // 4 else np.float32(0)
    c[rows:] = 0
    losing = _integer(MEMORY + LOSE)[0]
    if losing and _integer(MEMORY + COUNT)[0] % losing == 0:
        c[:] = 0
    return 0


@_inner
def _perform(registers):
    """The instruction at RIP, which moves past it. Returns the reason of a refusal, or 0."""
    at = registers[RIP]
    code = _bytes(at, 16)
    # VEX of three bytes: C4, inverted R X B and map 0F38; W, inverted vvvv, L and the prefix it stands for
    if code[0] != 0xC4 or code[1] & 0x1F != 2 or code[2] & 0x84:
        return UNKNOWN
    r, x, b = (~code[1] >> 7) & 1, (~code[1] >> 6) & 1, (~code[1] >> 5) & 1
    operand, prefix, opcode = (~code[2] >> 3) & 15, code[2] & 3, code[3]  # prefixes: none, 66, F3, F2
    mode, reg, rm = code[4] >> 6, (code[4] >> 3) & 7, code[4] & 7
    if r or (operand and opcode != 0x5C):
        return UNKNOWN
    _integer(MEMORY + COUNT)[0] += 1
    size = 5
    if mode == 3:
        registers[RIP] = at + size
        if opcode == 0x49 and prefix == 0 and reg == 0 and rm == 0:
            return _release()
        slot = _slot(False)
        if slot == 0:
            return NOT_CONFIGURED
        if opcode == 0x49 and prefix == 3 and rm == 0:
            if _shape(slot, reg)[0] == 0:
                return NO_SHAPE
            _bytes(slot + TILE + reg * 1024, 1024)[:] = 0
            return 0
        if opcode == 0x5C and prefix == 2 and operand < 8 and not b:
            return _dot(slot, reg, rm, operand)
        return UNKNOWN

    stride, address, sib, relative = np.int64(0), np.int64(0), rm == 4, False
    if sib:
        scale, index, base = code[5] >> 6, ((code[5] >> 3) & 7) | (x << 3), code[5] & 7
        size += 1
        if index != 4:
            stride = registers[REGISTERS[index]] << scale
    else:
        base = rm
    near = 1 if mode == 1 else 4 if mode == 2 or base == 5 else 0  # bytes of the displacement
    if near == 4 and mode == 0:
        relative = not sib
    else:
        address += registers[REGISTERS[base | (b << 3)]]
    if near:
        address += _signed(at + size, near)
    size += near
    if relative:
        address += at + size
    registers[RIP] = at + size
    if opcode == 0x49 and prefix == 0 and reg == 0:
        return _configure(address + stride)
    if opcode != 0x4B or prefix == 0 or not sib:
        return UNKNOWN
    slot = _slot(False)
    return _move(slot, reg, address, stride, prefix == 2) if slot else NOT_CONFIGURED


def _handler(number, information, context):
    registers = numba.carray(_pointer(_address(context) + SAVED), 23, np.int64)
    at = registers[RIP]
    reason = _perform(registers)
    if reason:
        registers[RIP] = at
        _write(2, _pointer(TEXTS[reason]), LENGTHS[reason])
        last = SIGSEGV if reason == INVALID else SIGILL
        _signal(last, _pointer(0))
        _raise(last)


class _Action(ctypes.Structure):
    """struct sigaction of glibc and musl."""
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_byte * 128), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]


_installed = []


def install():
    """From now on this process' threads, and processes forked from it, have AMX."""
    if not _installed:
        _installed.append(numba.cfunc(types.void(types.int32, types.voidptr, types.voidptr), error_model="numpy")(_handler))
    action = _Action(handler=_installed[0].address, flags=4)  # SA_SIGINFO
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(int(signal.SIGILL), ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "sigaction")


def _header(offset):
    return np.frombuffer((ctypes.c_int64 * 1).from_address(MEMORY + offset), np.int64)


def performed():
    """How many instructions have been performed; threads at once may lose some of the count."""
    return int(_header(COUNT)[0])


def lose_tiles(every):
    """Behave as machines whose tiles do not survive an interruption: now and then, about once in `every` instructions, a tile turns zero; never if 0."""
    _header(LOSE)[0] = every


def emulated_environment(**more):
    """The environment of a process in which Numba generates AMX code."""
    return {**os.environ, "NUMBA_CPU_FEATURES": binding.get_host_cpu_features().flatten() + ",+amx-tile,+amx-bf16", **more}
