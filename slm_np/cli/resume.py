"""Going on with a run: what may change of its settings, and what would make it another run."""

import dataclasses

from slm_np.cli import flags
from slm_np.errors import UserError

LENGTHS = ("max_iters", "epochs", "max_time")  # three ways to say how long to train, of which a run has one
# Settings a resumed run may change: how long it runs, the course of its rate, how it reports, and what it uses of the machine. Its data
# may have moved: they are known by their content. So may the run itself, from one device to another, and then its precision may change too.
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
    "device",
    "out_dir",
    "data",
    "val_data",
    "retention_data",
}


def resumed(directory, name, model, train):
    """The RunConfig of a run to go on with, its free settings changed as given. UserError if what was given would make it another run."""
    from slm_np.formats import run_config

    run = run_config.read_config(directory)
    moved = train.get("device", run.train.device) != run.train.device
    if not moved:
        train = {
            field: value for field, value in train.items() if (field, value) != ("dtype", "auto")
        }  # resolved when the run began
    elif run.train.dtype == "fp16":
        train = {"dtype": "auto"} | train  # which a CPU has not
    mend = "resume it without that, or start a new run"
    if name and name != run.preset:
        raise UserError(f"{directory} was trained with --preset {run.preset}, not {name}; {mend}")
    length = next((field for field in ("max_time", "epochs") if getattr(run.train, field)), "max_iters")
    other = next((field for field in LENGTHS if train.get(field) and field != length), None)
    if other:
        raise UserError(
            f"{directory} is trained for {flags.flag(length)} {getattr(run.train, length)}, not for {flags.flag(other)}; {mend}"
        )
    changed = dataclasses.replace(
        run, model=dataclasses.replace(run.model, **model), train=dataclasses.replace(run.train, **train)
    )
    for field in [*model, *train]:
        was, now = (getattr(config.model if field in model else config.train, field) for config in (run, changed))
        if field not in FREE and now != was and not (field == "dtype" and moved):
            raise UserError(f"{directory} was trained with {flags.flag(field)} {was}, not {now}; {mend}")
    return changed


def directory_of(resume, out_dir):
    """The directory that `--resume [DIR]` and `--out-dir` mean, or the newest run. UserError if they differ."""
    from pathlib import Path

    from slm_np.formats.runs import newest_run

    directory = Path(resume or out_dir or newest_run())
    if out_dir and Path(out_dir) != directory:
        raise UserError(
            f"--resume {directory} goes on in that directory, not in --out-dir {out_dir}; leave one of them out"
        )
    return directory
