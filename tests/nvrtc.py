"""NVRTC through ctypes: compiles CUDA source for a given architecture without CuPy, a driver or a GPU.

It needs the package nvidia-cuda-nvrtc-cu12.
"""

import ctypes
import functools
import glob
import hashlib
import importlib.util
import os
import re

from slm_np.paths import cache_dir

REGISTERS = 65536  # per multiprocessor


@functools.cache
def library():
    """The library, or None if it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for name in ("lib/libnvrtc.so.*", "bin/nvrtc64*.dll"):
            for path in glob.glob(os.path.join(folder, "cuda_nvrtc", *name.split("/"))):
                if ".alt" not in path:
                    return ctypes.CDLL(path)
    return None


def compile(code, architecture, options=()):
    """(cubin, NVRTC's log), compiled with CuPy's options. Raises ValueError with the log if the source is not valid.

    A cubin is machine code, so the assembler has accepted it too.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    options = [
        option.encode()
        for option in (
            *options,
            f"--gpu-architecture={architecture}",
            "-ftz=true",
            "--device-as-default-execution-space",
        )
    ]
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None) == 0
    try:
        failed, size = (
            nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)),
            ctypes.c_size_t(),
        )
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if failed:
            raise ValueError(f"{architecture}: {log.value.decode()}")
        assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
        cubin = ctypes.create_string_buffer(size.value)
        assert nvrtc.nvrtcGetCUBIN(program, cubin) == 0
        return cubin.raw, log.value.decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def check(kernel, types, architecture):
    """Compile one variant of a `Kernel`. Raises ValueError if that fails, or if a block's threads need too many
    registers to be launched.

    A cache remembers which sources have compiled.
    """
    from slm_np.kernels.gpu.source import OPTIONS

    code, version = kernel.code(**types), (ctypes.c_int * 2)()
    library().nvrtcVersion(ctypes.byref(version), ctypes.byref(version, 4))
    key = f"{tuple(version)} {architecture} {OPTIONS} {kernel.threads} {code}"
    done = cache_dir() / "nvrtc" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not done.exists():
        try:
            cubin, log = compile(code, architecture, (*OPTIONS, "--ptxas-options=-v"))
            assert kernel.name.encode() in cubin
        except ValueError as error:
            raise ValueError(f"{kernel.name} of {types} for {error}") from None
        registers = int(re.search(r"Used (\d+) registers", log)[1])
        if -(-registers // 8) * 8 * kernel.threads > REGISTERS:  # allocated in units of eight
            raise ValueError(
                f"{kernel.name} of {types} for {architecture}: "
                f"{kernel.threads} threads of {registers} registers do not fit into a multiprocessor"
            )
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
