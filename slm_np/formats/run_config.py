"""config.json: what rebuilds the model of a run."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, near
from slm_np.formats.files import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """What config.json holds. data: {"fingerprint": ..., "source": ...} of the training tokens. base: of a finetuned run, what it started from."""

    model: ModelConfig
    train: TrainConfig
    preset: str = ""
    data: dict = dataclasses.field(default_factory=dict)
    base: dict = dataclasses.field(default_factory=dict)


def write_config(run_dir, config):
    """Write the `RunConfig` as run_dir/config.json, atomically. UserError if the disk refuses."""
    write_json(Path(run_dir) / "config.json", {"model_type": "slm_np", "format": FORMAT, **dataclasses.asdict(config)})


def read_config(run_dir):
    """The `RunConfig` of a run. UserError if `run_dir` is no run of ours or a newer one, or if its config.json is broken or has unknown fields."""
    path = Path(run_dir) / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"config.json missing: {run_dir} is not a run of slm_np; name a folder that `--out-dir` made")
    fields = read_json(path)
    kind, version = fields.pop("model_type", None), fields.pop("format", None)
    if kind != "slm_np" or type(version) is not int:
        raise UserError(
            f"{path} has model_type {kind!r} and format {version!r}, so {run_dir} is not a run of slm_np; name one that is"
        )
    if version > FORMAT:
        raise UserError(f"{path} is of format {version}, this version reads up to {FORMAT}; upgrade slm_np")
    fields.setdefault("base", {})
    for name, kind in dict(model=dict, train=dict, preset=str, data=dict, base=dict).items():
        if not isinstance(fields.get(name), kind):
            raise UserError(
                f"{path} has {fields.get(name)!r} for {name!r}; it must be {'a string' if kind is str else 'an object in braces'}"
            )

    def build(kind, given):
        known = [field.name for field in dataclasses.fields(kind)]
        for name in given:
            if name not in known:
                raise UserError(
                    f"{path} has the unknown field {name!r}; remove it or upgrade slm_np ({near(name, known)})"
                )
        try:
            return kind(**given)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    fields["model"], fields["train"] = build(ModelConfig, fields["model"]), build(TrainConfig, fields["train"])
    return build(RunConfig, fields)
