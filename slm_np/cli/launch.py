"""From settings to a trained run: device, data, memory plan, trainer, training, report."""

import copy
import dataclasses
import os
import sys
from pathlib import Path

from slm_np.cli.loading import use_kernels
from slm_np.cli.report import describe, finish, sampler
from slm_np.config import LENGTHS, as_flag
from slm_np.errors import UserError
from slm_np.formats.checksum import crc32
from slm_np.ranks.current import world
from slm_np.training.precision import compute_dtype, resolved
from slm_np.version import __version__
from slm_np.words import counted, quoted

# The settings that decide the learning rate of an update.
SCHEDULE = (*LENGTHS, "lr_decay_iters", "learning_rate", "min_lr", "warmup_iters", "lr_schedule")
SEARCHED = 1 << 20  # tokens in which an end-of-text occurs if the corpus has any


def train_run(run, choose=None):
    """Train `run` (RunConfig) in a new directory and print the results.

    choose: a function (run) -> (run, lines), called before the data are loaded: settings that depend on the data or on
    the machine, and what is said of them; None if there are none
    """
    from slm_np.formats.directories import new_directory

    check_retention(run)
    ranks = world()
    with ranks.entered_on_rank_0(new_directory(run.train.out_dir, run.preset)) as directory:
        use_device(run.train)
        run, lines = ranks.on_rank_0(lambda: choose(run)) if choose else (run, ())
        train_on(*prepared(run), directory, new=True, lines=lines)


def resume_run(run, directory):
    """Resume `run` (RunConfig) in `directory`, of which this process holds the lock, and print the results."""
    from slm_np.formats.runs import template_of, tokenizer_of

    check_retention(run)
    use_device(run.train)
    tokenizer, template = (tokenizer_of(directory, run), template_of(directory, run)) if run.base else (None, None)
    corpus, run = prepared(run, tokenizer, directory, template)
    retention, run = retention_split(run, corpus, directory, template)
    train_on(corpus, run, directory, retention)


def finetune_run(base, run, given):
    """Train `run` in a new directory, starting from `base`. given: {field: value} of its training settings."""
    from slm_np.data.tokenizer_factory import with_end_of_text
    from slm_np.formats.directories import new_directory
    from slm_np.training.finetuning import check_vocabulary, with_fitted_warmup

    name = f"{base.path.resolve().name}-finetuned"
    with world().entered_on_rank_0(new_directory(run.train.out_dir, name)) as directory:
        use_device(run.train)
        corpus, run = prepared(run, base.tokenizer, template=base.template)
        if corpus.tokenizer is not None and corpus.tokenizer.end_of_text is None and corpus.train.n_documents != 1:
            if run.lora:
                raise UserError(
                    f"{corpus.source} has several documents, but the tokenizer of {base.path} has no end-of-text, and "
                    "adapters cannot learn a new token; leave --lora-rank out, or give one document"
                )
            run = dataclasses.replace(run, data={})
            corpus, run = prepared(run, with_end_of_text(base.tokenizer), template=base.template)
        check_vocabulary(base, run, corpus)
        retention, run = retention_split(run, corpus, template=base.template)
        run = with_fitted_warmup(run, given, corpus)
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
    device(train.device).use_threads(world().check_threads(train.threads))


def digest(run):
    """A short text that differs for runs of different settings."""
    return crc32(repr((run.model, run.train, run.lora)).encode())


def loaded(*arguments, **settings):
    """`load_corpus`: rank 0 builds a token store that is missing, then the others find it."""
    from slm_np.data.token_store import load_corpus

    return world().rank_0_first(lambda: load_corpus(*arguments, **settings))


def prepared(run, tokenizer=None, directory=None, template=None):
    """(Corpus, `run` with the vocabulary and the identity of the corpus). Builds the token store if there is none.

    The store is still being built on return, unless batches depend on the length of the corpus.
    tokenizer: to use instead of the one that the settings name; None.   directory: of a run that is resumed
    template: the chat template of the base; None for the default one
    Raises UserError if a resumed run has other data, a split is too short for a window, or a token is unknown.
    """
    from slm_np.data.token_files import is_token_file
    from slm_np.data.tokenizer import used_like
    from slm_np.formats.run_config import ends_of
    from slm_np.ops.device import device

    train, model = here(run, directory), run.model
    device(train.device)  # a missing GPU is reported before the data are read, which may take long
    corpus = loaded(
        train.data,
        train.val_data,
        tokenizer or train.tokenizer,
        documents=train.documents,
        limit_bytes=train.limit_bytes,
        threads=train.threads,
        wait=train.epochs > 0 or train.carry_state or world().size > 1,
        binary=train.binary,
        template=template,
    )
    if run.data and corpus.tokenizer and is_token_file(train.data) and corpus.vocab_size != model.vocab_size:
        # The run began when the tokenizer beside the files was not there, or not read.
        corpus = dataclasses.replace(corpus, tokenizer=None, vocab_size=model.vocab_size)
    if corpus.tokenizer is not None:
        corpus.tokenizer.trained_ends = has_end_of_text(corpus) or run.base.get("separated", False)
        if tokenizer is not None:
            used_like(corpus.tokenizer, tokenizer)
        conversations = not corpus.building and corpus.train.mask is not None
        if template is not None and conversations and not is_token_file(train.data):
            ends = template.ends(corpus.tokenizer)
            corpus.tokenizer.more_ends = tuple(sorted({*corpus.tokenizer.more_ends, *ends}))
    data = (
        run.data
        | ends_of(corpus.tokenizer)
        | dict(
            separated=getattr(corpus.tokenizer, "trained_ends", True),
            fingerprint=corpus.fingerprint,
            source=run.train.data,
            tokens=run.data.get("tokens") if corpus.building else [len(corpus.train), len(corpus.validation)],
        )
    )
    if run.data and run.data.get("fingerprint") != corpus.fingerprint:
        if corpus.building:
            corpus.building.close()
        raise other_data(run, data, directory)
    # The model of another program may have more embeddings than its tokenizer has tokens.
    is_padded = run.base and corpus.vocab_size < model.vocab_size
    if corpus.tokenizer is not None and corpus.vocab_size != model.vocab_size and not is_padded:
        model = dataclasses.replace(model, vocab_size=corpus.vocab_size)
    run = dataclasses.replace(run, model=model, data=data)
    if not corpus.building:
        check_splits(run, corpus, directory)
    return corpus, run


def other_data(run, data, directory):
    """The UserError for a run in `directory` that is resumed with other data than those it was trained on."""
    was, now, train = run.data.get("tokens"), data["tokens"], here(run, directory)
    counts = f" ({counted(sum(now), 'token')} instead of {sum(was):,})" if was and now and was != now else ""
    text = " and ".join(filter(None, (train.data, train.val_data)))
    return UserError(
        f"the data have changed: {text} is not what {directory} was trained on{counts}, and a run resumes with the "
        "same data; restore it, or train on new data with "
        f"python -m slm_np.finetune --base {quoted(directory)} --data {quoted(train.data)}"
    )


def here(run, directory=None):
    """The TrainConfig of `run`. If it is resumed in `directory`, its paths are as from the current directory."""
    from slm_np.formats.run_paths import located

    if directory is None:
        return run.train
    paths = {field: located(directory, run, field) for field in ("data", "val_data", "retention_data")}
    tokenizer = located(directory, run, "tokenizer", f"copy it from {directory}/tokenizer.json")
    return dataclasses.replace(run.train, **paths, tokenizer=tokenizer)


def check_splits(run, corpus, directory=None):
    """Raise UserError if a split is too short for a window or has an unknown token.

    While the corpus is being built, this waits until that is known.   directory: of a run that is resumed
    """
    from slm_np.data.tokens import check_ids, check_length, targets

    model = run.model
    for split in (corpus.train, corpus.validation):
        start = split.first(model.block_size + 1)
        if run.base and len(start) <= model.block_size:
            remedy = "more text" if split.split == "train" else "a longer text with --val-data"
            raise UserError(
                f"the {split.split} split of {corpus.source} has {counted(len(start), 'token')}, but the model of "
                f"{run.base['run']} needs at least {model.block_size + 1}; give {remedy}"
            )
        check_length(start, model.block_size)
        if corpus.tokenizer is None:
            check_ids(split, model.vocab_size, may_grow=not run.base and directory is None)
        if split.mask is not None and not targets(split.mask[1:]).any():
            raise UserError(
                f"the {split.split} split of {corpus.source} has no assistant tokens to learn; give rows with a reply"
            )


def has_end_of_text(corpus):
    """Whether documents in the corpus end with end-of-text. If not, a model never sees it."""
    if corpus.building:
        return corpus.building.separated and corpus.tokenizer.end_of_text is not None
    end, ids = corpus.tokenizer.end_of_text, corpus.train.ids
    return end is not None and bool((ids[-1:] == end).any() or (ids[:SEARCHED] == end).any())


def retention_split(run, corpus, directory=None, template=None):
    """(Tokens of the held-out part of --retention-data, or None; `run` with their identity).

    Data that the base was trained on are split as they were then. Raises UserError as `prepared`.
    """
    from slm_np.data.tokens import check_ids
    from slm_np.formats.run_paths import same_files

    data = here(run, directory).retention_data
    if not data:
        return None, run
    base = base_here(run, directory)
    split_as = dict(val_data="", documents=run.train.documents, limit_bytes=0, binary=run.train.binary)
    if same_files(base["data"], data):
        split_as |= {field: base[field] for field in split_as if field in base}
    retention = loaded(
        data,
        split_as["val_data"],
        corpus.tokenizer or run.train.tokenizer,
        documents=split_as["documents"],
        limit_bytes=split_as["limit_bytes"],
        threads=run.train.threads,
        binary=split_as["binary"],
        template=template,
    )
    split = retention.validation
    if len(split) <= run.model.block_size:
        raise UserError(
            f"--retention-data {data} holds out {counted(len(split), 'token')}, but one context takes "
            f"{run.model.block_size + 1}; give more text"
        )
    if retention.tokenizer is None:
        check_ids(split, run.model.vocab_size)
    elif retention.vocab_size != corpus.vocab_size:
        raise UserError(
            f"--retention-data {data} has a vocabulary of {counted(retention.vocab_size, 'token')}, but the model has "
            f"{corpus.vocab_size}; give it in the same form as --data"
        )
    if run.data.get("replay", retention.fingerprint) != retention.fingerprint:
        raise UserError(
            f"--retention-data {data} is not what the run began with; restore it, or start a new run with finetune"
        )
    return split, dataclasses.replace(run, data=run.data | dict(replay=retention.fingerprint))


def base_here(run, directory=None):
    """How the base's data were split, with its paths as written from the current directory, if its files exist."""
    from slm_np.formats.run_paths import directories, written_here

    places = directories(directory, run) if directory is not None else [Path()]
    return run.base | {
        field: written_here(run.base[field], places) or run.base[field] for field in ("data", "val_data")
    }


def memory_plan(run):
    """{part: bytes} of device memory that training needs. Raises UserError if it is unavailable."""
    import numpy as np

    from slm_np.formats.layouts import lora_of
    from slm_np.nn.arena import planned_bytes
    from slm_np.nn.model import model_tensors, plan, weight_bytes
    from slm_np.nn.parameters import count
    from slm_np.ops.device import SMALLER, device
    from slm_np.training.virtual_ranks import deal

    model, on, dtype, ranks = run.model, device(run.train.device), compute_dtype(run), world()
    dealt = deal(run.train, ranks)
    batch = dealt.rows
    tensors, adapters = model_tensors(model, lora_of(run))
    requests = list(plan(model, batch, model.block_size, on, run.train.recompute, adapters))
    n, trained = count(tensors), count(tensor for tensor in tensors if tensor.trained)
    saved = [request for request in requests if request.lifetime == "saved"]
    shared = [request for request in requests if request.lifetime != "saved"]
    parts = {
        "weights": weight_bytes(tensors, np.dtype("f4"), dtype, on),
        "gradients": 4 * trained,
        "moments": 8 * trained,
        "activations saved for backward": planned_bytes(saved, "f4", dtype),
        "shared by all layers": planned_bytes(shared, "f4", dtype),
    }
    if run.train.sync_every:
        parts["rounds"] = 4 * trained * (4 + ranks.size)
    if run.train.virtual_ranks:
        parts["virtual ranks"] = 4 * trained * ((dealt.stop - dealt.first).bit_length() - 1 + 2 * (ranks.size > 1))
        parts["virtual ranks"] += 12 * trained * (run.train.exchange == "bf16")
    what = f"a model of {counted(n, 'parameter')} with batches of {batch} x {model.block_size} tokens"
    smaller = "choose a smaller --batch-size or --block-size" if run.base else SMALLER
    saves = model.n_layer > 1 and not run.train.recompute
    on.check_memory(ranks.on_node * sum(parts.values()), what, f"use --recompute, or {smaller}" if saves else smaller)
    return parts


def train_on(corpus, run, directory, retention=None, new=False, base=None, lines=()):
    """Train `run` on its prepared corpus in `directory`, of which this process holds the lock, and print the results.

    retention: Tokens of other data to evaluate, too.   new: whether the run starts; otherwise it is resumed.
    base: the Base that a new run starts from; None: random weights.   lines: to print about its settings
    """
    from slm_np.formats.directories import release
    from slm_np.formats.run_config import read_config
    from slm_np.inference.decoder import sampling
    from slm_np.nn import warmup
    from slm_np.training.display import Display
    from slm_np.training.estimate import estimate
    from slm_np.training.matmul_check import WrongMatmul
    from slm_np.training.signals import Interrupted
    from slm_np.training.trainer import Trainer

    ranks = world()
    previous = None if new else ranks.on_rank_0(lambda: read_config(directory))
    run = resolved(run)  # as Trainer would, but the memory plan comes before it
    memory = memory_plan(run)
    ranks.check_same({"version of slm_np": __version__, "corpus": corpus.fingerprint, "set of settings": digest(run)})
    trainer = Trainer(run, corpus, retention=retention, fresh=new and base is None, world=ranks)
    if corpus.building:
        check_splits(run, corpus, directory)
        corpus.building.between = trainer.check_stop
    directory = Path(directory)

    storage = ranks.rank_0_first(lambda: open_run(trainer, directory, new, base))
    ranks.check_same({"base": base.checksum if base else trainer.run.base.get("weights")})
    if ranks.rank == 0:
        trainer.callbacks += [storage, Display(sampler(corpus.tokenizer))]
    trainer.load_from_rank_0()
    describe(run, corpus, memory)
    if ranks.size > 1:
        print(f"{ranks}, {counted(trainer.model.device.kernels.thread_count(), 'thread')} each", file=sys.stderr)
    said = f"resuming in {directory} from step {trainer.updates}" if trainer.updates else f"run in {directory}"
    print("\n".join([*lines, said, *changes_when_resumed(trainer, previous, directory)]), file=sys.stderr)
    runs = [warmup.training, *[warmup.muon] * (run.train.optimizer == "muon"), *[sampling] * bool(corpus.tokenizer)]
    ranks.rank_0_first(lambda: warmup.prepare(trainer.model, *runs))
    if run.base and (line := estimate(trainer)):
        print(line, file=sys.stderr)
    command = f"slm_np.{'finetune' if run.base else 'train'}"
    try:
        trainer.train()
    except WrongMatmul as wrong:
        if ranks.size > 1:
            raise UserError(f"{wrong}; resume the run with the variable SLM_NP_AMX=0") from None
        release(directory)
        restart_without_amx(directory, command, wrong)
    except Interrupted as interrupted:
        if corpus.building:
            corpus.building.close()
        print(
            f"stopped at step {trainer.updates}; resume with: python -m {command} --resume {quoted(directory)}",
            file=sys.stderr,
        )
        raise SystemExit(interrupted.status) from None
    if ranks.rank == 0:
        finish(trainer, directory)
    if corpus.building:  # so that the next run finds it, and this one's token counts are known
        corpus.building.wait()
        storage.record_tokens(trainer)


def open_run(trainer, directory, new, base):
    """The Storage of a run, after its start or its newest checkpoint is loaded.

    Other ranks write nothing and get None. They load frozen weights only; the others come from rank 0.
    """
    if world().rank == 0:
        storage = create_run(trainer, directory, base) if new else load_run(trainer, directory)
        world().note_run(directory)
        return storage
    if base is not None:
        base.fill(trainer.model.parameters)
    elif trainer.run.lora:
        fill_from_base(trainer, directory)
    return None


def create_run(trainer, directory, base):
    """The Storage of a new run in `directory`. It starts with the weights of the base if there is one."""
    from slm_np.data.token_files import is_token_file
    from slm_np.formats.run_paths import started_here
    from slm_np.training.storage import Storage

    defaults = {}
    if base is not None:
        # Conversations in prepared tokens were written by the default template.
        default = trainer.corpus.train.mask is not None and is_token_file(trainer.run.train.data)
        base.fill(trainer.model.parameters)
        trainer.run = dataclasses.replace(trainer.run, base=trainer.run.base | dict(weights=base.checksum))
        defaults = dict(sampling=base.parts.sampling, template=None if default else base.parts.template)
    trainer.run = dataclasses.replace(trainer.run, data=trainer.run.data | dict(directory=started_here(directory)))
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
    if run.lora:
        fill_from_base(trainer, directory)
    storage = Storage(directory)
    storage.resume(trainer)
    return storage


def fill_from_base(trainer, directory):
    """Read the frozen weights of a resumed run from its base. Raises UserError if they have changed."""
    from slm_np.formats.adapters import base_path, check_base
    from slm_np.training.finetuning import Base

    base = Base.load(base_path(directory, trainer.run))
    base.fill(trainer.model.parameters)
    check_base(directory, trainer.run, base.checksum)


def changes_when_resumed(trainer, previous, directory):
    """Lines about what a user may not expect of a run, resumed or new.

    previous: RunConfig of a resumed run before this session; None for a new one.
    That it is finished, that the learning rate jumps because the schedule was changed, or that it ends in the warmup.
    """
    config, updates = trainer.config, trainer.updates
    if previous is not None and trainer.finished():
        yield finished_line(trainer, directory)
        return
    changed = [
        as_flag(field, getattr(config, field))
        for field in SCHEDULE
        if previous is not None and getattr(config, field) not in (getattr(previous.train, field), "")
    ]
    if changed and updates:
        before, after = rates(trainer, previous)
        if not 0.9 * before <= after <= 1.1 * before:
            yield (
                f"the schedule follows {' and '.join(changed)} from here on: the learning rate goes from "
                f"{before:.3g} to {after:.3g}"
            )
    last = trainer.max_iters
    if last and not config.lr_decay_iters and updates < last <= config.warmup_iters:
        yield (
            f"the learning rate still rises when the run ends: it has {counted(last, 'update')}, and --warmup-iters is "
            f"{config.warmup_iters:,}"
        )


def finished_line(trainer, directory):
    """That a resumed run has nothing left to do, and how to train it on."""
    config, command = trainer.config, f"slm_np.{'finetune' if trainer.run.base else 'train'}"
    if trainer.out_of_patience():
        why, more = f"no lower validation loss in {counted(trainer.stale, 'evaluation')}", "--patience 0"
    elif config.max_seconds:
        why, more = f"--max-time {config.max_time} is over", "--max-time LONGER"
    elif config.epochs:
        why, more = f"--epochs {config.epochs:g} are over", "--epochs MORE"
    else:
        why, more = f"it has made {counted(trainer.updates, 'update')}", f"--max-iters {2 * max(1, trainer.updates)}"
    resume = f"python -m {command} --resume {quoted(directory)} {more}"
    return f"{directory} is finished, since {why}; train it longer with: {resume}"


def rates(trainer, previous):
    """(Learning rate of the last update, of the next) of a resumed run whose RunConfig was `previous`."""
    from slm_np.training.schedule import learning_rate

    old = copy.copy(trainer)
    old.config, old.updates = previous.train, trainer.updates - 1
    old.max_iters = previous.fitted_iters or trainer.batches.updates(previous.train)
    return tuple(learning_rate(of.config, of.updates, of.schedule_progress) for of in (old, trainer))


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
