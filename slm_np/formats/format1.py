"""Reads runs of format 1, which slm_np 0.1 wrote: translates its names of settings and tensors to those of format 2.

Nothing else changed: values, shapes and layouts of tensors are the same, so a run of format 1 resumes with the same
bits.

The settings are translated if config.json says that it is of format 1. Tensors are recognized by their names instead,
since the formats mix: a resumed run has a config.json of format 2 and keeps its older checkpoints and best model until
it replaces them.
"""

from slm_np.config import ModelConfig
from slm_np.presets import STRUCTURE

MODEL_FIELDS = dict(state_size="recurrence_size", channel_states="ssm_state_size")
TRAIN_FIELDS = dict(replay_data="retention_data")

MAMBA = dict(
    input="in_proj", convolution="conv1d", select="x_proj", step="dt_proj", a_log="A_log", skip="D", output="out_proj"
)
FORMAT1_MAMBA = {new: old for old, new in MAMBA.items()}


def run_settings(fields):
    """The fields of config.json, with `model` and `train` translated.

    Format 1 stored a value for every setting, used or not. Settings without effect are dropped, since they are refused
    now. Raises UserError if the fields that name the architecture are bad.
    """
    model = {MODEL_FIELDS.get(name, name): value for name, value in fields["model"].items()}
    train = {TRAIN_FIELDS.get(name, name): value for name, value in fields["train"].items()}
    if model.get("feed_forward") == "swish":
        model["feed_forward"] = "silu"
    architecture = ModelConfig(**{name: model[name] for name in STRUCTURE if name in model})
    unused = set(architecture.unused)
    if "S" not in architecture.letters:
        unused.add("max_spectral_norm")
    if train.get("max_time") or train.get("lr_schedule") == "constant":
        unused.add("lr_decay_iters")
    model, train = ({name: value for name, value in part.items() if name not in unused} for part in (model, train))
    return fields | dict(model=model, train=train)


def tensor_name(name):
    """The name in format 2 of a weight, a moment (`mean.NAME`, `square.NAME`) or another tensor of either format."""
    if name == "carried":
        return "recurrent_state"
    return _rename_mamba(name, MAMBA)


def original_name(name):
    """The name in format 1 of a weight.

    The checksum that a finetuned run keeps of its base covers the weights under these names.
    """
    return _rename_mamba(name, FORMAT1_MAMBA)


def _rename_mamba(name, names):
    """`...mamba.PART...` with PART replaced as `names` says. Any other name stays."""
    before, mamba, after = name.partition(".mamba.")
    part, dot, rest = after.partition(".")
    return before + mamba + names.get(part, part) + dot + rest
