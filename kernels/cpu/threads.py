"""The number of threads that kernels use, and the name of the BLAS library."""

import numba

from slm_np.errors import UserError


def use_threads(threads=0):
    """Set the number of threads; 0 means one per core. Returns the number. Raises UserError if it exceeds the cores."""
    cores = numba.config.NUMBA_NUM_THREADS
    if threads > cores:
        raise UserError(
            f"--threads {threads} exceeds the {cores} cores that this process may use; "
            f"give at most {cores}, or set NUMBA_NUM_THREADS"
        )
    numba.set_num_threads(threads or cores)
    return threads or cores


def thread_count():
    """The number of threads that kernels use."""
    return numba.get_num_threads()


def matmul_name():
    """The name of the BLAS library that the kernels call, such as 'OpenBLAS 0.3.30 (SkylakeX)'."""
    import scipy.linalg.cython_blas  # noqa: F401  loads the library
    from threadpoolctl import threadpool_info

    known = [info for info in threadpool_info() if info["user_api"] == "blas"]
    ours = [
        info
        for info in known
        if "scipy.libs" in info["filepath"] or "scipy" in info["filepath"].replace("\\", "/").split("/")[-3:]
    ] or known
    if not ours:
        return "the system's BLAS"
    names = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}
    api, version = ours[0]["internal_api"], ours[0].get("version") or ""
    return f"{names.get(api, api)} {version} ({ours[0].get('architecture', 'unknown')})"
