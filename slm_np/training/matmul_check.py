"""In training, one matmul on AMX tiles is checked every few updates. A wrong one stops the run before the update."""

from slm_np.ops.device import kernels_of

INTERVAL = 50  # updates between two checks
MATMULS = 16  # the index of the checked matmul within its update cycles through the first of them


class WrongMatmul(Exception):
    """A matmul on AMX tiles gave a wrong result."""


def kernels_to_check(array, update):
    """The kernel set of `array` if it may use AMX and a check is due in `update`, else None."""
    kernels = kernels_of(array)
    return kernels if update % INTERVAL == 0 and hasattr(kernels, "watch_matmul") else None


def watch_matmul(array, update):
    """Call before the gradient of `update`: in every INTERVAL-th one the kernels check one of the matmuls that follow.

    array: any array of the model, which determines the kernel set. Without AMX nothing is checked.
    """
    if kernels := kernels_to_check(array, update):
        kernels.watch_matmul(update // INTERVAL % MATMULS)


def check_watched_matmul(array, update):
    """Call after the gradient of `update`. Raises WrongMatmul if the watched matmul is wrong."""
    kernels = kernels_to_check(array, update)
    error = kernels.watched_error() if kernels else 0.0
    if error > 1:
        raise WrongMatmul(
            f"a matmul of update {update} is wrong by {error:.3g} times the rounding error that is possible"
        )
