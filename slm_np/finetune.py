"""Go on with a trained model on another text: `python -m slm_np.finetune --base RUN --data TEXT`."""

import argparse
import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path

from slm_np.cli import flags
from slm_np.cli.resume import resume_finetuning
from slm_np.cli.settings import LENGTHS, add_source, settings
from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, exit_with_sentence

KEPT = (
    "tokenizer",
    "batch_size",
    "weight_decay",
    "decay",
    "beta1",
    "beta2",
    "grad_clip",
    "seed",
    "threads",
    "device",
)  # of the base's recipe
EPOCHS, RATE_SHARE, MIN_SHARE = (
    3.0,
    0.25,
    0.1,
)  # passes; the peak rate as a share of the base's; the lowest as a share of the peak
CHANGEABLE = ("dropout",)  # the one setting of a model that is in none of its weights


def parser():
    p = flags.Parser(
        prog="slm-np finetune",
        description=(
            "Go on with a trained model on another text: same tokenizer and model, the base's best weights, a fresh schedule.\n"
            "The rows of a .jsonl file with messages, or prompt and completion, are conversations: only the answers are learnt.\n\n"
            f"Defaults differ from train's: {EPOCHS:g} epochs; batches, weight decay, clipping, seed and device as the base's; a peak rate of {RATE_SHARE:g} times the\n"
            f"base's and a lowest of {MIN_SHARE:g} times that; warmup over a tenth of the run (100 updates at most) and an evaluation after each\n"
            f"twentieth (250 updates at most, and under max-time)."
        ),
    )
    group = p.add_argument_group("run")
    group.add_argument("--base", metavar="RUN", help="directory of the run to start from")
    add_source(group)
    flags.add_settings(p, TrainConfig, "training", defaults=dict(data="", out_dir="", epochs=EPOCHS))
    flags.add_settings(p, ModelConfig, "model")
    for action in p._actions:  # known, so that one sentence can say that the model stays as it is
        if action.dest in ModelConfig.__dataclass_fields__ and action.dest not in CHANGEABLE:
            action.help = argparse.SUPPRESS
    return p


@dataclass
class Base:
    """What a run starts from: a run's settings, best weights {name: array}, tokenizer (None for bare token files), sampling defaults, template."""

    path: Path
    config: object
    weights: dict
    step: int
    tokenizer: object
    sampling: object
    template: object

    @classmethod
    def load(cls, path):
        """UserError if the folder `path` is no run, or anything in it is damaged."""
        from slm_np.data import chat_template as template
        from slm_np.formats import run_config, runs

        path = Path(path)
        config = run_config.read_config(path)
        weights, step = runs.best_weights(path)
        return cls(
            path, config, weights, step, runs.tokenizer_of(path, config), runs.sampling_of(path), template.load(path)
        )

    def fill(self, weights):
        """Copy the weights into {name: view}; where these have rows for more pieces, the new ones are the mean of the others, and so it is with the
        columns of a last mixer that gives the logits. Only once: they are let go."""
        from slm_np.ops.device import put

        for name, view in weights.items():
            put(view, grown(self.weights.pop(name), view.shape))

    def origin(self):
        """What a finetuned run keeps of its base: enough to know it again, and how its text was split."""
        settings = self.config.train
        return dict(
            run=str(self.path),
            step=self.step,
            weights=self.checksum(),
            vocab_size=self.config.model.vocab_size,
            separated=self.config.data.get("separated", True),
            **{field: getattr(settings, field) for field in ("data", "val_data", "documents", "limit_bytes")},
        )

    def checksum(self):
        total = 0
        for name in sorted(self.weights):
            total = zlib.crc32(self.weights[name], zlib.crc32(name.encode(), total))
        return f"{total:08x}"


def grown(known, shape):
    """A tensor with rows, or columns, added up to `shape`: each the mean of those there are."""
    if known.shape == shape:
        return known
    if known.shape[1:] != shape[1:]:
        return grown(known.T, shape[::-1]).T
    import numpy as np

    return np.concatenate([known, np.repeat(known.mean(0, keepdims=True), shape[0] - len(known), 0)])


@exit_with_sentence
def main(argv=None):
    """The command; exit status as of train."""
    args = parser().parse(argv)
    name, model, given = settings(args)
    if args.resume is not None:
        from slm_np.cli.resume import directory_of, resumed

        directory = directory_of(args.resume, given.get("out_dir"))
        run = resumed(directory, name, model, given)
        if not run.base:
            raise UserError(
                f"{directory} did not start from another run; go on with it by python -m slm_np.train --resume {directory}"
            )
        if args.base:
            check_same_base(directory, run, Base.load(args.base))
        resume_finetuning(run, directory)
        return
    for flag, value, mend in (
        ("--base", args.base, "name the run to start from"),
        ("--data", given.get("data"), "give the text to learn"),
    ):
        if not value:
            raise UserError(f"{flag} is missing; {mend}")
    begin(Base.load(args.base), name, model, given)


def begin(base, name, model, given):
    """Finetune `base` in a new directory."""
    from slm_np.cli.launch import prepared, replayed, train_on
    from slm_np.data.tokenizer import with_end_of_text
    from slm_np.formats.run_config import RunConfig
    from slm_np.formats.runs import check_free

    check_unchanged(base, name, model, given)
    run = RunConfig(
        dataclasses.replace(base.config.model, **model),
        TrainConfig(**recipe(base.config.train, given)),
        base.config.preset,
        base=base.origin(),
    )
    if run.train.out_dir:
        check_free(run.train.out_dir)
    corpus, run = prepared(run, base.tokenizer)
    if corpus.train.n_documents != 1 and corpus.tokenizer is not None and corpus.tokenizer.end_of_text is None:
        corpus, run = prepared(dataclasses.replace(run, data={}), with_end_of_text(base.tokenizer))
    check_fits(base, run, corpus)
    replay, run = replayed(run, corpus)
    train_on(corpus, fitted(run, given, corpus), replay=replay, base=base)


def check_unchanged(base, name, model, given):
    """UserError if a setting would make another model of the base, or of its text."""
    if name and name != base.config.preset:
        raise UserError(
            f"finetune keeps the model of {base.path}, whose preset is {base.config.preset}, not {name}; leave it out"
        )
    for field, value in [*model.items(), *((field, given[field]) for field in ("tokenizer",) if field in given)]:
        settings = base.config.model if field in model else base.config.train
        asked = getattr(dataclasses.replace(settings, **{field: value}), field)
        if field not in CHANGEABLE and asked != getattr(settings, field):
            raise UserError(
                f"finetune keeps the model of {base.path}, whose {flags.flag(field)} is {getattr(settings, field)}, not {asked}; leave it out, or train a new model"
            )


def check_same_base(directory, run, base):
    """UserError if `base` is not what `run` started from."""
    if base.checksum() != run.base["weights"]:
        raise UserError(
            f"{directory} started from step {run.base['step']} of {run.base['run']}, whose weights are not those of {base.path}, step {base.step}; "
            "leave --base out to go on with it, or start a new run"
        )


def check_fits(base, run, corpus):
    """UserError if the corpus' ids are not the base's, but for an end-of-text that only the new text needs."""
    known, needed = base.config.model.vocab_size, run.model.vocab_size
    if base.tokenizer is None and corpus.tokenizer is not None:
        raise UserError(
            f"{base.path} was trained on a token file without a tokenizer, so it cannot read text; give --data as a .bin of the same tokens"
        )
    if needed != known and not (needed == known + 1 and corpus.tokenizer.end_of_text == known):
        raise UserError(
            f"the text has a vocabulary of {needed} pieces, the model in {base.path} one of {known}; prepare it with the model's own tokenizer"
        )


def recipe(base, given):
    """{field: value} of the TrainConfig of a run that starts from one with `base`."""
    values = {field: getattr(base, field) for field in KEPT} | given
    if not any(field in given for field in LENGTHS):
        values["epochs"] = EPOCHS
    values.setdefault("learning_rate", RATE_SHARE * base.learning_rate)
    values.setdefault("min_lr", MIN_SHARE * float(values["learning_rate"]))
    return values


def fitted(run, given, corpus):
    """`run` with the intervals that were not given, set by its number of updates."""
    from slm_np.training.trainer import epoch_order, updates_of

    config = run.train
    if config.max_seconds:
        updates, interval = 1000, 250  # how many there will be is not known
    else:
        updates = (
            updates_of(config, epoch_order(corpus, run.model.block_size, config.seed).n_windows)
            if config.epochs
            else config.max_iters
        )
        interval = max(1, min(250, updates // 20))
    interval = given.get("eval_interval", interval)
    defaults = dict(warmup_iters=min(100, updates // 10), eval_interval=interval, save_interval=interval)
    return dataclasses.replace(
        run,
        train=dataclasses.replace(config, **{field: value for field, value in defaults.items() if field not in given}),
    )


if __name__ == "__main__":
    main()
