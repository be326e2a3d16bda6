"""The state of a run: model, optimizer, data and counters, how one update changes them, and what a checkpoint keeps."""

import functools

import numpy as np

from slm_np.config import check_effect
from slm_np.errors import UserError
from slm_np.formats.layouts import lora_of
from slm_np.nn.model import Model, States
from slm_np.ops.device import device
from slm_np.ranks.rounds import Rounds
from slm_np.ranks.world import ALONE
from slm_np.training.batches import evaluation_batches, training_batches
from slm_np.training.host_step import HostStep
from slm_np.training.muon import Muon
from slm_np.training.optimizer import AdamW
from slm_np.training.precision import compute_dtype, resolved
from slm_np.training.schedule import learning_rate
from slm_np.training.spectral import SpectralNorms
from slm_np.training.virtual_ranks import DealtStep, deal


def optimizer_of(model, config):
    """The optimizer that a TrainConfig names, of a model. UserError if it has no effect on the model."""
    names = ("learning_rate", "weight_decay", "beta1", "beta2", "grad_clip")
    settings = {name: getattr(config, name) for name in names}
    if config.optimizer == "adamw":
        return AdamW(model.parameters, **settings)
    made = Muon(model.parameters, model.config, config.matrix_rate, **settings)
    if not len(made.matrices):
        raise UserError("--optimizer muon has no effect, as no matrix of the blocks is trained; leave it out")
    return made


def step_class(device, train, dealt, world):
    """The Step for a device, a TrainConfig and a Deal. DeviceStep is imported only for a GPU, since it needs CuPy."""
    if train.virtual_ranks:
        return functools.partial(DealtStep, dealt, world, train.exchange == "bf16")
    if device.name == "cpu":
        return HostStep
    from slm_np.training.device_step import DeviceStep

    return DeviceStep


def check_recipe(model, train):
    """Raise UserError if a setting of `train` (TrainConfig) has no effect on a model of this ModelConfig."""
    if train.carry_state and train.virtual_ranks:
        raise UserError(
            "--carry-state reads the data in order, which --virtual-ranks cannot split; leave one of them out"
        )
    if train.sync_every and (train.max_time or train.fit_time):
        raise UserError("--sync-every needs a length that no clock decides; give --max-iters or --epochs")
    if train.sync_every and train.carry_state:
        raise UserError("--carry-state reads the data in order, which ranks cannot split; leave --sync-every out")
    if (train.virtual_ranks or train.sync_every) and train.device != "cpu":
        raise UserError(f"several ranks train on CPUs only, not on --device {train.device}; leave --ranks out")
    if train.carry_state and model.has_attention:
        raise UserError("--carry-state needs recurrent layers only; choose a --pattern of M and S")
    if train.max_spectral_norm and "S" not in model.letters:
        raise UserError(
            f"--max-spectral-norm {train.max_spectral_norm} has no effect without linear recurrences; leave it "
            "out, or choose a --pattern with S"
        )
    if train.recompute and model.n_layer == 1:
        raise UserError("--recompute has no effect on a single layer, which is never recomputed; leave it out")
    check_effect(train, dict(lr_decay_iters=train.lr_decay_iters))


class TrainingState:
    """A new model and what training it on a corpus needs. `step` makes one update.

    Same parameters and errors as `Trainer`.
    """

    def __init__(self, run, corpus, retention=None, fresh=True, world=ALONE):
        check_recipe(run.model, run.train)
        self.run = run = resolved(run)
        self.config, self.corpus, config = run.train, corpus, run.train
        # All ranks, and those that work on the same update: with rounds, each has its own.
        self.everyone, self.world = world, ALONE if config.sync_every else world
        self.deal = deal(config, world)
        shape = self.deal.rows, run.model.block_size
        self.model = Model(
            run.model,
            config.seed if fresh else None,
            config.decay,
            compute_dtype=compute_dtype(run),
            device=device(config.device),
            recompute=config.recompute,
            lora=lora_of(run),
        )
        if run.lora and not fresh:
            self.model.parameters.initialize(config.seed, trained_only=True)
        self.optimizer = optimizer_of(self.model, config)
        self.spectral = SpectralNorms(self.model.parameters)
        self.rounds = None
        if config.sync_every:
            world.apart = world.size > 1
            outer = config.sync_every, config.outer_rate, config.outer_momentum, config.exchange
            self.rounds = Rounds(world, self.model.parameters.weights, *outer)
        self.states = States(self.model, config.batch_size) if config.carry_state else None  # recurrent state
        self.stepper = step_class(self.model.device, config, self.deal, world)(
            self.model, self.optimizer, self.spectral, shape, config.seed, config.max_spectral_norm, self.states
        )
        self.tokens, self.targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)  # (B, T)
        self.batches = training_batches(run, corpus)
        n = self.deal.micro_batches
        self.evaluated_batches = evaluation_batches(run, corpus, retention, lambda index: n * self.updates)
        self.max_iters = self.batches.updates(config)
        if config.fit_seconds:
            self.max_iters = run.fitted_iters or None  # None until it is known
        self.updates = 0  # including those skipped for a bad gradient: schedules and batches depend on it
        self.elapsed = 0.0  # seconds in `Trainer.train` over all sessions, evaluations and saving included

    def step(self):
        """One update. Returns (loss, gradient norm, learning rate).

        On a GPU the first two are device arrays that later updates overwrite; `stepper.read` synchronizes.
        """
        n, rate = self.deal.micro_batches, learning_rate(self.config, self.updates, self.schedule_progress)
        self.stepper.start(self.updates, self.count_targets(), rate)
        for micro in self.deal.own:
            self.load_batch(self.updates * n + micro)
            self.stepper.gradient(self.tokens, self.targets, micro)
        loss, norm = self.stepper.update()
        self.updates += 1
        return loss, norm, rate

    def count_targets(self):
        """Unmasked targets in the next update: those of all processes whose gradients are summed."""
        n, own = self.deal.micro_batches, self.deal.own
        if self.corpus.train.mask is None:
            return (len(own) if self.rounds else n) * self.targets.size
        indices = [self.updates * n + micro for micro in own]
        own = self.batches.count_targets(self.tokens, self.targets, indices)
        return int(self.world.all_gather(np.array([float(own)])).sum())

    def wait_for_data(self):
        """Wait until what the next update reads is tokenized. Raises `CorpusFailed` if tokenizing failed."""
        if self.corpus.building:
            self.corpus.building.check()
        self.batches.wait(self.tokens.shape, (self.updates + 1) * self.deal.micro_batches - 1)

    def load_batch(self, index):
        """Fill `tokens` and `targets` with training batch `index`. New sequences start with a new recurrent state."""
        self.batches.fill(self.tokens, self.targets, index)
        if self.states and self.batches.restarts(index):
            self.states.clear()

    @property
    def progress(self):
        """Fraction of the run completed: of its time if that is all that is known, otherwise of its updates."""
        if self.config.max_seconds or self.max_iters is None:
            return min(1.0, self.elapsed / (self.config.max_seconds or self.config.fit_seconds))
        return min(1.0, self.updates / self.max_iters) if self.max_iters else 1.0

    @property
    def schedule_progress(self):
        """Fraction of the learning rate's schedule after warmup that is completed."""
        if self.config.max_seconds:
            return self.progress
        end = self.config.lr_decay_iters or self.max_iters
        if end is None:  # during warmup, or in an update that is undone
            return 0.0
        return (self.updates - self.config.warmup_iters) / max(1, end - self.config.warmup_iters)

    def tensors(self):
        """{name: array} that a checkpoint keeps besides the weights. Loading into the arrays restores them."""
        states = {"recurrent_state": self.states.memory} if self.states else {}
        outer = {"outer_velocity": self.rounds.outer.velocity} if self.rounds else {}
        return {**self.optimizer.state(), **self.spectral.state(), **states, **outer}

    def counters(self):
        """{name: number} that a checkpoint keeps besides the step."""
        return {**self.stepper.state(), "elapsed": self.elapsed}

    def load(self, step, counters):
        """Continue from a checkpoint after `step` updates. Its weights and tensors are already loaded."""
        self.model.parameters.update_cast_copies()
        self.updates, self.elapsed = step, counters["elapsed"]
        self.stepper.load(counters)
        if self.rounds:
            self.rounds.restart(step)

    def free(self):
        """Free the memory that only training needs; the model stays."""
        self.model.activations = self.stepper = None
