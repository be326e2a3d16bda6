"""Loss scaling for float16: without it, small gradients would become zero.

Backward starts from the loss times a scale, and the update divides the gradient by it. If the gradient overflows, the
update is skipped and the scale halved; after many updates without overflow it is doubled (Micikevicius et al. 2018).
float32 and bfloat16 have longer exponents and need no scaling.
"""


class GradientScaler:
    """The scale of the loss and the settings of its rule, which `kernels/gpu/step.py` applies.

    growth, backoff   factors of the scale after `interval` good updates in a row, and after an overflow
    lowest            value below which the scale does not go
    good              updates without overflow since the scale changed
    """

    def __init__(self, scale=2.0**16, growth=2.0, backoff=0.5, interval=2000, lowest=1.0):
        self.scale, self.growth, self.backoff, self.interval, self.lowest = scale, growth, backoff, interval, lowest
        self.good = 0

    def state(self):
        """What a checkpoint keeps."""
        return dict(scale=self.scale, good=self.good)

    def load(self, state):
        """Continue from a `state`."""
        self.scale, self.good = float(state["scale"]), int(state["good"])
