"""In training, one matmul on AMX tiles is checked every few updates; a wrong one stops the run before the update."""

import contextlib

from slm_np.ops.device import kernels_of

INTERVAL = 50  # updates between two checks
MATMULS = 16  # the index of the checked matmul within its update cycles through the first of them


class WrongMatmul(Exception):
    """A matmul on AMX tiles gave a wrong result."""


@contextlib.contextmanager
def checked_matmul(array, update):
    """Check one of the matmuls made inside, in every INTERVAL-th update. Raises WrongMatmul if its result is wrong.

    array: any array of the model, from which the kernel set follows. Without AMX nothing is checked.
    """
    if update % INTERVAL:
        yield
        return
    kernels = kernels_of(array)
    kernels.watch_matmul(update // INTERVAL % MATMULS)
    yield
    error = kernels.watched_error()
    if error > 1:
        raise WrongMatmul(
            f"a matmul of update {update} is wrong by {error:.3g} times the rounding error that is possible"
        )
