"""Train a model from scratch: `python -m slm_np.train [--preset P] [--data TEXT]`."""
import dataclasses
import math
import sys
from pathlib import Path

from slm_np import flags
from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, exit_with_sentence
from slm_np.presets import PRESETS, preset

# Settings a resumed run may change: how long it runs, how it reports and what it uses of the machine.
FREE = {"max_iters", "epochs", "max_time", "eval_interval", "eval_iters", "log_interval", "save_interval", "threads", "out_dir", "lr_decay_iters",
        "learning_rate", "min_lr", "warmup_iters", "lr_schedule", "weight_decay", "beta1", "beta2", "grad_clip"}
RUNS = Path("runs")


def parser(prog="slm-np train"):
    presets = "\n".join(f"  {name:<24}{about['about']}" for name, about in PRESETS.items())
    p = flags.Parser(prog=prog, description=f"Train a small language model from scratch. Without arguments: the preset stories.\n\npresets:\n{presets}")
    p.formatter_class = lambda prog: flags.argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=120)
    group = p.add_argument_group("run")
    group.add_argument("--preset", default=None, metavar="NAME", help="model, recipe and corpus to start from (default: stories)")
    group.add_argument("-c", "--config", metavar="FILE.toml", help="settings from a file, by the names of the flags; flags win")
    group.add_argument("--resume", nargs="?", const="", metavar="DIR", help="go on with the run in DIR (default: --out-dir, else the newest in runs/)")
    flags.add_settings(p, TrainConfig, "training", defaults=PRESETS["stories"]["train"])
    flags.add_settings(p, ModelConfig, "model", defaults=PRESETS["stories"]["model"])
    return p


def settings(args):
    """(preset's name, {field: value} given for the model, and for training) from flags over a --config file."""
    values = flags.read_toml(args.config, (ModelConfig, TrainConfig), ["preset"]) if args.config else {}
    name = args.preset or values.pop("preset", None) or "stories"
    values.pop("preset", None)
    return name, {**flags.split(values, ModelConfig), **flags.given(args, ModelConfig)}, {**flags.split(values, TrainConfig), **flags.given(args, TrainConfig)}


def free_directory(name):
    """runs/NAME, or the next of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    candidates = [RUNS / name] + [RUNS / f"{name}-{i}" for i in range(2, 10000)]
    return next(path for path in candidates if not path.exists())


def newest_run():
    """The run under runs/ that was written to last. UserError if there is none."""
    found = [path.parent for path in RUNS.glob("*/config.json")] if RUNS.is_dir() else []
    if not found:
        raise UserError("there is no run in runs/ to resume; name its directory: --resume DIR")
    return max(found, key=lambda path: max(p.stat().st_mtime for p in path.iterdir()))


def resumed(args, model, train):
    """(RunConfig, directory) of a run to go on with, its settings changed by what was given. UserError if what was given changes model or data."""
    from slm_np import checkpoint
    directory = Path(args.resume or train.get("out_dir") or newest_run())
    run = checkpoint.read_config(directory)
    if args.preset and args.preset != run.preset:
        raise UserError(f"{directory} was trained with --preset {run.preset}, not {args.preset}; resume it without --preset, or start a new run")
    for kind, values in (("model", model), ("training", train)):
        stored = run.model if kind == "model" else run.train
        for name, value in values.items():
            if name not in FREE and value != getattr(stored, name):
                raise UserError(f"{directory} was trained with --{name.replace('_', '-')} {getattr(stored, name)}, not {value}; "
                                "resume it without this flag, or start a new run")
    kept = {name: value for name, value in train.items() if name in FREE}
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **kept)), directory


def prepared(run):
    """(corpus, run with the corpus' vocabulary), checked: long enough for a window, ids inside the vocabulary."""
    from slm_np.data.tokens import check_ids, check_length, prepare
    corpus = prepare(run.train.data, run.train.val_data, run.train.tokenizer)
    model = run.model
    if corpus.tokenizer is not None and corpus.vocab_size != model.vocab_size:
        model = dataclasses.replace(model, vocab_size=corpus.vocab_size)
    for tokens in (corpus.train, corpus.validation):
        check_length(tokens, model.block_size)
        if corpus.tokenizer is None:
            check_ids(tokens, model.vocab_size)
    data = dict(fingerprint=corpus.fingerprint, source=corpus.source)
    if run.data and run.data.get("fingerprint") != corpus.fingerprint:
        raise UserError(f"the data {corpus.source!r} is not what the run was trained on (its content or tokenizer changed); restore it, or start a new run")
    return corpus, dataclasses.replace(run, model=model, data=data)


def describe(run, corpus, threads):
    """The lines before training: machine, corpus, model, memory plan. UserError if the model does not fit into memory."""
    from slm_np.machine import blas_name, check_memory
    from slm_np.model import parameter_count, plan
    from slm_np.workspace import planned_bytes
    model, train = run.model, run.train
    n = parameter_count(model)
    requests = list(plan(model, train.batch_size, model.block_size))
    needed = 16 * n + planned_bytes(requests, 4)
    print(f"slm_np: float32 on the CPU, {threads} thread{'s' * (threads > 1)}, {blas_name()}", file=sys.stderr)
    length = f"{corpus.train.n_bytes:,} bytes, " if corpus.train.n_bytes else ""
    print(f"corpus {corpus.source}: {length}{len(corpus.train):,} training and {len(corpus.validation):,} validation tokens, vocabulary {model.vocab_size:,}", file=sys.stderr)
    check_memory(needed, f"a model of {n:,} parameters with batches of {train.batch_size} x {model.block_size} tokens")
    print(f"model {run.preset}: {n:,} parameters, {16 * n / 2**20:,.1f} MiB with gradients and moments; activations {planned_bytes(requests, 4) / 2**20:,.1f} MiB", file=sys.stderr)
    if 5 * len(corpus.train) < n:
        print(f"the corpus has {len(corpus.train):,} tokens for {n:,} parameters: expect gibberish; more text or a smaller model would help", file=sys.stderr)


def words(tokenizer):
    """A function (model) -> a few words of a sample on one line, for evaluations; None without a tokenizer."""
    if tokenizer is None:
        return None
    from slm_np.generation import text_of
    from slm_np.sampling import SamplingConfig
    return lambda model: " ".join(text_of(model, tokenizer, "", 64, SamplingConfig(seed=1)).split())[:60]


@exit_with_sentence
def main(argv=None):
    """The command. Exit status: 0 done, 2 bad input, 130 or 143 stopped by Ctrl-C or SIGTERM with the run saved."""
    args = parser().parse(argv)
    name, model, train = settings(args)
    if args.resume is None:
        from slm_np.checkpoint import RunConfig
        run = RunConfig(*preset(name, model, train), preset=name)
        directory = Path(run.train.out_dir) if run.train.out_dir else free_directory(name)
        if (directory / "config.json").exists():
            raise UserError(f"{directory} already holds a run; go on with it by --resume {directory}, or choose another --out-dir")
        if directory.exists() and not directory.is_dir():
            raise UserError(f"--out-dir {directory} is a file; name a directory")
    else:
        run, directory = resumed(args, model, train)
    train_run(run, directory, resume=args.resume is not None)


def train_run(run, directory, resume=False):
    """Train `run` in `directory` from its start, or from its newest checkpoint, and say how it went."""
    from slm_np.machine import use_threads
    from slm_np.ops.device import cpu_kernels
    from slm_np.trainer import Interrupted, Trainer
    corpus, run = prepared(run)
    cpu_kernels()
    threads = use_threads(run.train.threads)
    describe(run, corpus, threads)
    from slm_np.kernels.cpu.jit import announce_compilation
    announce_compilation()
    trainer = Trainer(run, corpus, directory, words(corpus.tokenizer))
    if resume:
        trainer.resume()
        print(f"resuming {directory} at step {trainer.updates}", file=sys.stderr)
    else:
        trainer.start()
    try:
        trainer.train()
    except Interrupted as stopped:
        print(f"stopped at step {trainer.updates}; go on with: python -m slm_np.train --resume {directory}", file=sys.stderr)
        raise SystemExit(stopped.status) from None
    finish(trainer, directory)


def finish(trainer, directory):
    """After the last update: the best model over the whole validation split, a text it wrote, where it lies."""
    from slm_np import checkpoint
    from slm_np.generation import text_of
    from slm_np.plot import loss_curve
    from slm_np.sampling import SamplingConfig
    from slm_np.trainer import bits_per_byte
    corpus, model = trainer.corpus, trainer.model
    _, metadata = checkpoint.load_best(directory, into=model.parameters.weight)
    loss = trainer.whole_loss(corpus.validation)
    if corpus.tokenizer is not None:
        stops = ["\n\n"] if corpus.source == "stories" else []
        print(f"\n{text_of(model, corpus.tokenizer, '', 800 if stops else 300, SamplingConfig(seed=trainer.config.seed), stops).strip()}\n")
    bits, floor = bits_per_byte(loss, corpus.validation), corpus.validation.bits_per_byte_floor
    shown = f"{bits:.4f} bits/byte" if math.isfinite(bits) else f"{loss:.4f} nats/token"
    print(f"validation {shown}" + (f", floor {floor:.4f} bits/byte" if floor else ""))
    message = loss_curve(directory, floor)
    print(f"run: {directory} (best model of step {metadata['step']}{message})")
    print(f'more: python -m slm_np.generate --model {directory} --prompt "Once upon a time"')


if __name__ == "__main__":
    main()
