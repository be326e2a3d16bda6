"""The training loop: batches in, updates, evaluations, checkpoints; it can stop and go on at any update with the same bits."""
import math
import signal
import time
from pathlib import Path

import numpy as np

from slm_np import checkpoint
from slm_np.errors import UserError
from slm_np.model import Model
from slm_np.optim import AdamW, learning_rate
from slm_np.progress import Progress

TRAIN, EVALUATE_TRAIN, EVALUATE_VALIDATION = range(3)  # purposes of random batches
BAD_STEPS = 5


def bits_per_byte(nats_per_token, tokens):
    """Nats per token as bits per byte of the original text, or NaN where its length in bytes is not known."""
    return nats_per_token / math.log(2) * len(tokens) / tokens.n_bytes if tokens.n_bytes else math.nan


class Interrupted(Exception):
    """Training was stopped by a signal; the run is saved. `status` is the exit status that says so."""

    def __init__(self, status):
        self.status = status


class Trainer:
    """A model, its optimiser and its data. `step()` is one optimiser update; `train()` is the whole run.

    run: RunConfig.   corpus: the Corpus of data/tokens.   out_dir: the run's directory, or None to save nothing.
    sampler: function (model) -> text, called at evaluations for a few words.
    """

    def __init__(self, run, corpus, out_dir=None, sampler=None, quiet=False):
        from slm_np.data.tokens import EpochOrder
        self.run, self.config, self.corpus, self.sampler, self.quiet = run, run.train, corpus, sampler, quiet
        self.out_dir = Path(out_dir) if out_dir else None
        train = self.config
        self.model = Model(run.model, train.seed, train.decay)
        self.optimizer = AdamW(self.model.parameters, train.learning_rate, train.weight_decay, train.beta1, train.beta2, grad_clip=train.grad_clip)
        shape = train.batch_size, run.model.block_size
        self.model.plan(*shape)
        self.tokens, self.targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.order = EpochOrder(corpus.train, run.model.block_size, train.seed) if train.epochs else None
        self.max_iters = train.max_iters
        if self.order:
            self.max_iters = math.ceil(train.epochs * self.order.n_windows / (train.batch_size * train.grad_accumulation_steps))
        self.updates = 0          # updates tried, those skipped for a bad gradient included: the step of every schedule and batch
        self.bad_steps = 0        # skipped in a row
        self.elapsed = 0.0        # seconds of training, over all sessions
        self.best = math.inf      # lowest validation loss so far, nats per token
        self.evaluated = self.saved = -1  # the step of the last evaluation and of the last checkpoint
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
        from slm_np.data.tokens import random_batch
        index = self.updates * self.config.grad_accumulation_steps + micro
        if self.order:
            self.order.batch(self.tokens, self.targets, index * self.config.batch_size)
        else:
            random_batch(self.tokens, self.targets, self.corpus.train, self.config.seed, TRAIN, index)

    def step(self):
        """One update: batch, forward, backward (per micro-batch), clip, AdamW. Returns (loss, gradient norm, learning rate).

        A loss or gradient that is not finite leaves the weights alone; five in a row raise UserError.
        """
        n, loss = self.config.grad_accumulation_steps, 0.0
        for micro in range(n):
            self.batch(micro)
            loss += self.model.loss_and_gradient(self.tokens, self.targets, 1 / n, (self.config.seed, self.updates, micro)) / n
        rate = learning_rate(self.config, self.updates, self.schedule_progress)
        norm = self.optimizer.step(rate) if math.isfinite(loss) else math.nan
        if not math.isfinite(loss):
            self.model.parameters.gradients.fill(0)
        self.updates += 1
        self.bad_steps = 0 if math.isfinite(norm) else self.bad_steps + 1
        return loss, norm, rate

    def estimate_loss(self):
        """Mean loss of {train, validation} over `eval_iters` fixed batches each, dropout off, in nats per token."""
        from slm_np.data.tokens import random_batch
        means = []
        for tokens, purpose in ((self.corpus.train, EVALUATE_TRAIN), (self.corpus.validation, EVALUATE_VALIDATION)):
            total = 0.0
            for i in range(self.config.eval_iters):
                random_batch(self.tokens, self.targets, tokens, self.config.seed, purpose, i)
                total += self.model.loss(self.tokens, self.targets)
            means.append(total / self.config.eval_iters)
        return means

    def whole_loss(self, tokens):
        """Mean loss over all targets of a split, in windows one after another, in nats per token."""
        return whole_loss(self.model, tokens, self.tokens, self.targets)

    # What a run leaves on disk

    def start(self):
        """Make the run's directory with its settings and tokenizer."""
        if self.out_dir is None:
            return
        from slm_np.sampling import SamplingConfig, to_generation_config
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run's directory {self.out_dir} cannot be made ({error.strerror}); choose another --out-dir") from None
        if self.corpus.tokenizer is not None:
            self.corpus.tokenizer.save(self.out_dir / "tokenizer.json")
        checkpoint.write_json(self.out_dir / "generation_config.json", to_generation_config(SamplingConfig()))
        checkpoint.write_config(self.out_dir, self.run)

    def save(self):
        """A checkpoint to resume from."""
        if self.out_dir is not None and self.saved != self.updates:
            state = dict(optimizer_updates=self.optimizer.updates, bad_steps=self.bad_steps, elapsed=self.elapsed)
            checkpoint.save_checkpoint(self.out_dir, self.updates, self.model.parameters.weight, self.optimizer.state(), state)
        self.saved = self.updates

    def resume(self):
        """Go back to the newest checkpoint of the run."""
        found = checkpoint.newest_checkpoint(self.out_dir, self.model.parameters.weight, self.optimizer.state())
        self.updates = self.saved = found.step
        self.optimizer.updates, self.bad_steps, self.elapsed = (found.state[k] for k in ("optimizer_updates", "bad_steps", "elapsed"))
        checkpoint.trim_metrics(self.out_dir, self.updates)
        for row in checkpoint.read_metrics(self.out_dir):
            if "val_loss" in row:  # null where an evaluation diverged
                self.evaluated, self.best = row["step"], min(self.best, row["val_loss"] or math.inf)
        checkpoint.write_config(self.out_dir, self.run)

    def log(self, row):
        if self.out_dir is not None:
            checkpoint.append_metrics(self.out_dir, row)

    # The loop

    def finished(self):
        return self.elapsed >= self.config.max_seconds if self.config.max_seconds else self.updates >= self.max_iters

    def evaluate(self, progress):
        """Losses of both splits, a row of metrics, a few words; the best model is kept."""
        train_loss, val_loss = self.estimate_loss()
        bits = bits_per_byte(val_loss, self.corpus.validation)
        if val_loss < self.best:
            self.best = val_loss
            if self.out_dir is not None:
                checkpoint.save_best(self.out_dir, self.model.parameters.weight, dict(step=self.updates, val_loss=val_loss))
        self.log(dict(step=self.updates, train_loss=train_loss, val_loss=val_loss, val_bpb=bits if math.isfinite(bits) else None, time_s=round(self.elapsed, 3)))
        self.evaluated = self.updates
        shown = f"{bits:.3f} bits/byte" if math.isfinite(bits) else f"{val_loss:.3f} nats/token"
        words = self.sampler(self.model) if self.sampler else ""
        progress.say(f"step {self.updates}: train loss {train_loss:.4f}, validation loss {val_loss:.4f}, {shown}" + (f"  | {words}" if words else ""))
        self.model.plan(*self.tokens.shape)

    def train(self):
        """Run to the end. Interrupted after SIGINT or SIGTERM, UserError after five bad steps; both leave a checkpoint to resume from."""
        config, per_step = self.config, self.tokens.size * self.config.grad_accumulation_steps
        progress = Progress(None if config.max_seconds else self.max_iters, self.updates, self.quiet)
        previous = self.catch_signals()
        since_log = tokens_since = 0.0
        try:
            while True:
                done = self.finished() or self.stop_signal is not None
                if self.updates and (self.updates % config.save_interval == 0 or done):
                    self.save()
                if self.evaluated != self.updates and (self.updates and self.updates % config.eval_interval == 0 or self.finished()) and self.stop_signal is None:
                    begun = time.perf_counter()
                    self.evaluate(progress)
                    if config.max_seconds:
                        self.elapsed += time.perf_counter() - begun
                if done:
                    break
                begun = time.perf_counter()
                loss, norm, rate = self.step()
                seconds = time.perf_counter() - begun
                self.elapsed += seconds
                since_log, tokens_since = since_log + seconds, tokens_since + per_step
                if not math.isfinite(norm):
                    progress.say(f"step {self.updates}: the loss is {loss} and the gradient's norm {norm}: update skipped")
                    self.log(dict(step=self.updates, skipped=True, loss=None, lr=rate, grad_norm=None))
                    if self.bad_steps == BAD_STEPS:
                        self.save()
                        raise UserError(f"{BAD_STEPS} updates in a row had a loss or gradient that is not finite; the last good weights are saved, "
                                        "resume with a lower --learning-rate or --grad-clip")
                log = self.updates % config.log_interval == 0
                rate_tokens = tokens_since / since_log
                if log and math.isfinite(norm):
                    self.log(dict(step=self.updates, loss=loss, lr=rate, grad_norm=norm, step_ms=round(1e3 * since_log * per_step / tokens_since, 3),
                                  tokens_per_s=round(rate_tokens, 1)))
                bits = bits_per_byte(loss, self.corpus.train)
                text = f"loss {loss:.3f}" + (f"  {bits:.2f} bits/byte" if math.isfinite(bits) else "") + f"  {rate_tokens:,.0f} tokens/s"
                progress.update(self.updates, self.progress, text, log)
                if log:
                    since_log = tokens_since = 0.0
        finally:
            progress.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.stop_signal is not None:
            raise Interrupted(128 + self.stop_signal)

    def catch_signals(self):
        """The first SIGINT or SIGTERM asks the loop to stop after this step, the second leaves at once. Only a main thread can catch them."""
        def ask(number, frame):
            if self.stop_signal is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.stop_signal = number
        previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                previous[number] = signal.signal(number, ask)
            except ValueError:
                break
        return previous


def whole_loss(model, tokens, x, y):
    """Mean cross-entropy over all targets of `tokens`, in windows one after another, in nats. x, y: (B, T) int32 room for a batch."""
    from slm_np.data.tokens import gather, sequential_windows
    batch, steps = x.shape
    total, count, rows = 0.0, 0, []

    def flush():
        nonlocal total, count
        starts = [start for start, _ in rows] + [rows[0][0]] * (batch - len(rows))
        gather(x, y, tokens, starts)
        losses = model.losses(x, y)
        for row, (_, new) in enumerate(rows):
            total += float(losses[row, steps - new:].sum(dtype=np.float64))
            count += new
        rows.clear()
    for window in sequential_windows(tokens, steps):
        rows.append(window)
        if len(rows) == batch:
            flush()
    if rows:
        flush()
    return total / count
