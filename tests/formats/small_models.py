"""Tiny models in every format that this package reads, made from one run."""

import numpy as np
import small
from test_convert import checkpoint_bytes, tokenizer_bytes, tokens_of

from slm_np.formats.conversion import convert

LETTERS = [" the", " cat", " t", "he", " c", "at", "s", "b", "r", " a", "o", "n", "d"]


def make(folder):
    """{format: path} of one model in each format, with the same random weights, and of a file of llama2.c."""
    data = small.text_file(folder)
    sizes = dict(vocab_size=257, n_kv_head=1, n_embd=32, n_hidden=64)  # rows of Q8_0 have multiples of 32 columns
    trainer = small.trainer(data, folder / "run", max_iters=2, documents="line", **sizes)
    trainer.train()
    found = {"run": folder / "run"}
    for dtype in ("f32", "bf16"):
        found[f"directory {dtype}"] = convert(folder / "run", folder / dtype, dtype=dtype).path
    for dtype in ("f32", "q8_0"):
        found[f"GGUF {dtype}"] = convert(folder / "run", folder / f"{dtype}.gguf", dtype=dtype).path
    tokens = tokens_of(LETTERS)
    (folder / "llama2c.bin").write_bytes(checkpoint_bytes(vocab=len(tokens)))
    (folder / "tokenizer.bin").write_bytes(tokenizer_bytes(tokens))
    return found | {"llama2.c": folder / "llama2c.bin"}


def weights(parts):
    """{name: array} of `ModelParts`, copied."""
    return {name: np.array(array) for name, array in parts.tensors()}


def assert_close(one, other, share=0.0):
    """Assert the same names, and values that differ by at most this share of the largest."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=share * np.abs(one[name]).max(), err_msg=name)
