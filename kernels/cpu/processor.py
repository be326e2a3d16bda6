"""The instruction set that kernels are compiled for: this processor's, or the one that Numba is told to use.

`SLM_NP_CPU=avx2` compiles for any x86-64 processor since 2013 (x86-64-v3: AVX2 and FMA), so that a machine with AVX-512 runs what
an AVX2 machine runs, bit for bit. Numba's own variables NUMBA_CPU_NAME and NUMBA_CPU_FEATURES choose other instruction sets.
OpenBLAS chooses its kernels by itself; OPENBLAS_CORETYPE=Haswell makes it use those for AVX2.

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
    """{feature: whether Numba generates code with it}, in LLVM's names."""
    chosen = numba.config.CPU_FEATURES
    if chosen is None:
        return binding.get_host_cpu_features()
    return {feature[1:]: feature[0] == "+" for feature in chosen.split(",") if feature}


def compiled_name():
    """LLVM's name of the processor that Numba generates code for."""
    return numba.config.CPU_NAME or binding.get_host_cpu_name()


def choose_instruction_set():
    """Apply SLM_NP_CPU to Numba's settings. Raises UserError for a value that is unknown or needs another processor."""
    asked, host = os.environ.get("SLM_NP_CPU", ""), binding.get_host_cpu_features()
    if asked == "avx2":
        if not (host.get("avx2") and host.get("fma")):
            raise UserError("SLM_NP_CPU=avx2 needs a processor with AVX2 and FMA; unset SLM_NP_CPU")
        numba.config.CPU_NAME = "x86-64-v3"
        numba.config.CPU_FEATURES = ",".join(f"+{feature}" for feature in X86_64_V3)
    elif asked:
        raise UserError(f"SLM_NP_CPU={asked} is unknown; set SLM_NP_CPU=avx2 or unset it")
    elif numba.config.CPU_FEATURES is None and host.get("amx-tile"):
        # LLVM uses half of a 512-bit register on Intel's processors, because the first ones that had such registers lowered
        # their clock for whole ones. Processors with AMX do not.
        numba.config.CPU_FEATURES = host.flatten() + ",-prefer-256-bit"


choose_instruction_set()
FEATURES = compiled_features()
