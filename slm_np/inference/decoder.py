"""Decoding: a prompt goes through the model as in training, then each new token alone.

Every mixer keeps what it needs of the past in a state: attention keys and values, the others a recurrent state. So a
step takes the same time and memory however long the sequence is. With rotary or no positions the context slides: keys
keep the angle of their own position, and the newest key overwrites the oldest. Learned and sinusoidal positions end at
T, so beyond it the last T tokens are read again. A model without attention and positional tables reads prompts of any
length, T tokens at a time.
"""

import copy

import numpy as np

from slm_np import arguments
from slm_np.inference.generic_step import GenericStep
from slm_np.nn import warmup
from slm_np.nn.arena import planned_bytes
from slm_np.nn.dropout import model_dropout
from slm_np.nn.model import LARGEST, Activations, Model, model_forward, plan
from slm_np.ops.device import host, put
from slm_np.words import counted


def choose_step(model, batch):
    """The fastest decode step for a model: on a CPU compiled by Numba if it knows every part of the model."""
    if model.device.kernel_set == "numba":
        from slm_np.inference.compiled_step import CompiledStep, supports

        if supports(model):
            return CompiledStep(model, batch)
    return uncompiled_step(model, batch)


def uncompiled_step(model, batch):
    """A decode step for a few short texts, that Numba does not have to compile: captured on a GPU, else generic."""
    if model.device.name == "cuda":
        from slm_np.inference.gpu_step import GpuStep

        return GpuStep(model, batch)
    return GenericStep(model, batch)


class Decoder(arguments.Fixed):
    """B sequences of one length. `read(tokens)` starts them, `step(tokens)` adds a token to each.

    Both return the logits (B, V) of the next tokens, which the next call overwrites. A `step` before any `read` starts
    the sequences, too. Raises UserError if B sequences do not fit into memory, and for tokens that are not integers, of
    another shape, or outside the vocabulary. A copy, also by pickle, continues the same sequences on its own.
    make_step: `choose_step`, which is the default, `uncompiled_step`, or another function (model, batch) -> decode step
    """

    FIXED = ("model", "batch", "token_step", "states")

    def __init__(self, model, batch=1, make_step=None):
        self.model = arguments.instance("model", model, Model)
        self.batch = batch = arguments.whole("batch", batch, 1, LARGEST)
        self.make_step = arguments.function("make_step", make_step)
        self.token_step = (make_step or choose_step)(model, batch)
        self.states = self.token_step.states  # what the mixers keep of the past
        self.context_slides = model.config.positions in ("rotary", "none")
        self._position = 0
        self._recent = np.zeros((batch, 0), np.int32)  # the last T tokens, if they may have to be read again
        self.activations, self.dropout = None, model_dropout(model.config)
        warmup.prepare(model, sampling if make_step is uncompiled_step else decoding)

    def read(self, tokens):
        """Logits after a prompt (B, n), n >= 1, which starts new sequences.

        Its last T tokens count, or all of them with `ModelConfig.unlimited_context`.
        """
        config = self.model.config
        tokens = arguments.ids("tokens", tokens, config.vocab_size, (self.batch, "n"))
        if not config.unlimited_context:
            tokens = tokens[:, -config.block_size :]
        self.states.clear()
        self._position, self._recent = 0, tokens[:, :0]
        if tokens.shape[1] == 1:
            return self._step(np.ascontiguousarray(tokens[:, 0]))
        shorter = tokens.shape[1] % config.block_size  # the window that is not full comes first
        starts = ([0] if shorter else []) + list(range(shorter, tokens.shape[1], config.block_size))
        for start, stop in zip(starts, starts[1:] + [tokens.shape[1]]):
            x = self.read_window(tokens[:, start:stop])
        self._position = tokens.shape[1]
        if not self.context_slides:
            self._recent = tokens
        self.token_step.head(x)
        return host(self.token_step.logits)

    def read_window(self, tokens):
        """The hidden state (B, D) of the last token of a window (B, n), n <= T, after which the states stand."""
        if self.activations is None or self.activations.steps != tokens.shape[1]:
            self.activations = None  # free the old arena before the new one is laid out
            self.activations = self.planned(tokens.shape[1])
        tokens = self.model.device.arrays.asarray(tokens)
        x = model_forward(self.model, self.activations, tokens, self.dropout, self.states)
        return self.model.device.arrays.ascontiguousarray(x.reshape(*tokens.shape, -1)[:, -1])

    def planned(self, steps):
        """Activations for windows (B, steps)."""
        config, dtype, device = self.model.config, self.model.dtype, self.model.device
        options = dict(recompute=True, adapters=self.model.adapters)  # no backward follows
        requests = plan(config, self.batch, steps, device, **options)
        what = f"reading a prompt for {counted(self.batch, 'sequence')} at once"
        device.check_memory(planned_bytes(requests, dtype), what, "ask for fewer")
        return Activations(config, self.batch, steps, dtype, device=device, **options)

    def step(self, tokens):
        """Logits after one more token of each sequence. tokens: (B,), or (B, 1)"""
        shape, column = (self.batch,), (self.batch, 1)
        return self._step(arguments.ids("tokens", tokens, self.model.config.vocab_size, shape, also=column))

    def _step(self, tokens):
        """`step` of tokens that are checked."""
        if not self.context_slides:
            recent = np.concatenate([self._recent, tokens[:, None]], axis=1)
            if recent.shape[1] > self.model.config.block_size:
                return self.read(recent)
            self._recent = recent
        self.token_step.step(tokens, self._position)
        self._position += 1
        return host(self.token_step.logits)

    @property
    def position(self):
        """How many tokens came before the next one."""
        return self._position

    def __copy__(self):
        return copy.deepcopy(self)

    def __getstate__(self):
        return self.model, self.batch, self.make_step, host(self.states.memory), self._position, self._recent

    def __setstate__(self, state):
        *settings, memory, position, recent = state
        self.__init__(*settings)
        put(self.states.memory, memory)
        self._position, self._recent = position, recent


# Runs of `slm_np.nn.warmup`


def decoding(twin):
    """A prompt and a step, by the fastest decode step."""
    read_and_step(Decoder(twin))


def sampling(twin):
    """The same for the samples of a run in training."""
    read_and_step(Decoder(twin, make_step=uncompiled_step))


def read_and_step(decoder):
    decoder.read(np.zeros((1, 2), np.int32))
    decoder.step(np.zeros(1, np.int32))
