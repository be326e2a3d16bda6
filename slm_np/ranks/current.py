"""The World of this process: alone, or one of the ranks that a launcher of MPI has started."""

import functools
import os

from slm_np.ranks.world import ALONE

# Variables that a launcher of MPI sets in each process that it starts.
STARTED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


@functools.cache
def world():
    """The World of this process. UserError if a launcher has started it, but mpi4py is missing or of another MPI."""
    slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1
    if not slurm and not any(name in os.environ for name in STARTED):
        return ALONE
    from slm_np.ranks.mpi import MpiWorld

    return MpiWorld()
