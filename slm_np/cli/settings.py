"""The settings of a training command: flags, which win, over a `--config` file."""

from slm_np.cli import flags
from slm_np.cli.ranks import add_ranks
from slm_np.config import LENGTHS, ModelConfig, TrainConfig, check_lengths, lengths


def add_source(group):
    """Add the flags that name other sources of settings, a file and a run to resume, and those of ranks."""
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
    add_ranks(group)


def settings(args, *others):
    """(name of the preset or None, {field: value} of the model, of training, and of `others`) as the user gave them.

    others: further dataclasses of settings
    Raises UserError for malformed values, or for two lengths of training.
    """
    kinds = ModelConfig, TrainConfig, *others
    values = flags.read_toml(args.config, kinds) if args.config else {}
    if lengths(flags.given(args, TrainConfig)):
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    found = [flags.split(values, kind) | flags.given(args, kind) for kind in kinds]
    check_lengths(found[1])
    return getattr(args, "preset", None) or values.get("preset"), *found
