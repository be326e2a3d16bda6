"""A decode step on a GPU: the trunk's own ops for one token of each text, their launches captured once and replayed.

What changes from step to step lies in one block: the tokens, their place, and the row of that place in the tables of positions, from which
the embedding's kernel fetches it. So a step is one copy to the device, one launch of a graph and one copy of the logits back.
"""

import copy

import numpy as np

from slm_np import ops
from slm_np.kernels.gpu.graph import CapturedGraph, HostInputs
from slm_np.nn import head
from slm_np.nn.arena import planned_bytes
from slm_np.nn.dropout import model_dropout
from slm_np.nn.model import Activations, States, plan


class Launched:
    """The step of `Decoder` on a GPU; the same names as `decode.Compiled`."""

    def __init__(self, model, batch, positions, cos, sin):
        config, arrays, dtype = model.config, model.device.arrays, model.dtype
        numbers = sum(mixer.state_elements(config, batch) for mixer in model.mixers) + batch * config.vocab_size
        model.device.check_memory(
            dtype.itemsize * numbers + planned_bytes(plan(config, batch, 1, model.device), dtype),
            f"making {batch} texts at once",
            "ask for fewer",
        )
        self.states = States(model, batch)
        self.logits = arrays.zeros((batch, config.vocab_size), dtype)
        self.inputs = HostInputs(
            arrays, dict(tokens=((batch, 1), np.int32), place=((1,), np.int32), row=((1, 1), np.int32))
        )
        self.given = self.inputs.device
        self.whole = Activations(config, batch, 1, dtype, device=model.device)
        self.buffers = tuple(self.whole.arena.arrays.values())
        self.model = copy.copy(model.full_precision())
        a, self.fetched, self.rows = self.whole.shared, [], max(1, len(cos))
        if config.positions == "rotary":
            self.fetched = [(a["rotary.cos"], cos), (a["rotary.sin"], sin)]
        elif config.positions == "sinusoidal":
            self.fetched, self.rows = [(a["positions"], positions)], len(positions)
        elif config.positions == "learned":  # the only row of a table of its own
            row = arrays.zeros((1, config.n_embd), dtype)
            self.model.parameters = copy.copy(self.model.parameters)
            self.model.parameters.weight = self.model.parameters.weight | {"positions.weight": row}
            self.fetched, self.rows = [(row, positions)], len(positions)
        self.keys, self.replayed = model_dropout(config), CapturedGraph(arrays)

    def launches(self):
        for row, table in self.fetched:
            ops.embedding_forward(row, self.given["row"], table, None)
        self.head(
            self.model.forward(self.whole, self.given["tokens"], self.keys, self.states.layers, self.given["place"])
        )

    def step(self, tokens, place):
        """One more token of each text, (B,), at `place`."""
        self.inputs.fill(tokens=tokens[:, None], place=place, row=place % self.rows)
        self.replayed(self.launches)

    def head(self, last):
        """What the trunk gives of each text's last token, (B, D) or the logits."""
        head.logits_forward(self.model.config, self.model.parameters.weight, self.whole.shared, self.logits, last)
