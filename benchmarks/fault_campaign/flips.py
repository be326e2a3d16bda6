"""Flipped bits and truncations in every file of a run, of a folder of tokens and of a token store in the cache.

A damage is found if a command refuses with one sentence, or says so on stderr; it is harmless if texts, losses and the
bits of a resumed run are those of the undamaged one, and a corpus has the same tokens. Anything else is undetected.
Commands run in forked children: the code of `generate`, `evaluate`, `chat`, `train` and `load_corpus` itself.
"""

import functools
import json
import os
import random
import re
import shutil

from fault_campaign import children, fixtures
from fault_campaign.judges import FAILED, KEPT, LOST, UNDETECTED, check_end, require, same_run

FLIPS, CUTS = 1000, 200
TRIES = FLIPS + CUTS
WATCHES = "run", "tuned", "tokens", "rows", "store"
INPUTS = ("text.txt", "chat.jsonl", "half", "tuned", "base=run", "tokens", "rows", "cache")


def files_of(watch, context):
    """The files of what is damaged, as paths in a folder with the fixtures."""
    if watch == "store":
        found = sorted((context.fixtures / "cache" / "corpora").rglob("*"))
    else:
        name = "half" if watch == "run" else watch
        found = sorted((context.fixtures / name).rglob("*"))
    return [str(path.relative_to(context.fixtures)) for path in found if path.is_file()]


def cases(context):
    """Each file gets its share of flips and cuts, the same number whatever its size."""
    for watch in WATCHES:
        undamaged(watch, context)  # before the tries are made side by side
    draw, found = random.Random(context.seed), []
    files = [(watch, name) for watch in WATCHES for name in files_of(watch, context) if "/index.json" not in name]
    for i in range(TRIES):
        watch, name = files[i % len(files)]
        size = (context.fixtures / name).stat().st_size
        if i < FLIPS:
            found.append(f"{watch} {name} flip bit {draw.randrange(8 * size)}")
        else:
            found.append(f"{watch} {name} cut at {draw.randrange(size)}")
    return list(dict.fromkeys(found))


def damage(path, how, number):
    """Flip a bit of a file, or cut it at a byte. Its time of change stays, as when a disk does it."""
    times, raw = path.stat(), bytearray(path.read_bytes())
    if how == "flip":
        raw[number // 8] ^= 1 << number % 8
    else:
        del raw[number:]
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def attempt(case, context, folder):
    watch, name, how, _, number = case.split()
    fixtures.place(context.fixtures, folder, INPUTS)
    damage(folder / name, how, int(number))
    observe = observe_run if watch in ("run", "tuned") else observe_corpus
    wanted = undamaged(watch, context)
    for what, seen, result in observe(watch, folder):
        check_end(result, f"{what} after the damage")
        said = result.status == 2 or warned(result, wanted[what][1])
        require(said or seen == wanted[what][0], UNDETECTED, f"{what} differs, and nothing says so: {result.tail()}")
    edited = said and name == "half/run.json"  # taken as the user's change, and said
    kept = [name for name in KEPT if name != "generation_config.json"]
    if watch == "run" and result.status == 0 and not edited:  # it was continued, perhaps from an older checkpoint
        same_run(folder / "half", context.fixtures / "run", "the continued run", LOST if said else UNDETECTED, kept)


def warned(result, lines):
    """Whether stderr has a line of warning that the undamaged command did not print."""
    new = [line for line in result.err.splitlines() if line not in lines]
    return any(
        re.search(r"damaged|skipping|restored|rebuil|checksum|missing|changed|not valid|lost", line) for line in new
    )


@functools.cache
def undamaged(watch, context):
    """{what: (what an undamaged one gives, lines on stderr)}."""
    folder = context.work / f"flips-{watch}"
    file = folder.with_suffix(".json")
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fixtures.place(context.fixtures, folder, INPUTS)
        found = {}
        for what, seen, result in (observe_run if watch in ("run", "tuned") else observe_corpus)(watch, folder):
            require(result.status == 0, FAILED, f"undamaged {what} fails: {result.tail()}")
            found[what] = seen, result.err.splitlines()
        shutil.rmtree(folder)
        file.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def observe_run(watch, folder):
    """Yield (what, its result, `Result`): a text, a loss, an answer, the losses and the bits of a resumed run."""
    run = "half" if watch == "run" else watch
    result = children.forked("generate", "--model", run, "-n", 40, "--seed", 3, "--prompt", "the", cwd=folder)
    yield "the text", result.out, result
    data = [] if watch == "run" else ["--data", "chat.jsonl"]
    result = children.forked("evaluate", "--model", run, "--json", *data, cwd=folder)
    fields = json.loads(result.out) if result.status == 0 else {}
    yield "the loss", {key: value for key, value in fields.items() if key != "seconds"}, result
    if watch == "tuned":
        result = children.forked("chat", "--model", run, "-n", 12, "--seed", 5, stdin=b"a cat?\nthe dog\n", cwd=folder)
        yield "the answer", result.out, result
        return
    result = children.forked("train", "--resume", run, cwd=folder)
    yield "the resumed run", losses(folder / run), result


def losses(run):
    """The losses of the best model and of the logged steps after the first HALF of a resumed run."""
    from slm_np.formats import metrics

    rows = metrics.read_metrics(run)
    return [[row["step"], row.get("loss"), row.get("val_loss")] for row in rows if row.get("step", 0) > fixtures.HALF]


def observe_corpus(watch, folder):
    """Yield (what, its digest, `Result`): a corpus as `load_corpus` gives it."""
    data = dict(tokens="tokens", rows="rows").get(watch)
    for data, tokenizer in [(data, "byte")] if data else [("text.txt", "char"), ("chat.jsonl", "byte")]:
        result = children.forked_call(lambda: print(json.dumps(described(data, tokenizer))), folder)
        yield f"the corpus {data}", json.loads(result.out) if result.status == 0 else None, result


def described(data, tokenizer):
    """All that a corpus holds, as JSON, of its arrays a digest."""
    import hashlib

    from slm_np import load_corpus
    from slm_np.errors import command

    found = {}

    @command
    def load(argv):
        corpus = load_corpus(data, tokenizer=tokenizer, progress=False)
        for tokens in (corpus.train, corpus.validation):
            arrays = [array for array in (tokens.ids, tokens.mask) if array is not None]
            found[tokens.split] = [
                *(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays),
                [str(array.dtype) for array in arrays],
                len(tokens),
                tokens.n_bytes,
                tokens.n_targets,
                tokens.n_documents,
            ]
        found["tokenizer"] = corpus.tokenizer and corpus.tokenizer.to_json()
        found["vocab_size"] = corpus.vocab_size

    load([])
    return json.loads(json.dumps(found, default=str))
