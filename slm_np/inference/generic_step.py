"""A decode step made of the model's own ops: one new token of each sequence through all layers."""

import numpy as np

from slm_np.nn import head
from slm_np.nn.arena import planned_bytes
from slm_np.nn.dropout import model_dropout
from slm_np.nn.model import Activations, States, model_forward, plan
from slm_np.words import counted


def check_memory(model, batch, scratch):
    """Raise UserError if a step of B sequences does not fit into memory. scratch: bytes beside states and logits."""
    elements = sum(mixer.state_elements(model.config, batch) for mixer in model.mixers)
    elements += batch * model.config.vocab_size
    needed = model.dtype.itemsize * elements + scratch
    model.device.check_memory(needed, f"generating {counted(batch, 'sequence')} at once", "ask for fewer")


class GenericStep:
    """`model_forward` of one token per sequence, for any model on any device.

    Each op gets the new token only; what the mixers need of the past is in their states. The other decode steps have
    the same interface and are optimizations of this one.

    states  what the mixers keep of the past, `States`
    logits  (B, V), written by `step` and `head`
    """

    def __init__(self, model, batch):
        config, device = model.config, model.device
        options = dict(adapters=model.adapters, recompute=True)
        check_memory(model, batch, planned_bytes(plan(config, batch, 1, device, **options), model.dtype))
        self.model, self.dropout = model.full_precision(), model_dropout(config)
        self.states = States(model, batch)
        self.activations = Activations(config, batch, 1, model.dtype, device=device, **options)
        self.logits = device.arrays.zeros((batch, config.vocab_size), model.dtype)

    def step(self, tokens, position):
        """Logits after one more token of each sequence. tokens: (B,) in host memory; `position` tokens came before."""
        self.activations.set_positions(self.model.config, position)
        self.forward(np.ascontiguousarray(tokens[:, None]), position)

    def forward(self, tokens, position):
        """`step` with tokens (B, 1) and, if it is an array, `position` on the device; positional rows are filled."""
        self.head(model_forward(self.model, self.activations, tokens, self.dropout, self.states, position))

    def head(self, x):
        """Logits of the hidden state (B, D) that `model_forward` returns for one token of each sequence."""
        weights = self.model.parameters.weight
        head.logits_forward(self.model.config, weights, self.activations.shared, self.logits, x)
