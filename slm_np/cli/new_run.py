"""Training from scratch, shared by `train` and `pretrain`: their flags, and the start of a new run."""

from slm_np.cli import flags
from slm_np.cli.settings import add_source
from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.paths import expanded
from slm_np.presets import PRESETS, follows_text, preset


def new_run_parser(prog, description, default, **changes):
    """The parser of a command that trains from scratch.

    default: its preset.   changes: {field: value} of its other defaults that differ from the preset's, for the help.
    """
    presets = "\n".join(f"  {name:<24}{fields['about']}" for name, fields in PRESETS.items())
    parser = flags.Parser(prog=prog, description=f"{description}\n\npresets:\n{presets}")
    group = parser.add_argument_group("run")
    group.add_argument(
        "--preset", type=flags.word, metavar="NAME", help=f"model, recipe and data to start from (default: {default})"
    )
    add_source(group)
    recipe = PRESETS[default]["train"] | changes
    if recipe.get("fit_time"):
        recipe["max_iters"] = ""  # it has no default
    flags.add_settings(parser, TrainConfig, "training", defaults=recipe)
    flags.add_settings(parser, ModelConfig, "model", defaults=PRESETS[default]["model"])
    return parser


def start_training(name, model, train):
    """Train the preset `name` in a new directory, with the changes {field: value} to its model and its training.

    Raises UserError for bad settings, or if the directory already holds a run.
    """
    from slm_np.cli.launch import train_run
    from slm_np.cli.own_text import OwnText
    from slm_np.data.token_files import check_given
    from slm_np.formats.run_config import RunConfig

    own = OwnText(name, model, train) if follows_text(name) else None
    run = RunConfig(*(own.nominal() if own else preset(name, model, train)), preset=name)
    check_given(run.train.data, train)
    if "vocab_size" in model and not _are_bare_tokens(run.train.data):
        raise UserError(
            f"--vocab-size {run.model.vocab_size} has no effect with a tokenizer, which sets it; leave it out"
        )
    train_run(run, own and own.fitted)


def _are_bare_tokens(data):
    """Whether the data are token files without a tokenizer beside them, which need --vocab-size."""
    paths = [expanded(item.strip()) for item in data.split(",")]
    folders = [path if path.is_dir() else path.parent for path in paths]
    are_tokens = any(path.suffix == ".bin" or (path / "train.bin").is_file() for path in paths)
    beside = (folder / name for folder in folders for name in ("tokenizer.json", "meta.pkl"))
    return are_tokens and not any(path.is_file() for path in beside)
