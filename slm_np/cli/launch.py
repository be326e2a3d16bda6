"""From settings to a trained run: device, data, memory plan, trainer, training, report."""

import dataclasses
import math
import os
import sys
from pathlib import Path

from slm_np.cli.loading import use_kernels
from slm_np.cli.report import describe, finish, quoted, sampler
from slm_np.errors import UserError
from slm_np.training.precision import compute_dtype, resolved

SEARCHED = 1 << 20  # tokens in which an end-of-text occurs if the corpus has any


def train_run(run):
    """Train `run` (RunConfig) in a new directory and print the results."""
    from slm_np.formats.directories import new_directory

    check_retention(run)
    with new_directory(run.train.out_dir, run.preset) as directory:
        use_device(run.train)
        train_on(*prepared(run), directory, new=True)


def resume_run(run, directory):
    """Resume `run` (RunConfig) in `directory`, of which this process holds the lock, and print the results."""
    from slm_np.formats.runs import tokenizer_of

    check_retention(run)
    use_device(run.train)
    corpus, run = prepared(run, tokenizer_of(directory, run) if run.base else None)
    retention, run = retention_split(run, corpus)
    train_on(corpus, run, directory, retention)


def finetune_run(base, run, given):
    """Train `run` in a new directory, starting from `base`. given: {field: value} of its training settings."""
    from slm_np.data.tokenizer_factory import with_end_of_text
    from slm_np.formats.directories import new_directory
    from slm_np.training.finetuning import check_vocabulary, with_fitted_intervals

    with new_directory(run.train.out_dir, f"{base.path.resolve().name}-finetuned") as directory:
        use_device(run.train)
        corpus, run = prepared(run, base.tokenizer)
        if corpus.tokenizer is not None and corpus.tokenizer.end_of_text is None and corpus.train.n_documents != 1:
            corpus, run = prepared(dataclasses.replace(run, data={}), with_end_of_text(base.tokenizer))
        check_vocabulary(base, run, corpus)
        retention, run = retention_split(run, corpus)
        run = with_fitted_intervals(run, given, corpus)
        train_on(corpus, run, directory, retention, new=True, base=base)


def check_retention(run):
    """Raise UserError for --retention-data without a base."""
    if run.train.retention_data and not run.base:
        raise UserError(
            f"--retention-data {run.train.retention_data} has no effect on a run without a base; leave it out, or use "
            "finetune"
        )


def use_device(train):
    """Set up the device of the settings: its kernel set and its threads. UserError if it is unavailable."""
    from slm_np.ops.device import device

    use_kernels(train.kernels, train.device)
    device(train.device).use_threads(train.threads)


def prepared(run, tokenizer=None):
    """(Corpus, `run` with the vocabulary and the identity of the corpus). Builds the token store if there is none.

    The store is still being built on return, unless batches depend on the length of the corpus.
    tokenizer: to use instead of the one that the settings name; None
    Raises UserError if a resumed run has other data, a split is too short for a window, or a token is unknown.
    """
    from slm_np.data.token_store import load_corpus
    from slm_np.ops.device import device

    train, model = run.train, run.model
    device(train.device)  # a missing GPU is reported before the data are read, which may take long
    corpus = load_corpus(
        train.data,
        train.val_data,
        tokenizer or train.tokenizer,
        documents=train.documents,
        limit_bytes=train.limit_bytes,
        threads=train.threads,
        wait=train.epochs > 0 or train.carry_state,
    )
    if corpus.tokenizer is not None:
        corpus.tokenizer.trained_ends = has_end_of_text(corpus) or run.base.get("separated", False)
    data = run.data | dict(
        separated=getattr(corpus.tokenizer, "trained_ends", True),
        fingerprint=corpus.fingerprint,
        source=corpus.source,
        tokens=run.data.get("tokens") if corpus.building else [len(corpus.train), len(corpus.validation)],
    )
    if run.data and run.data.get("fingerprint") != corpus.fingerprint:
        before = run.data.get("tokens")
        if corpus.building:
            corpus.building.close()
        counts = f"{data['tokens']} tokens for training and validation, {run.data.get('source')} had {before}, and "
        raise UserError(
            f"the data have changed since the run began: {corpus.source} has {'' if corpus.building else counts}"
            "other contents; restore them, or start a new run"
        )
    if corpus.tokenizer is not None and corpus.vocab_size != model.vocab_size:
        model = dataclasses.replace(model, vocab_size=corpus.vocab_size)
    run = dataclasses.replace(run, model=model, data=data)
    if not corpus.building:
        check_splits(run, corpus)
    return corpus, run


def check_splits(run, corpus):
    """Raise UserError if a split is too short for a window or has an unknown token.

    While the corpus is being built, this waits until that is known.
    """
    from slm_np.data.token_store import check_ids, check_length

    model = run.model
    for split in (corpus.train, corpus.validation):
        start = split.first(model.block_size + 1)
        if run.base and len(start) <= model.block_size:
            remedy = "more text" if split.split == "train" else "a longer text with --val-data"
            raise UserError(
                f"the {split.split} split of {corpus.source} has {len(start)} tokens, but the model of "
                f"{run.base['run']} needs at least {model.block_size + 1}; give {remedy}"
            )
        check_length(start, model.block_size)
        if corpus.tokenizer is None:
            check_ids(split, model.vocab_size)
        if split.mask is not None and not split.mask[1:].any():
            raise UserError(
                f"the {split.split} split of {corpus.source} has no assistant tokens to learn; give rows with a reply"
            )


def has_end_of_text(corpus):
    """Whether documents in the corpus end with end-of-text. If not, a model never sees it."""
    if corpus.building:
        return corpus.building.separated and corpus.tokenizer.end_of_text is not None
    end, ids = corpus.tokenizer.end_of_text, corpus.train.ids
    return end is not None and bool((ids[-1:] == end).any() or (ids[:SEARCHED] == end).any())


def retention_split(run, corpus):
    """(Tokens of the held-out part of --retention-data, or None; `run` with their identity).

    Data that the base was trained on are split as they were then. Raises UserError as `prepared`.
    """
    from slm_np.data.token_store import check_ids, load_corpus

    data = run.train.retention_data
    if not data:
        return None, run
    split_as = run.base if run.base["data"] == data else dict(val_data="", documents=run.train.documents, limit_bytes=0)
    retention = load_corpus(
        data,
        split_as["val_data"],
        corpus.tokenizer or run.train.tokenizer,
        documents=split_as["documents"],
        limit_bytes=split_as["limit_bytes"],
        threads=run.train.threads,
    )
    split = retention.validation
    if len(split) <= run.model.block_size:
        raise UserError(
            f"--retention-data {data} holds out {len(split)} tokens, but one context takes {run.model.block_size + 1}; "
            "give more text"
        )
    if retention.tokenizer is None:
        check_ids(split, run.model.vocab_size)
    elif retention.vocab_size != run.model.vocab_size:
        raise UserError(
            f"--retention-data {data} has a vocabulary of {retention.vocab_size} tokens, but the model has "
            f"{run.model.vocab_size}; give it in the same form as --data"
        )
    if run.data.get("replay", retention.fingerprint) != retention.fingerprint:
        raise UserError(f"--retention-data {data} has changed since the run began; restore it, or start a new run")
    return split, dataclasses.replace(run, data=run.data | dict(replay=retention.fingerprint))


def memory_plan(run):
    """{part: bytes} of device memory that training needs. Raises UserError if it is unavailable."""
    from slm_np.nn.arena import planned_bytes
    from slm_np.nn.model import parameter_count, parameters, plan
    from slm_np.ops.device import device

    model, batch, on = run.model, run.train.batch_size, device(run.train.device)
    n, requests, dtype = parameter_count(model), list(plan(model, batch, model.block_size, on)), compute_dtype(run)
    saved = [request for request in requests if request.lifetime == "saved"]
    shared = [request for request in requests if request.lifetime != "saved"]
    cast_copies = on.cast_copies if dtype else 0  # of two bytes an element
    parts = {
        "weights": 4 * n + sum(2 * cast_copies * math.prod(t.shape) for t in parameters(model) if t.matmul),
        "gradients": 4 * n,
        "moments": 8 * n,
        "activations saved for backward": planned_bytes(saved, "f4", dtype),
        "shared by all layers": planned_bytes(shared, "f4", dtype),
    }
    what = f"a model of {n:,} parameters with batches of {batch} x {model.block_size} tokens"
    on.check_memory(sum(parts.values()), what)
    return parts


def train_on(corpus, run, directory, retention=None, new=False, base=None):
    """Train `run` on its prepared corpus in `directory`, of which this process holds the lock, and print the results.

    retention: Tokens of other data to evaluate, too.   new: whether the run starts; otherwise it is resumed.
    base: the Base that a new run starts from; None: random weights.
    """
    from slm_np.formats.directories import release
    from slm_np.inference.decoder import sampling
    from slm_np.nn import warmup
    from slm_np.training.display import Display
    from slm_np.training.matmul_check import WrongMatmul
    from slm_np.training.signals import Interrupted
    from slm_np.training.trainer import Trainer

    run = resolved(run)  # as Trainer would, but the memory plan comes before it
    memory = memory_plan(run)
    trainer = Trainer(run, corpus, retention=retention, fresh=new and base is None)
    if corpus.building:
        check_splits(run, corpus)
        corpus.building.between = trainer.check_stop
    storage = create_run(trainer, directory, base) if new else load_run(trainer, directory)
    trainer.callbacks += [storage, Display(sampler(corpus.tokenizer))]
    describe(run, corpus, memory)
    said = f"resuming in {storage.path} from step {trainer.updates}" if trainer.updates else f"run in {storage.path}"
    print(said, file=sys.stderr)
    warmup.prepare(trainer.model, warmup.training, *([sampling] if corpus.tokenizer else []))
    command = f"slm_np.{'finetune' if run.base else 'train'}"
    try:
        trainer.train()
    except WrongMatmul as wrong:
        release(storage.path)
        restart_without_amx(storage.path, command, wrong)
    except Interrupted as interrupted:
        if corpus.building:
            corpus.building.close()
        print(
            f"stopped at step {trainer.updates}; resume with: python -m {command} --resume {quoted(storage.path)}",
            file=sys.stderr,
        )
        raise SystemExit(interrupted.status) from None
    finish(trainer, storage.path)
    if corpus.building:  # so that the next run finds it, and this one's token counts are known
        corpus.building.wait()
        storage.record_tokens(trainer)


def create_run(trainer, directory, base):
    """The Storage of a new run in `directory`. It starts with the weights of the base if there is one."""
    from slm_np.training.storage import Storage

    defaults = {}
    if base is not None:
        base.fill(trainer.model.parameters.weight)
        trainer.model.parameters.update_cast_copies()
        defaults = dict(sampling=base.sampling, template=base.template)
    storage = Storage(directory)
    storage.create(trainer, **defaults)
    return storage


def load_run(trainer, directory):
    """The Storage of a run in `directory`, after its newest checkpoint is loaded.

    Raises UserError if the run was trained with another tokenizer than the corpus has now. That may happen where a
    vocabulary is learned from the corpus again, by another release of a library.
    """
    from slm_np.formats.runs import tokenizer_of
    from slm_np.training.storage import Storage

    run, tokenizer = trainer.run, trainer.corpus.tokenizer
    kept = tokenizer_of(Path(directory), run)
    if kept is not None and tokenizer is not None and kept.to_json() != tokenizer.to_json():
        raise UserError(
            f"{directory} was trained with other tokens than --tokenizer {run.train.tokenizer} learns from the data "
            f"now; start a new run with --tokenizer file:{directory}/tokenizer.json"
        )
    storage = Storage(directory)
    storage.resume(trainer)
    return storage


def restart_without_amx(directory, command, wrong):
    """Replace this process by one that resumes from the last checkpoint without AMX.

    What was computed since that checkpoint may be wrong, so nothing is saved.
    """
    print(
        f"{wrong}; AMX is switched off for this run, which goes back to its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    arguments = [sys.executable, "-m", command, "--resume", str(directory)]
    os.execve(sys.executable, arguments, {**os.environ, "SLM_NP_AMX": "0"})
