"""A run in memory: its model with the best weights, its tokenizer and its sampling defaults."""

from dataclasses import dataclass
from pathlib import Path

from slm_np import arguments
from slm_np.config import DEVICES, SamplingConfig
from slm_np.data.tokenizer import Tokenizer
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.formats.checkpoint import load_best, newest_checkpoint
from slm_np.formats.files import read_json
from slm_np.formats.generation_config import from_generation_config
from slm_np.formats.run_config import RunConfig, read_config
from slm_np.nn.model import Model, parameter_count
from slm_np.ops.device import device as device_named
from slm_np.paths import expanded


@dataclass
class Run:
    """A loaded run.

    model      the Model, with the best weights
    tokenizer  None for a run on token files
    step       number of updates after which the weights were saved
    sampling   the run's sampling defaults
    """

    path: Path
    model: Model
    tokenizer: Tokenizer | None
    config: RunConfig
    step: int
    sampling: SamplingConfig


def load(path, device="cpu"):
    """The `Run` in the directory `path`, with its model on a device: "cpu" or "cuda".

    The weights are the best ones or, before the first evaluation, those of the newest checkpoint. Raises UserError if
    the directory is not a run, anything in it is damaged, or the model does not fit into memory.
    """
    path = expanded(arguments.path("path", path))
    chosen = device_named(arguments.choice("device", device, DEVICES))
    config = read_config(path)
    chosen.check_memory(8 * parameter_count(config.model), f"the model in {path}")  # weights and gradients, float32
    tokenizer = tokenizer_of(path, config)  # before the weights: it may need a package that is missing
    model = Model(config.model, None, config.train.decay, device=chosen)
    _, step = best_weights(path, model.parameters.weight)
    return Run(path, model, tokenizer, config, step, sampling_of(path))


def best_weights(path, into=None):
    """({name: array}, step) of the run's best model or, before the first evaluation, of its newest checkpoint.

    `into` as in `load_tensors`.
    """
    if (Path(path) / "model.safetensors").exists():
        weights, metadata = load_best(path, into)
        return weights, int(metadata["step"])
    found = newest_checkpoint(path, into)
    return found.model, found.step


def tokenizer_of(path, config):
    """The tokenizer of the run in `path`, or None if it has none. UserError if it does not fit `config` (RunConfig)."""
    file = Path(path) / "tokenizer.json"
    if not file.exists():
        return None
    tokenizer = load_tokenizer(file)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{file} has {tokenizer.vocab_size} tokens, but the model {config.model.vocab_size}; "
            "restore the tokenizer that the run was trained with"
        )
    tokenizer.trained_ends = config.data.get("separated", True)
    return tokenizer


def sampling_of(path):
    """The sampling defaults of the run in `path`."""
    file = Path(path) / "generation_config.json"
    return from_generation_config(read_json(file)) if file.exists() else SamplingConfig()
