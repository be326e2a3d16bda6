"""From settings to a trained run: the data are prepared, the memory is planned, the trainer is made and let run."""

import dataclasses
import math
import os
import sys
from pathlib import Path

from slm_np.cli.report import describe, finish, quoted, words
from slm_np.errors import UserError
from slm_np.training.precision import operand, resolved

LOOKED_AT = 1 << 20  # tokens among which a text ends, if its texts end at all


def prepared(run, tokenizer=None):
    """(corpus, run with the corpus' vocabulary), checked: the data of a resumed run, long enough for a window, ids inside the vocabulary.

    tokenizer: the one to use where it is not to be made as the settings say, as a model's own.
    """
    from slm_np.data.token_store import check_ids, check_length, load_corpus
    from slm_np.ops.device import arrays_for

    train, model = run.train, run.model
    arrays_for(train.device)  # before the wait for the data, which may be long
    corpus = load_corpus(
        train.data,
        train.val_data,
        tokenizer or train.tokenizer,
        documents=train.documents,
        limit_bytes=train.limit_bytes,
        threads=train.threads,
    )
    if corpus.tokenizer is not None:  # without borders of documents, none of its texts ends
        end, ids = corpus.tokenizer.end_of_text, corpus.train.ids
        ends = end is not None and bool((ids[-1:] == end).any() or (ids[:LOOKED_AT] == end).any())
        corpus.tokenizer.trained_ends = ends or run.base.get("separated", False)
    data = run.data | dict(
        separated=getattr(corpus.tokenizer, "trained_ends", True),
        fingerprint=corpus.fingerprint,
        source=corpus.source,
        tokens=[len(corpus.train), len(corpus.validation)],
    )
    if run.data and run.data.get("fingerprint") != corpus.fingerprint:
        raise UserError(
            f"the data have changed since the run began: {corpus.source} has {data['tokens']} tokens to train on and to validate with, "
            f"{run.data.get('source')} had {run.data.get('tokens')}, and other contents; restore them, or start a new run"
        )
    if corpus.tokenizer is not None and corpus.vocab_size != model.vocab_size:
        model = dataclasses.replace(model, vocab_size=corpus.vocab_size)
    for tokens in (corpus.train, corpus.validation):
        if run.base and len(tokens) <= model.block_size:
            raise UserError(
                f"the {tokens.split} split of {corpus.source} has {len(tokens)} tokens, but one context of {run.base['run']} takes {model.block_size + 1}; "
                f"give {'more text' if tokens.split == 'train' else 'a longer text with --val-data'}"
            )
        check_length(tokens, model.block_size)
        if corpus.tokenizer is None:
            check_ids(tokens, model.vocab_size)
        if tokens.mask is not None and not tokens.mask[1:].any():
            raise UserError(f"the {tokens.split} split of {corpus.source} holds no answer to learn; give rows with one")
    return corpus, dataclasses.replace(run, model=model, data=data)


def replayed(run, corpus):
    """(tokens of the replay text's held-out part or None, run that knows its content). A text that the base was trained on is split as it was then."""
    from slm_np.data.token_store import check_ids, load_corpus

    data = run.train.replay_data
    if not data:
        return None, run
    as_then = run.base if run.base["data"] == data else dict(val_data="", documents=run.train.documents, limit_bytes=0)
    replay = load_corpus(
        data,
        as_then["val_data"],
        corpus.tokenizer or run.train.tokenizer,
        documents=as_then["documents"],
        limit_bytes=as_then["limit_bytes"],
        threads=run.train.threads,
    )
    tokens = replay.validation
    if len(tokens) <= run.model.block_size:
        raise UserError(
            f"--replay-data {data} holds out {len(tokens)} tokens, but one context takes {run.model.block_size + 1}; give more text"
        )
    if replay.tokenizer is None:
        check_ids(tokens, run.model.vocab_size)
    elif replay.vocab_size != run.model.vocab_size:
        raise UserError(
            f"--replay-data {data} needs {replay.vocab_size} pieces, the model has {run.model.vocab_size}; give it in the form of --data"
        )
    if run.data.get("replay", replay.fingerprint) != replay.fingerprint:
        raise UserError(f"--replay-data {data} has changed since the run began; restore it, or start a new run")
    return tokens, dataclasses.replace(run, data=run.data | dict(replay=replay.fingerprint))


def memory_plan(run):
    """{part: bytes} that training takes on its device. UserError if that is more than is left there."""
    from slm_np.machine import check_memory
    from slm_np.nn.arena import planned_bytes
    from slm_np.nn.model import parameter_count, parameters, plan
    from slm_np.ops.device import arrays_for

    model, batch, arrays = run.model, run.train.batch_size, arrays_for(run.train.device)
    n, requests = parameter_count(model), list(plan(model, batch, model.block_size, arrays))
    kept, shared = (
        planned_bytes([r for r in requests if (r.lifetime == "saved") == saved], "f4", operand(run))
        for saved in (True, False)
    )
    copies = (
        (2 if run.train.device == "cpu" else 1) if operand(run) else 0
    )  # of a weight in 16 bits: the CPU packs one for x W and one for dy W^T
    multiplied = sum(2 * copies * math.prod(t.shape) for t in parameters(model) if t.multiplies)
    parts = {
        "weights": 4 * n + multiplied,
        "gradients": 4 * n,
        "moments": 8 * n,
        "activations kept for backward": kept,
        "shared by all layers": shared,
    }
    check_memory(
        sum(parts.values()),
        f"a model of {n:,} parameters with batches of {batch} x {model.block_size} tokens",
        arrays=arrays,
    )
    return parts


def go_on_without_amx(directory, verb, wrong):
    """This process becomes one that goes on from the run's last checkpoint and multiplies on registers: nothing computed since then is trusted."""
    print(
        f"{wrong}; AMX is switched off for this run, which goes back to its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os.execve(
        sys.executable,
        [sys.executable, "-m", f"slm_np.{verb}", "--resume", str(directory)],
        {**os.environ, "SLM_NP_AMX": "0"},
    )


def check_same_tokenizer(directory, run, corpus):
    """UserError if the pieces that were learnt from the text now are not the run's, as another release of a library may learn others."""
    from slm_np.formats.runs import tokenizer_of

    kept = tokenizer_of(Path(directory), run)
    if kept is not None and corpus.tokenizer is not None and kept.to_json() != corpus.tokenizer.to_json():
        raise UserError(
            f"{directory} was trained with other pieces than --tokenizer {run.train.tokenizer} learns from the text now; "
            f"start a new run with --tokenizer file:{directory}/tokenizer.json"
        )


def train_run(run, directory=None):
    """Train `run` from its start in a new directory, or from the newest checkpoint in `directory`, and say how it went."""
    from slm_np.machine import use

    use(run.train.device, run.train.threads)
    train_on(*prepared(run), directory=directory)


def train_on(corpus, run, directory=None, replay=None, base=None):
    """`train_run` on a corpus that is prepared. base: what the run starts from, a `Base`; None: random weights."""
    from slm_np.formats.runs import new_directory
    from slm_np.machine import use
    from slm_np.training.matmul_check import WrongMatmul
    from slm_np.training.trainer import Interrupted, Trainer

    use(run.train.device, run.train.threads)
    run = resolved(run)
    memory = memory_plan(run)
    trainer = Trainer(run, corpus, words(corpus.tokenizer), replay=replay, fresh=directory is None and base is None)
    if directory is not None:
        check_same_tokenizer(directory, run, corpus)
        trainer.resume(directory)
    else:
        if base is not None:
            base.fill(trainer.model.parameters.weight)
            trainer.model.parameters.update_copies()
        name = f"{base.path.resolve().name}-finetuned" if base else run.preset
        with new_directory(run.train.out_dir, name) as directory:
            trainer.start(directory, *((base.sampling, base.template) if base else ()))
    describe(run, corpus, memory)
    print(
        f"{'going on' if trainer.updates else 'run'} in {directory}"
        + f" from step {trainer.updates}" * (trainer.updates > 0),
        file=sys.stderr,
    )
    verb = "finetune" if run.base else "train"
    try:
        trainer.train()
    except WrongMatmul as wrong:
        go_on_without_amx(directory, verb, wrong)
    except Interrupted as stopped:
        print(
            f"stopped at step {trainer.updates}; go on with: python -m slm_np.{verb} --resume {quoted(directory)}",
            file=sys.stderr,
        )
        raise SystemExit(stopped.status) from None
    finish(trainer)
