"""The spectral norm of each linear recurrence's A, watched by power iteration and, on request, held down.

H_t = U_t + H_(t-1) A forgets, and its gradient fades, if no product of A with a vector is longer than the vector: if the spectral norm, A's
largest singular value, is below 1. Nothing in training keeps it there, and one step too far multiplies itself over all of a window.
"""
import math

import numpy as np

ITERATIONS = 4  # per update: the vector of the update before is nearly right already


class SpectralNorms:
    """The largest singular value of every A of a model's `Parameters`, and the vector that shows it.

    From A^T (A v) the part of v along the first singular vector grows most. As |A v| with |v| = 1 is never more than the norm, an estimate errs
    below it: by about 1 % for a fresh matrix, whose singular values lie close together, and by less once training has set one apart.
    """

    def __init__(self, parameters):
        self.matrices = {name: view for name, view in parameters.weight.items() if name.endswith("recurrence.state.weight")}
        self.vectors = {name: np.empty(len(a), a.dtype) for name, a in self.matrices.items()}
        self.norms = dict.fromkeys(self.matrices, 0.0)
        self.image = np.empty(max([len(a) for a in self.matrices.values()], default=0), parameters.weights.dtype)
        for vector in self.vectors.values():
            begin(vector)

    def update(self, limit=0.0):
        """{name: norm} after an update of the weights. A matrix whose norm is above `limit` is scaled down to it first; 0 lets all be."""
        for name, a in self.matrices.items():
            norm = largest_singular_value(a, self.vectors[name], self.image[:len(a)])
            if 0 < limit < norm < math.inf:
                np.multiply(a, limit / norm, out=a)
                norm = limit
            self.norms[name] = norm
        return self.norms

    def state(self):
        """The vectors as named tensors `spectral.NAME`: with them a run that is resumed goes on with the same bits. Views, to load into."""
        return {f"spectral.{name}": vector for name, vector in self.vectors.items()}


def begin(vector):
    """A unit vector that no matrix is likely to turn to zero."""
    vector[:] = np.random.Generator(np.random.Philox(key=len(vector))).standard_normal(len(vector))
    vector /= np.linalg.norm(vector)


def largest_singular_value(a, vector, image):
    """|A v| after some rounds of v = A^T A v / |A^T A v|; v is `vector`, a unit vector, and `image` is scratch. Allocates nothing."""
    for _ in range(ITERATIONS):
        np.dot(a, vector, out=image)
        np.dot(image, a, out=vector)
        length = math.sqrt(np.dot(vector, vector))
        if not 0 < length < math.inf:  # a matrix of zeros, or one that is not finite
            begin(vector)
            break
        np.multiply(vector, 1 / length, out=vector)
    np.dot(a, vector, out=image)
    return math.sqrt(np.dot(image, image))
