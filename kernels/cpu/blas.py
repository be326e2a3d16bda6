"""BLAS's gemm inside compiled loops, on blocks of row-major arrays.

Only Apple's processors multiply through BLAS: Accelerate, a part of macOS, uses their matrix unit, which is several
times as fast as register tiles. The routines are called by names of our own, so that compiled kernels can be cached.
They must be bound to a library before a kernel that calls them is loaded.
"""

import ctypes
import platform
import sys

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .pointer import element_pointer

ROUTINES = {types.float32: "slm_np_sgemm", types.float64: "slm_np_dgemm"}
ACCELERATE = "/System/Library/Frameworks/Accelerate.framework/Accelerate"
ON_APPLE = sys.platform == "darwin" and platform.machine() == "arm64"


def bind(library, names):
    """Let kernels call the gemm of a BLAS library. names: its Fortran routines for float32 and float64"""
    routines = ctypes.CDLL(library)
    for routine, name in zip(ROUTINES.values(), names, strict=True):
        binding.add_symbol(routine, ctypes.cast(getattr(routines, name), ctypes.c_void_p).value)


@intrinsic
def gemm(
    typingctx,
    transpose_a,
    transpose_b,
    m,
    n,
    k,
    alpha,
    a,
    a_offset,
    lda,
    b,
    b_offset,
    ldb,
    beta,
    c,
    c_offset,
    ldc,
):
    """C = alpha op(A) op(B) + beta C on blocks of row-major arrays: C (m, n), op(A) (m, k), op(B) (k, n).

    A block starts `offset` elements into its array, and its rows are `ld` elements apart. op transposes if its flag is
    not 0. BLAS is column-major, so it computes the transpose: C^T = op(B)^T op(A)^T.
    """
    real = c.dtype
    if not (a.dtype == b.dtype == real) or real not in ROUTINES:
        return None

    def codegen(context, builder, signature, args):
        ta, tb, m, n, k, alpha, a, a_offset, lda, b, b_offset, ldb, beta, c, c_offset, ldc = args
        kinds = signature.args
        byte, word, element = ir.IntType(8), ir.IntType(64), context.get_value_type(real)

        def slot(value, kind):
            """Fortran takes its arguments by reference."""
            pointer = cgutils.alloca_once(builder, kind)
            builder.store(value, pointer)
            return pointer

        def letter(flag):
            chosen = builder.icmp_signed("!=", flag, ir.Constant(flag.type, 0))
            return slot(builder.select(chosen, ir.Constant(byte, ord("T")), ir.Constant(byte, ord("N"))), byte)

        def integer(value):
            """64 bits, which a library with integers of 32 bits reads too: the low half comes first."""
            return slot(value, word)

        pointers = [
            letter(tb),
            letter(ta),
            integer(n),
            integer(m),
            integer(k),
            slot(alpha, element),
            element_pointer(context, builder, kinds[9], b, b_offset),
            integer(ldb),
            element_pointer(context, builder, kinds[6], a, a_offset),
            integer(lda),
            slot(beta, element),
            element_pointer(context, builder, kinds[13], c, c_offset),
            integer(ldc),
        ]
        shape = ir.FunctionType(ir.VoidType(), [p.type for p in pointers])
        builder.call(cgutils.get_or_insert_function(builder.module, shape, ROUTINES[real]), pointers)
        return context.get_dummy_value()

    i = types.intp
    return types.void(
        i,
        i,
        i,
        i,
        i,
        real,
        a,
        i,
        i,
        b,
        i,
        i,
        real,
        c,
        i,
        i,
    ), codegen
