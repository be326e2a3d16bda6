"""GGUF files: round trips, and one sentence for each fault of a file."""

import struct
import sys

import gguf_models as models
import numpy as np
import pytest

from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.errors import UserError
from slm_np.formats.gguf import file as gguf_file
from slm_np.formats.gguf import header as gguf_header
from slm_np.formats.gguf.architecture import architecture_of
from slm_np.formats.gguf.layout import frequency_divisors
from slm_np.nn.model import parameters

gguf = pytest.importorskip("gguf", reason="the package gguf, which GGUF files need, is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

# Rounding errors, relative to the value or, with q8_0, to the largest value of its block.
ROUNDING = dict(f32=0, f16=2**-11, bf16=2**-8, q8_0=0.51 / 127)


def written(tmp_path, name="llama", dtype="f32", **changes):
    """(Model, path of its GGUF file)"""
    made = models.model(name, **changes)
    gguf_file.write(models.parts(made), tmp_path / "model.gguf", dtype)
    return made, tmp_path / "model.gguf"


# Round trips


@pytest.mark.parametrize("dtype", gguf_file.DTYPES)
@pytest.mark.parametrize("name", models.SETTINGS)
def test_a_round_trip_keeps_the_model(tmp_path, name, dtype):
    made, file = written(tmp_path, name, dtype)
    found = gguf_file.read(file)
    assert found.config == made.config
    assert isinstance(found.tokenizer, ByteTokenizer) and found.tokenizer.vocab_size == 257
    tensors = dict(found.tensors())
    assert list(tensors) == [tensor.name for tensor in parameters(made.config)]
    for tensor, array in tensors.items():
        wanted = made.parameters.weight[tensor]
        largest = np.abs(wanted).max() if dtype == "q8_0" else np.abs(wanted)
        logarithm = 4e-7 if tensor.endswith("A_log") else 0  # the file holds the exponential of A_log
        assert array.dtype == np.float32 and array.shape == wanted.shape
        assert (np.abs(array - wanted) <= ROUNDING[dtype] * largest + 2e-7 * (dtype != "f32") + logarithm).all(), tensor


def test_biases_that_a_model_lacks_are_zeros(tmp_path):
    made, file = written(tmp_path, "gpt2", bias=False)
    found = dict(gguf_file.read(file).tensors())
    added = set(found) - set(made.parameters.weight)
    assert added and all(name.endswith(".bias") and not found[name].any() for name in added)


def test_types_of_tensors(tmp_path):
    """Matrices are quantized if their rows allow it. Vectors, norms, positions and Mamba's small matrices are not."""

    def kinds(name, **changes):
        _, file = written(tmp_path, name, "q8_0", **changes)
        return {name: tensor.kind.name for name, tensor in gguf_header.read_header(file).tensors.items()}

    llama = kinds("llama", n_hidden=40)
    assert llama["token_embd.weight"] == llama["blk.0.attn_q.weight"] == llama["blk.1.ffn_up.weight"] == "Q8_0"
    assert llama["blk.0.ffn_down.weight"] == "F16"  # 40 columns are not a multiple of 32
    assert llama["blk.0.attn_norm.weight"] == llama["output_norm.weight"] == "F32"
    gpt2 = kinds("gpt2")
    assert gpt2["position_embd.weight"] == gpt2["blk.0.attn_qkv.bias"] == "F32"
    mamba = kinds("mamba")
    assert mamba["blk.0.ssm_conv1d.weight"] == mamba["blk.0.ssm_a"] == mamba["blk.0.ssm_d"] == "F32"
    assert mamba["blk.0.ssm_in.weight"] == "Q8_0" and mamba["blk.0.ssm_dt.weight"] == "F16"


def test_the_package_reads_what_is_written(tmp_path):
    made, file = written(tmp_path, "gpt2", "f16")
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == "gpt2"
    assert reader.fields["gpt2.context_length"].contents() == 64
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    theirs = tensors["blk.1.ffn_up.weight"].data  # (out, in)
    np.testing.assert_array_equal(theirs, made.parameters.weight["layers.1.feed_forward.input.weight"].T.astype("f2"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_quantizations_are_read(tmp_path, kind):
    made, file = written(tmp_path, n_embd=256)
    kind = gguf.GGMLQuantizationType[kind]
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 64, (96, 256 // per_block * size), np.uint8)  # scales stay finite
    quantized = rewritten(file, {"blk.0.ffn_up.weight": (blocks, kind)})
    found = dict(gguf_file.read(quantized).tensors())["layers.0.feed_forward.input.weight"][:, 96:]
    np.testing.assert_array_equal(found, gguf.dequantize(blocks, kind).T)


def rewritten(file, tensors=None, metadata=None, without=()):
    """A copy of a file, written by the package gguf.

    tensors    {name: (array, kind)} to replace or add
    metadata   {key: value} to replace or add; None removes a key
    without    names of tensors to leave out
    """
    header = gguf_header.read_header(file)
    writer = gguf.GGUFWriter(file.with_name("rewritten.gguf"), header.metadata["general.architecture"])
    for key, value in {**header.metadata, **(metadata or {})}.items():
        if value is not None:
            gguf_file._add(writer, key, value)
    found = {name: (gguf_header.read_tensor(header, name), None) for name in header.tensors}
    for name, (array, kind) in {**found, **(tensors or {})}.items():
        if name not in without:
            writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.path


def test_llama3_frequencies_are_a_tensor(tmp_path):
    made, file = written(tmp_path, "llama3")
    divisors = gguf_header.read_tensor(gguf_header.read_header(file), "rope_freqs.weight")
    wavelengths = 2 * np.pi * 5e5 ** (np.arange(8) / 8)
    assert (divisors[wavelengths < 8192 / 4] == 1).all() and (divisors[wavelengths > 8192] == 8).all()
    np.testing.assert_array_equal(divisors, frequency_divisors(5e5, 16, 8, 1, 4, 8192))
    others = rewritten(file, metadata={"slm_np.rope_scaling": None})  # as other programs write files
    assert gguf_file.read(others).config == made.config
    for scaling in (None, "llama3:8,1,4,8192", "llama3:8", "llama3:a,b,c,d", "llama3:8,1,4,nan", "llama3:8,1,1,inf", 7):
        check_refused(
            rewritten(file, {"rope_freqs.weight": (divisors[::-1].copy(), None)}, {"slm_np.rope_scaling": scaling}),
            "scales its rotary frequencies in another way",
        )


@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama3", dict(rope_scaling="llama3:4,2,8,1024")),
        ("llama3", dict(head_dim=8, rope_theta=100.0)),  # its wavelengths are too short to be scaled
        ("gpt2", dict(feed_forward="gelu")),
        ("gptneox", dict(feed_forward="gelu-tanh")),
    ],
)
def test_a_round_trip_keeps_settings_without_a_key_in_gguf(tmp_path, name, changes):
    made, file = written(tmp_path, name, **changes)
    assert gguf_file.read(file).config == made.config


def test_tensors_may_come_in_any_order(tmp_path):
    made, file = written(tmp_path)
    parts = models.parts(made)
    parts.tensors = lambda: iter(reversed(made.parameters.weight.items()))
    gguf_file.write(parts, tmp_path / "other" / "model.gguf")
    assert (tmp_path / "other" / "model.gguf").read_bytes() == file.read_bytes()


def test_a_modelfile_is_written_beside_the_file(tmp_path):
    written(tmp_path)
    lines = (tmp_path / "model.Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines == ["FROM ./model.gguf", "PARAMETER num_ctx 64", "PARAMETER temperature 0.8"]


def test_a_round_trip_keeps_the_sampling_defaults(tmp_path):
    sampling = SamplingConfig(temp=0.7, top_k=0, top_p=0.9, min_p=0.0, repeat_penalty=1.1, repeat_last_n=32)
    gguf_file.write(models.parts(models.model("llama"), sampling=sampling), tmp_path / "model.gguf")
    assert gguf_file.read(tmp_path / "model.gguf").sampling == sampling
    assert "PARAMETER temperature 0.7" in (tmp_path / "model.Modelfile").read_text(encoding="utf-8")
    check_refused(rewritten(tmp_path / "model.gguf", metadata={"general.sampling.top_p": 7.0}), "--top-p is 7.0")


def test_progress_counts_all_bytes_of_tensors(tmp_path):
    counts = []
    gguf_file.write(models.parts(models.model("llama")), tmp_path / "model.gguf", "q8_0", counts.append)
    tensors = gguf_header.read_header(tmp_path / "model.gguf").tensors
    assert sum(counts) == sum(tensor.size for tensor in tensors.values())


# Failures of writing


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    made, file = written(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir()), file.read_bytes()
    parts = models.parts(made)

    def broken():
        yield from list(made.parameters.weight.items())[:3]
        raise OSError(28, "No space left on device")

    parts.tensors = broken
    with pytest.raises(UserError, match="cannot write .*model.gguf: No space left on device; free some space"):
        gguf_file.write(parts, file)
    assert before == (sorted(path.name for path in tmp_path.iterdir()), file.read_bytes())


def test_weights_out_of_range_are_refused(tmp_path):
    made = models.model("llama")
    made.parameters.weight["layers.0.attention.output.weight"][0, 0] = 1e5
    with pytest.raises(UserError, match=r"the weight 1e\+05 in blk.0.attn_output.weight, too large for F16; use bf16"):
        gguf_file.write(models.parts(made), tmp_path / "model.gguf", "f16")
    gguf_file.write(models.parts(made), tmp_path / "model.gguf", "q8_0")
    made.parameters.weight["norm.weight"][3] = np.nan
    with pytest.raises(UserError, match="not finite, in output_norm.weight"):
        gguf_file.write(models.parts(made), tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(positions="sinusoidal"), "--positions sinusoidal"),
        (dict(positions="none"), "--positions none"),
        (dict(norm="none"), "--norm none"),
        (dict(head="mlp"), "--head mlp"),
        (dict(residual=False), "--no-residual"),
        (dict(score_scale=1.0), "--score-scale 1.0"),
        (dict(feed_forward="silu"), "--feed-forward silu"),
        (dict(feed_forward="gelu"), "--norm rmsnorm with --feed-forward gelu"),
        (dict(pattern="AL", window=8), "--pattern AL"),
        (dict(pattern="AN"), "--pattern AN"),
        (dict(pattern="AM"), "--pattern AM"),
        (dict(pattern="S", positions="none", feed_forward="none"), "--pattern S"),
        (dict(pattern="M", positions="none", feed_forward="none", n_inner=64), "--n-inner 64"),
        (dict(pattern="M", positions="none", feed_forward="none", bias=True), "--bias in Mamba"),
        (dict(qkv_bias="on", head_dim=32), "--head-dim 32"),
        (dict(qk_norm=True, rope_scaling="llama3:8,1,4,8192"), "--rope-scaling llama3:8,1,4,8192 beside its other"),
        (dict(parallel=True), "--parallel with --norm rmsnorm"),
        (dict(norm="layernorm", feed_forward="gelu", qk_norm=True), "--qk-norm with --norm layernorm"),
        (dict(norm="layernorm", feed_forward="gelu", n_kv_head=2), "--n-kv-head 2 with --norm layernorm"),
        (dict(qk_norm=True, qkv_bias="on"), "--qkv-bias on"),
    ],
)
def test_models_without_an_architecture_are_refused_and_the_setting_is_named(changes, said):
    attention = dict(n_head=4) if set(changes.get("pattern", "A")) & set("ALN") else {}
    config = ModelConfig(**{"n_layer": 4, "n_embd": 64, **attention, **changes})
    with pytest.raises(UserError, match="no architecture of llama.cpp has " + said):
        architecture_of(config)


def test_a_model_of_characters_is_refused(tmp_path):
    tokenizer = CharTokenizer("".join(map(chr, range(32, 127))))
    with pytest.raises(UserError, match="cannot run a tokenizer of characters or words"):
        gguf_file.write(models.parts(models.model("llama", tokenizer), tokenizer), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    made = models.model("llama", vocab_size=200)
    with pytest.raises(UserError, match="has 257 tokens, and the model only 200"):
        gguf_file.write(models.parts(made), tmp_path / "model.gguf")


def test_an_unknown_type_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype 'q4_0' is unknown; did you mean q8_0"):
        gguf_file.write(models.parts(models.model("llama")), tmp_path / "model.gguf", "q4_0")


# Damaged and foreign files


def check_refused(path, said="cut short or damaged|does not start with GGUF"):
    """Assert that a file is refused in one sentence that names it and matches `said`."""
    with pytest.raises(UserError, match=said) as error:
        gguf_file.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_every_truncation_is_found(tmp_path, name):
    _, file = written(tmp_path, name)
    content = file.read_bytes()
    data = min(tensor.offset for tensor in gguf_header.read_header(file).tensors.values())
    for length in [0, 3, *range(4, data, 97), *range(data, len(content), len(content) // 50), len(content) - 1]:
        file.write_bytes(content[:length])
        check_refused(file)


def test_a_flipped_bit_is_found_or_harmless(tmp_path):
    """With any bit of the header flipped, the file is read or refused. The reader neither hangs nor crashes."""
    _, file = written(tmp_path, "llama")
    content = bytearray(file.read_bytes())
    data = min(tensor.offset for tensor in gguf_header.read_header(file).tensors.values())
    random, refused = np.random.default_rng(0), 0
    for at in random.choice(data, 600, replace=False):
        flipped = content.copy()
        flipped[at] ^= 1 << random.integers(8)
        file.write_bytes(flipped)
        try:
            found = gguf_file.read(file)
            assert sum(array.size for _, array in found.tensors()) > 0
        except UserError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 300


def replaced(file, at, layout, *values):
    """Write values at a byte of a file, in a layout of `struct`. Returns the file."""
    content = bytearray(file.read_bytes())
    struct.pack_into("<" + layout, content, at, *values)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    "at, layout, value, said",
    [
        (0, "4s", b"GGML", "is not a GGUF file: it does not start with GGUF"),
        (4, "I", 1, "of version 1; only little-endian files of the versions 2 and 3"),
        (4, "I", 3 << 24, "is a big-endian GGUF file"),
        (8, "Q", 1 << 60, "tensors do not fit into"),
        (16, "Q", 1 << 62, "metadata entries do not fit into"),
        (24, "Q", 1 << 63, "ends within a key of the metadata"),
    ],
)
def test_headers_with_wrong_values(tmp_path, at, layout, value, said):
    _, file = written(tmp_path)
    check_refused(replaced(file, at, layout, value), said)


def test_files_that_are_not_gguf(tmp_path):
    check_refused(tmp_path / "missing.gguf", "cannot be read")
    check_refused(tmp_path, "cannot be read")
    (tmp_path / "text.gguf").write_text("hello", encoding="utf-8")
    check_refused(tmp_path / "text.gguf", "is not a GGUF file")


@pytest.mark.parametrize(
    "metadata, said",
    [
        ({"general.type": "adapter"}, "holds 'adapter', not a model"),
        ({"llama.block_count": None}, "has no llama.block_count in its metadata"),
        ({"llama.block_count": 3}, "lacks the tensor blk.2.attn_norm.weight"),
        ({"llama.block_count": "two"}, "has llama.block_count 'two', and only a whole number"),
        ({"llama.block_count": 0}, "has llama.block_count 0"),
        ({"llama.embedding_length": 96}, r"of shape \(257, 64\), but its metadata says \(257, 96\)"),
        ({"llama.attention.head_count": 0}, "has llama.attention.head_count 0"),
        ({"llama.attention.head_count_kv": [2, 1]}, "has llama.attention.head_count_kv"),
        ({"llama.attention.value_length": 8}, "only the same as attention.key_length is supported"),
        ({"llama.rope.dimension_count": 8}, "only as many as a head has columns is supported"),
        ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor 4.0, and only 0 or 1 is supported"),
        ({"llama.attention.sliding_window": 16}, "llama.attention.sliding_window 16, and only none is supported"),
        ({"llama.expert_count": 8}, "llama.expert_count 8, and only 0 is supported"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "only a number above 0"),
        ({"split.count": 2}, "is one of 2 parts of a model.*llama-gguf-split --merge"),
        ({"tokenizer.ggml.model": "t5"}, "a tokenizer of the kind 't5'"),
        ({"tokenizer.ggml.pre": "viking"}, "has the pre-tokenizer 'viking'"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "has 2 tokens, but the model 257"),
        ({"tokenizer.ggml.tokens": ["a"] * 257}, "two of its tokens have one name"),
        ({"tokenizer.ggml.tokens": 5}, "tokens is 5, not a list of strings"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token_type is not a list of 257 numbers"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab' is not a merge"),
    ],
)
def test_metadata_that_is_wrong_or_not_supported(tmp_path, metadata, said):
    _, file = written(tmp_path)
    check_refused(rewritten(file, metadata=metadata), said)


def test_an_architecture_that_is_not_supported(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_refused(writer.path, "has the architecture 'gemma3'; supported are gpt2, llama, ")


def test_tensors_that_are_wrong(tmp_path):
    _, file = written(tmp_path)
    check_refused(rewritten(file, without=["blk.1.attn_q.weight"]), "lacks the tensor blk.1.attn_q.weight")
    check_refused(rewritten(file, without=["token_embd.weight"]), "has no matrix token_embd.weight")
    extra = {"blk.0.ffn_gate_exps.weight": (np.zeros((2, 2), np.float32), None)}
    check_refused(rewritten(file, extra), "has the tensor 'blk.0.ffn_gate_exps.weight', which is not supported")
    shape = {"blk.0.attn_k.weight": (np.zeros((64, 64), np.float32), None)}
    check_refused(rewritten(file, shape), r"of shape \(64, 64\), but its metadata says \(32, 64\)")
    integers = {"blk.0.attn_k.weight": (np.zeros((32, 64), np.int8), None)}
    check_refused(
        rewritten(file, integers), "has tensors of type I8, such as blk.0.attn_k.weight, which cannot be read"
    )
    infinite = {"blk.0.attn_norm.weight": (np.full(64, np.inf, np.float32), None)}
    with pytest.raises(UserError, match="holds weights that are not finite, in blk.0.attn_norm.weight"):
        list(gguf_file.read(rewritten(file, infinite)).tensors())


def test_without_the_package_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    _, file = written(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match='pip install "slm_np\\[gguf\\]"'):
        gguf_file.read(file)
