"""The learning rate over a run."""

import math

from slm_np import arguments
from slm_np.config import TrainConfig

STABLE = 0.8  # share of a stable-decay schedule at the peak rate


def learning_rate(config, step, progress):
    """Learning rate of update `step`, counted from 0.

    config: TrainConfig.   progress: share of the schedule that is done, limited to 0 to 1.
    It is the smaller of warmup, learning_rate * (step + 1) / (warmup_iters + 1), and the schedule: `constant`, or from
    `learning_rate` to `min_lr` along a cosine or a line; `stable-decay` is constant for the first 80 %, then linear.
    """
    arguments.instance("config", config, TrainConfig)
    step = arguments.whole("step", step, 0, arguments.SEEDS)
    peak, low = config.learning_rate, config.min_lr
    progress = min(1.0, max(0.0, arguments.real("progress", progress)))
    if config.lr_schedule == "constant":
        rate = peak
    elif config.lr_schedule == "cosine":
        rate = low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.lr_schedule == "linear":
        rate = peak + (low - peak) * progress
    else:
        rate = peak + (low - peak) * max(0.0, (progress - STABLE) / (1 - STABLE))
    return min(rate, peak * (step + 1) / (config.warmup_iters + 1))
