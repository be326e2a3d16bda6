"""The decode step of a GPU: the launches of the generic step, captured once as a CUDA graph and replayed.

All that changes from step to step lies in one block of memory: the tokens, their position, and the row of that position
in the positional tables, which a kernel of the graph fetches. So a step is one copy to the device, one launch of a
graph and one copy of the logits back.
"""

import numpy as np

from slm_np import ops
from slm_np.inference.generic_step import GenericStep
from slm_np.inference.positions import PositionTables
from slm_np.kernels.gpu.graph import CapturedGraph, HostInputs


class GpuStep(GenericStep):
    """Same interface and results as GenericStep."""

    def __init__(self, model, batch):
        super().__init__(model, batch)
        arrays, a = model.device.arrays, self.activations.shared
        self.tables = tables = PositionTables(model)
        self.inputs = HostInputs(
            arrays, dict(tokens=((batch, 1), np.int32), position=((1,), np.int32), row=((1, 1), np.int32))
        )
        self.fetched, self.rows = [], len(tables.cos)  # [(row that the ops read, table)], R
        if model.config.positions == "rotary":
            self.fetched = [(a["rotary.cos"], tables.cos), (a["rotary.sin"], tables.sin)]
        elif model.config.positions == "sinusoidal":
            self.fetched = [(a["positions"], tables.positions)]
        elif model.config.positions == "learned":  # the ops read a table of one row
            row = arrays.zeros((1, model.config.n_embd), model.dtype)
            self.model.parameters.weight = self.model.parameters.weight | {"positions.weight": row}
            self.fetched, self.rows = [(row, tables.positions)], len(tables.positions)
        self.graph = CapturedGraph(arrays)

    def step(self, tokens, position):
        self.tables.fill(position)
        self.inputs.fill(tokens=tokens[:, None], position=position, row=position % self.rows)
        self.graph(self.launches)

    def launches(self):
        given = self.inputs.device
        for row, table in self.fetched:
            ops.embedding_forward(row, given["row"], table, None)
        self.forward(given["tokens"], given["position"])
