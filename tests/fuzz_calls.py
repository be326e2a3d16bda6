"""Random calls of every public name with right and wrong arguments, each of which must end right.

A right call returns what an independent computation or the same call in its plainest form returns. A call with one
wrong argument raises UserError, and the message names the argument. `fuzz` runs calls in a process of its own, which
may crash: the last call is on record.
"""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import small
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import slm_np
from slm_np import (
    AdamW,
    Decoder,
    LoraConfig,
    Model,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
    UserError,
    arguments,
    learning_rate,
    load,
    load_corpus,
    parameter_count,
    preset,
    random_batch,
    text_of,
)
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.chat_template import Template
from slm_np.data.plain_bpe import PlainBPE
from slm_np.inference.decoder import uncompiled_step
from slm_np.nn.dropout import model_dropout
from slm_np.ops.device import CPU

V, B, T = 256, 2, 8
SIZES = dict(vocab_size=V, block_size=T, n_layer=1, n_embd=8)
CONFIGS = {"attention": ModelConfig(**SIZES, n_head=2), "recurrent": ModelConfig(**SIZES, pattern="S")}
LETTERS = "abcdefgh "


class World:
    """Files and models that calls share."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.text = small.text_file(self.folder, lines=40)
        self.models = {name: Model(config, seed=5) for name, config in CONFIGS.items()}
        self.tokenizer = ByteTokenizer()
        self.corpus = self.load(self.text)
        self.run = self.folder / "run"
        trainer = small.trainer(self.text, self.run, max_iters=1, n_embd=8, n_hidden=8, block_size=T)
        trainer.train()

    def load(self, data, **options):
        return load_corpus(**dict(data=data, cache_dir=self.folder / "cache", progress=False) | options)


class Accepted(Exception):
    """A call with a wrong argument returned."""


class Context:
    """One call: random numbers, the argument that is wrong or None, and in `plain` the arguments in plain form."""

    def __init__(self, world, number, wrong):
        self.world, self.wrong, self.plain = world, wrong, {}
        self.rng = np.random.default_rng(number)

    def returned(self):
        """To be called after the call that is tested."""
        if self.wrong:
            raise Accepted


class Argument(NamedTuple):
    """{name: function (context) -> value} of right and of wrong values, and a word of the error message."""

    right: dict
    wrong: dict
    word: str = ""


def values(*found):
    """Makers of constants."""
    return {f"{i}: {arguments.shown(value)}": (lambda c, value=value: value) for i, value in enumerate(found)}


def argument(right, wrong, word=""):
    """An argument whose values are constants."""
    return Argument(values(*right), values(*wrong), word)


def models(*names, wrong=True):
    makers = {name: (lambda c, name=name: c.world.models[name]) for name in names}
    return Argument(makers, values(None, "model", CONFIGS["attention"]) if wrong else {})


def whole(right, low=0, high=None, word=""):
    """A whole number."""
    wrong = [low - 1, -(10**30), float(low + 1), 1.5, True, None, "2", math.nan, np.float32(2), np.zeros(2, int), 1j]
    return argument(
        [*right, np.int64(right[0]), np.array(right[-1])], wrong + ([] if high is None else [high + 1]), word
    )


def real(right, wrong, word=""):
    """A finite number."""
    more = [math.nan, math.inf, -math.inf, np.float32("nan"), 10**400, None, "0.1", True, np.zeros(2)]
    return argument([*right, np.float32(right[0]), np.float64(right[-1])], [*wrong, *more], word)


def fixed(value):
    """An argument that is always right."""
    return Argument({"fixed": value if callable(value) else lambda c: value}, {})


FORMS = {
    "int32": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "int16": lambda x: x.astype(np.int16),
    "big-endian": lambda x: x.astype(">i8"),
    "other order": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.int32).reshape(x.shape),
    "list": lambda x: x.tolist(),
}
WRONG_FORMS = {
    "float": lambda x: x.astype(float),
    "NaN": lambda x: x * math.nan,
    "objects": lambda x: x.astype(object),
    "bool": lambda x: x > 100,
    "text": lambda x: x.astype(str),
    "too large": lambda x: x + V,
    "far too large": lambda x: np.where(x == x.max(), 10**8, x),
    "beyond int32": lambda x: x.astype(np.int64) + 2**32,
    "beyond int64": lambda x: x.astype(np.uint64) + np.uint64(2**63),
    "negative": lambda x: np.where(x == x.min(), -2, x),
    "one more axis": lambda x: x[None, None],
    "no axis": lambda x: 3,
    "None": lambda x: None,
    "name": lambda x: "tokens",
    "ragged": lambda x: [[1, 2], [3]],
    "no element": lambda x: x[..., :0],
}


def ids(name, shape, masked=False, **wrong):
    """Token ids of the shape that shape(context) returns."""

    def maker(form):
        def make(c):
            x = c.rng.integers(-1 if masked else 0, V, shape(c)).astype(np.int32)
            c.plain[name] = x
            return form(x)

        return make

    return Argument(
        {form: maker(change) for form, change in FORMS.items()},
        {form: maker(change) for form, change in (WRONG_FORMS | wrong).items()},
    )


def batch_shape(c):
    return int(c.rng.integers(1, 4)), int(c.rng.integers(1, T + 1))


def like_tokens(c):
    return c.plain["tokens"].shape


def longer(x):
    return np.zeros((B, T + 1), np.int32)


TOKENS = ids("tokens", batch_shape)
TARGETS = ids(
    "targets", like_tokens, masked=True, other_batch=lambda x: np.vstack([x, x]), other_steps=lambda x: x.repeat(2, 1)
)
KEY = argument(
    [None, (1,), (1, 2, 3), [4, np.int64(5)], np.array([1, 2])],
    [3, (), (1, -2), (1.5,), "12", ("a",), np.array([1.5]), np.array(3)],
)
ENTRIES = {}


def entry(*names, **given):
    """A function (context, **given) that calls what these dotted names mean, and checks the result."""

    def add(function):
        for name in names:
            ENTRIES[name] = function, given
        return function

    return add


def named_methods(cls):
    """The public methods of a class."""
    return [name for name, value in vars(cls).items() if not name.startswith("_") and callable(value)]


# Models


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def cross_entropy(logits, targets):
    """(B, T) losses in float64."""
    logits = logits.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    return np.where(targets < 0, 0.0, lse - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0])


@entry(
    "Model",
    config=argument(
        [*CONFIGS.values()], [None, "stories", SIZES, TrainConfig(), ModelConfig(vocab_size=1 << 24, n_embd=1 << 16)]
    ),
    seed=Argument(values(None, 0, 7, np.int64(3), 2**64 - 1), values(-1, 2**64, 1.5, True, "1", np.zeros(2)), "seed"),
    decay=argument(["matrices", "all", np.str_("all")], ["none", "", None, 3]),
    dtype=argument([np.float32, "float32", np.dtype(float)], [np.int32, np.float16, "floaty", 3, object]),
    compute_dtype=argument([None], [np.float16, np.int8, "floaty", "f2", 3.5]),
    device=argument([CPU], ["cpu", None, np]),
    recompute=argument([False, True, np.bool_(True)], [None, 0, 1.0, "yes"]),
    lora=argument([None, LoraConfig(), LoraConfig(lora_rank=2)], [8, "all", dict(lora_rank=2), TrainConfig()]),
)
def call_model(c, **given):
    model = Model(**given)
    c.returned()
    base = model.parameters.frozen if model.lora else model.parameters.weights
    assert base.size == parameter_count(model.config)
    assert sum(view.size for view in model.parameters.weight.values()) >= parameter_count(model.config)
    assert np.isfinite(model.parameters.weights).all()
    again = Model(**given)
    np.testing.assert_array_equal(model.parameters.weights, again.parameters.weights)


# A config too large is refused by the memory that it needs.
ENTRIES["Model"][1]["config"] = ENTRIES["Model"][1]["config"]._replace(word="config|GiB")


@entry(
    "Model.loss", "Model.losses", model=models("attention", "recurrent", wrong=False), tokens=TOKENS, targets=TARGETS
)
def call_loss(c, model, tokens, targets):
    found = model.losses(tokens, targets) if c.rng.integers(2) else model.loss(tokens, targets)
    c.returned()
    found = np.array(found)
    x, y = c.plain["tokens"], c.plain["targets"]
    expected = cross_entropy(model.logits(x), y)
    if found.ndim == 0:
        assert found == model.loss(x, y)
        expected = expected.sum() / max(1, (y >= 0).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@entry(
    "Model.logits",
    model=models("attention", "recurrent", wrong=False),
    tokens=TOKENS._replace(wrong=TOKENS.wrong | {"long": lambda c: longer(None)}, word="tokens"),
)
def call_logits(c, model, tokens):
    found = model.logits(tokens)
    c.returned()
    assert found.shape == (*c.plain["tokens"].shape, V) and np.isfinite(found).all()
    np.testing.assert_array_equal(found, model.logits(c.plain["tokens"]))


def states_of(c):
    return c.world.models["recurrent"].states(len(c.plain["tokens"]))


@entry(
    "Model.loss_and_gradient",
    tokens=TOKENS,
    targets=TARGETS,
    count=Argument(
        values(None, 10**6, np.int64(10**6)),
        values(-1, 1.5, True, "2", math.nan, 10**400) | {"too few": lambda c: int((c.plain["targets"] >= 0).sum()) - 1},
    ),
    key=KEY,
    states=Argument(
        {"None": lambda c: None, "States": states_of},
        {
            "other batch": lambda c: c.world.models["recurrent"].states(len(c.plain["tokens"]) + 1),
            "other model": lambda c: c.world.models["attention"].states(len(c.plain["tokens"])),
            **values(3, "states", [1]),
        },
    ),
)
def call_gradient(c, tokens, targets, count, key, states):
    model = c.world.models["recurrent"]
    model.parameters.gradients.fill(0)
    loss = model.loss_and_gradient(tokens, targets, count, key, states)
    c.returned()
    gradients = model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    again = model.loss_and_gradient(c.plain["tokens"], c.plain["targets"], count, key, states and states_of(c))
    np.testing.assert_array_equal(gradients, model.parameters.gradients)
    assert loss == again and np.isfinite(gradients).all()


@entry(
    "Model.loss_and_gradient with states of attention",
    tokens=TOKENS,
    states=Argument(
        {"None": lambda c: None}, {"States": lambda c: c.world.models["attention"].states(len(c.plain["tokens"]))}
    ),
)
def call_attention_states(c, tokens, states):
    model = c.world.models["attention"]
    found = model.loss_and_gradient(tokens, c.plain["tokens"], states=states)
    c.returned()
    assert math.isfinite(found)


def shape_in(c):
    return c.plain["shape"]


def plan_of(name):
    return lambda c: c.world.models[name].plan(*shape_in(c))


PASS_TOKENS = ids(
    "tokens", lambda c: c.plain.setdefault("shape", batch_shape(c)), other_batch=lambda x: np.vstack([x, x])
)
ACTIVATIONS = Argument({"plan": plan_of("attention")}, {"other model": plan_of("recurrent"), **values(None, 3)})


@entry(
    "Model.forward",
    tokens=PASS_TOKENS,
    activations=ACTIVATIONS,
    dropout=Argument(
        values(model_dropout(CONFIGS["attention"])), values(None, 0.1, model_dropout(ModelConfig(n_layer=2)))
    ),
    states=Argument(
        values(None), {"of attention": lambda c: c.world.models["attention"].states(shape_in(c)[0]), **values(3)}
    ),
)
def call_forward(c, tokens, **given):
    model = c.world.models["attention"]
    found = model.forward(tokens=tokens, **given)
    c.returned()
    weight = model.parameters.weight["embedding.weight"]
    near((found @ weight.T).reshape(*shape_in(c), V).copy(), model.logits(c.plain["tokens"]))


@entry(
    "Model.backward",
    tokens=PASS_TOKENS,
    targets=Argument(
        TARGETS.right | {"flat": ids("targets", lambda c: (math.prod(like_tokens(c)),), masked=True).right["int32"]},
        TARGETS.wrong,
    ),
    activations=ACTIVATIONS._replace(word="activations"),
    scale=real([1.0, 0.01], []),
    normed=Argument(values("forward's"), {"copy": lambda c: "copy", **values(None)}, "forward"),
    between=Argument(
        values("", "other batch"), values("loss", "backward", "other tokens", "other dropout"), "forward|backward"
    ),
)
def call_backward(c, tokens, targets, activations, scale, normed, between):
    model, dropout = c.world.models["attention"], model_dropout(CONFIGS["attention"])
    model.parameters.gradients.fill(0)
    x, shape = c.plain["tokens"], shape_in(c)
    a = model.plan(*shape)
    found = model.forward(a, x, dropout)
    if between == "other batch":
        model.logits(np.zeros((shape[0] + 1, 1), int))
    elif between == "loss":
        model.loss(x, x)
    elif between == "backward":
        model.backward(a, x, x, found, 1.0, dropout)
    elif between == "other tokens":
        tokens = (x + 1) % V
    elif between == "other dropout":
        dropout = dropout._replace(embedding=0)
    given = {"forward's": found, "copy": found.copy()}.get(normed, normed)
    model.backward(activations if c.wrong == "activations" else a, tokens, targets, given, scale, dropout)
    c.returned()
    gradients = model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    y = c.plain["targets"].reshape(shape)
    model.loss_and_gradient(x, y)
    n = scale * max(1, int((y >= 0).sum()))
    np.testing.assert_allclose(gradients, model.parameters.gradients * n, rtol=1e-3, atol=1e-5 * n)


@entry(
    "Model.plan", batch=whole([1, 3], 1)._replace(word="batch"), steps=whole([1, T], 1)._replace(word="steps|tokens")
)
def call_plan(c, batch, steps):
    activations = c.world.models["attention"].plan(batch, steps)
    c.returned()
    assert activations.shared["x"].shape == (batch * steps, 8)
    assert "activations" in activations.arena.table()


for entry_name, name, wrong in (
    ("Model.plan too large", "batch", 10**10),
    ("Model.plan beyond the context", "steps", T + 1),
):

    @entry(entry_name, **{name: argument([1], [wrong], "GiB|context")})
    def call_large_plan(c, batch=1, steps=1):
        assert c.world.models["attention"].plan(batch, steps).batch == 1
        c.returned()


@entry("Model.states", batch=whole([1, 3], 1))
def call_states(c, batch):
    states = c.world.models["recurrent"].states(batch)
    c.returned()
    states.clear()
    assert not states.memory.any() and len(states) == 1


@entry("Model.dropout", key=KEY)
def call_dropout(c, key):
    model = c.world.models["attention"]
    dropout = model.dropout(key)
    c.returned()
    assert dropout == model_dropout(model.config, key)


@entry("Model.full_precision", model=models("attention", "recurrent", wrong=False))
def call_full_precision(c, model):
    x = c.rng.integers(0, V, (B, T))
    assert model.full_precision().loss(x, x) == model.loss(x, x)


@entry("parameter_count", config=argument([*CONFIGS.values()], [None, "gpt2", SIZES, 3]))
def call_count(c, config):
    found = parameter_count(config)
    c.returned()
    assert found == Model(config, None).parameters.weights.size


# Training


RATE = real([1e-3, 0.5], [-1e-3, 10.5])


@entry(
    "AdamW",
    "AdamW.step",
    "AdamW.gradient_norm",
    "AdamW.state",
    parameters=Argument(
        {"own": lambda c: Model(CONFIGS["attention"], seed=2).parameters},
        {**values(None, 3, {}), "model": lambda c: c.world.models["attention"]},
    ),
    learning_rate=RATE,
    weight_decay=real([0.1, 0.0], [-1, 11]),
    beta1=real([0.9, 0.0], [1.0, 0.9999999, -0.1, 2]),
    beta2=real([0.95, 0.0], [1, 0.9999999, -0.1, 2]),
    eps=real([1e-8, 1e-10], [0, -1e-8, 1e-40, 2]),
    grad_clip=real([1.0, 0.0], [-1, 1e10]),
)
def call_adamw(c, parameters, **given):
    optimizer = AdamW(parameters, **given)
    c.returned()
    before = parameters.weights.copy()
    parameters.gradients[:] = g = c.rng.standard_normal(before.size).astype(np.float32)
    norm = optimizer.gradient_norm()
    assert optimizer.step() == norm and abs(norm - np.sqrt((g.astype(float) ** 2).sum())) < 1e-3 * norm
    scale = min(1.0, optimizer.grad_clip / (norm + 1e-6)) if optimizer.grad_clip else 1.0
    m, v = scale * g.astype(float), (scale * g.astype(float)) ** 2  # corrected for the bias after one update
    decay = np.where(np.arange(before.size) < parameters.n_decayed, optimizer.weight_decay, 0.0)
    expected = before - optimizer.learning_rate * (m / (np.sqrt(v) + optimizer.eps) + decay * before)
    np.testing.assert_allclose(parameters.weights, expected, rtol=1e-3, atol=1e-3 * optimizer.learning_rate + 1e-7)
    assert len(optimizer.state()) == 2 * len(parameters.weight)


@entry(
    "AdamW.step with a rate",
    rate=Argument(
        values(None, 0.1, np.float32(0.1)),
        {label: make for label, make in RATE.wrong.items() if "None" not in label},
        "learning_rate",
    ),
    gradient=argument([1.0, 0.0, math.nan, math.inf], []),
    updates=whole([0, 10**6], 0, 2**64 - 1),
    grad_clip=real([1.0, 0.0], [-1, 1e10]),
)
def call_step(c, rate, gradient, updates, grad_clip):
    optimizer = AdamW(Model(CONFIGS["attention"], seed=2).parameters)
    optimizer.updates, optimizer.grad_clip = updates, grad_clip
    before = optimizer.parameters.weights.copy()
    optimizer.parameters.gradients[:] = gradient
    norm = optimizer.step(rate)
    c.returned()
    assert np.isfinite(optimizer.parameters.weights).all() and not optimizer.parameters.gradients.any()
    if not math.isfinite(gradient):  # no update
        assert not math.isfinite(norm) and optimizer.updates == updates
        np.testing.assert_array_equal(optimizer.parameters.weights, before)
    elif gradient:
        assert (optimizer.parameters.weights != before).any()


# Attributes that hold memory of kernels: (the object, the attribute, what it is replaced by).
REPLACED = {
    "config": lambda model, optimizer: (model, "config", ModelConfig(**SIZES | dict(vocab_size=2 * V), n_head=2)),
    "parameters": lambda model, optimizer: (model, "parameters", Model(CONFIGS["recurrent"]).parameters),
    "weights": lambda model, optimizer: (model.parameters, "weights", model.parameters.weights[:-1]),
    "gradients": lambda model, optimizer: (model.parameters, "gradients", np.zeros(3, np.float32)),
    "mean": lambda model, optimizer: (optimizer, "mean", np.zeros(3, np.float32)),
    "square": lambda model, optimizer: (optimizer, "square", optimizer.square.astype(float)),
    "batch": lambda model, optimizer: (Decoder(model, B), "batch", B + 1),
    "memory": lambda model, optimizer: (model.states(B), "memory", np.zeros(3, np.float32)),
}


@entry(
    "Model.parameters",
    change=Argument(values("in place"), {"a tensor": lambda c: "", **values(*REPLACED)}, "write into it"),
)
def call_change(c, change):
    model = Model(CONFIGS["attention"], seed=2)
    optimizer = AdamW(model.parameters)
    if change in REPLACED:
        setattr(*REPLACED[change](model, optimizer))
    elif not change:
        model.parameters.weight["embedding.weight"] = np.zeros((2, 2), np.float32)
    model.parameters.weights *= 0
    x = np.zeros((1, 2), int)
    found = model.loss(x, x)
    c.returned()
    assert abs(found - math.log(V)) < 1e-5


@entry(
    "learning_rate",
    config=argument(
        [TrainConfig(), TrainConfig(lr_schedule="linear", warmup_iters=0)], [None, CONFIGS["attention"], 1e-3]
    ),
    step=whole([0, 1000], 0, 2**64 - 1),
    progress=real([0.5, 0, 1.0, -3.0, 7], []),
)
def call_learning_rate(c, config, step, progress):
    found = learning_rate(config, step, progress)
    c.returned()
    assert 0 <= found <= config.learning_rate and found == learning_rate(config, int(step), float(progress))


OUTPUTS = {
    "int32": lambda: np.full((B, T), 7, np.int32),
    "int64": lambda: np.full((B, T), 7, np.int64),
    "strided": lambda: np.full((B, 2 * T), 7, np.int32)[:, ::2],
    "other order": lambda: np.full((T, B), 7, np.int32).T,
}
WRONG_OUTPUTS = {
    "float": lambda: np.zeros((B, T)),
    "uint16": lambda: np.zeros((B, T), np.uint16),
    "big-endian": lambda: np.zeros((B, T), ">i4"),
    "list": lambda: [[0] * T] * B,
    "None": lambda: None,
    "flat": lambda: np.zeros(T, np.int32),
    "empty": lambda: np.zeros((B, 0), np.int32),
    "read-only": lambda: np.frombuffer(bytes(4 * B * T), np.int32).reshape(B, T),
}


def output(c, name, make):
    c.plain[name] = array = make()
    return array


@entry(
    "random_batch",
    x=Argument(
        *(
            {key: (lambda c, make=make: output(c, "x", make)) for key, make in kind.items()}
            for kind in (OUTPUTS, WRONG_OUTPUTS)
        )
    ),
    y=Argument(
        {key: (lambda c, make=make: make()) for key, make in OUTPUTS.items()},
        {key: (lambda c, make=make: make()) for key, make in WRONG_OUTPUTS.items()}
        | {
            "short": lambda c: np.zeros((B, T - 1), np.int32),
            "more": lambda c: np.zeros((B + 1, T), np.int32),
            "x": lambda c: c.plain["x"],
        },
        r"y\b",
    ),
    tokens=Argument(
        {"corpus": lambda c: c.world.corpus.train, "first": lambda c: c.world.corpus.train.first(50)},
        {**values(None, [1, 2, 3], np.arange(99)), "corpus": lambda c: c.world.corpus},
        "tokens",
    ),
    seed=whole([0, 5], 0, 2**64 - 1),
    purpose=whole([0, 3], 0, 2**64 - 1),
    step=whole([0, 10**9], 0, 2**64 - 1),
)
def call_random_batch(c, x, y, tokens, seed, purpose, step):
    random_batch(x, y, tokens, seed, purpose, step)
    c.returned()
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    assert x.min() >= 0 and max(x.max(), y.max()) < V
    text = bytes(tokens.ids.astype(np.uint8))
    assert all(bytes(row.astype(np.uint8)) in text for row in x)
    again = np.zeros((2, B, T), np.int32)
    random_batch(*again, tokens, int(seed), int(purpose), int(step))
    np.testing.assert_array_equal(again, [x, y])


# Generation


@entry(
    "Decoder",
    model=models("attention", "recurrent"),
    batch=whole([1, 3], 1),
    make_step=argument([None, uncompiled_step], [3, "step", (1,)]),
)
def call_decoder(c, model, batch, make_step):
    decoder = Decoder(model, batch, make_step)
    c.returned()
    assert decoder.step(np.zeros(batch, int)).shape == (batch, V)


@entry(
    "Decoder.read",
    model=models("attention", "recurrent", wrong=False),
    tokens=ids("tokens", lambda c: (B, int(c.rng.integers(1, 2 * T))), other_batch=lambda x: x[:1]),
)
def call_read(c, model, tokens):
    found = Decoder(model, B).read(tokens).copy()
    c.returned()
    x = c.plain["tokens"]
    if x.shape[1] <= T:
        near(found, model.logits(x)[:, -1])
    np.testing.assert_array_equal(found, Decoder(model, B).read(x))


@entry(
    "Decoder.step",
    "Decoder.read_window",
    "Decoder.planned",
    model=models("attention", "recurrent", wrong=False),
    tokens=ids("tokens", lambda c: (B,), other_batch=lambda x: x[:1], matrix=lambda x: np.zeros((B, 2), int)),
    before=argument([0, 1, 5, 11], []),
)
def call_decoder_step(c, model, tokens, before):
    decoder, plain = Decoder(model, B), Decoder(model, B)
    start = c.rng.integers(0, V, (B, before))
    for one in (decoder, plain) if before else ():
        one.read(start)
    if c.rng.integers(2) and isinstance(tokens, np.ndarray) and tokens.shape == (B,):
        tokens = tokens[:, None]
    found = decoder.step(tokens).copy()
    c.returned()
    np.testing.assert_array_equal(found, plain.step(c.plain["tokens"]))
    if before < T:
        near(found, model.logits(np.concatenate([start, c.plain["tokens"][:, None]], 1))[:, -1])


@entry(
    "text_of",
    model=models("attention", "recurrent"),
    tokenizer=Argument({"byte": lambda c: c.world.tokenizer}, values(None, "byte", 3, ByteTokenizer), "tokenizer"),
    prompt=Argument(
        values("ab", "", b"\xff", "\udc80", [97], np.array([97, 98], ">i2")),
        values(None, 3, [], [V], [-1], [1.5], "\ud800", [[1]], ["a"]),
        "prompt|data",
    ),
    max_tokens=whole([3, 0, 5]),
    sampling=argument(
        [SamplingConfig(), SamplingConfig(temp=0.0), SamplingConfig(min_confidence=0.5)], [None, {}, 0.8]
    ),
    stops=argument([(), "ab", ["x", "y"], ("\n",)], [None, b"ab", [b"a"], [3], 3]),
    make_step=argument([None, uncompiled_step], [3, "step"]),
    ends=argument([(), [3], np.array([V + 5])], ["ab", [1.5], ["a"]]),
)
def call_text_of(c, **given):
    found = text_of(**given)
    c.returned()
    assert isinstance(found, str) and len(found) <= given["max_tokens"]
    assert not any(stop in found for stop in ([given["stops"]] if isinstance(given["stops"], str) else given["stops"]))
    assert found == text_of(**given | dict(max_tokens=int(given["max_tokens"])))


# Data


@entry(
    "load_corpus",
    data=Argument(
        {
            "path": lambda c: c.world.text,
            "str": lambda c: str(c.world.text),
            "list": lambda c: [c.world.text],
            "bytes": lambda c: os.fsencode(c.world.text),
        },
        values(None, "", 3, [], [3], ["a,b", "c"], {"a": 1}, "no such file", "a\0b", True),
        "data",
    ),
    val_data=Argument({"path": lambda c: c.world.text, **values("", None)}, values(3, [], [None], "no such file")),
    tokenizer=argument(
        ["byte", np.str_("char"), "stories", ByteTokenizer()], [None, "bite", 3, b"byte", ByteTokenizer]
    ),
    documents=argument(["marker", np.str_("marker")], [None, "none", 3]),
    limit_bytes=whole([0, 500], 0, 1 << 50),
    threads=whole([0, 1], 0, 1024),
    whole=argument(["", "train"], ["test", None, 3]),
    progress=argument([False, np.bool_(False)], [None, 0, "no"]),
    wait=argument([True, np.bool_(True)], [None, 1, "yes"]),
    binary=argument([False, np.bool_(False)], [None, 0, "no"]),
    template=argument([None, Template(before_user="U: ")], [3, "chat", Template]),
    out_dir=argument(["", None], [3, "a\0b", True]),
    cache_dir=Argument(
        {"path": lambda c: c.world.folder / "cache", "str": lambda c: str(c.world.folder / "cache")},
        values(3, "a\0b", True),
    ),
)
def call_load_corpus(c, **given):
    if given["whole"] == "train" and c.wrong != "val_data":
        given["val_data"] = ""
    corpus = load_corpus(**given)
    c.returned()
    ids = np.concatenate([corpus.train.ids, corpus.validation.ids])
    assert ids.max() < corpus.vocab_size
    start = corpus.tokenizer.decode(ids[:100])
    assert c.world.text.read_bytes().startswith(start) and start


@entry("load_corpus's Tokens", n=whole([0, 5, 10**9]))
def call_first(c, n):
    tokens = c.world.corpus.train
    found = tokens.first(n)
    c.returned()
    assert len(found) == min(n, len(tokens)) and tokens.sample() is tokens


def tokenizers(c):
    return [ByteTokenizer(), ByteTokenizer(end=True), CharTokenizer(LETTERS), PlainBPE.stories()][c.rng.integers(4)]


@entry(
    "tokenizer.encode",
    data=argument(
        ["abc", b"abc", bytearray(b"ha"), "", "a bad cafe"[:4]],
        [None, 3, ["a"], "\ud800", np.zeros(3, np.uint8).tolist()],
    ),
    begins=argument([True, False], []),
)
def call_encode(c, data, begins):
    tokenizer = tokenizers(c)
    found = tokenizer.encode(data, begins)
    c.returned()
    assert tokenizer.decode(found) == (data.encode() if isinstance(data, str) else bytes(data))


@entry(
    "tokenizer.decode",
    ids=argument(
        [[], 3, [0, 1, 2], np.array([5, 6], np.uint16), np.int64(1), ([1, 2], [3, 4])],
        [[1.5], [math.nan], "ab", None, [None], [10**9], [-1], [2**70], [[1], [1, 2]], [True]],
        "ids?",
    ),
)
def call_decode(c, ids):
    tokenizer = tokenizers(c)
    found = tokenizer.decode(ids)
    c.returned()
    assert tokenizer.encode(found).tolist() == np.asarray(ids, int).reshape(-1).tolist()


@entry("tokenizer.stream", after=argument([(), [1, 2], np.array([3], np.uint16)], [[1.5], "ab", None, [None]]))
def call_stream(c, after):
    tokenizer = tokenizers(c)
    stream = tokenizer.stream(after)
    c.returned()
    assert "".join([*(stream.push(id) for id in tokenizer.encode("abc")), stream.flush()]) == "abc"


@entry(
    "tokenizer.save",
    "tokenizer.to_bytes",
    path=Argument(
        {"path": lambda c: c.world.folder / "t.json", "str": lambda c: str(c.world.folder / "t.json")},
        values(None, 3, "", "a\0b", True),
        "path",
    ),
)
def call_save(c, path):
    tokenizer = tokenizers(c)
    tokenizer.save(path)
    c.returned()
    assert Path(path).read_bytes() == tokenizer.to_bytes()


@entry("tokenizer.with_end")
def call_with_end(c):
    tokenizer = tokenizers(c).with_end()
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1 and tokenizer.decode([tokenizer.end_of_text]) == b""


@entry(
    "load",
    path=Argument(
        {"path": lambda c: c.world.run, "str": lambda c: str(c.world.run)},
        values(None, 3, "", "no such run", True, "a\0b"),
        "path|run.json|no such run",
    ),
    device=argument(["cpu", np.str_("cpu")], ["tpu", "", None, 3, CPU], r"^device (?!cuda)"),
)
def call_load(c, path, device):
    run = load(path, device)
    c.returned()
    x = c.rng.integers(0, V, (B, T))
    assert 0 < run.model.loss(x, x) < 20 and run.tokenizer.vocab_size == V and isinstance(run.sampling, SamplingConfig)


# Settings


@entry(
    "preset",
    name=argument(["stories", "mamba", np.str_("slim")], ["storie", "", None, 3, ["slim"]], "preset"),
    model=argument(
        [None, {}, dict(n_layer=np.int64(1)), dict(vocab_size=300)],
        [3, [1], {"n_leyer": 1}, {3: 1}, {"n_layer": 1.5}, {"vocab_size": np.zeros(3)}],
        "model|n-layer|vocab-size",
    ),
    train=argument(
        [None, {}, dict(seed=3), dict(data=Path("t.txt"))],
        ["x", {"sead": 1}, {"seed": "x"}, {"max_iters": np.zeros(3)}, dict(max_iters=3, fit_time="9s")],
        "train|seed|max-iters|fit-time",
    ),
    chosen=argument([None, {}, dict(n_layer=2, seed=4)], [3, [1], {"n_leyer": 1}, {3: 1}], "chosen"),
)
def call_preset(c, name, model, train, chosen):
    config, recipe = preset(name, model, train, chosen)
    c.returned()
    assert isinstance(config, ModelConfig) and isinstance(recipe, TrainConfig)
    assert (config, recipe) == preset(str(name), model, train, chosen)
    if chosen:
        assert (config.n_layer, recipe.seed) == ((model or {}).get("n_layer", 2), (train or {}).get("seed", 4))


WRONG_SETTINGS = {
    int: [1.5, True, "3", None, math.nan, -(10**9) - 1, 10**400, np.float32(2), np.zeros(2)],
    float: [math.nan, math.inf, -math.inf, True, "0.1", None, 10**400, np.zeros(2)],
    str: [3, None, b"a", {"a": 3}, np.zeros(2)],
    bool: [1, None, "yes", 0.0, np.zeros(2)],
}


def wrong_settings(field):
    """Wrong values of a field of a settings class."""
    rule, low, high = field.metadata, field.metadata["low"], field.metadata["high"]
    found = [*WRONG_SETTINGS[type(field.default)]]
    found += [low - 1] if low is not None else []
    found += [high * 2] if high is not None else []
    found += [rule["above"]] if rule["above"] is not None else []
    found += ["no such choice", Path("path")] if rule["choices"] else []
    found += [[], [3], ["a,b", "c"], [None]] if rule["many"] else []
    return found


def settings_entry(kind):
    fields = kind.__dataclass_fields__

    def right(c):
        field = list(fields)[c.rng.integers(len(fields))]
        value = fields[field].default
        forms = {int: [int, np.int64], float: [float, np.float64], str: [str, np.str_], bool: [bool, np.bool_]}
        return {field: forms[type(value)][c.rng.integers(2)](value)}

    wrong = {
        f"{name}={arguments.shown(value)}": (lambda c, name=name, value=value: {name: value})
        for name, field in fields.items()
        for value in wrong_settings(field)
    }

    @entry(kind.__name__, changes=Argument({"right": right}, wrong, "--"))
    def call_settings(c, changes):
        found = kind(**changes)
        c.returned()
        assert found == kind()
        assert all(type(getattr(found, name)) is type(field.default) for name, field in fields.items())


for settings_kind in (LoraConfig, ModelConfig, TrainConfig, SamplingConfig):
    settings_entry(settings_kind)


@entry(
    "TrainConfig.data", data=argument(["a.txt", Path("a.txt"), ["a.txt"], ("a.txt",)], [[], [3], ["a,b", "c"], 3, None])
)
def call_train_data(c, data):
    found = TrainConfig(data=data, out_dir=Path("run"))
    c.returned()
    assert (found.data, found.out_dir) == ("a.txt", "run")


@entry(
    "UserError",
    way=argument([copy.copy, copy.deepcopy, "pickle"], []),
    thing=argument(["model", "decoder", "corpus", "error"], []),
)
def call_copies(c, way, thing):
    def copied(value):
        return pickle.loads(pickle.dumps(value)) if way == "pickle" else way(value)

    x, model = c.rng.integers(0, V, (B, T)), c.world.models["attention"]
    if thing == "model":
        assert copied(model).loss(x, x) == model.loss(x, x)
    elif thing == "decoder":
        decoder = Decoder(model, B)
        decoder.read(x)
        np.testing.assert_array_equal(copied(decoder).step(x[:, 0]), decoder.step(x[:, 0]))
    elif thing == "corpus":
        np.testing.assert_array_equal(copied(c.world.corpus).train.ids, c.world.corpus.train.ids)
    else:
        assert str(copied(UserError("one sentence"))) == "one sentence"


# Running calls


class Call(NamedTuple):
    """One call: the name of its entry, which value each argument has, the wrong argument or "", a seed of numbers."""

    entry: str
    chosen: dict
    wrong: str
    number: int


@st.composite
def calls(draw):
    """A Call: half of them right, half with one wrong argument."""
    name = draw(st.sampled_from(sorted(ENTRIES)))
    choices = ENTRIES[name][1]
    refusable = [key for key, one in choices.items() if one.wrong]
    wrong = draw(st.sampled_from(refusable)) if refusable and draw(st.booleans()) else ""
    chosen = {
        key: draw(st.sampled_from(list(one.wrong if key == wrong else one.right))) for key, one in choices.items()
    }
    return Call(name, chosen, wrong, draw(st.integers(0, 2**32 - 1)))


def drawn_calls(n, start):
    """n Calls, the same ones for the same `start`."""
    found = []
    while len(found) < n:

        @seed(start + len(found))
        @settings(
            max_examples=n - len(found),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(calls())
        def collect(call):
            found.append(call)

        collect()
    return found[:n]


def every_wrong_value(times):
    """Calls in which each wrong value of each argument occurs `times` times, among random right ones."""
    rng = np.random.default_rng(times)

    def one(options):
        return list(options)[rng.integers(len(options))]

    return [
        Call(
            name,
            {key: label if key == wrong else one(argument.right) for key, argument in choices.items()},
            wrong,
            int(rng.integers(2**32)),
        )
        for name, (_, choices) in ENTRIES.items()
        for wrong, refused in choices.items()
        for label in refused.wrong
        for _ in range(times)
    ]


def failure(world, call):
    """What is wrong with the end of a call, or ""."""
    import re

    function, choices = ENTRIES[call.entry]
    context = Context(world, call.number, call.wrong)
    try:
        given = {}
        for name, one in choices.items():
            given[name] = (one.wrong if name == call.wrong else one.right)[call.chosen[name]](context)
    except Exception as error:  # of the test itself
        return f"the argument {name} cannot be made: {error!r}"
    try:
        with np.errstate(all="ignore"):
            function(context, **given)
    except UserError as error:
        if not call.wrong:
            return f"a right call is refused: {error}"
        word = choices[call.wrong].word or r"\b" + call.wrong.replace("_", "[-_]") + r"\b"
        return "" if re.search(word, str(error)) else f"the error does not name {call.wrong}: {error}"
    except Accepted:
        return f"silent nonsense, a wrong {call.wrong} is accepted"
    except AssertionError as error:
        return f"silent nonsense, {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"silent nonsense, a wrong {call.wrong} is accepted" if call.wrong else ""


def run_calls(found, record):
    """Make the Calls one after another; `record` gets each before it is made. Returns [(call, failure)]."""
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        for call in found:
            record(call)
            if problem := failure(world, call):
                failures.append((call, problem))
    return failures


def fuzz(n, start=0, timeout=1200):
    """{"tried", "refused", "failures", "crashed"} of n random calls in a process of its own.

    failures: sentences with the call.   crashed: the call that ended the process, or ""
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.txt"
        done = subprocess.run(
            [sys.executable, __file__, str(n), str(start), record],
            env=small.environment(
                PYTHONPATH=os.pathsep.join([str(Path(slm_np.__file__).parents[1]), str(Path(__file__).parent)])
            ),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )
        lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | dict(crashed="")
        last = lines[-1] if lines else "before the first call"
        return dict(
            tried=len(lines), refused=0, failures=[], crashed=f"{last}: exit status {done.returncode}\n{done.stderr}"
        )


def main():
    n, start, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    found = drawn_calls(n, start)
    with open(path, "w", encoding="utf-8", buffering=1) as file:
        failures = run_calls(found, lambda call: print(call, file=file))
    counts = dict(tried=n, refused=sum(call.wrong != "" for call in found))
    print(json.dumps(counts | dict(failures=[f"{call}: {problem}" for call, problem in failures])))


if __name__ == "__main__":
    main()
