"""The instruction set that kernels are compiled for: this processor's, unless an environment variable sets another.

`SLM_NP_CPU=avx2` compiles for any x86-64 processor since 2013 (x86-64-v3: AVX2 and FMA). A machine with AVX-512 then
runs the same code as a machine with AVX2, with the same bits. Numba's own variables NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES select other instruction sets.

This module changes Numba's settings, so it must be imported before Numba compiles anything.
"""

import os

import numba
from llvmlite import binding

from slm_np.errors import UserError

X86_64_V3 = (
    "64bit avx avx2 bmi bmi2 cmov crc32 cx16 cx8 f16c fma fxsr lzcnt mmx movbe popcnt sahf "
    "sse sse2 sse3 sse4.1 sse4.2 ssse3 xsave"
).split()


def compiled_features():
    """{LLVM's name of a feature: whether Numba generates code that uses it}"""
    chosen = numba.config.CPU_FEATURES
    if chosen is None:
        return binding.get_host_cpu_features()
    return {feature[1:]: feature[0] == "+" for feature in chosen.split(",") if feature}


def compiled_name():
    """LLVM's name of the processor that Numba compiles for."""
    return numba.config.CPU_NAME or binding.get_host_cpu_name()


def choose_instruction_set():
    """Apply SLM_NP_CPU to Numba's settings. Raises UserError if its value is unknown or this processor lacks AVX2."""
    choice, host = os.environ.get("SLM_NP_CPU", ""), binding.get_host_cpu_features()
    if choice == "avx2":
        if not (host.get("avx2") and host.get("fma")):
            raise UserError("SLM_NP_CPU=avx2 needs a processor with AVX2 and FMA; unset SLM_NP_CPU")
        numba.config.CPU_NAME = "x86-64-v3"
        numba.config.CPU_FEATURES = ",".join(f"+{feature}" for feature in X86_64_V3)
    elif choice:
        raise UserError(f"SLM_NP_CPU={choice} is unknown; set SLM_NP_CPU=avx2 or unset it")
    elif numba.config.CPU_FEATURES is None and host.get("amx-tile"):
        # By default, LLVM uses 256-bit vectors on Intel's processors, because the first ones with AVX-512 lowered their
        # clock for 512-bit vectors. Processors with AMX do not.
        numba.config.CPU_FEATURES = host.flatten() + ",-prefer-256-bit"


choose_instruction_set()
FEATURES = compiled_features()
