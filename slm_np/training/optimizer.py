"""AdamW over flat memory, the norm of the whole gradient, and the learning rate's schedules."""

import math

from slm_np.ops.device import arrays_of, kernels_of, number

STABLE = 0.8  # share of a stable-decay schedule that is spent at the peak rate


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), one sweep over the flat buffers of `parameters`.

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   after update t:
    w -= rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay * w), the last term for the tensors that decay.
    g is the gradient times min(1, grad_clip / (norm + 1e-6)), or as it is if `grad_clip` is 0; the sweep leaves the gradients zero.
    """

    def __init__(
        self, parameters, learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, grad_clip=1.0
    ):
        self.parameters, self.learning_rate, self.weight_decay = parameters, learning_rate, weight_decay
        self.beta1, self.beta2, self.eps, self.grad_clip = beta1, beta2, eps, grad_clip
        arrays = arrays_of(parameters.weights)
        self.mean, self.square = arrays.zeros_like(parameters.weights), arrays.zeros_like(parameters.weights)
        self.updates = 0
        self.kernels = kernels_of(parameters.weights)
        self.partial = arrays.zeros(self.kernels.square_sum_blocks(parameters.weights.size))

    def gradient_norm(self):
        """Euclidean norm of all gradients together; NaN or infinite if one of them is."""
        return math.sqrt(number(self.kernels.square_sum(self.partial, self.parameters.gradients)))

    def step(self, learning_rate=None, loss_scale=1.0):
        """Update the weights and zero the gradients, which are those of the loss times `loss_scale`. Returns the norm of the gradient before
        clipping; if it is not finite, nothing is updated."""
        norm = self.gradient_norm() / loss_scale
        if not math.isfinite(norm):
            self.parameters.gradients.fill(0)
            return norm
        self.updates += 1
        scale = (min(1.0, self.grad_clip / (norm + 1e-6)) if self.grad_clip else 1.0) / loss_scale
        rate = self.learning_rate if learning_rate is None else learning_rate
        self.kernels.adamw(
            self.parameters.weights,
            self.parameters.gradients,
            self.mean,
            self.square,
            self.parameters.n_decayed,
            scale,
            float(rate),
            float(self.weight_decay),
            self.beta1,
            self.beta2,
            1 - self.beta1**self.updates,
            1 - self.beta2**self.updates,
            self.eps,
        )
        self.parameters.update_copies()
        return norm

    def state(self):
        """The two moments as named tensors: `mean.NAME` and `square.NAME`. Views: loading into them restores the optimiser."""
        return {
            f"{role}.{name}": view
            for role in ("mean", "square")
            for name, view in self.parameters.like(getattr(self, role)).items()
        }


def learning_rate(config, step, progress):
    """Rate of update `step` (from 0). config: TrainConfig.   progress: share of the schedule that is over, 0 to 1.

    The smaller of two courses:
    1. over the first `warmup_iters` updates, a line from near zero to the peak, and on;
    2. `constant`, or down to `min_lr` at progress 1 along a cosine or a line; `stable-decay` stays at the peak for 80 % first.
    """
    peak, low = config.learning_rate, config.min_lr
    progress = min(1.0, max(0.0, progress))
    if config.lr_schedule == "constant":
        rate = peak
    elif config.lr_schedule == "cosine":
        rate = low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.lr_schedule == "linear":
        rate = peak + (low - peak) * progress
    else:
        rate = peak + (low - peak) * max(0.0, (progress - STABLE) / (1 - STABLE))
    return min(rate, peak * (step + 1) / (config.warmup_iters + 1))
