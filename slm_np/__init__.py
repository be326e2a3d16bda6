"""Small language models trained on a CPU: NumPy, OpenBLAS and Numba, every gradient written by hand.

The names below are what a program of yours needs; `slm_np.ops` holds every operation beside its derivative.
"""

import importlib

_HOMES = {
    "ModelConfig": "config",
    "TrainConfig": "config",
    "preset": "presets",
    "Model": "nn.model",
    "parameter_count": "nn.model",
    "AdamW": "training.optimizer",
    "learning_rate": "training.schedule",
    "SamplingConfig": "config",
    "text_of": "inference.generation",
    "load": "formats.runs",
    "Decoder": "inference.decoder",
    "load_corpus": "data.token_store",
    "random_batch": "data.batches",
    "UserError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name):
    """Import what is asked for when it is asked for, so that `--help` need not wait for numerics."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"slm_np.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'slm_np' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
