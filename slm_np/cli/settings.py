"""The settings of a training command: flags, which win, over a `--config` file."""

from slm_np.cli import flags
from slm_np.config import LENGTHS, ModelConfig, TrainConfig, check_lengths, lengths


def add_source(group):
    """Add the flags that name other sources of settings: a file, and a run to resume."""
    group.add_argument(
        "-c",
        "--config",
        type=flags.path,
        metavar="FILE.toml",
        help="settings from a file, by the names of the flags; flags win",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const=True,
        type=flags.path,
        metavar="DIR",
        help="resume the run in DIR (default: --out-dir, else the newest in runs/)",
    )


def settings(args):
    """(name of the preset or None, {field: value} of the model, {field: value} of training) as the user gave them.

    Raises UserError for malformed values, or for two lengths of training.
    """
    values = flags.read_toml(args.config, (ModelConfig, TrainConfig)) if args.config else {}
    model, train = flags.given(args, ModelConfig), flags.given(args, TrainConfig)
    if lengths(train):
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    model, train = flags.split(values, ModelConfig) | model, flags.split(values, TrainConfig) | train
    check_lengths(train)
    return getattr(args, "preset", None) or values.get("preset"), model, train
