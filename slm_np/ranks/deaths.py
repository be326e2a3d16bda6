"""Which rank on this machine died first, and what dead ranks leave in shared memory. Linux only: nothing elsewhere.

MPICH's mpiexec kills the other ranks as soon as one dies, and then names the first in its list that was killed.
"""

import os
import re
import select
import threading
from pathlib import Path

LOOK = 0.05  # seconds between looks for ranks that have started
SEGMENT = re.compile(rb"(/dev/shm/mpich_shm_\w+)$", re.M)  # MPICH removes it only if all ranks end by themselves


class Deaths:
    """Watches the ranks that note their process numbers in `folder` (Path) while the block runs.   n: of ranks

    The file of a process becomes ready when it ends, and epoll returns the files in the order of that.
    """

    def __init__(self, folder, n):
        self.folder, self.n = folder, n
        self.watched, self.segments, self.first = {}, set(), None  # first: (rank, process) as texts
        self.known, self.stopped = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run, name="deaths", daemon=True)

    def __enter__(self):
        if hasattr(os, "pidfd_open") and hasattr(select, "epoll"):
            self.thread.start()
        return self

    def __exit__(self, *exception):
        self.stopped.set()
        if self.thread.is_alive():
            self.thread.join()
        for path in self.segments:
            Path(os.fsdecode(path)).unlink(missing_ok=True)

    def run(self):
        with select.epoll() as ends:
            while not self.stopped.is_set() and self.first is None:
                if len(self.watched) < self.n:
                    self.find(ends)
                for file, _ in ends.poll(LOOK, 1):
                    if len(self.watched) == self.n:
                        self.first = self.watched[file]
                    else:
                        self.stopped.set()
            self.known.set()
        for file in self.watched:
            os.close(file)

    def find(self, ends):
        """Watch the ranks that have started since the last look."""
        for path in self.folder.iterdir():
            if path.name.isdecimal() and path.name not in (rank for rank, _ in self.watched.values()):
                try:
                    process = path.read_text(encoding="utf-8")
                    file = os.pidfd_open(int(process))
                    with open(f"/proc/{process}/maps", "rb") as maps:
                        self.segments.update(SEGMENT.findall(maps.read()))
                except (OSError, ValueError):  # the note is being written, or the process has ended
                    continue
                self.watched[file] = path.name, process
                ends.register(file, select.EPOLLIN)

    def first_dead(self):
        """(rank, process) of the first that ended, as texts; None if that is unknown."""
        if self.thread.is_alive():
            self.known.wait(1.0)
        return self.first
