"""What training prints to stderr: a progress bar on a terminal or else lines, and a line for each evaluation."""

import contextlib
import math
import os

from slm_np.progress import Progress, duration
from slm_np.training.callbacks import Callback
from slm_np.training.evaluation import bits_per_byte
from slm_np.words import counted


class Display(Callback):
    """Shows how a run goes.

    sampler: function (model, stopped) -> a short sample for the evaluations, or None. It ends early once `stopped()`.
    """

    def __init__(self, sampler=None):
        self.sampler, self.text = sampler, ""

    def on_start(self, trainer):
        self.progress = Progress(trainer.progress)

    def on_fit(self, trainer):
        seconds = trainer.config.fit_seconds
        shown = f"{seconds:g} s" if seconds < 120 else duration(seconds)
        self.progress.say(f"{counted(trainer.max_iters, 'update')}, about {shown} on this machine")
        self.progress.close()
        self.progress = Progress(trainer.progress)  # from here on, a share of the updates instead of the time

    def on_log(self, trainer, row):
        if trainer.skipped:
            self.progress.say(
                f"step {row['step']}: update skipped: loss {row['loss']}, gradient norm {row['grad_norm']}"
            )
        if trainer.log_is_due():
            bits = bits_per_byte(row["loss"], trainer.corpus.train.sample())
            shown = f"  {bits:.2f} bits/byte" if math.isfinite(bits) else ""
            self.text = f"loss {row['loss']:.3f}{shown}  {row['tokens_per_s']:,.0f} tokens/s"

    def on_step(self, trainer):
        end = "" if trainer.config.max_seconds or trainer.max_iters is None else f"/{trainer.max_iters}"
        self.progress.update(f"step {trainer.updates}{end}", trainer.progress, self.text, bool(self.text))
        self.text = ""

    def on_evaluation(self, trainer, row, improved):
        loss, bits = row["val_loss"], row["val_bpb"]
        line = f"step {row['step']}: train loss {row['train_loss']:.4f}, validation loss {loss:.4f}, "
        line += f"{bits:.3f} bits/byte" if math.isfinite(bits) else f"{loss:.3f} nats/token"
        if "replay_loss" in row:
            line += f", retention loss {row['replay_loss']:.4f}"
        if self.sampler and math.isfinite(loss):
            try:
                sample = self.sampler(trainer.model, lambda: trainer.stop_signal is not None)
            except Exception as error:  # such as too little memory for a sample: no reason to stop training
                sample = f"no sample ({str(error) or type(error).__name__})"
            line += f"  | {sample}" if sample else ""
        self.progress.say(line)

    def on_left_out(self, trainer, ranks):
        late = "ranks " if len(ranks) > 1 else "rank "
        self.progress.say(f"step {trainer.updates}: {late}{', '.join(map(str, ranks))} late and left out of this round")

    def on_stop_request(self, trainer):
        # Not by print: the signal may have interrupted one. After a SIGHUP there is no terminal.
        with contextlib.suppress(OSError):
            after = b"round" if trainer.rounds else b"step"
            os.write(2, b"\nstopping after this %s; a second signal stops at once\n" % after)

    def on_end(self, trainer):
        if trainer.out_of_patience():
            self.progress.say(
                f"stopped at step {trainer.updates}: no lower validation loss in {counted(trainer.stale, 'evaluation')}"
            )
        self.progress.close()
