"""What a training command prints: before the first update what it trains, after the last the results."""

import dataclasses
import re
import sys
from itertools import takewhile

from slm_np.config import flag, lengths
from slm_np.data.embedded import WRITERS
from slm_np.progress import say
from slm_np.words import counted, quoted

LATE = 0.6  # share of the updates from which on a best model is not early


def describe(run, corpus, memory):
    """Print device, corpus, model and memory plan to stderr. memory: {part: bytes}."""
    from slm_np.nn.model import parameter_count
    from slm_np.ops.device import device

    n, train, validation = parameter_count(run.model), corpus.train, corpus.validation
    on, masked = device(run.train.device), train.mask is not None
    if corpus.building:
        n_tokens = train.n_text  # at most
        length = (
            f"{counted(n_tokens, 'byte')} for training and {validation.n_text:,} for validation, still being tokenized"
        )
    else:
        n_tokens = len(train)
        length = f"{counted(train.n_bytes, 'byte' + ' of replies' * masked)}, " if train.n_bytes else ""
        length += f"{documents(corpus)}{n_tokens:,} training and {counted(len(validation), 'validation token')}"
    start = f", from step {run.base['step']} of {run.base['run']}" if run.base else ""
    parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in memory.items())
    lines = [
        f"slm_np: on {on}, {on.describe_dtype(run.train.dtype)}",
        f"corpus {corpus.source}: {length}, vocabulary {run.model.vocab_size:,}",
        f"model{f' {run.preset}' if run.preset else ''}: {counted(n, 'parameter')}{start}",
        f"memory: {parts}, together {sum(memory.values()) / 2**20:,.1f} MiB",
    ]
    if run.lora:
        lines.insert(-1, describe_adapters(run, n))
    if masked:
        lines.append(
            f"the loss is masked to assistant tokens: {train.n_targets:,} of the training tokens; "
            "chat_template.json has their template"
        )
    if run.base.get("vocab_size", run.model.vocab_size) < run.model.vocab_size:
        lines.append(
            f"end-of-text is added to the vocabulary ({run.base['vocab_size']} -> {run.model.vocab_size}); "
            "it starts as the mean of the other embeddings"
        )
    if 5 * n_tokens < n and not run.base:
        lines.append(
            f"the corpus has {counted(n_tokens, 'token')} for {counted(n, 'parameter')}: expect gibberish or "
            "memorized text; more text or a smaller model would help"
        )
    print("\n".join(lines), file=sys.stderr)


def describe_adapters(run, n):
    """The line about the adapters of a RunConfig. n: parameters of its model"""
    from slm_np.formats.layouts import lora_of
    from slm_np.nn import lora
    from slm_np.nn.model import model_tensors

    settings, (_, layers) = lora_of(run), model_tensors(run.model, lora_of(run))
    names = dict.fromkeys(lora.target_of(part.name) for own in layers for adapter in own for part in adapter.parts)
    trained = lora.parameter_count(layers)
    return (
        f"adapters of rank {settings.lora_rank} on {', '.join(names)}: {counted(trained, 'parameter')} to train, "
        f"{100 * trained / n:.2g} %, at a learning rate of {run.train.learning_rate:g}; the others are frozen"
    )


def documents(corpus):
    """'12 documents, ' of the training split, or '' if unknown, as with token files."""
    n = corpus.train.n_documents
    return f"{n:,} documents, " if n and n > 1 else "one document (nothing separates several), " if n else ""


def sampler(tokenizer):
    """A function (model, stopped) -> the start of a sample on one line, for evaluations; None without a tokenizer.

    stopped: as in `short_text`.
    """
    if tokenizer is None:
        return None
    from slm_np.config import SamplingConfig
    from slm_np.inference.generation import printable

    def line(model, stopped):
        text = short_text(model, tokenizer, "", 64, SamplingConfig(seed=1), stopped=stopped)
        return printable(re.sub(r"[ \t\r\n]+", " ", text).strip(" "))[:60]

    return line


def short_text(model, tokenizer, prompt, max_tokens, sampling, stops=(), stopped=bool):
    """`text_of`, without compiling kernels for a few lines of text. Ends early if the function `stopped` says so."""
    from slm_np.inference.decoder import uncompiled_step
    from slm_np.inference.generation import generate

    chunks = generate(model, tokenizer, prompt, max_tokens, sampling, stops, make_step=uncompiled_step)
    return "".join(first for (first,) in takewhile(lambda chunk: not stopped(), chunks))


def finish(trainer, directory):
    """Evaluate the best model in `directory` on the whole validation split, sample from it, and print the results.

    The run is complete, so what cannot be reported is said in one line, and the rest is printed.
    The trainer cannot train afterwards: its weights are the best model's, and the memory of training is freed.
    """
    from slm_np.inference.evaluation import TOKENS, evaluate
    from slm_np.inference.generation import printable

    corpus = trainer.corpus
    trainer.free()
    best = attempted("best model", lambda: load_best(trainer, directory))
    if best is None:
        print(f"run: {directory}")
        return
    model, step = best
    if line := memorized(trainer, step):
        print(line, file=sys.stderr)
    print(f"evaluating the best model, of step {step}, on the whole validation split", file=sys.stderr)
    batch = min(TOKENS, trainer.tokens.size)  # the memory that training had is enough
    options = dict(quiet=False, batch=batch)
    found = attempted("evaluation", lambda: evaluate(model, corpus.validation, corpus.tokenizer, **options))
    if corpus.tokenizer is not None:
        text = attempted(
            "sample", lambda: printable(sample(trainer, model, corpus.source == "stories").strip(" \t\r\n"))
        )
        print(f"\n{text or ''}\n")
    floor = attempted("floor", lambda: corpus.validation.bits_per_byte_floor)
    if found:
        bits = found.bits_per_byte
        shown = f"{bits:.4f} bits/byte" if bits is not None else f"{found.nats_per_token:.4f} nats/token"
        print(f"validation {shown}" + (f", floor {floor:.4f} bits/byte" if floor and bits is not None else ""))
    print(f"run: {directory}, best model of step {step}; {curve(directory, floor)}")
    print("\n".join(next_commands(corpus, directory)))


def memorized(trainer, step):
    """The line that the best model, of this step, is long before the end of the run; None if it is not."""
    if int(step) >= LATE * trainer.updates:
        return None
    train = trainer.config
    length, how = lengths(dataclasses.asdict(train))[-1], "--lora-dropout" if trainer.run.lora else "--dropout"
    return (
        f"the validation loss rose after step {step}: the model began to memorize; more text, {how} or a "
        f"{'shorter' if length.endswith('time') else 'smaller'} {flag(length)} would help"
    )


def load_best(trainer, directory):
    """(model with the best weights in full precision, their step)"""
    from slm_np.formats import checkpoint, sources
    from slm_np.formats.layouts import layout_of

    if trainer.run.lora:  # adapters, which are merged into the base
        trainer.model = trainer.optimizer = None
        run = sources.load(directory, trainer.run.train.device)
        return run.model, run.step
    model = trainer.model.full_precision()
    _, metadata = checkpoint.load_best(directory, model.parameters.weight, layout_of(trainer.run))
    trainer.model.parameters.update_cast_copies()
    return model, metadata["step"]


def attempted(what, compute):
    """`compute()`. If it raises, a line on stderr says that there is no `what`, and the result is None."""
    try:
        return compute()
    except Exception as error:
        say(f"no {what} ({str(error) or type(error).__name__})")
        return None


def next_commands(corpus, directory):
    """The lines that say what can be done with a finished run."""
    lines, run, stories = [], quoted(directory), corpus.source == "stories"
    if corpus.tokenizer is not None and corpus.train.mask is None:
        label, prompt = ("another story", ' --prompt "Once upon a time"') if stories else ("more text", "")
        lines.append(f"{label}: python -m slm_np.generate --model {run}{prompt}")
    if corpus.tokenizer is not None:
        lines.append(f"chat with it: python -m slm_np.chat --model {run}")
    if corpus.source in WRITERS:
        lines.append("train on your own text: python -m slm_np.train --data FILE")
    return lines


def sample(trainer, model, stories):
    """A text by the model: after whole texts of the validation split, or a reply to the first question there."""
    from slm_np.config import SamplingConfig

    corpus = trainer.corpus
    if corpus.train.mask is not None:
        text, prompt = first_question(corpus)
        return text + short_text(model, corpus.tokenizer, prompt, 100, SamplingConfig(temp=0.0))
    length, stops = (1000, ["\n\n"]) if stories else (300, [])
    sampling = SamplingConfig(seed=trainer.config.seed)
    return short_text(model, corpus.tokenizer, first_texts(corpus), length, sampling, stops)


def first_texts(corpus):
    """Whole texts from the start of the validation split, as a prompt; "" if no blank line ends one."""
    from slm_np.inference.generation import START

    start = corpus.tokenizer.decode(corpus.validation.ids[:2000])
    return start[: start.rfind(START) + len(START)].decode("utf-8", "replace") if START in start else ""


def first_question(corpus):
    """(text, prompt) of the first document of the validation split up to its first assistant token.

    The prompt is ids if the text does not contain the special tokens of a chat template, else the text.
    """
    from slm_np.data.tokens import targets

    tokenizer, end = corpus.tokenizer, int(targets(corpus.validation.mask[:10_000]).argmax())
    ids = corpus.validation.ids[:end].tolist()
    text = tokenizer.decode(ids).decode("utf-8", "replace")
    special = {token.id for token in tokenizer.special_tokens.values()} - {tokenizer.end_of_text}
    return text, ids if special.intersection(ids) else text


def curve(directory, floor):
    """Draw the loss curve and say where it is, or why there is none. A run does not fail without it."""
    from slm_np.cli.plot import loss_curve

    try:
        return f"loss curve: {loss_curve(directory, floor)}"
    except ImportError:
        return 'no loss curve, since matplotlib is not installed: pip install "slm_np[plot]"'
    except Exception as error:  # of the disk, or of matplotlib
        return f"no loss curve ({getattr(error, 'strerror', None) or error})"
