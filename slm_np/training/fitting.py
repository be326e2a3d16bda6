"""How many updates fit into the time of `--fit-time`: the first updates are timed, then the number is fixed.

A run with `--max-iters` and the same number has the same bits. So the learning rate of the timed updates must not
depend on the number: they lie within the warmup. If that is over too soon, some more are made, timed and undone.
"""

import math
import statistics

SECONDS, SHARE = 3.0, 1 / 20  # the updates of SECONDS are timed, or of this share of the time if that is shorter
LONGEST = 1 / 8  # share of the time after which the number is fixed however few updates were timed
FEWEST = 10  # timed updates, unless they take longer than that
MOST = 3.0  # medians that one update counts at most
TENTHS, SHORTEST = 10, 20  # an interval of 0 is a tenth of the run, but at least so many updates


def interval_of(setting, updates):
    """The interval in updates that a setting means in a run of so many `updates`. 0 means a tenth of the run."""
    return setting or max(SHORTEST, -(-updates // TENTHS))


class Stopwatch:
    """Times the first updates of a session of a run with this TrainConfig.

    last  number of updates whose learning rate does not depend on how many follow
    On a GPU updates run asynchronously: time is known where the host synchronizes, not after every update.
    """

    def __init__(self, config):
        self.seconds = config.fit_seconds
        fixed = config.lr_schedule == "constant" or config.lr_decay_iters
        self.last = math.inf if fixed else config.warmup_iters
        self.marks = []  # (updates done, time) at each synchronization

    def start(self, updates, now):
        """The next update starts at the time `now`, after so many. Only the first call counts."""
        if not self.marks:
            self.mark(updates, now)

    def mark(self, updates, now):
        """All of so many updates are done at the time `now`."""
        self.marks.append((updates, now))

    def enough(self):
        """Whether the speed is known well enough, or may not be measured any longer."""
        if len(self.marks) < 2:
            return False
        (first, started), (last, now) = self.marks[0], self.marks[-1]
        timed, seconds = last - first, now - started
        measured = timed >= FEWEST and seconds >= min(SECONDS, SHARE * self.seconds)
        return measured or seconds >= LONGEST * self.seconds

    def seconds_per_update(self):
        """The mean over the later half of the updates.

        The first half is left out: caches are cold, and a GPU captures its graphs. On a busy machine many updates are
        interrupted a little, which counts, and one may be for long, so none counts more than MOST medians.
        """
        middle, durations = (self.marks[0][0] + self.marks[-1][0]) / 2, []
        for (before, started), (updates, now) in zip(self.marks, self.marks[1:]):
            if updates > middle:
                durations += [(now - started) / (updates - before)] * (updates - before)
        most = MOST * statistics.median(durations)
        return statistics.mean(min(duration, most) for duration in durations)


def fitted_updates(done, seconds, update, repeated):
    """The number of updates of a run that takes `seconds` more, of which `done` are done. A large one is round.

    update: seconds of one.   repeated: pairs (interval setting, seconds) of what is done at intervals and at the end
    However slow that is, the updates themselves get at least half of the time.
    """

    def needed(updates):
        total = (updates - done) * update
        for setting, cost in repeated:
            interval = interval_of(setting, updates)
            total += cost * (updates // interval - done // interval + (updates % interval != 0))
        return total

    low, high = (done + int(share * max(0.0, seconds) / update) for share in (0.5, 1.0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= seconds else (low, middle - 1)
    return max(done, low - low % TENTHS) if low > TENTHS * SHORTEST else low
