"""Where each rank of a disturbed run is, as rank_campaign.py sees it from outside.

Each rank notes its place and its updates in a file of its own, in the folder that the variable `FOLDER` names. The
kernel keeps what a killed or stopped rank has noted last, so a fault can be attributed to the place that it hit.

The ranks import this through the sitecustomize.py of `hook`, which comes first on their PYTHONPATH: slm_np itself has
no code for it. The variable `SILENCE` also shortens the time after which a silent rank counts as lost.
"""

import functools
import mmap
import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER, SILENCE = "RANK_CAMPAIGN_PLACES", "RANK_CAMPAIGN_SILENCE"
START, COMPUTE, EXCHANGE, CHECKPOINT = PLACES = "start", "compute", "exchange", "checkpoint"
NOTE = struct.Struct("=II")  # index of the place, updates since this process started


def hook(folder):
    """Write a sitecustomize.py in a new folder. Returns what PYTHONPATH needs for it."""
    folder.mkdir()
    text = "from fault_campaign import places\n\nplaces.install()\n"
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1])])


# In a rank


def install():
    """In a process that an MPI has started: note its places from now on."""
    from slm_np.ranks.current import STARTED

    if FOLDER not in os.environ or not any(name in os.environ for name in STARTED):
        return
    sys.modules["matplotlib"] = None  # drawing the loss curve would take most of the time of a tiny run
    from slm_np.formats import checkpoint
    from slm_np.ranks import mpi
    from slm_np.training.trainer import Trainer

    mpi.HEARTBEAT_TIMEOUT = float(os.environ[SILENCE])
    mpi.HEARTBEAT_INTERVAL = mpi.HEARTBEAT_TIMEOUT / 12
    note = Note()
    world, wait, wait_long = mpi.MpiWorld, mpi.MpiWorld.wait, mpi.MpiWorld.wait_long
    begin, load, reduce = world.__init__, Trainer.load_from_rank_0, world.reduce

    def begun(self):
        begin(self)
        note.create(self.rank)

    def loaded(self):  # the last call before training
        load(self)
        note.place = COMPUTE

    def reduced(self, *arguments):
        reduce(self, *arguments)
        note.updates += 1

    world.__init__, Trainer.load_from_rank_0, world.reduce = begun, loaded, reduced
    world.wait, world.wait_long = note.inside(EXCHANGE, wait), note.inside(EXCHANGE, wait_long)
    checkpoint.save_checkpoint = note.inside(CHECKPOINT, checkpoint.save_checkpoint)


class Note:
    """The place and the updates of this process, which `create` maps to a file."""

    def __init__(self):
        self.memory, self.values = bytearray(NOTE.size), [START, 0]

    def create(self, rank):
        path = Path(os.environ[FOLDER]) / f"{rank}-{os.getpid()}"
        with open(f"{path}.part", "w+b") as file:
            file.write(self.memory)
            file.flush()
            self.memory = mmap.mmap(file.fileno(), NOTE.size)
        os.rename(f"{path}.part", path)

    def write(self):
        NOTE.pack_into(self.memory, 0, PLACES.index(self.values[0]), self.values[1])

    @property
    def place(self):
        return self.values[0]

    @place.setter
    def place(self, place):
        self.values[0] = place
        self.write()

    @property
    def updates(self):
        return self.values[1]

    @updates.setter
    def updates(self, updates):
        self.values[1] = updates
        self.write()

    def inside(self, place, function):
        """`function`, which notes this place while it runs, once training has started."""

        @functools.wraps(function)
        def noted(*arguments, **options):
            if self.place == START:
                return function(*arguments, **options)
            before, self.place = self.place, place
            try:
                return function(*arguments, **options)
            finally:
                self.place = before

        return noted


# In the campaign


class Rank(NamedTuple):
    """A rank that notes its places in the file `path`."""

    number: int
    process: int
    path: Path

    def read(self):
        """(place, updates)."""
        index, updates = NOTE.unpack(self.path.read_bytes())
        return PLACES[index], updates


def ranks(folder):
    """The Ranks that have started, by number."""
    found = [Rank(*map(int, path.name.split("-")), path) for path in folder.iterdir() if not path.suffix]
    return sorted(found)
