"""The processes that train one model, as one of them sees them. `World` itself is a process that trains alone."""

import contextlib
import time

LOST = 75  # exit status after a rank was lost, so that a restart may help (EX_TEMPFAIL)
PIDS = "SLM_NP_RANKS"  # the variable that names the folder where ranks on this machine note their process numbers
RUN_NAME = "run"  # the file there with the directory of the run


class World:
    """One process. The others of a larger world call the same methods in the same order.

    rank    of this process, counted from 0; rank 0 writes the files and prints
    size    processes, of which `on_node` are on this machine
    sent    bytes that this process has sent to others while training
    waited  seconds that it has waited for others while training
    apart   whether ranks train by themselves between the ends of rounds, see rounds.py
    """

    rank, size, on_node, sent, waited, apart = 0, 1, 1, 0, 0.0, False

    def clock(self):
        """`time.perf_counter` of rank 0."""
        return time.perf_counter()

    def on_rank_0(self, function):
        """function() of rank 0, which alone calls it. It must be picklable. A UserError there is raised everywhere."""
        return function()

    def rank_0_first(self, function):
        """function(), called by rank 0 and, when it has returned there, by the others. Returns what it did here."""
        return function()

    @contextlib.contextmanager
    def entered_on_rank_0(self, context):
        """Enter `context` on rank 0 only. All get its value, and a UserError of the entry."""
        with contextlib.ExitStack() as held:
            yield self.on_rank_0(lambda: held.enter_context(context))

    def all_gather(self, values):
        """The values (n,) of all ranks, in the order of the ranks: (size n,).   values: 1-D float64"""
        return values

    def all_reduce(self, values):
        """Overwrite the float64 array `values` with its sum over the ranks, exact where one of them is not 0."""

    def max_over_ranks(self, value):
        """The maximum of an integer over the ranks."""
        return value

    def broadcast(self, arrays):
        """Overwrite the arrays with those of rank 0."""

    def check_same(self, values):
        """UserError, naming a rank and a key, if the {what: value} of all ranks are not equal."""

    def reduce(self, buffer, add, rounded):
        """Overwrite `buffer`, 1-D, with the sum of those of all ranks: neighbors first, then their sums.

        add: function (total, x) that adds x to total, both like the buffer
        rounded: whether sums are rounded to bfloat16, which are then sent. `buffer` is rounded already.
        """

    @contextlib.contextmanager
    def ending(self):
        """Context of a whole command: an exception on one rank ends all ranks."""
        yield

    def check_threads(self, threads):
        """The number of threads of this rank; 0 means one per core.   threads: the setting"""
        return threads

    def note_run(self, directory):
        """Tell the process that started the ranks where the run is."""

    def __str__(self):
        return "one process"


ALONE = World()
