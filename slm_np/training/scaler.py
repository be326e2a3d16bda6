"""Float16 gradients are small enough to vanish: the loss is scaled up before backward, and the gradients down again in the update.

A scale that makes a gradient overflow is halved and the update left out; one that has not for a while is doubled (Micikevicius et al. 2018).
float32 and bfloat16, whose exponents are as long as each other's, need none of this.
"""

import math


class GradientScaler:
    """The scale of the loss. `step` makes the update of gradients that were computed from the loss times `scale`."""

    def __init__(self, scale=2.0**16, growth=2.0, backoff=0.5, interval=2000, lowest=1.0):
        self.scale, self.growth, self.backoff, self.interval, self.lowest = scale, growth, backoff, interval, lowest
        self.good = 0  # updates since the scale last changed

    def step(self, optimizer, learning_rate=None):
        """An `AdamW` update of gradients scaled by `scale`. Returns the norm of the unscaled gradient; if it is not finite, nothing is updated."""
        norm = optimizer.step(learning_rate, self.scale)
        if not math.isfinite(norm):
            self.scale, self.good = max(self.lowest, self.scale * self.backoff), 0
        else:
            self.good += 1
            if self.good == self.interval:
                self.scale, self.good = self.scale * self.growth, 0
        return norm

    def state(self):
        """What a checkpoint keeps of it."""
        return dict(scale=self.scale, good=self.good)

    def load(self, state):
        """Go on from `state()`."""
        self.scale, self.good = float(state["scale"]), int(state["good"])
