"""Small language models in NumPy and Numba, every gradient written by hand.

The public names are what a program needs. `slm_np.ops` holds every operation with its derivative.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from slm_np.config import LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.presets import preset
from slm_np.version import __version__


def _add_sibling_packages():
    """In a checkout, make the folders kernels/ and data/ beside this one importable as slm_np.kernels and slm_np.data.

    An installed slm_np contains both. Only these two names are added: neither `sys.path` nor `__path__` changes.
    """
    package = os.path.abspath(__path__[0])
    for name in ("kernels", "data"):
        if not os.path.isdir(os.path.join(package, name)):
            spec = PathFinder.find_spec(f"{__name__}.{name}", [os.path.dirname(package)])
            if spec is not None:
                # After importlib.reload, the loaded package must stay.
                globals()[name] = sys.modules.setdefault(spec.name, module_from_spec(spec))


_add_sibling_packages()


def _model():
    from slm_np.nn.model import Model, parameter_count

    return Model, parameter_count


def _training():
    from slm_np.training.optimizer import AdamW
    from slm_np.training.schedule import learning_rate

    return AdamW, learning_rate


def _inference():
    from slm_np.inference.decoder import Decoder
    from slm_np.inference.generation import text_of

    return Decoder, text_of


def _data():
    from slm_np.data.batches import random_batch
    from slm_np.data.token_store import load_corpus

    return load_corpus, random_batch


def _runs():
    from slm_np.formats.sources import load

    return (load,)


# Imported when they are first used, so that `import slm_np` and `--help` load no numerics.
_LAZY = {
    "Model": _model,
    "parameter_count": _model,
    "AdamW": _training,
    "learning_rate": _training,
    "Decoder": _inference,
    "text_of": _inference,
    "load_corpus": _data,
    "random_batch": _data,
    "load": _runs,
}
__all__ = ["LoraConfig", "ModelConfig", "SamplingConfig", "TrainConfig", "UserError", "preset", *_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'slm_np' has no attribute {name!r}")
    found = _LAZY[name]()
    globals().update((value.__name__, value) for value in found)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})
