"""AdamW over flat memory, with the norm of the whole gradient."""

import math

from slm_np import arguments
from slm_np.nn.parameters import Parameters
from slm_np.ops.device import kernels_of, number

# As in `TrainConfig`: 1 - beta and eps stay numbers of float32 above 0.
RANGES = dict(
    learning_rate=(0.0, 10.0),
    weight_decay=(0.0, 10.0),
    beta1=(0.0, 0.999999),
    beta2=(0.0, 0.999999),
    eps=(1e-30, 1.0),
    grad_clip=(0.0, 1e9),
)


class AdamW(arguments.Fixed):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), one sweep over the flat buffers of `parameters`.

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   and after update t, counted from 1,
    w -= rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay * w), the last term for the tensors that
    decay. g is the gradient times min(1, grad_clip / (norm + 1e-6)), or the gradient itself if grad_clip is 0. The
    sweep zeroes the gradients.

    parameters: Parameters of a model. The ranges of the others are those of `TrainConfig`; UserError outside of them.
    A copy, also by pickle, has its own moments. Copied together with its model (`copy.deepcopy((model, optimizer))`) it
    belongs to the copy of the model, otherwise to a copy of the parameters.
    """

    FIXED = ("parameters", "mean", "square", "partial")

    def __init__(
        self, parameters, learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, grad_clip=1.0
    ):
        self.parameters = arguments.instance("parameters", parameters, Parameters)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.beta1, self.beta2, self.eps, self.grad_clip = beta1, beta2, eps, grad_clip
        arrays = parameters.device.arrays
        needed = 2 * parameters.weights.nbytes
        parameters.device.check_memory(
            needed, f"AdamW of {parameters.weights.size:,} parameters", "use a smaller model"
        )
        self.mean, self.square = arrays.zeros_like(parameters.weights), arrays.zeros_like(parameters.weights)  # m and v
        self.updates = 0  # t
        self._bind()

    def __setattr__(self, name, value):
        if name in RANGES:
            value = arguments.real(name, value, *RANGES[name])
        elif name == "updates":
            value = arguments.whole(name, value, 0, arguments.SEEDS)
        super().__setattr__(name, value)

    def _bind(self):
        """The kernels, and scratch of the norm."""
        weights, arrays = self.parameters.weights, self.parameters.device.arrays
        self.kernels = kernels_of(weights)
        self.partial = arrays.zeros(self.kernels.square_sum_blocks(weights.size))

    def __getstate__(self):
        return {
            name: value.copy() if name in ("mean", "square") else value
            for name, value in self.__dict__.items()
            if name not in ("kernels", "partial")
        }

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._bind()

    def gradient_norm(self):
        """Euclidean norm of all gradients together; NaN or infinite if one of them is."""
        return math.sqrt(number(self.kernels.square_sum(self.partial, self.parameters.gradients)))

    def step(self, learning_rate=None):
        """Update the weights and zero the gradients.

        learning_rate: of this update; None takes that of the optimizer.
        Returns the gradient norm before clipping; if it is not finite, no update is made.
        """
        rate = self.learning_rate
        if learning_rate is not None:
            rate = arguments.real("learning_rate", learning_rate, *RANGES["learning_rate"])
        norm = self.gradient_norm()
        if not math.isfinite(norm):
            self.parameters.gradients.fill(0)
            return norm
        self.updates += 1
        scale = min(1.0, self.grad_clip / (norm + 1e-6)) if self.grad_clip else 1.0
        self._launch(scale, rate, 1 - self.beta1**self.updates, 1 - self.beta2**self.updates)
        self.parameters.update_cast_copies()
        return norm

    def _launch(self, gradient_scale, rate, correction1, correction2):
        """Update the weights and zero the gradients. correction1, correction2: 1 - beta1^t, 1 - beta2^t

        All are numbers or, on a GPU, device arrays of one element. There a gradient_scale that is not finite leaves
        weights and moments unchanged.
        """
        self._sweep(0, self.parameters.weights.size, gradient_scale, rate, correction1, correction2)

    def _sweep(self, start, stop, gradient_scale, rate, correction1, correction2):
        """`_launch` for the elements [start, stop) of the flat buffers."""
        p, part = self.parameters, slice(start, stop)
        self.kernels.adamw(
            p.weights[part],
            p.gradients[part],
            self.mean[part],
            self.square[part],
            min(max(0, p.n_decayed - start), stop - start),
            gradient_scale,
            rate,
            self.weight_decay,
            self.beta1,
            self.beta2,
            correction1,
            correction2,
            self.eps,
        )

    def state(self):
        """Both moments as named tensors, `mean.NAME` and `square.NAME`.

        Views: loading into them restores the optimizer.
        """
        views = {role: self.parameters.like(getattr(self, role)) for role in ("mean", "square")}
        return {f"{role}.{name}": view for role in views for name, view in views[role].items()}
