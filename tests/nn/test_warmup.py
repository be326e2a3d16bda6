"""What `warmup.prepare` compiles is all that a model of each preset needs: nothing is compiled in this process."""

import dataclasses

import numpy as np
import pytest
from numba.core import event

from slm_np.config import SamplingConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.dtypes import BF16
from slm_np.inference.decoder import decoding, sampling, uncompiled_step
from slm_np.inference.generation import text_of
from slm_np.nn import warmup
from slm_np.nn.model import Model
from slm_np.ops.device import CPU
from slm_np.presets import PRESETS, preset
from slm_np.training.muon import Muon
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.skipif(CPU.kernel_set != "numba", reason="the NumPy kernels are not compiled")
SEVERAL = [(name, None) for name in PRESETS if not name.endswith(("large", "-8", "-11"))] + [
    ("stories", BF16),
    ("mamba", BF16),
]


class Compiled(event.Listener):
    """The names of the kernels that this process compiles."""

    def __init__(self):
        self.names = []

    def on_start(self, event):
        self.names.append(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event):
        pass


def smaller(config):
    """A model that takes a moment, with sizes that fill no tile."""
    sizes = dict(n_layer=max(2, len(config.pattern)), n_embd=44, vocab_size=300, block_size=37, n_hidden=70)
    sizes |= dict(n_head=min(2, config.n_head), head_dim=0, n_kv_head=0, n_inner=50, recurrence_size=52, head_hidden=0)
    return dataclasses.replace(config, **{name: value for name, value in sizes.items() if name not in config.unused})


@pytest.mark.slow
@pytest.mark.parametrize("name, compute_dtype", SEVERAL, ids=[f"{name}-{dtype and 'bf16'}" for name, dtype in SEVERAL])
def test_every_preset_runs_on_what_was_prepared(name, compute_dtype):
    check_prepared(smaller(preset(name)[0]), compute_dtype)


@pytest.mark.slow
@pytest.mark.parametrize("compute_dtype", [None, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        dict(qkv_bias="on", pattern="LAN", window=20, score_scale=0.5),
        dict(parallel=True, rotary_dim=8, norm="layernorm", feed_forward="gelu", bias=True, qkv_bias="off"),
    ],
    ids=["local", "parallel"],
)
def test_other_attention_runs_on_what_was_prepared(changes, compute_dtype):
    check_prepared(smaller(preset("stories", changes)[0]), compute_dtype)


def check_prepared(config, compute_dtype):
    """Assert that a model compiles nothing after `warmup.prepare`."""
    model = Model(config, compute_dtype=compute_dtype)
    warmup.prepare(model, warmup.training, warmup.muon, sampling, decoding)
    tokens = np.random.default_rng(0).integers(0, 256, (5, config.block_size), dtype=np.int32)
    states = None if config.has_attention else model.states(5)
    listener, optimizers = Compiled(), (AdamW(model.parameters, 1e-3), Muon(model.parameters, config))
    with event.install_listener("numba:compile", listener):
        model.loss_and_gradient(tokens, tokens, key=(1, 2, 3), states=states)
        for optimizer in optimizers:
            optimizer.step()
        model.loss(tokens[:1, :1], tokens[:1, :1])
        model.full_precision().loss(tokens, tokens)
        model.logits(tokens)
        for make_step in (uncompiled_step, None):
            text_of(model, ByteTokenizer(), "a prompt", 4, SamplingConfig(), make_step=make_step)
    assert listener.names == []


def test_a_model_prepares_the_kernels_of_its_parts_only(monkeypatch):
    prepared = []
    monkeypatch.setattr(CPU, "prepare", lambda key, run: prepared.append(key[0]))
    model = Model(smaller(preset("mamba")[0]))
    warmup.prepare(model, warmup.training)
    warmup.prepare(model, warmup.training)
    assert [(config.pattern, config.norm) for config in prepared] == [("M", "rmsnorm")]
    assert warmup.twin_config(prepared[0]) == prepared[0]
