"""The instruction set that kernels are compiled for: this processor's, unless an environment variable sets another.

`SLM_NP_CPU=avx2` compiles for any x86-64 processor since 2013 (x86-64-v3: AVX2 and FMA). A machine with AVX-512 then
runs the same code as a machine with AVX2, with the same bits. Numba's own variables NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES select other instruction sets.

Numba's settings stay as they are, for the user's own functions: kernels are compiled for a target of their own.
"""

import functools
import os

import numba
from llvmlite import binding
from numba.core.codegen import JITCPUCodegen
from numba.core.registry import CPUTarget, cpu_target

from slm_np.errors import UserError

X86_64_V3 = (
    "64bit avx avx2 bmi bmi2 cmov crc32 cx16 cx8 f16c fma fxsr lzcnt mmx movbe popcnt sahf "
    "sse sse2 sse3 sse4.1 sse4.2 ssse3 xsave"
).split()


def chosen_instruction_set():
    """(LLVM's name of a processor, its features as LLVM spells them) where kernels need others than Numba's, else None.

    Raises UserError if SLM_NP_CPU is unknown, or if this processor lacks AVX2.
    """
    choice, host = os.environ.get("SLM_NP_CPU", ""), binding.get_host_cpu_features()
    if choice == "avx2":
        if not (host.get("avx2") and host.get("fma")):
            raise UserError("SLM_NP_CPU=avx2 needs a processor with AVX2 and FMA; unset SLM_NP_CPU")
        return "x86-64-v3", ",".join(f"+{feature}" for feature in X86_64_V3)
    if choice:
        raise UserError(f"SLM_NP_CPU={choice} is unknown; set SLM_NP_CPU=avx2 or unset it")
    if numba.config.CPU_FEATURES is None and host.get("amx-tile"):
        # By default, LLVM uses 256-bit vectors on Intel's processors, because the first ones with AVX-512 lowered their
        # clock for 512-bit vectors. Processors with AMX do not.
        return numba.config.CPU_NAME or binding.get_host_cpu_name(), host.flatten() + ",-prefer-256-bit"
    return None


def compiled_features():
    """{LLVM's name of a feature: whether code is generated that uses it}"""
    chosen = CHOSEN[1] if CHOSEN else numba.config.CPU_FEATURES
    if chosen is None:
        return binding.get_host_cpu_features()
    return {feature[1:]: feature[0] == "+" for feature in chosen.split(",") if feature}


def compiled_name():
    """LLVM's name of the processor that kernels are compiled for."""
    return (CHOSEN[0] if CHOSEN else numba.config.CPU_NAME) or binding.get_host_cpu_name()


class KernelCodegen(JITCPUCodegen):
    """Numba's code generator for the chosen instruction set."""

    def _get_host_cpu_name(self):
        return CHOSEN[0]

    def _get_host_cpu_features(self):
        return CHOSEN[1]


class KernelTarget(CPUTarget):
    """Numba's target for CPUs, with a `KernelCodegen`. Types are those of Numba's own target."""

    @functools.cached_property
    def target_context(self):
        return cpu_target.target_context.subtarget(_internal_codegen=KernelCodegen("slm_np"))

    @property
    def typing_context(self):
        return cpu_target.typing_context


def for_this_processor(compiled):
    """A function of `numba.njit`, which is compiled for the chosen instruction set instead of Numba's."""
    if CHOSEN:
        compiled.targetdescr = compiled._compiler.targetdescr = TARGET
        compiled.targetctx = TARGET.target_context
    return compiled


CHOSEN = chosen_instruction_set()
TARGET = KernelTarget("cpu")
FEATURES = compiled_features()
