"""Decoding: the trunk run token by token, every mixer keeping what it needs of the past (attention: keys and values).

With rotary or no positions the context slides: keys keep the angle of their own place and the oldest slot is written over.
Learned and sinusoidal positions end at T, so beyond it the last T tokens are read again.
"""
import numpy as np

from slm_np import head
from slm_np.errors import UserError
from slm_np.machine import check_memory
from slm_np.model import Activations, plan
from slm_np.workspace import planned_bytes


class Decoder:
    """One text per row, all of one length. `read(tokens)` starts a text, `step(tokens)` adds a token to each; both return the next logits (B, V).

    UserError if there is not the memory for so many texts at once.
    """

    def __init__(self, model, batch=1):
        self.model, self.batch = model, batch
        config = model.config
        check_memory(4 * batch * (2 * config.n_layer * config.n_kv_head * config.head_dim * config.block_size + config.vocab_size),
                     f"making {batch} texts at once", "ask for fewer")
        self.slides = config.positions in ("rotary", "none")
        self.states = [mixer.State(config, batch, model.dtype) for mixer in model.mixers]
        self.whole, self.one = None, Activations(config, batch, 1, model.dtype)
        self.logits = np.zeros((batch, config.vocab_size), model.dtype)
        self.keys = model.keys(None)
        self.text = np.zeros((batch, 0), np.int32)  # the last T tokens, where they may have to be read again
        self.place = 0

    def read(self, tokens):
        """Logits after a prompt (B, n), n >= 1, of which the last T tokens count. Forgets the text before."""
        tokens = np.ascontiguousarray(tokens, np.int32)[:, -self.model.config.block_size:]
        if tokens.shape[0] != self.batch or tokens.shape[1] == 0:
            raise UserError(f"a prompt of shape {tokens.shape} cannot start {self.batch} texts; give at least one token for each")
        if self.whole is None or self.whole.steps != tokens.shape[1]:
            self.whole = None  # let go of the old arena before the new one is laid out
            check_memory(planned_bytes(plan(self.model.config, *tokens.shape), self.model.dtype.itemsize), f"reading a prompt for {self.batch} texts at once", "ask for fewer")
            self.whole = Activations(self.model.config, *tokens.shape, self.model.dtype)
        normed = self.model.forward(self.whole, tokens, self.keys, self.states)
        last = np.ascontiguousarray(normed.reshape(*tokens.shape, -1)[:, -1])
        self.text, self.place = tokens, tokens.shape[1]
        return self.head(last)

    def step(self, tokens):
        """Logits after one more token per text, (B,)."""
        config, tokens = self.model.config, np.asarray(tokens, np.int32).reshape(self.batch, 1)
        if not self.slides:
            text = np.concatenate([self.text, tokens], axis=1)
            if text.shape[1] > config.block_size or self.place == 0:
                return self.read(text)
            self.text = text
        elif self.place == 0:
            return self.read(tokens)
        self.one.set_place(config, self.place)
        normed = self.model.forward(self.one, tokens, self.keys, self.states, self.place)
        self.place += 1
        return self.head(normed)

    def head(self, normed):
        head.logits_forward(self.model.config, self.model.parameters.weight, self.one.shared, self.logits, normed)
        return self.logits
