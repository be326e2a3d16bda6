"""Ranks that are threads of this process: the exchange of `MpiWorld` over a communicator in memory."""

import threading
from types import SimpleNamespace

import numpy as np

from slm_np.ranks.mpi import MpiWorld

MPI = SimpleNamespace(UINT16_T=np.uint16, FLOAT=np.float32, DOUBLE=np.float64)
DONE = SimpleNamespace(Test=lambda: True)


class Communicator:
    """What `MpiWorld` uses of an MPI communicator while training, for one of several threads.

    shared: list with one element per rank.   barrier: threading.Barrier of all
    """

    def __init__(self, rank, shared, barrier):
        self.rank, self.size, self.shared, self.barrier = rank, len(shared), shared, barrier

    def exchange(self, value):
        """The values of all ranks, in the order of the ranks."""
        self.shared[self.rank] = value
        self.barrier.wait(10)
        found = list(self.shared)
        self.barrier.wait(10)
        return found

    def Ialltoallv(self, sent, received):
        (out, (counts, starts), unit), (target, (sizes, places), _) = sent, received
        assert out.dtype == target.dtype == unit
        own = [out[start : start + count].copy() for start, count in zip(starts, counts)]
        for values, size, place in zip(self.exchange(own), sizes, places):
            assert len(values[self.rank]) == size
            target.ravel()[place : place + size] = values[self.rank]
        return DONE

    def Iallgatherv(self, sent, received):
        (chunk, n, unit), (target, (counts, starts), _) = sent, received
        assert len(chunk) == n and chunk.dtype == target.dtype == unit
        for values, count, start in zip(self.exchange(chunk.copy()), counts, starts):
            assert len(values) == count
            target[start : start + count] = values
        return DONE

    def Iallgather(self, values, found):
        found.ravel()[:] = np.concatenate([x.ravel() for x in self.exchange(values.copy())])
        return DONE

    def Iallreduce(self, values, total):
        total[...] = sum(self.exchange(values.copy()))
        return DONE


def in_ranks(n, function):
    """[function(world) of each of n ranks], each in a thread of its own."""
    shared, barrier, found = [None] * n, threading.Barrier(n), [None] * n

    def run(rank):
        world = MpiWorld.__new__(MpiWorld)  # without an MPI
        world.MPI, world.comm, world.rank, world.size = MPI, Communicator(rank, shared, barrier), rank, n
        world.sent, world.waited = 0, 0.0
        try:
            found[rank] = function(world)
        except BaseException as error:
            barrier.abort()
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [value for value in found if isinstance(value, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return found
