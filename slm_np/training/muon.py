"""Muon: the matrices of the blocks move along their orthogonalized momentum, all other tensors by AdamW.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. The kernel `orthogonal_update` has the formulas.
"""

import numpy as np

from slm_np.nn.lora import columns_of, linear_of
from slm_np.training.optimizer import AdamW

# The optimal polynomials for singular values from 0.01 to 1, by the method of Polar Express (Amsel et al. 2025,
# https://arxiv.org/abs/2505.16932). They bring these to 1 within 0.27.
COEFFICIENTS = np.array([(8.093, -23.62, 17.446), (3.637, -2.722, 0.537), (2.661, -1.977, 0.453)])
MARGIN = 1.01  # of the norm, so that rounding leaves no singular value above 1
MOMENTUM = 0.95
RMS = 0.2  # of the elements of an update at a rate of 1: about that of AdamW's updates


def _work(matrix):
    """Multiply-adds of a matrix's update, roughly."""
    _, m, _, first, stop = matrix
    return m * (stop - first) * min(m, stop - first)


class Muon(AdamW):
    """AdamW, but the weights w (m, n) of the linear layers in blocks have another update. With mu = 0.95,

    m = mu m + (1 - mu) g,   u = mu m + (1 - mu) g,   w = (1 - f rate decay) w - f rate 0.2 sqrt(max(m, n)) O(u)

    where O(u) is about U V^T of u = U S V^T, and f is `matrix_rate`. Queries, keys and values, and gate and up, are
    matrices of their own. The state matrix of a linear recurrence is not a linear layer. The other parameters, errors
    and the clipping of g are those of AdamW.

    config: ModelConfig of the model.   matrix_rate: in the range of `TrainConfig`, which checks it
    """

    FIXED = (*AdamW.FIXED, "config", "matrices", "others")

    def __init__(self, parameters, config, matrix_rate=1.0, **settings):
        self.config = config
        super().__init__(parameters, **settings)
        self.matrix_rate = matrix_rate

    def _bind(self):
        super()._bind()
        self.matrices, self.others = self._split()

    def _split(self):
        """(the table of matrices for `orthogonal_update`, large ones first; [(start, stop), ...] of all others)"""
        tensors, matrices, others, start = {t.name: t for t in self.parameters.tensors}, [], [], 0
        for tensor, weight in self.parameters.trained.items():
            stop, linear = start + weight.size, linear_of(tensors[tensor])
            if linear:
                columns = columns_of(self.config, (linear[1], weight.shape)).values() or [(0, weight.shape[1])]
                matrices += [(start, *weight.shape, *span) for span in columns]
            elif others and others[-1][1] == start:
                others[-1] = others[-1][0], stop
            else:
                others.append((start, stop))
            start = stop
        matrices.sort(key=_work, reverse=True)
        return np.array(matrices, np.int64).reshape(-1, 5), others

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name not in ("matrices", "others")}

    def _launch(self, gradient_scale, rate, correction1, correction2):
        p = self.parameters
        for start, stop in self.others:
            self._sweep(start, stop, gradient_scale, rate, correction1, correction2)
        self.kernels.orthogonal_update(
            p.weights,
            p.gradients,
            self.mean,
            self.matrices,
            gradient_scale,
            rate,
            self.matrix_rate * self.weight_decay,
            MOMENTUM,
            self.matrix_rate * RMS,
            MARGIN,
            COEFFICIENTS,
        )
