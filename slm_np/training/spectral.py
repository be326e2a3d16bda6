"""The spectral norm of each linear recurrence's A, watched by power iteration and, on request, held down.

H_t = U_t + H_(t-1) A forgets, and its gradient fades, if A makes no vector longer: if its spectral norm, the largest singular value, is below 1.
Nothing in training keeps it there, and what grows a little at every step grows beyond all bounds over a long window.
"""

import math

import numpy as np

from slm_np.ops.device import device_of, host, put

VECTORS = 8  # an update may set another singular vector first, and it is then mostly among them
BEGINNING, ROUNDS = (
    16,
    2,
)  # rounds for vectors that begin, and per update, as those of the update before are nearly right already


class SpectralNorms:
    """The largest singular value of every A of a model's `Parameters`, and the vectors that show it.

    Power iteration of several orthogonal rows V: multiplied with A A^T they turn to the first singular vectors, and the norm is that of V A.
    No estimate is above the norm; it mostly errs by less than a thousandth, and by up to a hundredth while every update changes much of A.
    """

    def __init__(self, parameters):
        self.matrices = {
            name: view for name, view in parameters.weight.items() if name.endswith("recurrence.state.weight")
        }
        self.vectors = {
            name: device_of(a).arrays.zeros((min(VECTORS, len(a)), len(a)), a.dtype)
            for name, a in self.matrices.items()
        }
        self.norms = dict.fromkeys(self.matrices, 0.0)
        self.images = {v.shape: device_of(v).arrays.zeros_like(v) for v in self.vectors.values()}
        self.found, self.products = {}, {}  # of a GPU

    def update(self, limit=0.0):
        """{name: norm} after an update of the weights. A matrix whose norm is above `limit` is scaled down to it first; 0 lets all be."""
        for name, a in self.matrices.items():
            vectors = self.vectors[name]
            norm = spectral_norm(a, vectors, self.images[vectors.shape])
            if 0 < limit < norm < math.inf:
                np.multiply(a, limit / norm, out=a)
                norm = limit
            self.norms[name] = norm
        return self.norms

    def begin(self):
        """Before the first `launch`: vectors on a GPU, where there are none to go on with."""
        for name, a in self.matrices.items():
            vectors, arrays = host(self.vectors[name]), device_of(a).arrays
            if not vectors.any():
                spectral_norm(host(a), vectors, np.zeros_like(vectors))
                put(self.vectors[name], vectors)
            self.found.setdefault(name, arrays.zeros(2, np.float64))
            self.products.setdefault(len(vectors), arrays.zeros((len(vectors), len(vectors)), a.dtype))

    def launch(self, limit=0.0):
        """`update` on a GPU, which nobody waits for; `read` says what it found."""
        from slm_np.kernels.gpu import spectral

        for name, a in self.matrices.items():
            vectors = self.vectors[name]
            spectral.spectral_norm(
                self.found[name], a, vectors, self.images[vectors.shape], self.products[len(vectors)], ROUNDS, limit
            )

    def read(self):
        """Fill `norms` with what the last `launch` found."""
        self.norms.update((name, float(host(found)[0])) for name, found in self.found.items())

    def state(self):
        """The vectors as named tensors `spectral.NAME`: with them a run that is resumed goes on with the same bits. Views, to load into."""
        return {f"spectral.{name}": vectors for name, vectors in self.vectors.items()}


def spectral_norm(a, vectors, images):
    """An estimate from below of A's largest singular value, from the rows of `vectors`, which come nearer to its singular vectors.

    images: scratch of the vectors' shape. Vectors that are zero or not finite begin anew. Nothing as large as a vector is allocated.
    """
    rounds = ROUNDS
    if not 0 < np.dot(vectors[0], vectors[0]) < math.inf:
        vectors[:] = np.random.Generator(np.random.Philox(key=len(a))).standard_normal(vectors.shape)
        orthonormalise(vectors, images[0])
        rounds = BEGINNING
    for _ in range(rounds):
        np.dot(vectors, a, out=images)
        products = np.dot(images, images.T)
        np.dot(images, a.T, out=vectors)
        orthonormalise(vectors, images[0])
    return math.sqrt(max(0.0, np.linalg.eigvalsh(products)[-1])) if np.isfinite(products).all() else math.nan


def orthonormalise(vectors, scratch):
    """Gram and Schmidt, in place: each row less its parts along those before, at unit length; nothing is left of a row that was made of them."""
    for i, vector in enumerate(vectors):
        if i:
            np.dot(np.dot(vectors[:i], vector), vectors[:i], out=scratch)
            np.subtract(vector, scratch, out=vector)
        length = math.sqrt(np.dot(vector, vector))
        np.multiply(vector, 1 / length if length > 0 else 0.0, out=vector)
