"""Compiled kernels on disk: one file for each kernel and its argument types, with a checksum.

The folder's name is a hash of everything that determines the machine code: the sources of all kernels, the versions of
Numba, LLVM, NumPy and Python, the instruction set. It contains no path and no time, so clones, virtual environments
and installed packages of one version share it. A file appears under its name only when it is complete. A damaged one
counts as missing.
"""

import contextlib
import hashlib
import os
import pickle
import platform
import sys
import tempfile
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core import serialize
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult

from slm_np import dtypes
from slm_np.paths import cache_dir, cache_path

from .processor import FEATURES, compiled_name

CHECKSUM_BYTES = 32


def folder_name():
    """The name of the folder: the first 16 digits of the hash."""
    versions = numba.__version__, llvmlite.__version__, np.__version__, sys.implementation.cache_tag
    machine = sys.platform, platform.machine(), compiled_name(), sorted(FEATURES.items())
    digest = hashlib.sha256(repr((versions, machine)).encode())
    for source in [*sorted(Path(__file__).parent.glob("*.py"), key=lambda path: path.name), Path(dtypes.__file__)]:
        digest.update(source.name.encode() + source.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


FOLDER = Path("kernels") / folder_name()  # within the cache folder


def readable_folder():
    """Where compiled kernels are read from, which may be a folder that this user cannot write, or does not exist."""
    return cache_path() / FOLDER


def writable_folder():
    """Where compiled kernels are written to, created if needed. Raises OSError if that fails."""
    folder = cache_dir() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class KernelCache(NullCache):
    """What Numba asks for the compiled forms of one function before it compiles, and gives them to afterwards."""

    def __init__(self, name, variant=""):
        """name: of the function, unique among all.   variant: of the code that is generated for it, such as "amx"."""
        self.name, self.variant = name, variant

    def file_name(self, types):
        """The name of the file for a tuple of argument types."""
        key = hashlib.sha256(f"{self.variant} {self.name} {types}".encode()).hexdigest()
        return f"{self.name.rpartition('.')[2].strip('_')}-{key[:16]}"

    def stored(self, types):
        """The content of the file, without its checksum, or None if it is missing or damaged."""
        name = self.file_name(types)
        return read_file(readable_folder() / name) or read_file(cache_dir() / FOLDER / name)

    def load_overload(self, sig, target_context):
        content = self.stored(sig)
        if content is None:
            return None
        target_context.refresh()
        return CompileResult._rebuild(target_context, *pickle.loads(content))

    def save_overload(self, sig, data):
        content = serialize.dumps(data._reduce())
        with contextlib.suppress(OSError):  # a kernel that cannot be stored still runs
            replace_file(writable_folder() / self.file_name(sig), hashlib.sha256(content).digest() + content)


def read_file(path):
    """The content of a file without its checksum, or None if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, content = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    return content if hashlib.sha256(content).digest() == checksum else None


def replace_file(path, content):
    """Write a file that appears under its name only when it is complete."""
    handle, part = tempfile.mkstemp(prefix=path.name[:12] + "-", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)  # mkstemp's files are private, but another user may read this cache
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
