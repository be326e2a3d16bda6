"""Resume a run: which of its settings may change, and which would make it another run."""

import dataclasses
from pathlib import Path

from slm_np.cli import flags
from slm_np.config import LENGTHS, LoraConfig, check_effect, lengths
from slm_np.errors import UserError
from slm_np.paths import expanded, expanded_list
from slm_np.words import quoted

PATHS = ("data", "val_data", "retention_data")
# Settings that may change when a run is resumed: its length and learning rates, its reports, its use of the machine,
# and where its data lie and how they are read, since data are recognized by their content. With the device or the
# kernels, the precision may change too.
FREE = {
    *LENGTHS,
    "lr_decay_iters",
    "learning_rate",
    "min_lr",
    "warmup_iters",
    "lr_schedule",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "max_spectral_norm",
    "eval_interval",
    "eval_iters",
    "log_interval",
    "save_interval",
    "patience",
    "threads",
    "kernels",
    "device",
    "recompute",
    "out_dir",
    *PATHS,
    "binary",
}
FIX = "resume it without that, or start a new run"


def resumed(directory, name, model, train, lora=()):
    """The RunConfig of the run in `directory`, with the changes {field: value} to its free settings.

    Raises UserError if a preset or a setting was given that would make it another run.
    """
    from slm_np.formats import run_config
    from slm_np.formats.run_paths import given_here

    run = run_config.read_config(directory)
    if run.data.get("converted"):
        raise UserError(
            f"{directory} was converted from another program's checkpoint, which has no training to resume; train it "
            f"on your data with python -m slm_np.finetune --base {quoted(directory)} --data TEXT"
        )
    paths = {field: expanded_list(train[field]) for field in PATHS if train.get(field)}
    given = train
    train = train | {field: given_here(directory, run, path) for field, path in paths.items()}
    if train.get("device", "cpu") != "cpu":
        train = {"kernels": "auto"} | train  # the others are for CPUs
    kernels = train.get("kernels", run.train.kernels)
    moved = train.get("device", run.train.device) != run.train.device
    moved = moved or (kernels == "numpy") != (run.train.kernels == "numpy")
    if not moved:
        # "auto" was resolved when the run started.
        train = {field: value for field, value in train.items() if (field, value) != ("dtype", "auto")}
    elif run.train.dtype == "fp16" or run.train.dtype == "bf16" and kernels == "numpy":
        train = {"dtype": "auto"} | train  # the CPU does not support fp16, the NumPy kernels no 16 bits at all
    if name and name != run.preset:
        raise UserError(f"{directory} was trained with --preset {run.preset}, not {name}; {FIX}")
    length = lengths(dataclasses.asdict(run.train))[-1]  # the first one, max_iters, has a value in every run
    other = next((field for field in lengths(train) if field != length), None)
    if (length, other) == ("fit_time", "max_iters"):
        train = train | dict(fit_time="")  # from now on a run like any other of so many updates
    elif other:
        was = f"{flags.flag(length)} {getattr(run.train, length)}"
        raise UserError(f"{directory} is trained for {was}, not for {flags.flag(other)}; {FIX}")
    if train.get("learning_rate", run.train.learning_rate) != run.train.learning_rate:
        train = dict(min_lr=-1.0) | train
    free = {field: value for field, value in train.items() if field in FREE or field == "dtype" and moved}
    _check_same(directory, run.model, model)
    _check_same(directory, LoraConfig(**run.lora), dict(lora))
    _check_same(directory, run.train, {field: value for field, value in train.items() if field not in free})
    changed = dataclasses.replace(run.train, **free)
    check_effect(changed, given)
    fitted = run.fitted_iters if changed.fit_time == run.train.fit_time else 0  # another time is fitted again
    return dataclasses.replace(run, train=changed, fitted_iters=fitted)


def _check_same(directory, config, given):
    """Raise UserError if one of the settings {field: value} differs from the run's `config`."""
    for field, value in given.items():
        was = getattr(config, field)
        try:  # alone, since it may be given as the default that the run has resolved
            now = getattr(dataclasses.replace(config, **{field: value}), field)
        except UserError:
            now = value  # it does not fit the run's other settings
        if now != was:
            raise UserError(f"{directory} was trained with {flags.flag(field)} {was}, not {now}; {FIX}")


def directory_of(resume, out_dir):
    """The directory that `--resume [DIR]` and `--out-dir` name, or that of the newest run.

    resume: True if no DIR is given. Raises UserError if they differ.
    """
    from slm_np.formats.directories import newest_run

    out_dir = expanded(out_dir) if out_dir else None
    directory = (out_dir or newest_run()) if resume is True else Path(resume)
    if out_dir and out_dir.absolute() != directory.absolute():
        raise UserError(f"--resume {directory} continues that run, not the one in --out-dir {out_dir}; give one")
    return directory


def resume_training(directory, name, model, train):
    """Resume a run, trained from scratch or finetuned, with the changes to its settings that `resumed` allows.

    directory: the value of --resume, see `directory_of`.
    """
    from slm_np.cli.launch import resume_run
    from slm_np.formats.directories import writing
    from slm_np.ranks.current import world

    ranks = world()
    directory = ranks.on_rank_0(lambda: directory_of(directory, train.get("out_dir")))
    with ranks.entered_on_rank_0(writing(directory)):  # before its settings are read
        resume_run(ranks.on_rank_0(lambda: resumed(directory, name, model, train)), directory)
