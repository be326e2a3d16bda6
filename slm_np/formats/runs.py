"""Runs on disk: the directory of a new one, the newest, and a run as a model in memory with its tokenizer and its defaults for sampling."""

import contextlib
import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from slm_np.errors import UserError

RUNS = Path("runs")


def check_free(out_dir):
    """UserError if `out_dir` is a file or holds a run."""
    if os.path.lexists(out_dir) and not os.path.isdir(out_dir):
        raise UserError(f"--out-dir {out_dir} is a file; name a directory")
    if any(os.path.lexists(Path(out_dir) / name) for name in ("config.json", "model.safetensors", "metrics.jsonl")):
        raise UserError(
            f"{out_dir} already holds a run; go on with it by --resume {out_dir}, or choose another --out-dir"
        )


@contextlib.contextmanager
def new_directory(out_dir, name):
    """Make the directory of a new run: `out_dir`, or without one the first of runs/NAME, runs/NAME-2, ... that is not there yet.

    If what fills it raises, all that came into it goes again. UserError if it cannot be made or already holds a run.
    """
    names = [Path(out_dir)] if out_dir else (RUNS / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    for directory in names:
        made = _made(
            directory
        )  # the name is taken by making it, so that two programs that start at once do not share it
        if made or out_dir:
            break
    check_free(directory)
    before = set(os.listdir(directory))
    try:
        yield directory
    except BaseException:
        with contextlib.suppress(OSError):  # what refused to be written may refuse to go
            for path in (directory / entry for entry in set(os.listdir(directory)) - before):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if made:
                directory.rmdir()
        raise


def _made(directory):
    """Make the directory: True, or False if it was there before. UserError if it cannot be."""
    try:
        os.makedirs(directory)
        return True
    except (OSError, ValueError) as error:  # ValueError: a character that no path may have
        if isinstance(error, FileExistsError) and os.path.lexists(directory):
            return False
        raise UserError(
            f"the run's directory {str(directory)!r} cannot be made ({getattr(error, 'strerror', error)}); choose another --out-dir"
        ) from None


def newest_run():
    """The run under runs/ that was written to last. UserError if there is none."""
    found = [path.parent for path in RUNS.glob("*/config.json")] if RUNS.is_dir() else []
    if not found:
        raise UserError("there is no run in runs/ yet; train one by python -m slm_np.train, or name its directory")
    # Not whatever lies in the run: a training that saves renames files meanwhile.
    return max(
        found,
        key=lambda path: max(
            file.stat().st_mtime for name in ("config.json", "metrics.jsonl") if (file := path / name).exists()
        ),
    )


@dataclass
class Run:
    """A loaded run: `model`, `tokenizer` (None for bare token files), `config` (RunConfig), `step` its weights are of, `sampling` its defaults."""

    path: Path
    model: object
    tokenizer: object
    config: object
    step: int
    sampling: object


def load(path, device="cpu"):
    """The `Run` in the folder `path` with its best weights, on a device; before a first evaluation, those of its newest checkpoint.

    UserError if the folder is no run, or anything in it is damaged.
    """
    from slm_np.formats import run_config
    from slm_np.nn.model import Model, parameter_count
    from slm_np.ops.device import device as device_called

    path = Path(path)
    config = run_config.read_config(path)
    device_called(device).check_memory(8 * parameter_count(config.model), f"the model in {path}")
    model = Model(config.model, None, config.train.decay, device=device_called(device))
    _, step = best_weights(path, model.parameters.weight)
    return Run(path, model, tokenizer_of(path, config), config, step, sampling_of(path))


def best_weights(path, into=None):
    """({name: array}, step) of the best model in the run `path`; before a first evaluation, of its newest checkpoint. `into` as of `load_tensors`."""
    from slm_np.formats import checkpoint

    if (Path(path) / "model.safetensors").exists():
        weights, metadata = checkpoint.load_best(path, into=into)
        return weights, int(metadata["step"])
    found = checkpoint.newest_checkpoint(path, into)
    return found.model, found.step


def tokenizer_of(path, config):
    """The tokenizer in the run `path`, None if it has none. UserError if it does not fit the model of `config` (RunConfig)."""
    from slm_np.data.tokenizer_factory import load_tokenizer

    file = Path(path) / "tokenizer.json"
    if not file.exists():
        return None
    tokenizer = load_tokenizer(file)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{file} has {tokenizer.vocab_size} pieces, the model {config.model.vocab_size}; restore the tokenizer the run was trained with"
        )
    tokenizer.trained_ends = config.data.get("separated", True)
    return tokenizer


def sampling_of(path):
    """The defaults for sampling of the run `path`."""
    from slm_np.config import SamplingConfig
    from slm_np.formats import files
    from slm_np.formats.generation_config import from_generation_config

    file = Path(path) / "generation_config.json"
    return from_generation_config(files.read_json(file)) if file.exists() else SamplingConfig()
