"""AdamW over flat memory, with the norm of the whole gradient."""

import math

from slm_np.ops.device import kernels_of, number


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), one sweep over the flat buffers of `parameters`.

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   and after update t, counted from 1,
    w -= rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay * w), the last term for the tensors that
    decay. g is the gradient times min(1, grad_clip / (norm + 1e-6)), or the gradient itself if grad_clip is 0. The
    sweep zeroes the gradients.
    """

    def __init__(
        self, parameters, learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, grad_clip=1.0
    ):
        self.parameters, self.learning_rate, self.weight_decay = parameters, learning_rate, weight_decay
        self.beta1, self.beta2, self.eps, self.grad_clip = beta1, beta2, eps, grad_clip
        arrays, self.kernels = parameters.device.arrays, kernels_of(parameters.weights)
        self.mean, self.square = arrays.zeros_like(parameters.weights), arrays.zeros_like(parameters.weights)  # m and v
        self.partial = arrays.zeros(self.kernels.square_sum_blocks(parameters.weights.size))  # scratch of the norm
        self.updates = 0  # t

    def gradient_norm(self):
        """Euclidean norm of all gradients together; NaN or infinite if one of them is."""
        return math.sqrt(number(self.kernels.square_sum(self.partial, self.parameters.gradients)))

    def step(self, learning_rate=None):
        """Update the weights and zero the gradients.

        Returns the gradient norm before clipping; if it is not finite, no update is made.
        """
        norm = self.gradient_norm()
        if not math.isfinite(norm):
            self.parameters.gradients.fill(0)
            return norm
        self.updates += 1
        rate = self.learning_rate if learning_rate is None else learning_rate
        self.kernels.adamw(
            self.parameters.weights,
            self.parameters.gradients,
            self.mean,
            self.square,
            self.parameters.n_decayed,
            min(1.0, self.grad_clip / (norm + 1e-6)) if self.grad_clip else 1.0,
            float(rate),
            float(self.weight_decay),
            self.beta1,
            self.beta2,
            1 - self.beta1**self.updates,
            1 - self.beta2**self.updates,
            self.eps,
        )
        self.parameters.update_cast_copies()
        return norm

    def state(self):
        """Both moments as named tensors, `mean.NAME` and `square.NAME`.

        Views: loading into them restores the optimizer.
        """
        views = {role: self.parameters.like(getattr(self, role)) for role in ("mean", "square")}
        return {f"{role}.{name}": view for role in views for name, view in views[role].items()}
