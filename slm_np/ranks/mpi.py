"""The processes that MPI connects, through mpi4py."""

import contextlib
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np

from slm_np.errors import UserError, explained, imported
from slm_np.ranks.compression import bfloat16_bits, from_bfloat16_bits, round_bfloat16
from slm_np.ranks.world import LOST, PIDS, RUN_NAME, World
from slm_np.words import counted

INSTALL = "slm_np[mpi]"
HEARTBEAT_TIMEOUT = 15.0  # seconds without a heartbeat after which a rank counts as lost
HEARTBEAT_INTERVAL = 1.0  # seconds between heartbeats
PATIENCE = 2.0  # seconds within which ranks that fail for the same reason do so
CONTRIBUTION, RESULT = 1, 2  # tags of messages
DRAIN = 0.2  # seconds that mpiexec gets to pass on what was printed, before it ends
REST = 0.02  # seconds between looks while a rank has nothing left to do


class RankLost(Exception):
    """A rank sends no heartbeats."""


class MpiWorld(World):
    """The World of MPI's COMM_WORLD. UserError if MPI was started in a way that cannot work."""

    def __init__(self):
        mpi4py = imported("mpi4py", "a run of several ranks", INSTALL)
        mpi4py.rc.thread_level = "multiple"  # heartbeats are sent by a thread of their own
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"mpi4py finds no MPI library ({str(error).splitlines()[0]}); run pip install mpich, or load your "
                "cluster's MPI"
            ) from None
        self.MPI, self.comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.sent, self.waited, self.apart = 0, 0.0, False
        names = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")  # the nearest launcher first
        wanted = next((int(os.environ[name]) for name in names if os.environ.get(name)), 1)
        if self.size == 1 and wanted > 1:
            raise UserError(
                f"{wanted} processes were started, but each is alone in its MPI, {self.library()}; start them by the "
                "mpiexec of that MPI, or install mpi4py for the MPI that started them"
            )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise UserError(
                f"{self.library()} does not allow calls from several threads; use an MPI with MPI_THREAD_MULTIPLE, or "
                "run pip install mpich"
            )
        on_node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.on_node, self.cores = on_node.size, cores()
        self.sharing = sum(not self.cores.isdisjoint(theirs) for theirs in on_node.allgather(self.cores))
        self.name = f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})"
        self.names = self.comm.allgather(self.name)
        self.errors = self.comm.Dup()  # for ranks that fail
        self.heartbeat = Heartbeat(self.comm.Dup(), MPI)
        self.stderr = sys.stderr
        if PIDS in os.environ:
            note(self.rank, os.getpid())
        if self.rank:  # only rank 0 prints
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")

    def library(self):
        """The name of the MPI library and its version."""
        lines = self.MPI.Get_library_version().replace("\0", "").split("\n")
        return " ".join(lines[0].partition(",")[0].replace("Version:", "").split())

    def __str__(self):
        hosts = len({name.rpartition(" on ")[2] for name in self.names})
        return f"{self.size} ranks on {hosts} machine{'s' * (hosts > 1)}, {self.library()}"

    def check_threads(self, threads):
        if threads > len(self.cores):
            raise UserError(
                f"--threads {threads} is more than the {counted(len(self.cores), 'core')} that {self.name} is bound "
                "to; start the ranks without binding (mpiexec --bind-to none), or lower --threads"
            )
        return threads or max(1, len(self.cores) // self.sharing)

    def note_run(self, directory):
        if PIDS in os.environ:
            note(RUN_NAME, directory)

    def wait(self, request):
        """Wait for a request. RankLost if another rank has sent no heartbeat for HEARTBEAT_TIMEOUT seconds."""
        started, tries = time.perf_counter(), 0
        while not request.Test():
            tries += 1
            yield_core()
            if tries % 4096 == 0:
                self.check_heartbeats()
        self.waited += time.perf_counter() - started

    # Python objects and arrays, before training

    def on_rank_0(self, function):
        result = error = None
        if self.rank == 0:
            try:
                result = function()
            except UserError as raised:
                error = raised
        result, error = self._broadcast((result, error))
        if error is not None:
            raise error
        return result

    def rank_0_first(self, function):
        result = None

        def keep():
            nonlocal result
            result = function()

        self.on_rank_0(keep)
        if self.rank:
            result = function()
        return result

    def _broadcast(self, value):
        """The picklable value of rank 0."""
        content = np.frombuffer(pickle.dumps(value), np.uint8) if self.rank == 0 else None
        length = np.array([0 if content is None else len(content)], np.int64)
        self.wait_long(self.comm.Ibcast(length))
        if content is None:
            content = np.empty(int(length[0]), np.uint8)
        else:
            content = content.copy()
        self.wait(self.comm.Ibcast(content))
        return value if self.rank == 0 else pickle.loads(content.tobytes())

    def check_heartbeats(self):
        """RankLost if a rank that this one needs has sent no heartbeat. With rounds that is rank 0."""
        if not self.apart or self.rank:
            self.heartbeat.check(self.names, [0] if self.apart else None)

    def wait_long(self, request):
        """`wait` without occupying a core, for instance while rank 0 tokenizes."""
        for _ in range(1000):
            if request.Test():
                return
            yield_core()
        while not request.Test():
            time.sleep(REST)
            self.check_heartbeats()

    def broadcast(self, arrays):
        for array in arrays:
            self.wait(self.comm.Ibcast(array))

    def check_same(self, values):
        content = pickle.dumps(values)
        lengths = self.all_gather(np.array([float(len(content))])).astype(int)
        padded = np.zeros(lengths.max(), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        found = np.empty((self.size, len(padded)), np.uint8)
        self.wait(self.comm.Iallgather(padded, found))
        first, *others = (pickle.loads(row.tobytes()) for row in found)
        for name, theirs in zip(self.names[1:], others):
            for what, value in theirs.items():
                if value != first[what]:
                    raise UserError(
                        f"{name} has another {what} than rank 0 ({value}, not {first[what]}); all ranks need the same"
                    )

    # Numbers and gradients, in every update

    def clock(self):
        now = np.array([time.perf_counter()])
        self.wait(self.comm.Ibcast(now))
        return float(now[0])

    def all_gather(self, values):
        found = np.empty(self.size * len(values))
        self.wait(self.comm.Iallgather(np.ascontiguousarray(values, np.float64), found))
        self.sent += (self.size - 1) * 8 * len(values)
        return found

    def all_reduce(self, values):
        total = np.empty_like(values)
        self.wait(self.comm.Iallreduce(values, total))
        values[...] = total

    def max_over_ranks(self, value):
        return int(self.all_gather(np.array([float(value)])).max())

    def reduce(self, buffer, add, rounded):
        edges = [len(buffer) * i // self.size for i in range(self.size + 1)]
        counts, starts = [stop - start for start, stop in zip(edges, edges[1:])], edges[:-1]
        own = counts[self.rank]
        outgoing = bfloat16_bits(buffer) if rounded else buffer
        received = np.empty((self.size, own), outgoing.dtype)
        unit = {2: self.MPI.UINT16_T, 4: self.MPI.FLOAT, 8: self.MPI.DOUBLE}[outgoing.itemsize]
        everywhere = [own] * self.size, [own * i for i in range(self.size)]
        self.wait(self.comm.Ialltoallv([outgoing, (counts, starts), unit], [received, everywhere, unit]))
        parts = from_bfloat16_bits(received) if rounded else received
        while len(parts) > 1:
            for i in range(0, len(parts), 2):
                add(parts[i], parts[i + 1])
                if rounded:
                    round_bfloat16(parts[i])
            parts = parts[::2]
        chunk = bfloat16_bits(parts[0]) if rounded else parts[0]
        self.wait(self.comm.Iallgatherv([chunk, own, unit], [outgoing, (counts, starts), unit]))
        if rounded:
            buffer[:] = from_bfloat16_bits(outgoing)
        self.sent += (len(buffer) - own + (self.size - 1) * own) * outgoing.itemsize

    # Rounds, see rounds.py

    def contribution_of(self, rank):
        """(Round, bytes of the weights) that a rank has sent; None if there is nothing."""
        return self._arrived(rank, CONTRIBUTION, 1)

    def send_contribution(self, number, content):
        """Send rank 0 the content of a round."""
        self._send(0, CONTRIBUTION, [number], content)

    def send_result(self, rank, number, updates, content, whole=False):
        """Send a rank the round, the updates of rank 0, and the content: `whole` weights or their change."""
        self._send(rank, RESULT, [number, updates, int(whole)], content)

    def receive_result(self):
        """What rank 0 has sent: (round, updates, whether the weights are whole, content)."""
        started = time.perf_counter()
        while (found := self._arrived(0, RESULT, 3)) is None:
            self.rest()
        self.waited += time.perf_counter() - started
        return found

    def rest(self):
        """Wait a moment. RankLost if rank 0 has sent no heartbeat."""
        time.sleep(0.001)
        self.check_heartbeats()

    def _send(self, rank, tag, header, content):
        whole = np.concatenate([np.array(header, np.int64).view(np.uint8), content.view(np.uint8)])
        self.sent += len(whole)
        started = time.perf_counter()
        request = self.comm.Isend(whole, rank, tag)
        self._finish(request, rank)
        self.waited += time.perf_counter() - started

    def _finish(self, request, rank):
        """Wait for a message to or from a rank. RankLost if it has sent no heartbeat."""
        while not request.Test():
            time.sleep(0.001)
            self.heartbeat.check(self.names, [rank])

    def _arrived(self, rank, tag, n):
        """(n integers, ..., the bytes after them) of the next message; None if there is none yet."""
        status = self.MPI.Status()
        if not self.comm.Iprobe(rank, tag, status):
            return None
        whole = np.empty(status.Get_count(self.MPI.BYTE), np.uint8)
        self._finish(self.comm.Irecv(whole, rank, tag), rank)
        header, content = np.split(whole, [8 * n])
        return *header.view(np.int64).tolist(), content

    # The end

    @contextlib.contextmanager
    def ending(self):
        """If all ranks fail, rank 0 says why. If some do, the first says why and ends the others."""
        try:
            yield
            end, deadline = self.comm.Ibarrier(), time.monotonic() + PATIENCE
            while self.apart and self.rank == 0 and not end.Test():
                time.sleep(0.001)
                if time.monotonic() > deadline:
                    self.abort(0)  # a rank is still in an earlier round, whose result nobody needs
            self.wait_long(end)
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            self.heartbeat.stop()

    def fail(self, error):
        """Return if all ranks fail within PATIENCE seconds. Otherwise print the error and end all."""
        if not isinstance(error, RankLost):
            stopped = isinstance(error, SystemExit) and not self.apart  # all stop together; rank 0 may be saving
            request, deadline = self.errors.Ibarrier(), time.monotonic() + PATIENCE
            while not (done := request.Test()) and (stopped or time.monotonic() < deadline):
                time.sleep(0.001)
                self.check_heartbeats()
            if done:
                return
        if isinstance(error, SystemExit):
            status, text = error.code if isinstance(error.code, int) else 1, ""
        elif isinstance(error, RankLost):
            status, text = LOST, str(error)
        elif found := explained(error):
            text, status = found
            text = f"{self.name}: {text}" if self.rank else text
        else:
            status, text = 1, "".join(traceback.format_exception(error))
        if text:
            self.stderr.write(f"slm_np: {text}\n")  # in one piece, as several ranks may print at once
            self.stderr.flush()
        self.abort(status)

    def abort(self, status):
        """End all ranks at once."""
        for stream in (sys.stdout, sys.stderr, self.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        time.sleep(DRAIN)
        self.comm.Abort(status)
        os._exit(status)  # some MPIs return, and the launcher ends this process a little later


def note(name, value):
    """Write a file for whoever started the ranks."""
    (Path(os.environ[PIDS]) / str(name)).write_text(str(value), encoding="utf-8")


def cores():
    """The set of cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def yield_core():
    """Let another process run, if there are more ranks than cores."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


class Heartbeat:
    """A thread that sends heartbeats to the other ranks and notes theirs.

    A process that computes, reads or writes still sends them; one that was stopped or died does not.
    """

    def __init__(self, comm, MPI):
        self.comm, self.MPI = comm, MPI
        self.others = [rank for rank in range(comm.size) if rank != comm.rank]
        self.heard = dict.fromkeys(self.others, time.monotonic())
        self.last = time.monotonic()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="heartbeat", daemon=True)
        if self.others:
            self.thread.start()

    def run(self):
        sending, sign, found = {}, np.zeros(1, np.uint8), np.zeros(1, np.uint8)
        while not self.stopped.wait(HEARTBEAT_INTERVAL):
            now = time.monotonic()
            if now - self.last > HEARTBEAT_TIMEOUT / 2:  # this process was stopped itself
                self.heard = dict.fromkeys(self.others, now)
            self.last = now
            for rank in self.others:
                if rank not in sending or sending[rank].Test():
                    sending[rank] = self.comm.Isend(sign, rank)
                while self.comm.Iprobe(rank):
                    self.comm.Recv(found, rank)
                    self.heard[rank] = now

    def check(self, names, ranks=None):
        """RankLost if one of the ranks, by default of all, has been silent for too long."""
        now = time.monotonic()
        if now - self.last > HEARTBEAT_TIMEOUT / 2:
            return
        for rank, heard in self.heard.items():
            if now - heard > HEARTBEAT_TIMEOUT and (ranks is None or rank in ranks):
                raise RankLost(f"{names[rank]} has sent no heartbeat for {HEARTBEAT_TIMEOUT:g} s, so all ranks end")

    def stop(self):
        self.stopped.set()
        if self.thread.is_alive():
            self.thread.join()
