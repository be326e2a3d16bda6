"""Where the batches of a run come from: random windows, shuffled epochs, or contiguous windows with recurrent state.

Batch `index` depends on the settings and on `index` alone, so a resumed run sees the batches that an unbroken one sees.
"""

import math
import sys

from slm_np.data.assistant_windows import AssistantOrder
from slm_np.data.batches import ContiguousOrder, EpochOrder, random_batch, reach
from slm_np.errors import UserError
from slm_np.nn.model import unmasked

TRAIN, EVALUATE_TRAIN, EVALUATE_VALIDATION, EVALUATE_RETENTION = range(4)  # purposes of random batches


class Batches:
    """The batches of one split.

    n_windows          windows in one epoch
    windows_per_batch  of these in a batch
    """

    n_windows, windows_per_batch = 0, 1

    def __init__(self, split):
        self.split = split

    def fill(self, tokens, targets, index):
        """Overwrite tokens and targets, (B, T) int32, with batch `index`. A target of -1 is masked."""
        raise NotImplementedError

    def wait(self, shape, index):
        """Wait until what batch `index`, of `shape` (B, T), reads is tokenized."""

    def restarts(self, index):
        """Whether the sequences of batch `index` do not continue those of the batch before."""
        return True

    def updates(self, config):
        """How many optimizer updates `config` (TrainConfig) asks for, --max-time aside."""
        if not config.epochs:
            return config.max_iters
        return math.ceil(config.epochs * self.n_windows / (self.windows_per_batch * config.grad_accumulation_steps))

    def count_targets(self, tokens, targets, indices):
        """Targets without those that are masked, in the batches `indices` together. Overwrites tokens and targets."""
        if self.split.mask is None:
            return len(indices) * targets.size
        total = 0
        for index in indices:
            self.fill(tokens, targets, index)
            total += unmasked(targets)
        return total


class RandomWindows(Batches):
    """Windows at random starts. They depend on (seed, purpose, index).

    read_before: function (index) -> number of training batches before. The windows then lie in the first tokens of the
    split, soon in all of them (see `reach`), so nothing waits for a large corpus. None: they lie in the whole split.
    """

    def __init__(self, split, seed, purpose, read_before=None):
        super().__init__(split)
        self.seed, self.purpose, self.read_before = seed, purpose, read_before

    def fill(self, tokens, targets, index):
        random_batch(tokens, targets, self._tokens(tokens.shape, index), self.seed, self.purpose, index)

    def wait(self, shape, index):
        self._tokens(shape, index)

    def _tokens(self, shape, index):
        n = reach(self.read_before(index) * math.prod(shape)) if self.read_before else sys.maxsize
        return self.split.first(n)


class ShuffledWindows(Batches):
    """Every window once per epoch, in an order that depends on (seed, epoch).

    With a mask these are the windows around its targets.   batch_size: B
    """

    def __init__(self, split, block_size, batch_size, seed, end_of_text=None):
        super().__init__(split)
        if split.mask is None:
            self.order = EpochOrder(split, block_size, seed)
        else:
            self.order = AssistantOrder(split, block_size, seed, end_of_text)
        self.n_windows, self.windows_per_batch = self.order.n_windows, batch_size

    def fill(self, tokens, targets, index):
        self.order.batch(tokens, targets, index * len(tokens))


class ContiguousWindows(Batches):
    """The split cut into B parts, each read in order: a batch holds the next window of every part.

    The recurrent state passes from batch to batch until the parts end and start again.
    """

    def __init__(self, split, block_size, batch_size):
        super().__init__(split)
        if split.mask is not None:
            raise UserError("--carry-state is not supported with masked targets, as in conversations; leave it out")
        self.order = ContiguousOrder(split, block_size, batch_size)
        self.n_windows = self.order.n_windows

    def fill(self, tokens, targets, index):
        self.order.batch(tokens, targets, index)

    def restarts(self, index):
        return index % self.n_windows == 0


def training_batches(run, corpus):
    """The Batches that `run` (RunConfig) trains on. Raises UserError if a split is too short for one batch."""
    train, block_size = run.train, run.model.block_size
    if train.carry_state:
        return ContiguousWindows(corpus.train, block_size, train.batch_size)
    return _windows(run, corpus, corpus.train, TRAIN, lambda index: index, shuffled=train.epochs > 0)


def evaluation_batches(run, corpus, retention=None, read_before=None):
    """{name of the loss: Batches} of the splits that are evaluated.

    retention: Tokens of other data, or None.   read_before: of `RandomWindows`, for the training loss
    """
    splits = {
        "train_loss": (corpus.train, EVALUATE_TRAIN, read_before),
        "val_loss": (corpus.validation, EVALUATE_VALIDATION),
        "replay_loss": (retention, EVALUATE_RETENTION),
    }
    return {name: _windows(run, corpus, *split) for name, split in splits.items() if split[0] is not None}


def _windows(run, corpus, split, purpose, read_before=None, shuffled=False):
    if split.mask is None and not shuffled:
        return RandomWindows(split, run.train.seed, purpose, read_before)
    end_of_text = getattr(corpus.tokenizer, "end_of_text", None)
    return ShuffledWindows(split, run.model.block_size, run.train.batch_size, run.train.seed, end_of_text)
