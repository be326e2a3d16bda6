"""What all kinds start from: tiny texts, runs, prepared tokens and a foreign checkpoint, made once in a folder.

text.txt other.txt chat.jsonl   corpora: documents, and conversations
seeded                          the run with another seed
big.txt grown                   a corpus that is read while it is tokenized, and a run on it, made when first needed
model.bin tok.bin               a llama2.c checkpoint of random weights, and its tokenizer
run half                        a run of STEPS updates on text.txt, and the same run stopped at step HALF
tuned half-tuned                the same finetuned on chat.jsonl
tokens rows converted           what prepare makes of text.txt and of chat.jsonl, and convert of model.bin
talk.jsonl                      what chat saves
cache                           the token stores of all this
"""

import contextlib
import json
import os
import random
import shutil
import signal
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fault_campaign import children

STEPS, HALF = 12, 7
MODEL = "--n-layer 1 --n-head 2 --n-embd 16 --n-hidden 24 --block-size 16"
RECIPE = (
    "--batch-size 4 --learning-rate 3e-3 --min-lr 1e-4 --warmup-iters 2 --beta2 0.99 --threads 1 --eval-iters 2 "
    f"--log-interval 1 --eval-interval 3 --save-interval 2 --max-iters {STEPS}"
)
TRAIN = f"--data text.txt --tokenizer char --kernels numpy {MODEL} {RECIPE}"
FINETUNE = f"--data chat.jsonl --kernels numpy {RECIPE.replace('--batch-size 4 ', '')}"
GROW = f"--data big.txt --tokenizer byte --kernels numpy {MODEL} {RECIPE}"  # a text that is read while it is tokenized
CHAT = "--model tuned -n 12 --seed 5"
TALK = b"a cat?\nsat the dog?\n/save talk.jsonl\n"


class Scene(NamedTuple):
    """A command that writes, what it needs and what it makes."""

    verb: str
    words: str
    inputs: tuple  # names of fixtures, copied beside it
    output: str  # the name of what it makes
    reference: str  # the fixture that an undisturbed command makes
    kind: str  # run, tokens or file
    stdin: bytes = b""
    again: str = ""  # the words that continue it, if it is a run

    @property
    def existed(self):
        """Whether the output is there before the command."""
        return self.output in dict(named(name) for name in self.inputs)


def named(item):
    """(name in the try's folder, name of the fixture) of an item of `Scene.inputs`: NAME, or NAME=FIXTURE."""
    name, _, fixture = item.partition("=")
    return name, fixture or name


SCENES = dict(
    train=Scene("train", f"{TRAIN} --out-dir run", ("text.txt",), "run", "run", "run", again="--resume run"),
    resume=Scene("train", "--resume run", ("text.txt", "run=half", "cache"), "run", "run", "run", again="--resume run"),
    finetune=Scene(
        "finetune",
        f"--base base {FINETUNE} --out-dir tuned",
        ("text.txt", "chat.jsonl", "base=run", "cache"),
        "tuned",
        "tuned",
        "run",
        again="--resume tuned",
    ),
    refinetune=Scene(
        "finetune",
        "--resume tuned",
        ("text.txt", "chat.jsonl", "base=run", "tuned=half-tuned", "cache"),
        "tuned",
        "tuned",
        "run",
        again="--resume tuned",
    ),
    prepare=Scene("prepare", "text.txt --tokenizer char --out-dir tokens", ("text.txt",), "tokens", "tokens", "tokens"),
    rows=Scene("prepare", "chat.jsonl --out-dir rows", ("chat.jsonl",), "rows", "rows", "tokens"),
    convert=Scene(
        "convert",
        "model.bin --tokenizer tok.bin --out-dir converted",
        ("model.bin", "tok.bin"),
        "converted",
        "converted",
        "run",
    ),
    seeded=Scene("train", f"{TRAIN} --seed 5 --out-dir run", ("text.txt",), "run", "seeded", "run"),
    grow=Scene("train", f"{GROW} --out-dir run", ("big.txt",), "run", "grown", "run", again="--resume run"),
    chat=Scene("chat", CHAT, ("tuned",), "talk.jsonl", "talk.jsonl", "file", TALK),
)


def sentences(seed, n=200, words="the cat dog sat ran saw a big red ball and home Q: A: ?"):
    """Lines of few distinct words, the same for the same seed."""
    draw, words = random.Random(seed), words.split()
    return ["".join(" ".join(draw.choices(words, k=8)) + ".\n") for _ in range(n)]


def documents(seed, n=40):
    """A text of `n` documents, each of four lines."""
    lines = sentences(seed, 4 * n)
    return "<|endoftext|>\n".join("".join(lines[i : i + 4]) for i in range(0, len(lines), 4))


def conversations(seed, n=60):
    """Rows of prompt and completion. Their characters are those of text.txt."""
    lines = sentences(seed, 2 * n)
    return "".join(
        json.dumps(dict(prompt=a.strip(), completion=b.strip())) + "\n" for a, b in zip(lines[::2], lines[1::2])
    )


def llama2c_tokens():
    """[(token, score), ...] of a small tokenizer of llama2.c: markers, bytes, merged tokens, letters."""
    merged, letters = [" t", "he", " the", " c", "at", " cat"], sorted(set(" abcdeghlnorstw"))
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    return [(name, 0.0) for name in names] + [(token, -float(i)) for i, token in enumerate(merged + letters)]


def write_llama2c(model, tokenizer, dim=24, hidden=20, layers=2, heads=6, kv_heads=2, steps=16):
    """Write a checkpoint of random weights and its tokenizer, in llama2.c's formats of version 0."""
    tokens, kv = llama2c_tokens(), dim // heads * kv_heads
    size = len(tokens) * dim + layers * (2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * hidden * dim) + dim
    weights = np.random.default_rng(0).normal(0, 0.4, size + steps * (dim // heads)).astype("<f4")
    Path(model).write_bytes(
        struct.pack("<7i", dim, hidden, layers, heads, kv_heads, len(tokens), steps) + weights.tobytes()
    )
    encoded = [(token.encode(), score) for token, score in tokens]
    Path(tokenizer).write_bytes(
        struct.pack("<i", max(len(token) for token, _ in encoded))
        + b"".join(struct.pack("<fi", score, len(token)) + token for token, score in encoded)
    )


def stop_at(step):
    """`setup` of a child that trains: SIGTERM before the update after `step`, so that the run is saved and ends."""

    def setup():
        from slm_np.training.state import TrainingState

        wait = TrainingState.wait_for_data

        def wait_or_stop(trainer):
            if trainer.updates == step - 1:  # it stops after this update
                signal.raise_signal(signal.SIGTERM)
            wait(trainer)

        TrainingState.wait_for_data = wait_or_stop

    return setup


def make(folder):
    """Make the fixtures in `folder`, unless they are there. RuntimeError if an undisturbed command fails."""
    folder = Path(folder)
    if folder.is_dir():
        return folder
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "text.txt").write_text(documents(1), encoding="utf-8")
    (part / "other.txt").write_text(documents(2), encoding="utf-8")
    (part / "chat.jsonl").write_text(conversations(3), encoding="utf-8")
    write_llama2c(part / "model.bin", part / "tok.bin")
    for name in ("train", "finetune", "prepare", "rows", "convert", "chat"):
        run_scene(SCENES[name], part)
        if name == "train":
            shutil.copytree(part / "run", part / "base")
    make_apart(part, "seeded", SCENES["seeded"])
    make_apart(part, "half", SCENES["train"], stop_at(HALF))
    make_apart(part, "half-tuned", SCENES["finetune"], stop_at(HALF))
    part.rename(folder)
    return folder


def make_apart(folder, name, scene, setup=None):
    """Make the fixture `name` by a scene whose output has another name."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        place(folder, beside, scene.inputs)
        run_scene(scene, beside, setup)
        with contextlib.suppress(OSError):  # another try has made it meanwhile
            (Path(beside) / scene.output).rename(folder / name)


def make_grown(folder):
    """Make big.txt and grown, which take longer than all others, in the folder of the fixtures."""
    big, grown = folder / "big.txt", folder / "grown"
    if not big.exists():
        part = folder / f"big-{os.getpid()}"
        part.write_text(documents(4, 600) * 60, encoding="utf-8")
        part.rename(big)
    if not grown.exists():
        make_apart(folder, "grown", SCENES["grow"])


def run_scene(scene, cwd, setup=None):
    """Run the command of a scene, undisturbed or stopped by `setup`. RuntimeError if it ends otherwise."""
    result = children.forked(scene.verb, *scene.words.split(), cwd=cwd, stdin=scene.stdin, setup=setup)
    if result.status != (143 if setup else 0):
        raise RuntimeError(f"{scene.verb} {scene.words} ended with status {result.status}: {result.err}")


def place(fixtures, folder, items):
    """Copy fixtures, NAME or NAME=FIXTURE each, into `folder`."""
    for item in items:
        name, fixture = named(item)
        source = Path(fixtures) / fixture
        if source.is_dir():
            shutil.copytree(source, Path(folder) / name)
        else:
            shutil.copy2(source, Path(folder) / name)
