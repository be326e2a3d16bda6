"""Batches of windows: at random starts, in shuffled epochs, or contiguous. Each depends on its index and a seed alone.

A window of T tokens at start s has the inputs ids[s : s + T] and the targets ids[s + 1 : s + T + 1]. A target that the
mask excludes is -1, and the loss ignores it.
"""

import numpy as np

from slm_np import arguments
from slm_np.data.growing import GrowingTokens
from slm_np.data.tokens import Tokens, check_length, targets
from slm_np.errors import UserError
from slm_np.words import counted

START, GROWTH = 1 << 20, 32  # see `reach`
_EPOCHS = 1 << 32  # the Philox purpose of `EpochOrder`, above those that callers of `random_batch` choose
_ROUNDS = 6  # of the Feistel network


def gather(x, y, tokens, starts):
    """x[b, t] = ids[starts[b] + t],   y[b, t] = ids[starts[b] + t + 1], or -1 where the mask is 0.

    x, y: (B, T) int32, overwritten.   tokens: Tokens.   starts: (B,) integers.
    """
    T = x.shape[1]
    for row, start in enumerate(np.asarray(starts).tolist()):
        x[row] = tokens.ids[start : start + T]
        y[row] = tokens.ids[start + 1 : start + T + 1]
        if tokens.mask is not None:
            y[row][~targets(tokens.mask[start + 1 : start + T + 1])] = -1


def random_batch(x, y, tokens, seed, purpose, step):
    """`gather` windows at B independent starts, uniform over all N - T, into x, y (B, T).

    The starts depend on `seed`, `purpose`, `step` and B only. `purpose` is a small integer that keeps uses of a seed
    apart.
    tokens: Tokens, such as `corpus.train`.   x, y: NumPy arrays of int32 or int64
    UserError if no window fits, and for a wrong argument.
    """
    x = arguments.output("x", x, ("B", "T"))
    y = arguments.output("y", y, x.shape)
    arguments.apart("x and y", x, y)
    arguments.instance("tokens", tokens, Tokens, GrowingTokens)
    seed, purpose, step = (
        arguments.whole(name, value, 0, arguments.SEEDS)
        for name, value in (("seed", seed), ("purpose", purpose), ("step", step))
    )
    check_length(tokens, x.shape[1])
    gather(x, y, tokens, _philox(seed, purpose, step, x.shape[0]) % np.uint64(len(tokens) - x.shape[1]))


def reach(n_read):
    """The number of tokens, from the start of a split, among which training looks for random windows.

    n_read: tokens in the batches before.   This is max(`START`, `GROWTH` n_read), so training starts before a large
    corpus is tokenized, and still sees few tokens twice: the first ones are drawn (1 + ln(N / START)) / GROWTH times
    more than the last ones, which is less than 0.3 for N = 2^33. It depends on the settings and the batch alone, so it
    makes no difference how fast the corpus is tokenized.
    """
    return max(START, GROWTH * n_read)


def _philox(seed, purpose, step, n):
    """n random uint64 of Philox (Salmon et al. 2011) with the key (seed, purpose) and a counter that starts at step.

    They are raw words, because NumPy may change what a Generator makes of them between versions. The lowest word of the
    counter counts the words. 64 bits make the remainder by the length of a corpus uniform to one part in millions.
    """
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, step, 0, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


class EpochOrder:
    """Shuffled epochs over a split.

    Window w has the start w T, for w below `n_windows` = (N - 1) // T. Each epoch visits every window once, in an
    order that depends on (seed, epoch) only and needs no table. UserError if no window fits.
    """

    def __init__(self, tokens, block_size, seed):
        check_length(tokens, block_size)
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.n_windows = (len(tokens) - 1) // block_size

    def batch(self, x, y, index):
        """`gather` the rows index, index + 1, ... of the endless sequence of epochs into x, y (B, T)."""
        rows = np.arange(index, index + x.shape[0])
        gather(x, y, self.tokens, self.starts_of(self.windows(rows)))

    def windows(self, rows):
        """The windows (B,) int64 that the rows (B,) of the sequence visit."""
        epochs, positions = np.divmod(np.asarray(rows, np.int64), self.n_windows)
        windows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            keys = _philox(self.seed, _EPOCHS, epoch, _ROUNDS)
            windows[epochs == epoch] = permute(positions[epochs == epoch], self.n_windows, keys)
        return windows

    def starts_of(self, windows):
        """The first token of each window (B,)."""
        return windows * self.block_size


class ContiguousOrder:
    """A split cut into B parts of equal length, each read window by window, so that recurrent state can be kept.

    Row b of batch i is window i modulo `n_windows` of part b. UserError if no window fits into a part.
    """

    def __init__(self, tokens, block_size, batch_size):
        check_length(tokens, block_size)
        self.tokens, self.n_windows = tokens, (len(tokens) - 1) // block_size // batch_size
        if not self.n_windows:
            raise UserError(
                f"the {tokens.split} split has {counted(len(tokens), 'token')}, but --carry-state cuts it into "
                f"--batch-size {batch_size} parts of at least --block-size {block_size}; lower one of them, "
                "or give more text"
            )
        self.starts = np.arange(batch_size) * self.n_windows * block_size  # (B,)

    def batch(self, x, y, index):
        """`gather` batch `index` into x, y (B, T)."""
        gather(x, y, self.tokens, self.starts + index % self.n_windows * x.shape[1])


def permute(index, n, keys):
    """A permutation of 0 .. n - 1 applied to `index` (B,), without a table. Returns (B,) int64.

    keys (K,) uint64 select the permutation: a Feistel network with one round per key permutes the smallest 4^k >= n,
    and values beyond n pass through it again until they are below n (cycle walking, Black and Rogaway 2002). The round
    function is the finalizer of SplitMix64 (Steele et al. 2014).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))  # bits of each half
    mask = np.uint64((1 << int(half)) - 1)
    value = np.array(index, np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        value[outside] = left << half | right
        outside = value >= np.uint64(n)
    return value.astype(np.int64)


def _mixed(word):
    """The finalizer of SplitMix64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
