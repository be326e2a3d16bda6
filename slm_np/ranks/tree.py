"""The sum over virtual ranks: one fixed tree, whatever process computes which part of it.

An update of a run with V virtual ranks (a power of two) has V gradients. They are added in pairs, then their sums in
pairs, and so on. A process holds V / N neighbors, that is one subtree. So for every number N of processes the sum has
the same bits, although addition is not associative.
"""

import numpy as np

from slm_np.ranks.compression import round_bfloat16


class TreeSum:
    """Adds up gradients as they come, in a binary tree, with one spare buffer for each of its levels.

    buffer: 1-D; each summand is written here.   n: of summands, a power of two
    add: function (total, x) that adds x to total.   rounded: whether every summand and sum is rounded to bfloat16
    """

    def __init__(self, buffer, n, add, rounded=False):
        self.buffer, self.n, self.add, self.rounded = buffer, n, add, rounded
        self.waiting = [np.zeros_like(buffer) for _ in range(n.bit_length() - 1)]  # by level, the left one of a pair
        self.done = 0

    def push(self):
        """Take the summand in the buffer, which is 0 afterwards; after the last of n, it is the sum of all."""
        if self.done == self.n - 1:
            self.finish(slice(None))
            self.done = 0
            return
        level = 0
        self._round(self.buffer)
        while self.done >> level & 1:
            self._add(self.buffer, self.waiting[level])
            level += 1
        self.done += 1
        self.waiting[level][:] = self.buffer
        self.buffer.fill(0)

    def finish(self, part):
        """Turn a part (slice) of the last summand into that part of the sum."""
        self._round(self.buffer[part])
        for waiting in self.waiting:
            self._add(self.buffer[part], waiting[part])

    def _add(self, total, x):
        self.add(total, x)
        self._round(total)

    def _round(self, x):
        if self.rounded:
            round_bfloat16(x)
