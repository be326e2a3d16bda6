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
        self._round()
        level = 0
        while self.done >> level & 1:
            self.add(self.buffer, self.waiting[level])
            self._round()
            level += 1
        self.done = (self.done + 1) % self.n
        if self.done:
            self.waiting[level][:] = self.buffer
            self.buffer.fill(0)

    def _round(self):
        if self.rounded:
            round_bfloat16(self.buffer)
