"""Train a model from scratch: `python -m slm_np.train [--preset P] [--data TEXT]`."""

from slm_np.cli import flags
from slm_np.cli.resume import LENGTHS, directory_of, resumed
from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, exit_with_sentence
from slm_np.presets import PRESETS, preset


def parser(
    prog="slm-np train",
    description="Train a small language model from scratch. Without arguments: the preset stories.",
    default="stories",
    **changes,
):
    """Flags of a command that trains from scratch. default: its preset; changes: its other defaults that differ from that preset's."""
    presets = "\n".join(f"  {name:<24}{about['about']}" for name, about in PRESETS.items())
    p = flags.Parser(prog=prog, description=f"{description}\n\npresets:\n{presets}")
    group = p.add_argument_group("run")
    group.add_argument("--preset", metavar="NAME", help=f"model, recipe and corpus to start from (default: {default})")
    add_source(group)
    flags.add_settings(p, TrainConfig, "training", defaults=PRESETS[default]["train"] | changes)
    flags.add_settings(p, ModelConfig, "model", defaults=PRESETS[default]["model"])
    return p


def add_source(group):
    """The flags of every training command that say where settings come from besides the flags."""
    group.add_argument(
        "-c", "--config", metavar="FILE.toml", help="settings from a file, by the names of the flags; flags win"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="go on with the run in DIR (default: --out-dir, else the newest in runs/)",
    )


def settings(args):
    """(preset's name or None, {field: value} for the model, and for training) as given by flags, which win, and a --config file."""
    values = flags.read_toml(args.config, (ModelConfig, TrainConfig)) if args.config else {}
    model, train = flags.given(args, ModelConfig), flags.given(args, TrainConfig)
    if any(train.get(name) for name in LENGTHS):
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    model, train = flags.split(values, ModelConfig) | model, flags.split(values, TrainConfig) | train
    lengths = [f"{flags.flag(name)} {train[name]}" for name in LENGTHS if train.get(name)]
    if len(lengths) > 1:
        raise UserError(f"{' and '.join(lengths)} both say how long to train; give one")
    return getattr(args, "preset", None) or values.get("preset"), model, train


@exit_with_sentence
def main(argv=None):
    """The command. Exit status: 0 done, 2 bad input, 130 or 143 stopped by Ctrl-C or SIGTERM with the run saved."""
    args = parser().parse(argv)
    name, model, train = settings(args)
    if args.resume is None:
        begin(name or "stories", model, train)
    else:
        go_on(args.resume, name, model, train)


def begin(name, model, train):
    """Train a preset with changes, in a new directory."""
    from slm_np.cli.launch import train_run
    from slm_np.formats.run_config import RunConfig
    from slm_np.formats.runs import check_free

    run = RunConfig(*preset(name, model, train), preset=name)
    if run.train.retention_data:
        raise UserError("--retention-data is what a finetuned model learnt before; it belongs to finetune")
    if train.get("out_dir"):
        check_free(train["out_dir"])
    train_run(run)


def go_on(directory, name, model, train):
    """Go on with a run, whichever command began it."""
    from slm_np.cli.launch import train_run

    directory = directory_of(directory, train.get("out_dir"))
    train_run(resumed(directory, name, model, train), directory)


if __name__ == "__main__":
    main()
