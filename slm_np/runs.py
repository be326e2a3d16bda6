"""A run on disk as a model in memory, with its tokenizer and its defaults for sampling."""
from dataclasses import dataclass
from pathlib import Path

from slm_np import checkpoint
from slm_np.errors import UserError
from slm_np.model import Model, parameter_count
from slm_np.machine import check_memory
from slm_np.sampling import SamplingConfig, from_generation_config


@dataclass
class Run:
    """A loaded run: `model`, `tokenizer` (None for bare token files), `config` (RunConfig), `step` its weights are of, `sampling` its defaults."""
    path: Path
    model: Model
    tokenizer: object
    config: checkpoint.RunConfig
    step: int
    sampling: SamplingConfig


def load(path):
    """The `Run` in the folder `path` with its best weights; before a first evaluation, those of its newest checkpoint.

    UserError if the folder is no run, or anything in it is damaged.
    """
    from slm_np.data.tokenizer import load_tokenizer
    path = Path(path)
    config = checkpoint.read_config(path)
    check_memory(8 * parameter_count(config.model), f"the model in {path}")
    model = Model(config.model, config.train.seed, config.train.decay)
    if (path / "model.safetensors").exists():
        _, metadata = checkpoint.load_best(path, into=model.parameters.weight)
        step = int(metadata["step"])
    else:
        found = checkpoint.newest_checkpoint(path)
        for name, view in model.parameters.weight.items():
            if name not in found.model or found.model[name].shape != view.shape:
                raise UserError(f"{found.path} does not hold the tensor {name} of shape {view.shape}; restore it from a copy")
            view[...] = found.model[name]
        step = found.step
    tokenizer = load_tokenizer(path / "tokenizer.json") if (path / "tokenizer.json").exists() else None
    if tokenizer is not None and tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(f"{path / 'tokenizer.json'} has {tokenizer.vocab_size} pieces, the model {config.model.vocab_size}; restore the tokenizer the run was trained with")
    defaults = path / "generation_config.json"
    sampling = from_generation_config(checkpoint.read_json(defaults)) if defaults.exists() else SamplingConfig()
    return Run(path, model, tokenizer, config, step, sampling)
