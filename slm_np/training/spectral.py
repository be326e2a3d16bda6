"""The spectral norm of each linear recurrence's A, estimated by power iteration and, on request, limited.

In H_t = U_t + H_(t-1) A the state decays, and so does its gradient, only if the spectral norm of A, its largest
singular value, is below 1. Training does not keep it there, and a state that grows a little at every step overflows in
a long window.
"""

import math

import numpy as np

from slm_np.machine import one_blas_thread
from slm_np.ops.device import device_of, host, put

MATRIX = "recurrence.state.weight"  # the last part of A's name
VECTORS = 8  # one update may bring another singular vector to the top; it is then mostly among the next few
FIRST_ROUNDS = 16  # iterations from random vectors
ROUNDS = 2  # iterations per update, from the vectors of the update before


class SpectralNorms:
    """The largest singular value of every A (S, S) in `parameters`.

    Block power iteration: V (k, S), with orthonormal rows, is multiplied by A A^T and orthonormalized again, and turns
    to the first k singular vectors. The estimate is the spectral norm of V A. It is never above the true norm, and
    usually below by less than 0.1 %, or by up to 1 % while every update changes much of A.

    `update` computes on the host. On a GPU `launch` does the same without synchronizing, after one `start`, and `read`
    fetches the result.
    """

    def __init__(self, parameters):
        self.matrices = {name: view for name, view in parameters.trained.items() if name.endswith(MATRIX)}
        self.vectors = {
            name: device_of(a).arrays.zeros((min(VECTORS, len(a)), len(a)), a.dtype)
            for name, a in self.matrices.items()
        }
        self.norms = dict.fromkeys(self.matrices, 0.0)
        self.images = {v.shape: device_of(v).arrays.zeros_like(v) for v in self.vectors.values()}  # V A, scratch
        self.results, self.products = {}, {}  # on a GPU: (2,) of each matrix; (k, k) scratch

    def update(self, limit=0.0):
        """{name: norm} after an update of the weights. Matrices with a norm above `limit` are scaled down to it.

        limit: 0 is none
        """
        with one_blas_thread():
            for name, a in self.matrices.items():
                vectors = self.vectors[name]
                norm = spectral_norm(a, vectors, self.images[vectors.shape])
                if 0 < limit < norm < math.inf:
                    np.multiply(a, limit / norm, out=a)
                    norm = limit
                self.norms[name] = norm
        return self.norms

    def start(self):
        """Prepare for `launch`: the first vectors, unless a checkpoint brought some, and memory on the GPU."""
        for name, a in self.matrices.items():
            vectors, arrays = host(self.vectors[name]), device_of(a).arrays
            if not vectors.any():
                spectral_norm(host(a), vectors, np.zeros_like(vectors))
                put(self.vectors[name], vectors)
            self.results.setdefault(name, arrays.zeros(2, np.float64))
            self.products.setdefault(len(vectors), arrays.zeros((len(vectors), len(vectors)), a.dtype))

    def launch(self, limit=0.0):
        """`update` on a GPU, asynchronously."""
        from slm_np.kernels.gpu import spectral

        for name, a in self.matrices.items():
            vectors = self.vectors[name]
            images, products = self.images[vectors.shape], self.products[len(vectors)]
            spectral.spectral_norm(self.results[name], a, vectors, images, products, ROUNDS, limit)

    def read(self):
        """Fill `norms` with the results of the last `launch`. The host synchronizes."""
        self.norms.update((name, float(host(result)[0])) for name, result in self.results.items())

    def state(self):
        """The vectors as named tensors `spectral.NAME`, which a resumed run needs for the same bits.

        Views: loading into them restores the vectors.
        """
        return {f"spectral.{name}": vectors for name, vectors in self.vectors.items()}


def spectral_norm(a, vectors, images):
    """A lower estimate of the largest singular value of `a` (S, S); NaN if it is not finite.

    vectors  (k, S), updated; zeros or values that are not finite are replaced by random vectors
    images   (k, S) scratch, so that nothing of that size is allocated
    """
    rounds = ROUNDS
    if not 0 < np.dot(vectors[0], vectors[0]) < math.inf:
        vectors[:] = np.random.Generator(np.random.Philox(key=len(a))).standard_normal(vectors.shape)
        orthonormalize(vectors, images[0])
        rounds = FIRST_ROUNDS
    for _ in range(rounds):
        np.dot(vectors, a, out=images)
        products = np.dot(images, images.T)  # (k, k)
        np.dot(images, a.T, out=vectors)
        orthonormalize(vectors, images[0])
    return math.sqrt(max(0.0, np.linalg.eigvalsh(products)[-1])) if np.isfinite(products).all() else math.nan


def orthonormalize(vectors, scratch):
    """Gram-Schmidt in place: subtract from each row its components along the rows before, then scale it to length 1.

    A row that is a combination of the rows before becomes 0.
    """
    for i, vector in enumerate(vectors):
        if i:
            np.dot(np.dot(vectors[:i], vector), vectors[:i], out=scratch)
            np.subtract(vector, scratch, out=vector)
        length = math.sqrt(np.dot(vector, vector))
        np.multiply(vector, 1 / length if length > 0 else 0.0, out=vector)
