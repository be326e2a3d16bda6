"""The training loop: batches in, updates, evaluations, checkpoints; it can stop and go on at any update with the same bits."""

import contextlib
import math
import os
import signal
import time
from pathlib import Path

import numpy as np

from slm_np.errors import UserError
from slm_np.formats import checkpoint
from slm_np.nn.model import Model, States, counted
from slm_np.ops.device import arrays_for
from slm_np.progress import Progress
from slm_np.training.matmul_check import checked_matmul
from slm_np.training.optimizer import AdamW, learning_rate
from slm_np.training.precision import operand, resolved
from slm_np.training.scaler import GradientScaler
from slm_np.training.spectral import SpectralNorms

TRAIN, EVALUATE_TRAIN, EVALUATE_VALIDATION, EVALUATE_REPLAY = range(4)  # purposes of random batches
BAD_STEPS = 5


def bits_per_byte(nats_per_token, tokens):
    """Nats per token that is learnt as bits per byte of the original text that is learnt, or NaN where its length in bytes is not known."""
    return (
        nats_per_token / math.log(2) * tokens.n_targets / tokens.n_bytes
        if tokens.n_bytes and tokens.n_targets
        else math.nan
    )


def batches_of(tokens, block_size, seed, purpose, end_of_text=None):
    """A function (x, y, i) that fills x, y (B, T) with batch i of a split: random windows, or those of the answers where only they are learnt.

    They depend on (seed, purpose, i) alone.
    """
    from slm_np.data.assistant_windows import AssistantOrder
    from slm_np.data.batches import random_batch

    if tokens.mask is None:
        return lambda x, y, i: random_batch(x, y, tokens, seed, purpose, i)
    order = AssistantOrder(tokens, block_size, seed, end_of_text)
    return lambda x, y, i: order.batch(x, y, i * len(x))


def epoch_order(corpus, block_size, seed):
    """The order in which an epoch visits the windows of the training split, or of its answers."""
    from slm_np.data.assistant_windows import AssistantOrder
    from slm_np.data.batches import EpochOrder

    train = corpus.train
    return (
        EpochOrder(train, block_size, seed)
        if train.mask is None
        else AssistantOrder(train, block_size, seed, corpus.tokenizer.end_of_text)
    )


def updates_of(config, n_windows):
    """How many updates visit `n_windows` windows `config.epochs` times."""
    return math.ceil(config.epochs * n_windows / (config.batch_size * config.grad_accumulation_steps))


class Interrupted(Exception):
    """Training was stopped by a signal; the run is saved. `status` is the exit status that says so."""

    def __init__(self, status):
        self.status = status


class Trainer:
    """A model, its optimiser and its data. `step()` is one optimiser update; `train()` is the whole run.

    run: RunConfig.   corpus: the Corpus of data/token_store.   sampler: function (model) -> text, called at evaluations for a few words.
    replay: Tokens of another text whose loss is watched too, or None.   fresh: False leaves the weights 0, for `resume` or a base to fill.
    Nothing is written to disk before `start(directory)` or `resume(directory)`.
    """

    def __init__(self, run, corpus, sampler=None, quiet=False, replay=None, fresh=True):
        run = resolved(run)
        self.run, self.config, self.corpus, self.sampler, self.quiet = run, run.train, corpus, sampler, quiet
        self.out_dir = None
        train = self.config
        if train.carry_state and (run.model.has_attention or corpus.train.mask is not None):
            raise UserError(
                f"--carry-state hands on a state, but {'attention has none' if run.model.has_attention else 'answers are no stream'}; "
                f"{'choose a --pattern of M and S' if run.model.has_attention else 'leave it out'}"
            )
        self.model = Model(
            run.model, train.seed if fresh else None, train.decay, operand=operand(run), arrays=arrays_for(train.device)
        )
        self.optimizer = AdamW(
            self.model.parameters,
            train.learning_rate,
            train.weight_decay,
            train.beta1,
            train.beta2,
            grad_clip=train.grad_clip,
        )
        shape = train.batch_size, run.model.block_size
        self.model.plan(*shape)
        self.tokens, self.targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        end_of_text, T = getattr(corpus.tokenizer, "end_of_text", None), run.model.block_size
        self.evaluated_splits = [
            (name, batches_of(tokens, T, train.seed, purpose, end_of_text))
            for name, tokens, purpose in (
                ("train_loss", corpus.train, EVALUATE_TRAIN),
                ("val_loss", corpus.validation, EVALUATE_VALIDATION),
                ("replay_loss", replay, EVALUATE_REPLAY),
            )
            if tokens is not None
        ]
        self.spectral = SpectralNorms(self.model.parameters)
        self.carried = None  # the mixers' states, where they are handed from window to window
        if train.carry_state:
            from slm_np.data.batches import ContiguousOrder

            order = ContiguousOrder(corpus.train, T, train.batch_size)
            self.carried, self.windows = States(self.model, train.batch_size), order.n_windows
            self.batches = order.batch
            self.max_iters = (
                math.ceil(train.epochs * order.n_windows / train.grad_accumulation_steps)
                if train.epochs
                else train.max_iters
            )
        elif train.epochs:
            order = epoch_order(corpus, T, train.seed)
            self.batches, self.max_iters = (
                lambda x, y, i: order.batch(x, y, i * len(x)),
                updates_of(train, order.n_windows),
            )
        else:
            self.batches, self.max_iters = batches_of(corpus.train, T, train.seed, TRAIN, end_of_text), train.max_iters
        self.scaler = GradientScaler() if self.model.operand == np.float16 else None
        self.ahead = None  # where steps run on a GPU, ahead of the host
        if self.model.arrays is not np:
            from slm_np.training.device_step import DeviceStep

            self.ahead = DeviceStep(
                self.model, self.optimizer, self.spectral, shape, train.max_spectral_norm, self.carried, self.scaler
            )
        self.updates = (
            0  # updates tried, those skipped for a bad gradient included: the step of every schedule and batch
        )
        self.bad_steps = 0  # skipped in a row
        self.elapsed = 0.0  # seconds of training, evaluations and saving included, over all sessions
        self.best = math.inf  # lowest validation loss so far, nats per token
        self.stale = 0  # evaluations since then
        self.evaluated = self.saved = -1  # the step of the last evaluation and of the last checkpoint
        self.timed_steps, self.timed_seconds = 0, 0.0  # since the last line of the log
        self.stop_signal = None

    @property
    def progress(self):
        """Share of the run that is over: of the time where it is limited, else of the updates."""
        if self.config.max_seconds:
            return min(1.0, self.elapsed / self.config.max_seconds)
        return min(1.0, self.updates / self.max_iters) if self.max_iters else 1.0

    @property
    def schedule_progress(self):
        """Share of the learning rate's course after warmup that is over."""
        if self.config.max_seconds:
            return self.progress
        end = self.config.lr_decay_iters or self.max_iters
        return (self.updates - self.config.warmup_iters) / max(1, end - self.config.warmup_iters)

    def batch(self, micro):
        """Fill tokens and targets with micro-batch `micro` of the present update."""
        self.batches(self.tokens, self.targets, self.updates * self.config.grad_accumulation_steps + micro)

    def states(self, micro):
        """What micro-batch `micro` goes on from, None where windows do not follow each other; new texts where the streams begin again."""
        if self.carried is None:
            return None
        if (self.updates * self.config.grad_accumulation_steps + micro) % self.windows == 0:
            self.carried.clear()
        return self.carried.layers

    def spectral_row(self):
        """The spectral norm of each linear recurrence's A for the metrics, where there are any."""
        return (
            dict(spectral_norms=[round(norm, 6) for norm in self.spectral.norms.values()])
            if self.spectral.norms
            else {}
        )

    def moments(self):
        """{name: array} of what a checkpoint holds beside weights and counters: the optimiser's moments, the vectors that show
        spectral norms, and the states that are carried."""
        return {
            **self.optimizer.state(),
            **self.spectral.state(),
            **({"carried": self.carried.memory} if self.carried else {}),
        }

    def counted(self):
        """Targets that count in all micro-batches of the present update: its loss is their mean, however they spread over the batches."""
        n = self.config.grad_accumulation_steps
        if self.corpus.train.mask is None:
            return n * self.targets.size
        total = 0
        for micro in range(n):
            self.batch(micro)
            total += counted(self.targets)
        return total

    def step(self):
        """One update: batch, forward, backward (per micro-batch), clip, AdamW. Returns (loss, gradient norm, learning rate).

        A loss or gradient that is not finite leaves the weights alone. WrongMatmul if one that was checked is wrong, before the update.
        On a GPU nobody waits for the update: loss and norm are arrays, and `catch_up` says what it came to.
        """
        rate = learning_rate(self.config, self.updates, self.schedule_progress)
        if self.ahead:
            return *self.step_ahead(rate), rate
        count, loss = self.counted(), 0.0
        with checked_matmul(self.model.parameters.weights, self.updates):
            for micro in range(self.config.grad_accumulation_steps):
                self.batch(micro)
                loss += self.model.loss_and_gradient(
                    self.tokens, self.targets, count, (self.config.seed, self.updates, micro), self.states(micro)
                )
        if math.isfinite(loss):
            norm = self.optimizer.step(rate)
            if math.isfinite(norm):
                self.spectral.update(self.config.max_spectral_norm)
        else:
            norm = math.nan
            self.model.parameters.gradients.fill(0)
            if self.carried:
                self.carried.clear()  # what is not finite would stay so
        self.updates += 1
        self.bad_steps = 0 if math.isfinite(norm) else self.bad_steps + 1
        return loss, norm, rate

    def step_ahead(self, rate):
        """`step` on a GPU: (loss, norm), which it may not have computed yet."""
        count = self.counted()
        for micro in range(self.config.grad_accumulation_steps):
            self.batch(micro)
            self.states(micro)  # new texts begin
            self.ahead.gradient(
                self.tokens, self.targets, (self.config.seed, self.updates, micro), count, rate, micro == 0
            )
        self.updates += 1
        return self.ahead.update()

    def catch_up(self):
        """Wait for the GPU. (loss, norm) of its last step, and all counters as they are after it."""
        loss, norm, self.bad_steps = self.ahead.read()
        return loss, norm

    def estimate_loss(self):
        """{train_loss, val_loss and, if there is a replay text, replay_loss}: means over `eval_iters` fixed batches each, dropout off, in nats
        per token that counts."""
        means = {}
        for name, batches in self.evaluated_splits:
            total, count = 0.0, 0
            for i in range(self.config.eval_iters):
                self.check_stop()
                batches(self.tokens, self.targets, i)
                n = counted(self.targets)
                total, count = total + n * self.model.loss(self.tokens, self.targets), count + n
            means[name] = total / max(1, count)
        return means

    # What a run leaves on disk

    def start(self, directory, sampling=None, template=None):
        """Keep the run in a new directory: tokenizer, defaults for sampling (its preset's, or as given), template of conversations (that of its
        text, if it learns from any, or as given), the checkpoint of step 0 and, last, the settings, which make it a run."""
        from slm_np.data.chat_template import DEFAULT
        from slm_np.inference.sampling import to_generation_config
        from slm_np.presets import generation_defaults

        self.out_dir = Path(directory)
        if self.corpus.tokenizer is not None:
            self.corpus.tokenizer.save(self.out_dir / "tokenizer.json")
        checkpoint.write_json(
            self.out_dir / "generation_config.json",
            to_generation_config(sampling or generation_defaults(self.run.preset)),
        )
        template = template if self.corpus.train.mask is None else DEFAULT
        if template is not None:
            template.save(self.out_dir)
        self.save()
        checkpoint.write_config(self.out_dir, self.run)

    def save(self):
        """A checkpoint to resume from."""
        if self.out_dir is not None and self.saved != self.updates:
            if self.ahead:
                self.catch_up()
            state = dict(
                optimizer_updates=self.optimizer.updates,
                bad_steps=self.bad_steps,
                elapsed=self.elapsed,
                **(self.scaler.state() if self.scaler else {}),
            )
            checkpoint.save_checkpoint(self.out_dir, self.updates, self.model.parameters.weight, self.moments(), state)
        self.saved = self.updates

    def resume(self, directory):
        """Go on with the run in a directory, from its newest checkpoint."""
        self.out_dir = Path(directory)
        found = checkpoint.newest_checkpoint(self.out_dir, self.model.parameters.weight, self.moments())
        self.model.parameters.update_copies()
        self.updates = self.saved = found.step
        self.optimizer.updates, self.bad_steps, self.elapsed = (
            found.state[k] for k in ("optimizer_updates", "bad_steps", "elapsed")
        )
        if self.scaler and "scale" in found.state:  # a run of another precision has none
            self.scaler.load(found.state)
        if self.ahead:
            self.ahead.write(self.bad_steps)
        checkpoint.trim_metrics(self.out_dir, self.updates)
        for row in checkpoint.read_metrics(self.out_dir):
            if "val_loss" in row:  # null where an evaluation diverged
                self.evaluated = row["step"]
                self.improved(math.nan if row["val_loss"] is None else row["val_loss"])
        checkpoint.write_config(self.out_dir, self.run)

    def log(self, row):
        if self.out_dir is not None:
            checkpoint.append_metrics(self.out_dir, row)

    # The loop

    def improved(self, val_loss):
        """Whether a validation loss is the lowest so far; kept in mind, as is how long there was none."""
        better = val_loss < self.best
        self.best, self.stale = (val_loss, 0) if better else (self.best, self.stale + 1)
        return better

    def out_of_patience(self):
        return 0 < self.config.patience <= self.stale

    def finished(self):
        return self.out_of_patience() or (
            self.elapsed >= self.config.max_seconds if self.config.max_seconds else self.updates >= self.max_iters
        )

    def train(self):
        """Run to the end, or until `patience` evaluations in a row brought no lower validation loss. Interrupted after SIGINT or SIGTERM, UserError after five bad steps; both leave a checkpoint to resume from."""
        config = self.config
        progress = Progress(self.progress, self.quiet)
        begun = time.perf_counter() - self.elapsed
        try:
            with self.signals():
                while True:
                    self.elapsed = time.perf_counter() - begun
                    if self.updates % config.save_interval == 0 or self.finished():
                        self.save()
                    first = (
                        0 if self.run.base else 1
                    )  # a base is measured as it came, so that what it gains and forgets shows
                    if self.evaluated != self.updates and (
                        self.updates >= first and self.updates % config.eval_interval == 0 or self.finished()
                    ):
                        self.evaluate(progress)
                    if self.finished():
                        break
                    self.advance(progress)
                    self.check_stop()
            if self.out_of_patience():
                progress.say(f"no lower validation loss in {self.stale} evaluations: stopped at step {self.updates}")
            self.save()
        except Interrupted:
            self.save()
            raise
        finally:
            progress.close()

    def evaluate(self, progress):
        """Losses of the splits, a row of metrics, a few words; the best model is kept."""
        losses = self.estimate_loss()
        val_loss = losses["val_loss"]
        bits = bits_per_byte(val_loss, self.corpus.validation)
        if self.improved(val_loss) and self.out_dir is not None:
            checkpoint.save_best(self.out_dir, self.model.parameters.weight, dict(step=self.updates, val_loss=val_loss))
        self.log(dict(step=self.updates, **losses, val_bpb=bits, time_s=round(self.elapsed, 3)))
        self.evaluated = self.updates
        shown = f"{bits:.3f} bits/byte" if math.isfinite(bits) else f"{val_loss:.3f} nats/token"
        words = ""
        if self.sampler and math.isfinite(val_loss):
            with contextlib.suppress(UserError):  # for want of memory, say: no words are no reason to stop
                words = self.sampler(self.model)
        replay = f", replay loss {losses['replay_loss']:.4f}" if "replay_loss" in losses else ""
        progress.say(
            f"step {self.updates}: train loss {losses['train_loss']:.4f}, validation loss {val_loss:.4f}, {shown}{replay}"
            + (f"  | {words}" if words else "")
        )

    def advance(self, progress):
        """A step, shown and logged. UserError after five in a row without an update; the last good weights are saved before."""
        begun = time.perf_counter()
        loss, norm, rate = self.step()
        due = self.updates % self.config.log_interval == 0
        if self.ahead and due:
            loss, norm = self.catch_up()
        bad = self.bad_steps if due or not self.ahead else 0  # of a GPU it is known only then
        self.timed_steps, self.timed_seconds = self.timed_steps + 1, self.timed_seconds + time.perf_counter() - begun
        per_step = self.timed_seconds / self.timed_steps
        per_second = self.tokens.size * self.config.grad_accumulation_steps / per_step
        if bad:
            progress.say(f"step {self.updates}: the loss is {loss} and the gradient's norm {norm}: update skipped")
        if due or bad:
            self.log(
                dict(
                    step=self.updates,
                    loss=loss,
                    lr=rate,
                    grad_norm=norm,
                    step_ms=round(1e3 * per_step, 3),
                    tokens_per_s=round(per_second, 1),
                    **self.spectral_row(),
                )
            )
        text = ""
        if due:
            bits = bits_per_byte(loss, self.corpus.train)
            text = (
                f"loss {loss:.3f}"
                + (f"  {bits:.2f} bits/byte" if math.isfinite(bits) else "")
                + f"  {per_second:,.0f} tokens/s"
            )
        progress.update(
            f"step {self.updates}" + ("" if self.config.max_seconds else f"/{self.max_iters}"), self.progress, text, due
        )
        if due:
            self.timed_steps, self.timed_seconds = 0, 0.0
        if bad >= BAD_STEPS:
            self.bad_steps = 0  # who resumes has five again
            if self.ahead:
                self.ahead.write(0)
            self.save()
            raise UserError(
                f"{BAD_STEPS} updates in a row had a loss or gradient that is not finite; the last good weights are saved, "
                "resume with a lower --learning-rate or --grad-clip"
            )

    def check_stop(self):
        """Interrupted, if a signal has asked for it."""
        if self.stop_signal is not None:
            raise Interrupted(128 + self.stop_signal)

    @contextlib.contextmanager
    def signals(self):
        """Within, the first SIGINT or SIGTERM asks the loop to stop after this step, the second leaves at once. Only a main thread can catch them."""

        def ask(number, frame):
            if self.stop_signal is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.stop_signal = number
            if not self.quiet:  # not by print, which the signal may have come in the middle of
                os.write(2, b"\nstopping after this step; once more leaves at once\n")

        previous, self.stop_signal = {}, None
        try:
            with contextlib.suppress(ValueError):
                for number in (signal.SIGINT, signal.SIGTERM):
                    previous[number] = signal.signal(number, ask)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
