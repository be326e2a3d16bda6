"""Train a model from scratch: `python -m slm_np.train [--preset P] [--data TEXT]`."""
import dataclasses
import math
import sys
from pathlib import Path

from slm_np import flags
from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError, exit_with_sentence
from slm_np.presets import PRESETS, preset

LENGTHS = ("max_iters", "epochs", "max_time")  # three ways to say how long to train, of which a run has one
# Settings a resumed run may change: how long it runs, the course of its rate, how it reports, and what it uses of the machine. Its data
# may have moved: they are known by their content.
FREE = {*LENGTHS, "lr_decay_iters", "learning_rate", "min_lr", "warmup_iters", "lr_schedule", "weight_decay", "beta1", "beta2", "grad_clip",
        "eval_interval", "eval_iters", "log_interval", "save_interval", "threads", "out_dir", "data", "val_data"}


def parser(prog="slm-np train"):
    presets = "\n".join(f"  {name:<24}{about['about']}" for name, about in PRESETS.items())
    p = flags.Parser(prog=prog, description=f"Train a small language model from scratch. Without arguments: the preset stories.\n\npresets:\n{presets}")
    group = p.add_argument_group("run")
    group.add_argument("--preset", metavar="NAME", help="model, recipe and corpus to start from (default: stories)")
    group.add_argument("-c", "--config", metavar="FILE.toml", help="settings from a file, by the names of the flags; flags win")
    group.add_argument("--resume", nargs="?", const="", metavar="DIR", help="go on with the run in DIR (default: --out-dir, else the newest in runs/)")
    flags.add_settings(p, TrainConfig, "training", defaults=PRESETS["stories"]["train"])
    flags.add_settings(p, ModelConfig, "model", defaults=PRESETS["stories"]["model"])
    return p


def settings(args):
    """(preset's name or None, {field: value} for the model, and for training) as given by flags, which win, and a --config file."""
    values = flags.read_toml(args.config, (ModelConfig, TrainConfig)) if args.config else {}
    model, train = flags.given(args, ModelConfig), flags.given(args, TrainConfig)
    if any(train.get(name) for name in LENGTHS):
        values = {name: value for name, value in values.items() if name not in LENGTHS}
    model, train = flags.split(values, ModelConfig) | model, flags.split(values, TrainConfig) | train
    lengths = [f"{flags.flag(name)} {train[name]}" for name in LENGTHS if train.get(name)]
    if len(lengths) > 1:
        raise UserError(f"{' and '.join(lengths)} both say how long to train; give one")
    return args.preset or values.get("preset"), model, train


def resumed(directory, name, model, train):
    """The RunConfig of a run to go on with, its free settings changed as given. UserError if what was given would make it another run."""
    from slm_np import checkpoint
    run = checkpoint.read_config(directory)
    mend = "resume it without that, or start a new run"
    if name and name != run.preset:
        raise UserError(f"{directory} was trained with --preset {run.preset}, not {name}; {mend}")
    length = next((field for field in ("max_time", "epochs") if getattr(run.train, field)), "max_iters")
    other = next((field for field in LENGTHS if train.get(field) and field != length), None)
    if other:
        raise UserError(f"{directory} is trained for {flags.flag(length)} {getattr(run.train, length)}, not for {flags.flag(other)}; {mend}")
    changed = dataclasses.replace(run, model=dataclasses.replace(run.model, **model), train=dataclasses.replace(run.train, **train))
    for field in [*model, *train]:
        was, now = (getattr(config.model if field in model else config.train, field) for config in (run, changed))
        if field not in FREE and now != was:
            raise UserError(f"{directory} was trained with {flags.flag(field)} {was}, not {now}; {mend}")
    return changed


def prepared(run):
    """(corpus, run with the corpus' vocabulary), checked: the data of a resumed run, long enough for a window, ids inside the vocabulary."""
    from slm_np.data.tokens import check_ids, check_length, prepare
    corpus = prepare(run.train.data, run.train.val_data, run.train.tokenizer)
    data = dict(fingerprint=corpus.fingerprint, source=corpus.source, tokens=[len(corpus.train), len(corpus.validation)])
    if run.data and run.data.get("fingerprint") != corpus.fingerprint:
        raise UserError(f"the data have changed since the run began: {corpus.source} has {data['tokens']} tokens to train on and to validate with, "
                        f"{run.data.get('source')} had {run.data.get('tokens')}, and other contents; restore them, or start a new run")
    model = run.model
    if corpus.tokenizer is not None and corpus.vocab_size != model.vocab_size:
        model = dataclasses.replace(model, vocab_size=corpus.vocab_size)
    for tokens in (corpus.train, corpus.validation):
        check_length(tokens, model.block_size)
        if corpus.tokenizer is None:
            check_ids(tokens, model.vocab_size)
    return corpus, dataclasses.replace(run, model=model, data=data)


def memory_plan(run):
    """{part: bytes} that training takes. UserError if that is more than the machine has left."""
    from slm_np.machine import check_memory
    from slm_np.model import parameter_count, plan
    from slm_np.workspace import planned_bytes
    model, batch = run.model, run.train.batch_size
    n, requests = parameter_count(model), list(plan(model, batch, model.block_size))
    kept, shared = (planned_bytes([r for r in requests if (r.lifetime == "saved") == saved], 4) for saved in (True, False))
    parts = {"weights": 4 * n, "gradients": 4 * n, "moments": 8 * n, "activations kept for backward": kept, "shared by all layers": shared, "while saving": 16 * n}
    check_memory(sum(parts.values()), f"a model of {n:,} parameters with batches of {batch} x {model.block_size} tokens")
    return parts


def describe(run, corpus, memory, threads):
    """The lines before training: machine, corpus, model, memory plan."""
    from slm_np.machine import blas_name
    n, length = memory["weights"] // 4, f"{corpus.train.n_bytes:,} bytes, " if corpus.train.n_bytes else ""
    lines = [f"slm_np: float32 on the CPU, {threads} thread{'s' * (threads > 1)}, {blas_name()}",
             f"corpus {corpus.source}: {length}{len(corpus.train):,} training and {len(corpus.validation):,} validation tokens, vocabulary {run.model.vocab_size:,}",
             f"model {run.preset}: {n:,} parameters",
             f"memory: {', '.join(f'{name} {size / 2**20:,.1f}' for name, size in memory.items())}, together {sum(memory.values()) / 2**20:,.1f} MiB"]
    if 5 * len(corpus.train) < n:
        lines.append(f"the corpus has {len(corpus.train):,} tokens for {n:,} parameters: expect gibberish; more text or a smaller model would help")
    print("\n".join(lines), file=sys.stderr)


def words(tokenizer):
    """A function (model) -> a few words of a sample on one line, for evaluations; None without a tokenizer."""
    if tokenizer is None:
        return None
    from slm_np.generation import text_of
    from slm_np.sampling import SamplingConfig
    return lambda model: printable(" ".join(text_of(model, tokenizer, "", 64, SamplingConfig(seed=1)).split()))[:60]


def printable(text):
    """The text without what would move a terminal's cursor or ring its bell, as a model of bytes at first writes."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


@exit_with_sentence
def main(argv=None):
    """The command. Exit status: 0 done, 2 bad input, 130 or 143 stopped by Ctrl-C or SIGTERM with the run saved."""
    args = parser().parse(argv)
    name, model, train = settings(args)
    from slm_np.runs import check_free, newest_run
    out_dir = train.get("out_dir")
    if args.resume is None:
        from slm_np.checkpoint import RunConfig
        name = name or "stories"
        run, directory = RunConfig(*preset(name, model, train), preset=name), None
        if out_dir:
            check_free(out_dir)
    else:
        directory = Path(args.resume or out_dir or newest_run())
        if out_dir and Path(out_dir) != directory:
            raise UserError(f"--resume {directory} goes on in that directory, not in --out-dir {out_dir}; leave one of them out")
        run = resumed(directory, name, model, train)
    train_run(run, directory)


def train_run(run, directory=None):
    """Train `run` from its start in a new directory, or from the newest checkpoint in `directory`, and say how it went."""
    from slm_np.machine import use_threads
    from slm_np.runs import new_directory
    from slm_np.trainer import Interrupted, Trainer
    threads = use_threads(run.train.threads)
    corpus, run = prepared(run)
    memory = memory_plan(run)
    trainer = Trainer(run, corpus, words(corpus.tokenizer))
    if directory is None:
        with new_directory(run.train.out_dir, run.preset) as directory:
            trainer.start(directory)
    else:
        trainer.resume(directory)
    describe(run, corpus, memory, threads)
    print(f"{'going on' if trainer.updates else 'run'} in {directory}" + f" from step {trainer.updates}" * (trainer.updates > 0), file=sys.stderr)
    try:
        trainer.train()
    except Interrupted as stopped:
        print(f"stopped at step {trainer.updates}; go on with: python -m slm_np.train --resume {quoted(directory)}", file=sys.stderr)
        raise SystemExit(stopped.status) from None
    finish(trainer)


def finish(trainer):
    """After the last update: the best model over the whole validation split, a text it wrote, where it lies."""
    from slm_np import checkpoint
    from slm_np.generation import text_of
    from slm_np.sampling import SamplingConfig
    from slm_np.trainer import bits_per_byte
    corpus, model, directory = trainer.corpus, trainer.model, trainer.out_dir
    _, metadata = checkpoint.load_best(directory, into=model.parameters.weight)
    print(f"evaluating the best model, of step {metadata['step']}, on all of the validation split", file=sys.stderr)
    loss, stories = trainer.whole_loss(corpus.validation), corpus.source == "stories"
    if corpus.tokenizer is not None:
        text = text_of(model, corpus.tokenizer, before(corpus), 1000 if stories else 300, SamplingConfig(seed=trainer.config.seed), ["\n\n"] if stories else [])
        print(f"\n{printable(text.strip())}\n")
    bits, floor = bits_per_byte(loss, corpus.validation), corpus.validation.bits_per_byte_floor
    shown = f"{bits:.4f} bits/byte" if math.isfinite(bits) else f"{loss:.4f} nats/token"
    print(f"validation {shown}" + (f", floor {floor:.4f} bits/byte" if floor else ""))
    print(f"run: {directory}, best model of step {metadata['step']}; {curve(directory, floor)}")
    if corpus.tokenizer is not None:
        print(f"more: python -m slm_np.generate --model {quoted(directory)}" + ' --prompt "Mia loved"' * stories)


def before(corpus):
    """What the model reads before it writes: whole texts from the start of the validation split, or "" where no blank line ends one."""
    from slm_np.generation import START
    start = corpus.tokenizer.decode(corpus.validation.ids[:2000])
    return start[:start.rfind(START) + len(START)].decode("utf-8", "replace") if START in start else ""


def curve(directory, floor):
    """What to say of the loss curve, which is drawn where that is possible: a run is no worse for want of a picture."""
    from slm_np.plot import loss_curve
    try:
        return f"loss curve: {loss_curve(directory, floor)}"
    except ImportError:
        return 'no loss curve, as matplotlib is missing: pip install "slm_np[plot]"'
    except OSError as error:
        return f"no loss curve ({error.strerror})"


def quoted(path):
    """A path as a word of a command line."""
    return f'"{path}"' if " " in str(path) else str(path)


if __name__ == "__main__":
    main()
