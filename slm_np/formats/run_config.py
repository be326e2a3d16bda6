"""config.json: the settings of a run, from which its model is rebuilt."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, near
from slm_np.formats import format1
from slm_np.formats.files import read_json, write_json
from slm_np.formats.other_paths import not_a_run

FORMAT = 2


@dataclass(frozen=True)
class RunConfig:
    """What config.json holds.

    model   the architecture
    train   how it is trained, and on what; `dtype` is resolved and never "auto"
    preset  name of the preset that the settings came from; "" for a converted model
    data    what the settings cannot say about the data; {} before it is prepared:
                fingerprint    hash of the training and validation tokens; resuming requires the same
                source         the name to show
                tokens         [training tokens, validation tokens]; None until the corpus is completely tokenized
                separated      whether the training data contain the end-of-text token
                replay         fingerprint of the retention data, if there are any
                directory      where the run was started, at which its relative paths start; see run_paths.py
                converted      for a converted model, format and name of the file; then nothing else
    base    what a finetuned run started from; {} for others:
                run, step      directory of the base, and the step of its weights
                weights        checksum of those weights
                vocab_size, separated, data, val_data, documents, limit_bytes, binary    of the base; its paths start
                               where those of this run do
    fitted_iters    the number of updates that was fitted to `fit_time`; 0 before that, and without `fit_time`
    """

    model: ModelConfig
    train: TrainConfig
    preset: str = ""
    data: dict = dataclasses.field(default_factory=dict)
    base: dict = dataclasses.field(default_factory=dict)
    fitted_iters: int = 0


def write_config(run_dir, config):
    """Write the `RunConfig` as run_dir/config.json, atomically. UserError if the file cannot be written."""
    write_json(Path(run_dir) / "config.json", {"model_type": "slm_np", "format": FORMAT, **dataclasses.asdict(config)})


def read_config(run_dir):
    """The `RunConfig` of a run, of this format or an older one.

    Raises UserError if `run_dir` is not a run, was written by a newer version, or has a config.json that is malformed
    or holds unknown fields.
    """
    path = Path(run_dir) / "config.json"
    if not os.path.isfile(path):
        raise not_a_run(run_dir)
    fields = read_json(path)
    kind, version = fields.pop("model_type", None), fields.pop("format", None)
    if kind != "slm_np" or type(version) is not int or version < 1:
        raise UserError(
            f"{path} has model_type {kind!r} and format {version!r}, so {run_dir} is not a run of slm_np; "
            "name one that is"
        )
    if version > FORMAT:
        raise UserError(f"{path} is of format {version}, and this version reads up to {FORMAT}; upgrade slm_np")
    fields.setdefault("base", {})
    fitted = fields.setdefault("fitted_iters", 0)
    if type(fitted) is not int or not 0 <= fitted <= 10**9:
        raise UserError(f"{path} has {fitted!r} for 'fitted_iters'; it must be a number of updates")
    for name, kind in dict(model=dict, train=dict, preset=str, data=dict, base=dict).items():
        if not isinstance(fields.get(name), kind):
            raise UserError(
                f"{path} has {fields.get(name)!r} for {name!r}; "
                f"it must be {'a string' if kind is str else 'an object in braces'}"
            )
    try:
        if version == 1:
            fields = format1.run_settings(fields)
        fields["model"], fields["train"] = _build(ModelConfig, fields["model"]), _build(TrainConfig, fields["train"])
        return _build(RunConfig, fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _build(kind, fields):
    """The dataclass `kind` with these fields. UserError if one is unknown or has a bad value."""
    known = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            raise UserError(f"unknown field {name!r}; remove it or upgrade slm_np ({near(name, known)})")
    return kind(**fields)
