"""Muon: the matrices of the blocks move along their orthogonalized momentum, all other tensors by AdamW.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. The singular values of a momentum u = U S V^T differ by
orders of magnitude, so a step along u changes few directions. U V^T has the same directions with singular values of 1.
Polynomials in u u^T approximate it, which need matmuls only. With k the smaller side of u, and x = u / (1.01 |u|):
    A = x x^T,  Q = 1,  then for each (a, b, c) of COEFFICIENTS:  P = a + b A + c A^2,  Q = P Q,  A = P A P
and the result is Q x. If u has more rows than columns, A = x^T x, and the result is x Q. All matmuls but the first and
the last are of k x k matrices. The coefficients are the first three of Polar Express (Amsel et al. 2025): they bring
singular values from 0.05 on, the largest being 1, to 1 within a third.
"""

import math

from slm_np import arguments, ops
from slm_np.nn.lora import linear_of, parts_of
from slm_np.training.optimizer import AdamW

COEFFICIENTS = ((8.157, -22.483, 15.879), (4.043, -2.809, 0.5), (3.892, -2.772, 0.506))
MARGIN = 1.01  # of the norm, so that rounding leaves no singular value above 1
MOMENTUM = 0.95
RMS = 0.2  # of the elements of an update at a rate of 1: about that of AdamW's updates
PARTS = ("q", "k", "v", "gate", "up")  # matrices that one tensor holds side by side


class Orthogonalizer:
    """The map from a matrix to its U V^T, and its scratch. x (m, n): the matrix is written into it."""

    def __init__(self, shape, arrays, dtype):
        k = min(shape)
        self.arrays, self.wide, self.x = arrays, shape[0] <= shape[1], arrays.zeros(shape, dtype)
        self.scratch = [arrays.zeros((k, k), dtype) for _ in range(5)]

    def factor(self):
        """The matrix F (k, k) for which F x or, if x has more rows than columns, x F is U V^T."""
        gram, square, p, q, product = self.scratch
        if self.wide:
            ops.linear_transposed_forward(gram, self.x, self.x)
        else:
            gram.fill(0)
            ops.linear_backward_weight(gram, None, self.x, self.x)
        inverse = 1 / (MARGIN * self.arrays.sqrt(gram.trace()) + 1e-30)
        gram *= inverse
        gram *= inverse
        for i, (a, b, c) in enumerate(COEFFICIENTS):
            _multiply(square, gram, gram)
            self.arrays.multiply(gram, b, out=p)
            square *= c
            p += square
            p.reshape(-1)[:: len(p) + 1] += a
            if i == 0:
                q[...] = p
            else:
                _multiply(product, q, p)
                q, product = product, q
            if i < len(COEFFICIENTS) - 1:  # polynomials in the same matrix commute
                _multiply(square, gram, p)
                _multiply(gram, square, p)
        q *= inverse
        return q

    def add(self, out, factor):
        """out += F x or x F"""
        ops.linear_forward(out, *((factor, self.x) if self.wide else (self.x, factor)), None, out)


def _multiply(out, a, b):
    ops.linear_forward(out, a, b, None, None)


class Muon(AdamW):
    """AdamW, but the weights w (m, n) of the linear layers in blocks have another update. With mu = 0.95,

    m = mu m + (1 - mu) g,   u = mu m + (1 - mu) g,   w = (1 - f rate decay) w - f rate 0.2 sqrt(max(m, n)) O(u)

    where O(u) = U V^T of u = U S V^T, and f is `matrix_rate`. Queries, keys and values, and gate and up, are matrices
    of their own. The other parameters, errors and the clipping of g are those of AdamW.

    config: ModelConfig of the model
    """

    FIXED = (*AdamW.FIXED, "config", "matrices")

    def __init__(self, parameters, config, matrix_rate=1.0, **settings):
        self.config = config
        super().__init__(parameters, **settings)
        self.matrix_rate = matrix_rate

    def __setattr__(self, name, value):
        if name == "matrix_rate":
            value = arguments.real(name, value, 0.0, 1e3)
        super().__setattr__(name, value)

    def _bind(self):
        super()._bind()
        self.matrices = {}  # {name of a tensor: [(first column, one behind the last), ...] of its matrices}
        for tensor in self.parameters.tensors:
            linear = linear_of(tensor) if tensor.trained else None
            if linear:
                parts = parts_of(self.config, (linear[1], tensor.shape), PARTS)
                self.matrices[tensor.name] = [(one.start, one.stop) for one in parts] or [(0, tensor.shape[1])]
        self.ranges = self._ranges()
        self.scratch = {}  # {shape: Orthogonalizer}

    def _ranges(self):
        """[(whether these are matrices, start, stop), ...] of the flat buffers."""
        found, start = [], 0
        for name, view in self.parameters.trained.items():
            kind, stop = name in self.matrices, start + view.size
            if found and found[-1][0] == kind:
                found[-1] = kind, found[-1][1], stop
            else:
                found.append((kind, start, stop))
            start = stop
        return found

    def __getstate__(self):
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("matrices", "ranges", "scratch")}

    def launch(self, gradient_scale, rate, correction1, correction2):
        p, arrays = self.parameters, self.parameters.device.arrays
        for is_matrices, start, stop in self.ranges:
            if not is_matrices:
                self.sweep(start, stop, gradient_scale, rate, correction1, correction2)
                continue
            part = slice(start, stop)
            self.kernels.momentum(self.mean[part], p.gradients[part], gradient_scale, MOMENTUM)
            step = self.matrix_rate * arrays.where(arrays.isfinite(gradient_scale), rate, 0)
            p.weights[part] *= 1 - step * self.weight_decay
        for name, columns in self.matrices.items():
            for start, stop in columns:
                self._move(p.trained[name], p.gradient[name], start, stop, step)
        for is_matrices, start, stop in self.ranges:
            if is_matrices:
                p.gradients[start:stop] = 0

    def _move(self, weight, direction, start, stop, step):
        """Move the columns [start, stop) of a weight against U V^T of those of its direction."""
        shape, arrays = (len(weight), stop - start), self.parameters.device.arrays
        one = self.scratch.get(shape)
        if one is None:
            one = self.scratch[shape] = Orthogonalizer(shape, arrays, weight.dtype)
        one.x[...] = direction[:, start:stop]
        factor = one.factor()
        factor *= -RMS * math.sqrt(max(shape)) * step
        if shape == weight.shape:
            one.add(weight, factor)
        else:
            moved = arrays.zeros(shape, weight.dtype)
            one.add(moved, factor)
            weight[:, start:stop] += moved
