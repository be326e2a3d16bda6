"""What the preset own-text leaves to the text and the time: always a valid run, larger for more of either."""

import dataclasses
import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from slm_np.config import ModelConfig, TrainConfig
from slm_np.ops.device import CPU
from slm_np.presets import PRESETS, preset
from slm_np.training import own_text
from slm_np.training.own_text import PRESET, chosen, rate_of, time_of

RATE = 3e11  # operations per second
MINUTES = 180 * RATE  # operations of the default time
SIZES = st.floats(0, 12).map(lambda digits: int(10**digits))  # 1 byte to 1 TB
TIMES = st.floats(0, math.log10(86_400)).map(lambda digits: 10**digits)  # 1 s to 1 day


def made(n_bytes, seconds=None, **given):
    """(ModelConfig, TrainConfig) for a text of so many bytes. seconds: a --fit-time; None for the preset's own."""
    given |= {} if seconds is None else dict(fit_time=f"{seconds:.3f}s")
    model, train, lines = chosen(n_bytes, RATE * (seconds or 180), given, "2 cores")
    assert len(lines) == 2 and not any("\n" in line for line in lines)
    ours = {field: value for field, value in given.items() if field in ModelConfig.__dataclass_fields__}
    theirs = {field: value for field, value in given.items() if field in TrainConfig.__dataclass_fields__}
    assert ours.keys() | theirs.keys() == given.keys()
    return preset(PRESET, ours, theirs, model | train)


def vocabulary(train):
    return 256 if train.tokenizer == "byte" else int(train.tokenizer.removeprefix("bpe:"))


@settings(max_examples=300, deadline=None)
@drawn(SIZES, TIMES)
def test_every_size_and_time_gives_a_valid_run(n_bytes, seconds):
    model, train = made(n_bytes, seconds)
    assert model.n_head * model.head_dim == model.n_embd and model.n_embd % 32 == model.n_hidden % 32 == 0
    assert 4 <= train.batch_size <= 32 and model.block_size in (8, 16, 32, 64, 128, 256)
    assert train.tokenizer == "byte" or 512 <= vocabulary(train) <= 8192
    assert vocabulary(train) * model.n_embd <= max(12 * model.n_layer * model.n_embd**2, 512 * model.n_embd)
    assert train.optimizer == "muon" and model.qk_norm and train.fit_seconds == pytest.approx(seconds, abs=1e-3)
    _, free = made(n_bytes)
    assert free.fit_time == "3m" or not free.fit_time and 0 < free.max_iters


@settings(max_examples=200, deadline=None)
@drawn(SIZES, SIZES, TIMES, TIMES)
def test_a_longer_text_or_time_gives_no_smaller_model(one, other, short, long):
    (small, few), (large, many) = (made(size, short) for size in sorted((one, other)))
    assert (small.n_embd, small.n_layer, small.block_size) <= (large.n_embd, large.n_layer, large.block_size)
    assert vocabulary(few) <= vocabulary(many)
    (quick, first), (slow, second) = (made(one, seconds) for seconds in sorted((short, long)))
    assert (quick.n_embd, quick.n_layer) <= (slow.n_embd, slow.n_layer)
    assert first.batch_size <= second.batch_size and vocabulary(first) <= vocabulary(second)


def test_a_short_text_a_novel_and_a_library():
    (short, brief), (novel, middle), (library, long) = map(made, (20_000, 1_115_394, 100_000_000))
    assert short.n_embd < novel.n_embd and short.dropout >= novel.dropout >= library.dropout == 0 < short.dropout
    assert (brief.tokenizer, middle.tokenizer) == ("byte", "bpe:1024") and vocabulary(long) > 1024
    assert short.block_size < novel.block_size == library.block_size
    assert (middle.fit_time, long.fit_time) == ("3m", "3m")
    passes = brief.max_iters * brief.batch_size * short.block_size / 20_000
    assert not brief.fit_time and passes == pytest.approx(own_text.MOST_PASSES, rel=0.1)


@settings(max_examples=300, deadline=None)
@drawn(
    SIZES,
    st.fixed_dictionaries(
        {},
        optional=dict(
            n_layer=st.integers(1, 12),
            n_embd=st.sampled_from([16, 48, 256, 1024]),
            n_head=st.sampled_from([1, 2, 4]),
            n_kv_head=st.sampled_from([0, 1]),
            n_hidden=st.integers(1, 500),
            block_size=st.integers(1, 2000),
            dropout=st.sampled_from([0.0, 0.3]),
            bias=st.booleans(),
            feed_forward=st.sampled_from(["swiglu", "gelu"]),
            batch_size=st.integers(1, 100),
            tokenizer=st.sampled_from(["char", "gpt2", "bpe:300", "bpe:x", "file:a.json"]),
            learning_rate=st.floats(1e-4, 1e-2),
            weight_decay=st.floats(0, 1),
            seed=st.integers(0, 9),
        ),
    ),
    st.sampled_from([{}, dict(max_iters=0), dict(max_iters=700), dict(epochs=2.5), dict(max_time="5s")]),
)
def test_each_choice_can_be_overridden(n_bytes, changes, length):
    configs = made(n_bytes, **changes, **length)
    found = {field: value for config in configs for field, value in dataclasses.asdict(config).items()}
    for field, value in (changes | length).items():
        assert found[field] == value or (field, value) == ("n_kv_head", 0)
    if length:
        assert not found["fit_time"]


@pytest.mark.parametrize(
    "given",
    [
        dict(n_head=6),
        dict(n_head=10),
        dict(n_kv_head=3, n_head=6),
        dict(n_kv_head=2),
        dict(head_dim=48),
        dict(rotary_dim=40),
        dict(pattern="M"),
        dict(pattern="MA"),
        dict(feed_forward="none"),
        dict(optimizer="adamw"),
        dict(lr_schedule="constant"),
        dict(binary=True),
    ],
)
@pytest.mark.parametrize("n_bytes", [20_000, 10**6, 10**9])
def test_other_choices_follow_from_what_is_given(given, n_bytes):
    model, train = made(n_bytes, **given)
    assert all(value in (getattr(model, field, None), getattr(train, field, None)) for field, value in given.items())


def test_the_width_decides_heads_and_layers():
    for width, heads, layers in ((100, 2, 4), (192, 6, 4), (256, 8, 6), (640, 10, 8), (7, 1, 4)):
        model, _, _ = chosen(10**6, MINUTES, dict(n_embd=width))
        assert (model["n_head"], model["n_layer"]) == (heads, layers)


def test_the_lines_say_what_and_why():
    model, _, (what, why) = chosen(1_115_394, 2 * MINUTES, {}, "2 cores")
    size = f"{model['n_layer']} layers of width {model['n_embd']} on bpe:1024, 256 tokens of context"
    assert what == f"own text: 1,115,394 bytes and 3m on 2 cores (about {2 * MINUTES / 1e15:.2g} PFLOP): {size}"
    assert re.fullmatch(
        rf"it reads the text about \d+ times, so dropout is {model['dropout']:g}; change anything by its flag, for "
        r"instance --n-embd \d+ --dropout 0",
        why,
    )
    short, why = chosen(20_000, MINUTES, dict(n_embd=96), "1 core")[2]
    assert re.search(r"20,000 bytes and \d+ updates on 1 core .* on byte, 128 tokens", short)
    assert "so dropout is 0.2;" in why and why.endswith("more text would help more than anything else")
    assert "--n-embd" not in why
    for given, said in (
        (dict(dropout=0.0), "times; change"),
        (dict(epochs=3.0), "reads the text about 3 times, so there is no dropout"),
        (dict(max_iters=0), "reads less than 1% of the text"),
        (dict(fit_time="20m", n_embd=64, dropout=0.1), "for instance --weight-decay 0.2"),
    ):
        assert said in chosen(10**6, MINUTES, given)[2][1]
    assert "2.5 epochs on" in chosen(10**7, MINUTES, dict(epochs=2.5))[2][0]
    assert re.search(r"reads about \d+% of the text, so there is no dropout", chosen(10**8, MINUTES, {})[2][1])


def test_the_time_of_a_run():
    assert time_of({}) == PRESETS[PRESET]["train"]["fit_time"]
    assert time_of(dict(fit_time="9s")) == time_of(dict(max_time="9s")) == "9s"


def test_the_rate_follows_from_the_machine():
    kernels = SimpleNamespace(
        matmul_name=lambda: "AVX2 register tiles",
        thread_count=lambda: 3,
        bfloat16_unit=lambda: SimpleNamespace(fast=False),
    )
    cpu = SimpleNamespace(name="cpu", kernels=kernels, resolve_dtype=lambda dtype: "fp32" if dtype == "auto" else dtype)
    slow = rate_of(cpu, "auto")
    assert slow == rate_of(cpu, "bf16") == 3 * own_text.RATES["AVX2"]  # bfloat16 would be no faster
    kernels.bfloat16_unit = lambda: SimpleNamespace(fast=True)
    assert rate_of(cpu, "fp32") == slow < rate_of(cpu, "bf16")
    for name in (
        "AVX-512 register tiles",
        "NEON register tiles",
        "register tiles",
        "Accelerate",
        "NumPy with OpenBLAS",
    ):
        kernels.matmul_name = lambda: name
        assert rate_of(cpu, "auto") > 0
    assert rate_of(SimpleNamespace(name="cuda"), "auto") > 10 * slow
    assert rate_of(CPU, "auto") > 0
