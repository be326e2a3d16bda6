"""Settings with any values: the result is a valid configuration or a `UserError` of one line, never anything else."""

import dataclasses
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_np.cli import flags
from slm_np.cli.own_text import OwnText, is_own_text
from slm_np.cli.settings import settings as settings_of
from slm_np.config import ModelConfig, SamplingConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.nn.model import parameter_count
from slm_np.presets import PRESETS, preset
from slm_np.train import parser

KINDS = (ModelConfig, TrainConfig, SamplingConfig)
CHOICES = sorted(
    {choice for kind in KINDS for field in dataclasses.fields(kind) for choice in field.metadata["choices"] or ()}
)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 70),
    st.sampled_from([2**63, 10**400, -(10**30)]),
    st.floats(),
    st.floats(0, 1),
    st.text(),
    st.sampled_from(CHOICES),
    st.sampled_from(["", "A", "AA", "3s", "-3m", "nanh", "1e9h", "stories"]),
    st.binary(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(), st.integers(), max_size=2),
)


def likely(kind):
    """Values that are often right for each field: of its type, small."""

    def value(field):
        default = field.default
        if field.metadata["choices"]:
            return st.sampled_from(field.metadata["choices"])
        return {bool: st.booleans(), int: st.integers(0, 12), float: st.floats(0, 1), str: st.just(default)}[
            type(default)
        ]

    return st.fixed_dictionaries({}, optional={field.name: value(field) for field in dataclasses.fields(kind)})


def built(make):
    """What `make` returns, or None after a UserError of one line."""
    try:
        return make()
    except UserError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_of_any_field(kind, data):
    values = data.draw(likely(kind)) | data.draw(
        st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(kind)]), ANYTHING, max_size=3)
    )
    config = built(lambda: kind(**values))
    if config is None:
        return
    for field in dataclasses.fields(kind):
        value, rule = getattr(config, field.name), field.metadata
        assert type(value) is type(field.default)
        assert not rule["choices"] or value in rule["choices"]
        if type(value) in (int, float):
            assert (
                math.isfinite(value)
                and (rule["low"] is None or value >= rule["low"])
                and (rule["high"] is None or value <= rule["high"])
            )
    assert dataclasses.replace(config) == config and kind(**dataclasses.asdict(config)) == config  # what run.json keeps


@settings(max_examples=200, deadline=None)
@given(likely(ModelConfig))
def test_valid_models_have_parameters(values):
    config = built(lambda: ModelConfig(**values))
    if config is not None:
        assert parameter_count(config) >= config.vocab_size * config.n_embd
        assert not config.has_attention or config.n_head % config.n_kv_head == 0


def test_presets_are_valid_and_changes_win():
    for name in PRESETS:
        model, train = preset(name)
        assert built(lambda: preset(name, dict(n_layer=3), dict(seed=7)))[0].n_layer == 3
        assert parameter_count(model) > 10**5 and train.max_iters > 0
    assert parameter_count(preset("byte-transformer")[0]) == 2_424_832


def from_flags(words):
    """(model, train) configurations from flags, as `train` makes them, or None after a UserError."""
    name, model, train = settings_of(parser().parse(words))
    if not name and is_own_text(train):
        return OwnText("own-text", model, train).nominal()
    return preset(name or "stories", model, train)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [f"--{field.name.replace('_', '-')}" for kind in KINDS[:2] for field in dataclasses.fields(kind)]
                + ["--preset", "--bias", "--no-bias", "--resume"]
            ),
            st.text(max_size=8),
            st.integers().map(str),
            st.floats().map(str),
            st.sampled_from(CHOICES + list(PRESETS)),
        ),
        max_size=8,
    )
)
def test_any_flags(words):
    words = [word for word in words if word not in ("-h", "--help")]
    found = built(lambda: from_flags(words))
    assert found is None or [type(config) for config in found] == [ModelConfig, TrainConfig]


def from_file(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.toml"
        path.write_bytes(content)
        return from_flags(["--config", str(path)])


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        st.text("ab=[]{}\"'#\n.,-+0123_: ", max_size=40).map(str.encode),
    )
)
def test_any_bytes_as_a_config_file(content):
    built(lambda: from_file(content))


TOML = st.recursive(
    st.one_of(
        st.integers(-(10**25), 10**25).map(str),
        st.floats().map(str),
        st.booleans().map(lambda value: str(value).lower()),
        st.sampled_from(CHOICES + list(PRESETS) + ["3s", "a.txt"]).map(lambda text: f"'{text}'"),
        st.sampled_from(["1979-05-27", "07:32:00", '"\\u0000"', '"a\\nb"']),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        inner.map(lambda part: f"{{ a = {part} }}"),
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [field.name.replace("_", "-") for kind in KINDS[:2] for field in dataclasses.fields(kind)]
            + ["preset", "model", "n-layers"]
        ),
        TOML,
        max_size=4,
    )
)
def test_any_values_in_a_config_file(values):
    built(lambda: from_file("".join(f"{key} = {value}\n" for key, value in values.items()).encode()))


def test_every_flag_reaches_its_field():
    for kind in KINDS[:2]:
        for field in dataclasses.fields(kind):
            value = (
                field.metadata["choices"][-1]
                if field.metadata["choices"]
                else {bool: "", int: "2", float: "0.5", str: "A" if field.name == "pattern" else "3s"}[
                    type(field.default)
                ]
            )
            words = [flags.flag(field.name)] + ([value] if value else [])
            found = flags.given(parser().parse(words), kind)
            assert (
                list(found) == [field.name]
                and type(found[field.name]) is type(field.default)
                and str(found[field.name]) == (value or "True")
            )
