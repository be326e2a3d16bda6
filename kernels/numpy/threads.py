"""The threads of NumPy's BLAS, the only ones of this kernel set: everything except matmuls runs on one thread."""

import functools
from pathlib import Path

from threadpoolctl import ThreadpoolController

from slm_np.errors import UserError
from slm_np.machine import available_cores
from slm_np.words import counted

NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}


@functools.cache
def blas_controller():
    """Controller of the BLAS in NumPy's wheel, and of no other package's; without one, of the system's."""
    blas = ThreadpoolController().select(user_api="blas")
    bundled = [lib.filepath for lib in blas.lib_controllers if "numpy" in "".join(Path(lib.filepath).parts[-3:-1])]
    return blas.select(filepath=bundled) if bundled else blas


def use_threads(threads=0):
    """Set the threads of a matmul, 0 for one per available core; returns them. Raises UserError above the cores."""
    cores = available_cores()
    if threads > cores:
        raise UserError(f"--threads {threads} exceeds the {counted(cores, 'available core')}; give at most {cores}")
    blas_controller().limit(limits=threads or cores)
    return threads or cores


def enter_thread():
    """Nothing: the number of BLAS' threads is one for all Python threads, and holds after a fork."""


def thread_count():
    """Threads of a matmul, or the available cores if the BLAS does not tell."""
    return max((lib.num_threads for lib in blas_controller().lib_controllers), default=available_cores())


def matmul_name():
    """The BLAS behind the matmuls, such as 'NumPy with OpenBLAS 0.3.30 (SkylakeX)'."""
    found = [lib.info() for lib in blas_controller().lib_controllers]
    if not found:
        return "NumPy with the system's BLAS"
    blas = found[0]
    name = NAMES.get(blas["internal_api"], blas["internal_api"])
    return f"NumPy with {name} {blas['version']} ({blas.get('architecture', 'unknown')})"
