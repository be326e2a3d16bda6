"""What a reader of a format returns and a writer takes: a model, its tokenizer and its settings, of whatever origin."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.meter import Meter
from slm_np.nn.model import parameter_count


@dataclass
class ModelParts:
    """A model in a file or a directory.

    path       the file or the directory
    config     the architecture
    tensors    function () -> iterator of (name, array): all tensors of `nn.model.parameters(config)` under these names,
               float32, one after another, so that a large model is never in memory twice
    tokenizer  None if there are no tokenizer files
    template   how a conversation becomes tokens, or None
    sampling   its sampling defaults
    origin     format and name, for `info`
    """

    path: Path
    config: ModelConfig
    tensors: Callable
    tokenizer: Any
    template: Any
    sampling: SamplingConfig
    origin: str


def metered(parts, verb):
    """The `ModelParts` whose tensors show how far they are, as they are read. verb: "loading" or the like"""

    def tensors():
        with Meter(4 * parameter_count(parts.config), f"{verb} {parts.path.name}") as meter:
            for name, array in parts.tensors():
                yield name, array
                meter.update(array.nbytes)

    return replace(parts, tensors=tensors)
