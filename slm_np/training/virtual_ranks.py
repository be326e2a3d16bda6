"""How the work of an update is dealt to virtual ranks, and these to processes, and the update that follows."""

from typing import NamedTuple

import numpy as np

from slm_np.errors import UserError
from slm_np.ranks.tree import TreeSum
from slm_np.training.host_step import HostStep

LARGE = 1 << 12  # elements of gradients that are worth an exchange of their own


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
        self.spans = spans_of_layers(model.parameters)
        self.begun = []  # spans whose sum over the ranks was begun in this update

    def start(self, index, n_targets, learning_rate):
        super().start(index, n_targets, learning_rate)
        self.losses, self.begun = [], []

    def gradient(self, tokens, targets, micro):
        overlapped = self.world.overlaps and micro + 1 == self.deal.own.stop
        self.model.layer_done = self.begin if overlapped else None
        super().gradient(tokens, targets, micro)
        if (micro + 1) % self.deal.each:
            return
        self.losses.append(self.loss)
        self.loss = 0.0
        if not overlapped:
            self.tree.push()
            return
        for span in gaps(self.begun, self.model.parameters.gradients.size):
            self.begin_span(span)
        self.tree.done = 0

    def begin(self, layer):
        """Begin to sum the gradients of a layer over the ranks."""
        for span in self.spans.get(layer, ()):
            self.begun.append(span)
            self.begin_span(span)

    def begin_span(self, span):
        part = slice(*span)
        self.tree.finish(part)
        self.world.begin_reduce(self.model.parameters.gradients[part], self.rounded)

    def update(self):
        if self.world.overlaps:
            self.model.layer_done = None
            self.world.end_reduce()
        else:
            self.world.reduce(self.model.parameters.gradients, self.add, self.rounded)
        self.loss = 0.0
        for loss in self.world.all_gather(
            np.array(self.losses)
        ).tolist():  # in this order, which sum() does not promise
            self.loss += loss
        return super().update()


def spans_of_layers(parameters):
    """{layer: [(start, stop), ...]} of the flat gradients: the large parts that belong to one layer."""
    found, start = {}, 0
    for name, view in parameters.trained.items():
        stop = start + view.size
        if name.startswith("layers."):
            spans = found.setdefault(int(name.split(".")[1]), [])
            if spans and spans[-1][1] == start:
                spans[-1] = spans[-1][0], stop
            else:
                spans.append((start, stop))
        start = stop
    return {layer: [(a, b) for a, b in spans if b - a >= LARGE] for layer, spans in found.items()}


def gaps(spans, size):
    """The spans of range(size) that are not in `spans`."""
    edges = [0, *(edge for span in sorted(spans) for edge in span), size]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2]) if start < stop]
