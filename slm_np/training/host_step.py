"""Updates on a CPU, where a call returns when its work is done."""

import math

from slm_np.training.matmul_check import check_watched_matmul, watch_matmul
from slm_np.training.step import Step, StepResult


class HostStep(Step):
    """Updates of `model` by `optimizer` (AdamW).

    spectral           SpectralNorms; they are limited to `max_spectral_norm`, 0 is no limit
    shape              (B, T) of a micro-batch
    seed               of dropout
    states             States that pass from window to window, or None

    If a watched matmul is wrong, the update raises WrongMatmul before the weights change.
    """

    def __init__(self, model, optimizer, spectral, shape, seed=0, max_spectral_norm=0.0, states=None):
        self.model, self.optimizer, self.spectral, self.states = model, optimizer, spectral, states
        self.seed, self.max_spectral_norm = seed, max_spectral_norm
        self.result = StepResult(math.nan, math.nan, 0)
        model.plan(*shape)

    def start(self, index, n_targets, learning_rate):
        self.index, self.n_targets, self.learning_rate, self.loss = index, n_targets, learning_rate, 0.0
        watch_matmul(self.model.parameters.weights, index)

    def gradient(self, tokens, targets, micro):
        key = (self.seed, self.index, micro)
        self.loss += self.model.loss_and_gradient(tokens, targets, self.n_targets, key, self.states)

    def update(self):
        check_watched_matmul(self.model.parameters.weights, self.index)
        norm = math.nan
        if math.isfinite(self.loss):
            norm = self.optimizer.step(self.learning_rate)
        else:
            self.model.parameters.gradients.fill(0)
            if self.states:
                self.states.clear()  # a state that is not finite would stay so
        finite = math.isfinite(norm)
        if finite:
            self.spectral.update(self.max_spectral_norm)
        self.result = StepResult(self.loss, norm, 0 if finite else self.result.skipped + 1)
        return self.loss, norm

    def read(self, wait=True):
        return self.result

    def state(self):
        return dict(optimizer_updates=self.optimizer.updates, bad_steps=self.result.skipped)

    def load(self, state):
        self.optimizer.updates = state["optimizer_updates"]
        self.result = StepResult(math.nan, math.nan, state["bad_steps"])
