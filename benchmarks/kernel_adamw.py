"""AdamW on all parameters of a model: the gradient's norm, and the whole step (norm, clipping, update).

Bytes: the norm reads the gradients; the update reads weights, gradients and two moments and writes them, for ours leaves the gradients zero.
PyTorch clips with its own function and updates with its fused AdamW, tensor by tensor.
"""

import numpy as np
from kernel_bench import bench, normal, pair, torch

from slm_np.nn.model import parameters
from slm_np.nn.parameters import Parameters
from slm_np.training.optimizer import AdamW

# Moments that hardly fade: after thousands of updates with a zero gradient they must not become denormal numbers, which are slow.
RATE, BETA, EPS, DECAY = 1e-6, 0.99999, 1e-8, 0.1


def in_numpy(p):
    """(norm, step) of plain NumPy over flat buffers of its own."""
    w, g, m, v, updates = p.weights.copy(), p.gradients.copy(), np.zeros_like(p.weights), np.zeros_like(p.weights), [0]

    def norm():
        return [np.sqrt(np.dot(g, g))]

    def step():
        updates[0] += 1
        clipped, correction = g * np.float32(min(1, 1 / (norm()[0] + 1e-6))), np.float32(1 - BETA ** updates[0])
        m[:] = BETA * m + (1 - BETA) * clipped
        v[:] = BETA * v + (1 - BETA) * clipped * clipped
        w[: p.n_decayed] *= 1 - RATE * DECAY
        w[:] -= RATE * (m / correction) / (np.sqrt(v / correction) + EPS)
        g.fill(0)
        return p.like(w).values()

    return norm, step


def in_torch(p):
    """(norm, step) of PyTorch on tensors of its own."""
    if torch is None:
        return None, None
    tensors = [torch.tensor(view).requires_grad_() for view in p.weight.values()]
    for tensor, gradient in zip(tensors, p.gradient.values()):
        tensor.grad = torch.tensor(gradient)
    groups = [
        dict(params=[t for t in tensors if t.ndim > 1], weight_decay=DECAY),
        dict(params=[t for t in tensors if t.ndim == 1], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(BETA, BETA), eps=EPS, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer.step()
        return tensors

    return lambda: [torch.nn.utils.get_total_norm([t.grad for t in tensors])], step


def cases(config, batch):
    p = Parameters(parameters(config))
    p.weights[:], p.gradients[:] = normal(p.weights.size), normal(p.weights.size)
    others, optimizer = (in_numpy(p), in_torch(p)), AdamW(p, RATE, DECAY, BETA, BETA, EPS, grad_clip=1.0)

    def step():
        optimizer.step()
        return p.weight.values()

    return pair(
        "adamw",
        f"{p.weights.size:,}",
        "GB/s",
        (p.weights.nbytes, 9 * p.weights.nbytes),
        (lambda: [optimizer.gradient_norm()], step),
        *others,
        ("norm", "step"),
    )


if __name__ == "__main__":
    bench(cases)
