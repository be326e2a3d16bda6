"""A run is a Hugging Face directory: transformers gives the same logits, ids and texts from it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.config import SamplingConfig
from slm_np.data.chat_template import Template
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.formats import sources
from slm_np.formats.families import family_of
from slm_np.formats.files import write_json
from slm_np.formats.interchange import token_ids, tokenizer_config
from slm_np.inference.generation import text_of
from slm_np.presets import PRESETS

sys.path.append(str(Path(__file__).parents[1] / "data"))
from sample_tokenizers import TALE, WILD, wild  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Sizes of all presets, and further settings of some.
SIZES = dict(n_layer=2, n_embd=16, block_size=48)
MORE = {
    "stories": dict(n_head=4, n_kv_head=2, n_hidden=24),
    "slim": dict(n_head=2, n_hidden=24),
    "shakespeare-char": dict(n_head=2, tokenizer="char"),
    "gpt2-stories": dict(n_head=2, tokenizer="bpe:300"),
    "mamba": dict(ssm_state_size=4, time_step_rank=3),
    "qwen3-tiny": dict(n_head=2, n_kv_head=1, head_dim=12, n_hidden=24),
}
NO_CLASS = [name for name in PRESETS if name.startswith("byte-")]
MORE |= {name: dict(recurrence_size=8) if "ssm" in name else dict(n_hidden=24) for name in NO_CLASS}
RECIPE = dict(max_iters=20, batch_size=4, grad_accumulation_steps=1, learning_rate=0.01, warmup_iters=2, eval_iters=1)
LINES = [
    "",
    " a",
    "a ",
    "\n",
    "\n\n  \t\r\n x",
    "don't we've 12345 x<y ... , ! ?",
    "The cat's\u00a0name: Jürgen; ÿ, 日本, 🙂.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with texts that contain all characters of LINES, and conversations."""
    folder = tmp_path_factory.mktemp("runs")
    documents = [small.text(seed, 12) for seed in range(30)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join([*LINES, *documents]) * 2, encoding="utf-8", newline="")
    rows = [json.dumps(dict(prompt=f"Who is {i % 7}?", completion=f"It is {i % 7}.")) for i in range(300)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture
def made(folder, monkeypatch):
    """A function (preset, name, other settings) -> the directory of a tiny run of the preset."""
    monkeypatch.chdir(folder)

    def make(preset, name="", **changes):
        run = folder / (name or preset)
        if not run.exists():
            settings = dict(data="text.txt", out_dir=run, eval_interval=10) | RECIPE | SIZES | MORE.get(preset, {})
            words = [f"--{name.replace('_', '-')}={value}" for name, value in (settings | changes).items()]
            assert small.status("train", "--preset", preset, "--dtype=fp32", *words) == 0
        return run

    return make


def opened(transformers, run):
    """(model, tokenizer) of transformers for a run."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(run, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval(), transformers.AutoTokenizer.from_pretrained(run)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in NO_CLASS])
def test_every_preset_with_a_class_is_read_as_it_is(made, transformers, preset):
    import torch

    ours, (theirs, tokenizer) = sources.load(made(preset)), opened(transformers, made(preset))
    assert type(theirs).__name__ in family_of(ours.config.model).MODEL_TYPES.values()
    ids = np.random.default_rng(0).integers(0, ours.config.model.vocab_size, (2, 48)).astype(np.int32)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids.astype(np.int64))).logits.numpy()
    assert np.abs(logits).max() > 0.5
    np.testing.assert_allclose(ours.model.logits(ids), logits, atol=1e-4)
    check_tokenizer(ours.tokenizer, tokenizer)
    defaults = theirs.generation_config
    assert (defaults.temperature, defaults.eos_token_id) == (ours.sampling.temp, ours.tokenizer.end_of_text)
    for prompt in ("The cat", "a big"):
        text = text_of(ours.model, ours.tokenizer, prompt, 30, SamplingConfig(temp=0.0))
        assert generated(theirs, tokenizer, prompt, 30) == text


def check_tokenizer(ours, theirs):
    """Both give the same ids and texts."""
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.end_of_text
    for text in (*LINES, small.text(40, 3)):
        ids = ours.encode(text).tolist()
        assert theirs.encode(text) == ids == theirs.encode(text, add_special_tokens=False)
        end = [] if ours.end_of_text is None else [ours.end_of_text]
        assert theirs.decode(ids) == text == theirs.decode(ids + end, skip_special_tokens=True)


def generated(model, tokenizer, prompt, n):
    """The greedy continuation of a prompt by transformers. As in our prompts, end-of-text comes first."""
    tokens = tokenizer((tokenizer.bos_token or "") + prompt, return_tensors="pt")
    out = model.generate(**tokens, max_new_tokens=n, do_sample=False)
    return tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("preset", NO_CLASS)
def test_presets_without_a_class_have_no_config_json(made, transformers, preset):
    run = made(preset)
    assert not (run / "config.json").exists() and sources.load(run).step > 0
    with pytest.raises((OSError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(run)
    check_tokenizer(sources.load(run).tokenizer, transformers.AutoTokenizer.from_pretrained(run))


# "one" has a single token, its unknown token, which transformers finds in texts.
@pytest.mark.parametrize("name", [name for name in WILD if name != "one"])
def test_a_tokenizer_of_another_program_gives_the_same_ids(tmp_path, transformers, name):
    ours = LibraryTokenizer(wild()[name], name)
    ours.save(tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer_config.json", tokenizer_config(ours, None, 64))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size and theirs.model_max_length == 64
    ends = [theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id, theirs.unk_token_id]
    assert ends[:2] == [ours.end_of_text] * 2 and ends[3] == ours.unknown
    assert token_ids(ours)["bos_token_id"] == ends[2]
    for text in (TALE, "the cat", "  the\n\ncat ", "Once"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text).tolist()


TALKS = [
    [dict(role="user", content="Who is 3?")],
    [dict(role="system", content="  Be short. "), dict(role="user", content="Who\n is {{ 1 }}?\t")],
    [
        dict(role="user", content="{% if %}"),
        dict(role="assistant", content=' "It"\\n <|endoftext|> is '),
        dict(role="user", content="ü🙂\\u00e9"),
    ],
]
TEMPLATES = [
    Template(),
    Template("<<SYS>>\r\n", "\n<</SYS>>\n\n", "[INST] ", " [/INST]", "\t🙂'\"\\  ", "</s>{{ x }}{% raw %}{# #}"),
    Template("", "", "", "", "a ", "b"),
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_template_in_jinja_writes_the_same_bytes(made, transformers, template):
    tokenizer = transformers.AutoTokenizer.from_pretrained(made("stories"))
    options = dict(chat_template=template.to_jinja().decode(), tokenize=False)
    for talk in TALKS:
        prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, **options)
        assert prompt.encode() == b"".join(template.prompt(talk))
        talk = [*talk, dict(role="assistant", content="\n 3\n4  ")]
        whole = b"".join(span for span, _ in template.spans(talk))
        assert tokenizer.apply_chat_template(talk, **options).encode() == whole + b"<|endoftext|>"


def test_a_run_on_conversations_gives_the_same_answer(made, transformers, folder):
    settings = dict(data="rows.jsonl", max_iters=150, n_embd=32, n_hidden=64)
    run = made("stories", "talking", **settings)
    ours, (theirs, tokenizer) = sources.load(run), opened(transformers, run)
    talk = [dict(role="user", content="Who is 5?")]
    prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert prompt.encode() == b"".join(ours.template.prompt(talk))
    answer = text_of(ours.model, ours.tokenizer, prompt, 30, SamplingConfig(temp=0.0))
    assert answer == " It is 5.\n" and generated(theirs, tokenizer, prompt, 30) == answer
