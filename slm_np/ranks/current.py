"""The World of this process: alone, or one of the ranks that a launcher of MPI has started."""

import functools
import os

from slm_np.ranks.world import ALONE

# Variables that a launcher of MPI sets in each process that it starts.
STARTED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


@functools.cache
def world():
    """The World of this process. UserError if a launcher has started it, but mpi4py is missing or of another MPI."""
    slurm = int(os.environ.get("SLURM_NTASKS") or 1) == 1 and "SLURM_PROCID" in os.environ
    if not any(name in os.environ for name in STARTED) or slurm:
        return ALONE
    from slm_np.ranks.mpi import MpiWorld

    return MpiWorld()
