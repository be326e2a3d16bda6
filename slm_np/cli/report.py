"""What a training command says: before the first update, what it works on; after the last, what came of it."""

import sys


def describe(run, corpus, memory):
    """The lines before training: machine, corpus, model, memory plan."""
    from slm_np.nn.model import parameter_count
    from slm_np.ops.device import device

    n, train, validation = parameter_count(run.model), corpus.train, corpus.validation
    length = f"{train.n_bytes:,} bytes{' of answers' * (train.mask is not None)}, " if train.n_bytes else ""
    lines = [
        f"slm_np: on {device(run.train.device)}, {device(run.train.device).describe_dtype(run.train.dtype)}",
        f"corpus {corpus.source}: {length}{documents(corpus)}{len(train):,} training and {len(validation):,} validation tokens, vocabulary {run.model.vocab_size:,}",
    ]
    if train.mask is not None:
        lines.append(
            f"loss on the answers only: {train.n_learnt:,} of the training tokens; their template is kept as chat_template.json"
        )
    lines += [
        f"model {run.preset}: {n:,} parameters"
        + (f", from step {run.base['step']} of {run.base['run']}" if run.base else ""),
        f"memory: {', '.join(f'{name} {size / 2**20:,.1f}' for name, size in memory.items())}, together {sum(memory.values()) / 2**20:,.1f} MiB",
    ]
    if run.base.get("vocab_size", run.model.vocab_size) < run.model.vocab_size:
        lines.append(
            f"the vocabulary grows from {run.base['vocab_size']} to {run.model.vocab_size} by end-of-text, whose weights start as the mean of the others"
        )
    if 5 * len(train) < n and not run.base:
        lines.append(
            f"the corpus has {len(train):,} tokens for {n:,} parameters: expect gibberish; more text or a smaller model would help"
        )
    print("\n".join(lines), file=sys.stderr)


def documents(corpus):
    """'12 documents, ', that it is one, or '' where it is not known, as with token files."""
    n = corpus.train.n_documents
    return f"{n:,} documents, " if n and n > 1 else "one document (nothing separates several), " if n else ""


def words(tokenizer):
    """A function (model) -> a few words of a sample on one line, for evaluations; None without a tokenizer."""
    if tokenizer is None:
        return None
    from slm_np.config import SamplingConfig
    from slm_np.inference.generation import printable, text_of

    return lambda model: printable(" ".join(text_of(model, tokenizer, "", 64, SamplingConfig(seed=1)).split()))[:60]


def finish(trainer):
    """After the last update: the best model over the whole validation split, a text it wrote, where it lies."""
    from slm_np.formats import checkpoint
    from slm_np.inference.evaluation import TOKENS, evaluate
    from slm_np.inference.generation import printable

    corpus, model, directory = trainer.corpus, trainer.model.full_precision(), trainer.out_dir
    _, metadata = checkpoint.load_best(directory, into=model.parameters.weight)
    trainer.model.parameters.update_cast_copies()
    print(f"evaluating the best model, of step {metadata['step']}, on all of the validation split", file=sys.stderr)
    trainer.model.activations = trainer.ahead = None  # what was enough for training is enough here
    found = evaluate(
        model, corpus.validation, corpus.tokenizer, quiet=trainer.quiet, batch=min(TOKENS, trainer.tokens.size)
    )
    stories = corpus.source == "stories"
    if corpus.tokenizer is not None:
        print(f"\n{printable(sample(trainer, stories).strip())}\n")
    bits, floor = found.bits_per_byte, corpus.validation.bits_per_byte_floor
    shown = f"{bits:.4f} bits/byte" if bits is not None else f"{found.nats_per_token:.4f} nats/token"
    print(f"validation {shown}" + (f", floor {floor:.4f} bits/byte" if floor and bits is not None else ""))
    print(f"run: {directory}, best model of step {metadata['step']}; {curve(directory, floor)}")
    if corpus.train.mask is not None:
        print(f"more: python -m slm_np.chat --model {quoted(directory)}")
    elif corpus.tokenizer is not None:
        print(f"more: python -m slm_np.generate --model {quoted(directory)}" + ' --prompt "Mia loved"' * stories)


def sample(trainer, stories):
    """A text by the model: after whole texts of the validation split, or an answer after the first question there."""
    from slm_np.config import SamplingConfig
    from slm_np.inference.generation import text_of

    corpus, model = trainer.corpus, trainer.model
    if corpus.train.mask is not None:
        asked = question(corpus)
        return asked + text_of(model, corpus.tokenizer, asked, 100, SamplingConfig(temp=0.0))
    return text_of(
        model,
        corpus.tokenizer,
        before(corpus),
        1000 if stories else 300,
        SamplingConfig(seed=trainer.config.seed),
        ["\n\n"] if stories else [],
    )


def before(corpus):
    """What the model reads before it writes: whole texts from the start of the validation split, or "" where no blank line ends one."""
    from slm_np.inference.generation import START

    start = corpus.tokenizer.decode(corpus.validation.ids[:2000])
    return start[: start.rfind(START) + len(START)].decode("utf-8", "replace") if START in start else ""


def question(corpus):
    """The first document of the validation split up to its first answer."""
    end = int(corpus.validation.mask[:10_000].argmax())
    return corpus.tokenizer.decode(corpus.validation.ids[:end]).decode("utf-8", "replace")


def curve(directory, floor):
    """What to say of the loss curve, which is drawn where that is possible: a run is no worse for want of a picture."""
    from slm_np.cli.plot import loss_curve

    try:
        return f"loss curve: {loss_curve(directory, floor)}"
    except ImportError:
        return 'no loss curve, as matplotlib is missing: pip install "slm_np[plot]"'
    except OSError as error:
        return f"no loss curve ({error.strerror})"


def quoted(path):
    """A path as a word of a command line."""
    return f'"{path}"' if " " in str(path) else str(path)
