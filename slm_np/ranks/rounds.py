"""DiLoCo (Douillard et al. 2023, https://arxiv.org/abs/2311.08105): ranks average their weights every H updates only.

Each rank trains independently, with its own optimizer, on its share of the sequences. At the end of a round of H
updates rank 0 averages the weights, makes one step of an outer optimizer towards the average, and sends the result.
"""

import time

import numpy as np

from slm_np.ranks.compression import CODECS, Exact

SHARE, LEAST = 0.5, 5.0  # a rank is late after this share of the round's time, or so many seconds if that is longer


class OuterSGD:
    """SGD with Nesterov momentum from the weights w of one round to those of the next, by the mean m of the ranks':

    d = w - m,   v = momentum v + d,   w = w - rate (d + momentum v)

    The last line is computed as m + (1 - rate) d - rate momentum v, so that rate 1 without momentum gives m itself.

    weights (P,): copied.   rate, momentum: in the ranges of `TrainConfig`
    """

    def __init__(self, weights, rate, momentum):
        self.weights, self.velocity = weights.copy(), np.zeros_like(weights)
        self.rate, self.momentum = (weights.dtype.type(value) for value in (rate, momentum))

    def step(self, mean):
        d = self.weights - mean
        self.velocity *= self.momentum
        self.velocity += d
        self.weights = mean + ((1 - self.rate) * d - self.rate * self.momentum * self.velocity)


class Rounds:
    """The rounds of one rank.

    world: World of all ranks.   weights (P,): of this rank; they start equal everywhere
    every: updates in a round.   exchange: a key of CODECS.   rate, momentum: see OuterSGD
    """

    def __init__(self, world, weights, every, rate, momentum, exchange):
        self.world, self.every, self.mine = world, every, weights
        self.outer, self.codec = OuterSGD(weights, rate, momentum), CODECS[exchange]
        self.number, self.left_out, self.begun = 0, [], time.monotonic()

    def restart(self, updates):
        """Begin anew from the weights, after so many updates."""
        self.outer.weights[:] = self.mine
        self.number, self.begun = -(-updates // self.every), time.monotonic()

    def end_round(self, updates):
        """End a round after so many updates: overwrites the weights.

        Returns the updates of rank 0, from which this rank continues: more than its own if it was late.
        """
        self.number += 1
        went_on = self.coordinate(updates) if self.world.rank == 0 else self.contribute(updates)
        self.mine[:] = self.outer.weights
        self.begun = time.monotonic()
        return went_on

    def coordinate(self, updates):
        """Rank 0: combine the weights that have arrived in time. A rank of an earlier round gets the whole result."""
        contributions, stale = {0: self.mine.copy()}, []
        others, now = range(1, self.world.size), time.monotonic()
        deadline = now + max(LEAST, SHARE * (now - self.begun))
        while len(contributions) + len(stale) < self.world.size and time.monotonic() < deadline:
            for rank in others:
                if rank in contributions or rank in stale or (found := self.world.contribution_of(rank)) is None:
                    continue
                number, content = found
                if number == self.number:
                    contributions[rank] = self.codec.decoded(self.outer.weights, content)
                else:
                    stale.append(rank)
            self.world.rest()
        self.left_out = [rank for rank in others if rank not in contributions]
        mean = sum(contributions[rank] for rank in sorted(contributions)) / self.mine.dtype.type(len(contributions))
        before = self.outer.weights
        self.outer.step(mean)
        content = self.codec.encoded(before, self.outer.weights)
        self.outer.weights = self.codec.decoded(before, content)  # as the others do
        for rank in others:
            if rank in stale:
                self.world.send_result(rank, self.number, updates, self.outer.weights, whole=True)
            elif rank in contributions:
                self.world.send_result(rank, self.number, updates, content)
        return updates

    def contribute(self, updates):
        """Another rank: send its weights to rank 0 and receive the result."""
        before = self.outer.weights
        self.world.send_contribution(self.number, self.codec.encoded(before, self.mine))
        self.number, went_on, whole, content = self.world.receive_result()
        self.outer.weights = (Exact if whole else self.codec).decoded(before, content).copy()
        return went_on
