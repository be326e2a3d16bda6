"""Adapters in GGUF files: llama.cpp applies them to the GGUF file of the base."""

import gguf_models
import numpy as np
import pytest
from llama_server import serving

from slm_np.formats.gguf import adapter as gguf_adapter
from slm_np.formats.gguf import file as gguf_file
from slm_np.formats.lora_adapter import LoraAdapter, blocks, merged_tensors
from slm_np.nn.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")
gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

IDS = list(range(60, 90))


def adapter_of(config, tmp_path, modules):
    """A LoraAdapter with random tensors. modules: {suffix of a module's name: (rank, scale)}"""
    draw, tensors, scales = np.random.default_rng(5).standard_normal, {}, {}
    shapes = {name: array.shape for name, array in Model(config).parameters.weight.items()}
    for name, block in blocks(config).items():
        wanted = next((found for end, found in modules.items() if name.endswith(f".{end}")), None)
        if wanted:
            rank, scales[name] = wanted
            tensors[f"{name}.lora_A"] = (draw((shapes[block.tensor][0], rank)) * 0.3).astype(np.float32)
            tensors[f"{name}.lora_B"] = (draw((rank, block.stop - block.start)) * 0.3).astype(np.float32)
    return LoraAdapter(tmp_path, "base", tensors, scales)


ATTENTION = {"attention.q": (3, 0.5), "attention.k": (2, 1.0), "attention.output": (4, 0.25)}
CASES = {
    "llama": ATTENTION | {"feed_forward.up": (3, 1.0)},
    "qwen3": ATTENTION | {"feed_forward.gate": (3, 0.5), "feed_forward.output": (2, 0.7)},
    "gpt2": {"attention.qkv": (4, 0.5), "feed_forward.input": (2, 0.5)},
    "gptneox": {"attention.q": (4, 0.5), "attention.v": (2, 0.75), "feed_forward.output": (4, 0.5)},
    "mamba": {"in_proj": (2, 0.5), "out_proj": (3, 0.5)},
}


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_applies_the_adapter(tmp_path, name):
    made = gguf_models.model(name)
    adapter = adapter_of(made.config, tmp_path, CASES[name])
    gguf_file.write(gguf_models.parts(made), tmp_path / "base.gguf")
    gguf_adapter.write(made.config, adapter, tmp_path / "adapter.gguf")
    merged = Model(made.config, None)
    for key, array in merged_tensors(made.config, made.parameters.weight.items(), adapter):
        merged.parameters.weight[key][...] = array
    wanted, before = (gguf_models.log_probabilities(model, IDS) for model in (merged, made))
    assert np.abs(wanted - before).max() > 0.3
    with serving(tmp_path / "base.gguf", adapter=tmp_path / "adapter.gguf") as server:
        found = server.log_probabilities(IDS, made.config.vocab_size)
    np.testing.assert_allclose(found, wanted, atol=5e-3)  # GELU goes through a table in float16
