"""Finetuning: a run that starts from the weights, the tokenizer and the recipe of another run, its base.

Imports of NumPy are in the functions that need it, since the command's `--help` imports this file.
"""

import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path

from slm_np.config import TrainConfig, check_effect, flag, lengths
from slm_np.errors import UserError
from slm_np.paths import expanded
from slm_np.words import counted

EPOCHS = 3.0  # over the new data, unless the length is given
RATE_SHARE = 0.25  # peak learning rate as a share of the base's
INTERVAL = 250  # updates between evaluations, at most
# Settings that are the base's unless given.
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
)
CHANGEABLE = ("dropout",)  # settings of the model that no weight depends on


@dataclass
class Base:
    """A run to start from."""

    path: Path
    config: object  # RunConfig
    weights: dict  # {name: array} of its best model
    step: int  # of these weights
    tokenizer: object  # None for token files without one
    sampling: object  # SamplingConfig
    template: object  # ChatTemplate, or None

    @classmethod
    def load(cls, path):
        """The Base in the directory `path`. Raises UserError if it is not a run or anything in it is damaged."""
        from slm_np.formats import run_config, runs

        path = expanded(path)
        config = run_config.read_config(path)
        tokenizer, sampling = runs.tokenizer_of(path, config), runs.sampling_of(path)
        weights, step = runs.best_weights(path, config)
        return cls(path, config, weights, step, tokenizer, sampling, runs.template_of(path, config))

    def fill(self, weights):
        """Copy the base's weights into {name: array}, which may have room for more tokens, see `grown`.

        It can be done once: the base's weights are freed.
        """
        from slm_np.ops.device import put

        for name, array in weights.items():
            put(array, grown(self.weights.pop(name), array.shape))

    def origin(self):
        """What run.json of a finetuned run says of its base: its identity, and how its data were split."""
        from slm_np.formats.run_paths import directories, written_here

        train, places = self.config.train, directories(self.path, self.config)
        paths = {field: getattr(train, field) for field in ("data", "val_data")}
        return dict(
            run=str(self.path),
            step=self.step,
            weights=self.checksum(),
            vocab_size=self.config.model.vocab_size,
            separated=self.config.data.get("separated", True),
            **{field: written_here(path, places) or path for field, path in paths.items()},
            **{field: getattr(train, field) for field in ("documents", "limit_bytes", "binary")},
        )

    def checksum(self):
        """CRC-32 of all weights and their names of format 1, in hexadecimal, as earlier runs recorded it."""
        from slm_np.formats.format1 import original_name

        total, weights = 0, {original_name(name): weight for name, weight in self.weights.items()}
        for name in sorted(weights):
            total = zlib.crc32(weights[name], zlib.crc32(name.encode(), total))
        return f"{total:08x}"


def grown(weight, shape):
    """`weight` with rows, or columns, added up to `shape`. Each new one is the mean of the others."""
    if weight.shape == shape:
        return weight
    if weight.shape[1:] != shape[1:]:
        return grown(weight.T, shape[::-1]).T
    import numpy as np

    return np.concatenate([weight, np.repeat(weight.mean(0, keepdims=True), shape[0] - len(weight), 0)])


def finetuned(base, model, train):
    """The RunConfig of a run that starts from `base`. model, train: {field: value}, the settings that were given."""
    from slm_np.formats.run_config import RunConfig

    config = dataclasses.replace(base.config.model, **model)
    made = TrainConfig(**recipe(base.config.train, train))
    check_effect(made, train)
    return RunConfig(config, made, base.config.preset, base=base.origin(), context=base.config.context)


def recipe(base, given):
    """{field: value} of the TrainConfig of a run that starts from one with the TrainConfig `base`."""
    values = {field: getattr(base, field) for field in KEPT} | given
    if not lengths(given):
        values["epochs"] = EPOCHS
    values.setdefault("learning_rate", RATE_SHARE * base.learning_rate)
    return values


def with_fitted_intervals(run, given, corpus):
    """`run` with warmup, evaluation and save intervals that fit its number of updates, unless they are given."""
    from slm_np.training.batches import training_batches

    if run.train.fit_seconds:
        updates, interval = 1000, 0  # the number of updates is not known yet, but a tenth of the run can be asked for
    elif run.train.max_seconds:
        updates, interval = 1000, INTERVAL  # the number of updates is not known
    else:
        updates = training_batches(run, corpus).updates(run.train)
        interval = max(1, min(INTERVAL, updates // 20))
    interval = given.get("eval_interval", interval)
    fitted = dict(warmup_iters=min(100, updates // 10), eval_interval=interval, save_interval=interval)
    fitted = {field: value for field, value in fitted.items() if field not in given}
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **fitted))


def check_unchanged(base, preset, model, train):
    """Raise UserError if a given setting contradicts the base's model or tokenizer.

    preset: its name, or None.   model, train: {field: value}, the settings that were given.
    """
    if preset and preset != base.config.preset:
        raise UserError(
            f"finetune keeps the base model: {base.path} uses --preset {base.config.preset or '(none)'}, not {preset}; "
            "leave it out"
        )
    tokenizer = {field: train[field] for field in ("tokenizer",) if field in train}
    for settings, given in ((base.config.model, model), (base.config.train, tokenizer)):
        for field, value in given.items():
            kept, asked = getattr(settings, field), getattr(dataclasses.replace(settings, **{field: value}), field)
            if field not in CHANGEABLE and asked != kept:
                raise UserError(
                    f"finetune keeps the base model: {base.path} uses {flag(field)} {kept}, not {asked}; leave it out"
                )


def check_same_base(directory, run, base):
    """Raise UserError if `run`, which is in `directory`, did not start from `base`."""
    if base.checksum() != run.base["weights"]:
        raise UserError(
            f"{directory} was finetuned from other weights than {base.path}, step {base.step}; leave --base out, "
            "or start a new run"
        )


def check_vocabulary(base, run, corpus):
    """Raise UserError if the corpus does not have the base's tokens, aside from a new end-of-text."""
    known, needed = base.config.model.vocab_size, run.model.vocab_size
    if base.tokenizer is None and corpus.tokenizer is not None:
        raise UserError(
            f"{base.path} was trained on a token file without a tokenizer, so it cannot read text; "
            "give --data as a .bin of the same tokens"
        )
    if needed != known and not (needed == known + 1 and corpus.tokenizer.end_of_text == known):
        raise UserError(
            f"{corpus.source} has a vocabulary of {counted(needed, 'token')}, but the model in {base.path} has "
            f"{known:,}; prepare it with the tokenizer of the model"
        )
