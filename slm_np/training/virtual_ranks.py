"""How the work of an update is dealt to virtual ranks, and these to processes, and the update that follows."""

from typing import NamedTuple

import numpy as np

from slm_np.errors import UserError
from slm_np.ranks.tree import TreeSum
from slm_np.training.host_step import HostStep


class Deal(NamedTuple):
    """The micro-batches of an update: `virtual` ranks with `each` of `rows` sequences, and those of this process."""

    rows: int
    each: int
    virtual: int
    first: int  # virtual rank of this process
    stop: int

    @property
    def micro_batches(self):
        """All of an update."""
        return self.virtual * self.each

    @property
    def own(self):
        """Those of this process, counted over the whole update."""
        return range(self.first * self.each, self.stop * self.each)


def deal(train, world):
    """The Deal of a run with this TrainConfig in a World.

    Without virtual ranks, the micro-batches are those of the settings. Otherwise the share of a virtual rank is divided
    into the fewest equal micro-batches of at most --batch-size sequences.
    UserError if the rows cannot be split evenly over the virtual ranks, or those over the processes.
    """
    n, rows = train.virtual_ranks, train.batch_size * train.grad_accumulation_steps
    if train.sync_every:  # each rank takes its share of the sequences
        n = world.size
    if not n:
        if world.size > 1:
            raise UserError(
                f"a run without --virtual-ranks cannot be split over {world.size} ranks; resume it in one process, or "
                "start a new run with --ranks"
            )
        return Deal(train.batch_size, train.grad_accumulation_steps, 1, 0, 1)
    if rows % n:
        parts = f"{n} ranks do" if train.sync_every else f"--virtual-ranks {n} does"
        raise UserError(
            f"an update has {rows} sequences (--batch-size {train.batch_size} x --grad-accumulation-steps "
            f"{train.grad_accumulation_steps}), which {parts} not divide; choose a multiple of {n}"
        )
    if n % world.size:
        fitting = f"{' or '.join(map(str, counts(n)))} rank{'s' * (n > 1)}"
        raise UserError(f"{world.size} ranks do not divide --virtual-ranks {n}; use {fitting}")
    share = rows // n
    each = next(each for each in range(1, share + 1) if share % each == 0 and share // each <= train.batch_size)
    own = n // world.size
    return Deal(share // each, each, n, world.rank * own, (world.rank + 1) * own)


def counts(n):
    """The numbers of processes that n virtual ranks can be dealt to."""
    return [1 << level for level in range(n.bit_length())]


class DealtStep(HostStep):
    """Updates on a CPU whose gradients are summed over virtual ranks in a tree: same bits for any number of processes.

    Other parameters: those of HostStep.   deal: Deal.   world: World.   rounded: whether sums are rounded to bfloat16
    """

    def __init__(self, deal, world, rounded, model, *others):
        super().__init__(model, *others)
        self.deal, self.world, self.rounded = deal, world, rounded
        self.add = model.device.kernels.accumulate
        self.tree = TreeSum(model.parameters.gradients, deal.stop - deal.first, self.add, rounded)

    def start(self, index, n_targets, learning_rate):
        super().start(index, n_targets, learning_rate)
        self.losses = []

    def gradient(self, tokens, targets, micro):
        super().gradient(tokens, targets, micro)
        if (micro + 1) % self.deal.each == 0:
            self.losses.append(self.loss)
            self.loss = 0.0
            self.tree.push()

    def update(self):
        self.world.reduce(self.model.parameters.gradients, self.add, self.rounded)
        losses, self.loss = self.world.all_gather(np.array(self.losses)).tolist(), 0.0
        for loss in losses:  # in this order, which sum() does not promise
            self.loss += loss
        return super().update()
