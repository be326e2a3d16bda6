"""Positional tables of a decode step: its kernels look up the row of the current position."""

from slm_np import ops

ROWS = 256  # computed at a time, one per position


class PositionTables:
    """The rows of the positions around the current one; position p has row p % R.

    positions  (R, D), added to the embedding: sinusoids, or the learned ones, all T of them
    cos, sin   (R, r / 2), of the angles of the r columns of a head that are rotated
    A table that the model does not use has no rows, cos and sin no columns.
    """

    def __init__(self, model):
        config, zeros, dtype = model.config, model.device.arrays.zeros, model.dtype
        self.config, self.start, rows = config, None, min(ROWS, config.block_size)
        half = config.rotary_width // 2 if config.positions == "rotary" else 0
        self.cos, self.sin = zeros((rows, half), dtype), zeros((rows, half), dtype)
        if config.positions == "learned":
            self.positions = model.parameters.weight["positions.weight"]
        else:
            self.positions = zeros((rows if config.positions == "sinusoidal" else 0, config.n_embd), dtype)

    def fill(self, position):
        """Compute the rows around `position`, unless they are there already."""
        start = position - position % len(self.cos)
        if start == self.start:
            return
        self.start = start
        if self.config.positions == "sinusoidal":
            ops.sinusoidal_table(self.positions, start)
        elif self.config.positions == "rotary":
            ops.rotary_table(self.cos, self.sin, self.config.rope_theta, start, self.config.rotary_frequencies)
