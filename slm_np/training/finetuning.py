"""Finetuning: a run that starts from the weights and the tokenizer of another run, or of another program's model.

The functions that need NumPy import it themselves, because the command's `--help` imports this file.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from slm_np.config import LoraConfig, TrainConfig, check_effect, flag, lengths
from slm_np.errors import UserError
from slm_np.paths import is_run
from slm_np.words import counted

EPOCHS = 3.0  # over the new data, unless the length is given
RATE_SHARE = 0.25  # peak learning rate as a share of the base's
# Learning rate of adapters, as a multiple of the rate for training all weights. Of 4, 10 and 20, this gave a small
# model the lowest loss on new data, nearly that of training all weights.
LORA_RATE = 10
OTHERS = TrainConfig(learning_rate=8e-5, batch_size=8, weight_decay=0.0, beta2=0.999)  # recipe of foreign models
BLOCK_SIZE = 512  # largest context with which another program's model is finetuned, unless given
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
    """A model to start from: a run's best model, or one of another program.

    config    RunConfig. For a model of another program it has the recipe OTHERS, and a context that fits into memory
    parts     ModelParts: weights, which are read when needed, tokenizer, template and sampling defaults
    is_run    whether it is a run
    checksum  of its weights, in hexadecimal; "" until `fill` or `read_checksum` has read them
    """

    path: Path
    config: object
    step: int
    parts: object
    is_run: bool
    checksum: str = ""

    @classmethod
    def load(cls, path):
        """The Base in `path`, or of that name on the hub. Raises UserError if there is none or it is damaged."""
        from slm_np.formats import run_config, sources

        parts = sources.open_model(path)
        if is_run(parts.path):
            run = run_config.read_config(parts.path)
            weights, step = sources.run_weights(parts.path, run)
            parts = dataclasses.replace(parts, tensors=lambda: drained(weights))
            return cls(parts.path, run, step, parts, True)
        config, data = sources.usable(parts.config), dict(converted=parts.origin)
        context = parts.config.block_size
        return cls(parts.path, run_config.RunConfig(config, OTHERS, data=data, context=context), 0, parts, False)

    @property
    def tokenizer(self):
        """None for token files without one."""
        return self.parts.tokenizer

    @property
    def template(self):
        """How conversations become tokens, or None."""
        return self.parts.template

    def fill(self, parameters):
        """Copy the base's weights into the Parameters of a model, which may have room for more tokens, see `grown`.

        Raises UserError if they are not those of the base's settings.
        """
        from slm_np.formats.adapters import BaseTensors

        shapes = {tensor.name: tensor.shape for tensor in parameters.tensors}
        left, tensors = {name for name in shapes if not name.endswith((".lora_A", ".lora_B"))}, BaseTensors(self.parts)
        for name, array in tensors:
            if name not in left:
                raise UserError(f"{self.path} has the unexpected tensor {name!r}; copy it again from its source")
            parameters.fill(name, grown(array, shapes[name]))
            left.remove(name)
        if left:
            raise UserError(f"{self.path} lacks the tensor {min(left)!r}; copy it again from its source")
        parameters.update_cast_copies()
        self.checksum = tensors.checksum

    def read_checksum(self):
        """The checksum of the weights, which this reads unless `fill` has."""
        from slm_np.formats.adapters import BaseTensors

        if not self.checksum:
            tensors = BaseTensors(self.parts)
            for _ in tensors:
                pass
            self.checksum = tensors.checksum
        return self.checksum

    def origin(self):
        """What run.json of a finetuned run records about its base: its identity, and how its data were split."""
        from slm_np.formats.run_paths import directories, written_here

        train, places = self.config.train, directories(self.path, self.config)
        paths = {field: getattr(train, field) for field in ("data", "val_data")} if self.is_run else {}
        return dict(
            run=str(self.path),
            step=self.step,
            weights=self.checksum,
            vocab_size=self.config.model.vocab_size,
            separated=self.config.data.get("separated", True),
            data="",
            val_data="",
            **{field: getattr(train, field) for field in ("documents", "limit_bytes", "binary")},
        ) | {field: written_here(path, places) or path for field, path in paths.items()}


def drained(weights):
    """Yield the items of a dict and remove each one, so that its memory can be freed."""
    while weights:
        yield weights.popitem()


def grown(weight, shape):
    """`weight` with rows, or columns, added up to `shape`. Each new one is the mean of the others."""
    if weight.shape == shape:
        return weight
    if weight.shape[1:] != shape[1:]:
        return grown(weight.T, shape[::-1]).T
    import numpy as np

    return np.concatenate([weight, np.repeat(weight.mean(0, keepdims=True), shape[0] - len(weight), 0)])


def finetuned(base, model, train, lora=()):
    """The RunConfig of a run that starts from `base`.

    model, train, lora: {field: value} of the given settings of the model, of training and of adapters
    """
    from slm_np.formats.run_config import RunConfig

    adapters = LoraConfig(**dict(lora))
    check_effect(adapters, dict(lora))
    if not base.is_run and has_free_context(base.config.model):
        model = dict(block_size=min(BLOCK_SIZE, base.config.context)) | model
    config = dataclasses.replace(base.config.model, **model)
    made = TrainConfig(**recipe(base.config.train, train, adapters))
    check_effect(made, train)
    return RunConfig(
        config,
        made,
        base.config.preset,
        base=base.origin(),
        context=base.config.context,
        lora=dataclasses.asdict(adapters) if adapters.lora_rank else {},
    )


def has_free_context(config):
    """Whether no weight of a model depends on its context."""
    return config.positions != "learned"


def recipe(base, given, lora=LoraConfig()):
    """{field: value} of the TrainConfig of a run that starts from one with the TrainConfig `base`."""
    values = {field: getattr(base, field) for field in KEPT} | given
    if not lengths(given):
        values["epochs"] = EPOCHS
    rate = RATE_SHARE * base.learning_rate
    if lora.lora_rank:
        rate *= LORA_RATE
        values["weight_decay"] = given.get("weight_decay", 0.0)
    else:
        values.setdefault("optimizer", base.optimizer)
    if base.optimizer == "muon":
        if values.get("optimizer") == "muon":
            values.setdefault("matrix_rate", base.matrix_rate)
        else:  # AdamW then changes matrices about as much as Muon did, see `training.muon`
            rate *= base.matrix_rate
    values.setdefault("learning_rate", rate)
    return values


def with_fitted_warmup(run, given, corpus):
    """`run` with a warmup that fits its number of updates, and a save interval like that of evaluations.

    What is given stays.
    """
    from slm_np.training.batches import training_batches

    updates = 1000  # where it is not known
    if not run.train.fit_seconds and not run.train.max_seconds:
        updates = training_batches(run, corpus).updates(run.train)
    fitted = dict(warmup_iters=min(100, updates // 10), save_interval=run.train.eval_interval)
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
    changeable = CHANGEABLE
    if not base.is_run and has_free_context(base.config.model):
        changeable = (*CHANGEABLE, "block_size")
        if model.get("block_size", 1) > base.config.context:
            raise UserError(
                f"--block-size {model['block_size']} is more than the context of {base.path}, {base.config.context:,} "
                "tokens; set it lower"
            )
    for settings, given in ((base.config.model, model), (base.config.train, tokenizer)):
        for field, value in given.items():
            kept, asked = getattr(settings, field), getattr(dataclasses.replace(settings, **{field: value}), field)
            if field not in changeable and asked != kept:
                raise UserError(
                    f"finetune keeps the base model: {base.path} uses {flag(field)} {kept}, not {asked}; leave it out"
                )


def check_same_base(directory, run, base):
    """Raise UserError if `run`, which is in `directory`, did not start from `base`."""
    if base.read_checksum() != run.base["weights"]:
        raise UserError(
            f"{directory} was finetuned from other weights than {base.path}, step {base.step}; leave --base out, "
            "or start a new run"
        )


def check_vocabulary(base, run, corpus):
    """Raise UserError if the corpus does not have the base's tokens, aside from a new end-of-text."""
    known, needed = base.config.model.vocab_size, run.model.vocab_size
    if base.tokenizer is None and corpus.tokenizer is not None:
        raise UserError(
            f"{base.path} has no tokenizer, so it cannot read text; "
            "give --data as a .bin of the same tokens, or copy its tokenizer.json into its directory"
        )
    if needed != known and not (needed == known + 1 and corpus.tokenizer.end_of_text == known):
        raise UserError(
            f"{corpus.source} has a vocabulary of {counted(needed, 'token')}, but the model in {base.path} has "
            f"{known:,}; prepare it with the tokenizer of the model"
        )
