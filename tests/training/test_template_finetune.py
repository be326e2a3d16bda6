"""Finetuning a base with a chat template in Jinja: the run keeps it, resumes and answers, and transformers reads it."""

import json
import shutil
from pathlib import Path

import pytest
import small

pytest.importorskip("jinja2", reason="chat templates in Jinja need the package jinja2")
pytest.importorskip("tokenizers", reason="special tokens need the package tokenizers")

from special_tokens import bytes_and

from slm_np import load
from slm_np.cli.conversation import Conversation
from slm_np.data.chat_template import DEFAULT
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.formats import run_config, sources
from slm_np.inference.generation import encode_prompt

pytestmark = pytest.mark.usefixtures("one_thread")
SOURCE = """{% for message in messages %}<|turn|>{{ message.role[0] }}{{ message.content }}{{ eos_token }}{% endfor %}\
{% if add_generation_prompt %}<|turn|>a{% endif %}"""
TEMPLATE = JinjaTemplate(SOURCE, dict(eos_token="<|end|>"))
TRAIN = ["--max-iters", 6, "--eval-interval", 3, "--eval-iters", 2, "--save-interval", 3, "--threads", 1]
TURN, END = 257, 258


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run `base` that has special tokens and a template, and starts prompts as other programs do."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer, path = bytes_and("<|endoftext|>", "<|turn|>", "<|end|>"), folder / "tokenizer.json"
    tokenizer.save(path)
    data = small.text_file(folder)
    words = small.flags(data, max_iters=2, block_size=32, out_dir=folder / "base", tokenizer=f"file:{path}")
    assert small.status("train", *words) == 0
    (folder / "base/chat_template.json").write_bytes(TEMPLATE.to_bytes())
    config = run_config.read_config(folder / "base")
    config.data.update(prompt_start=[])
    run_config.write_config(folder / "base", config)
    rows = [dict(prompt=f"Who sat on {i}<|end|>?", completion=f"Cat {i}.") for i in range(60)] + [dict(text="Once.")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def base(made, tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")


def finetune(*words, base="base", data="rows.jsonl", out="tuned"):
    return small.status("finetune", "--base", base, "--data", data, "--out-dir", out, *TRAIN, *words)


def test_a_run_keeps_the_template_of_its_base(base, capsys):
    assert finetune("--retention-data", "text.txt") == 0
    said = capsys.readouterr()
    assert "the loss is masked to assistant tokens" in said.err and "Who sat on" in said.out
    run = sources.load("tuned")
    assert run.template == TEMPLATE and run.model.config.vocab_size == 259
    assert run.tokenizer.ends == {256, END} and list(run.tokenizer.prompt_start) == []
    assert encode_prompt(run.tokenizer, "a").tolist() == [97]
    chat = Conversation(run, run.sampling, 4)
    chat.messages.append(dict(role="user", content="<|end|>"))
    assert chat.prompt().tolist() == [TURN, *b"u<|end|>", END, TURN, ord("a")] and chat.ends == [END]
    # A finetuned run is a base like any other, and text needs no template.
    assert finetune(base="tuned", data="text.txt", out="again") == 0
    again = sources.load("again")
    assert (
        again.template == TEMPLATE and again.tokenizer.ends == {256, END} and list(again.tokenizer.prompt_start) == []
    )


def test_prepared_conversations_have_the_default_template(base):
    words = ["rows.jsonl", "--tokenizer", "file:tokenizer.json", "--out-dir", "tokens"]
    assert small.status("prepare", *words) == 0
    assert finetune(data="tokens") == 0
    run = sources.load("tuned")
    assert run.template == DEFAULT and run.tokenizer.ends == {256}


def test_a_run_resumes_with_its_template_and_is_evaluated_with_it(base, capsys):
    assert finetune() == 0
    assert small.status("finetune", "--resume", "tuned", "--max-iters", 9) == 0
    assert small.status("evaluate", "--model", "tuned", "--json", "--threads", 1) == 0
    own = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert small.status("evaluate", "--model", "tuned", "--data", "rows.jsonl", "--json", "--threads", 1) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        own["answers_only"]
        and rows["answers_only"]
        and rows["tokens"] == sum(len(f"Cat {i}.") + 1 for i in range(60)) + 6
    )


def test_transformers_loads_the_tokenizer_of_a_run(base):
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    assert finetune() == 0
    theirs, ours = transformers.AutoTokenizer.from_pretrained("tuned"), sources.load("tuned")
    messages = [
        dict(role="user", content="Who?"),
        dict(role="assistant", content="Me."),
        dict(role="user", content="No."),
    ]
    prompt = encode_prompt(ours.tokenizer, ours.template.prompt(messages, ours.tokenizer)).tolist()
    assert prompt == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert theirs.eos_token == "<|end|>" and theirs("a cat").input_ids == ours.tokenizer.encode("a cat").tolist()
    assert transformers.GenerationConfig.from_pretrained("tuned").eos_token_id == [256, END]


def test_a_model_of_transformers_with_a_begin_token_and_more_embeddings_than_tokens(made, base, capsys):
    """Its prompts start as in transformers, before and after finetuning, and finetuning keeps its embeddings."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    pytest.importorskip("torch", reason="makes a model of transformers")
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=64, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained("theirs")
    begin, text = {"SpecialToken": dict(id="<|turn|>", type_id=0)}, {"Sequence": dict(id="A", type_id=0)}
    known = {"<|turn|>": dict(id="<|turn|>", ids=[TURN], tokens=["<|turn|>"])}
    steps = dict(type="TemplateProcessing", single=[begin, text], pair=[begin, text, text], special_tokens=known)
    fields = json.loads(Path("tokenizer.json").read_text(encoding="utf-8"))
    for name, content in {
        "tokenizer.json": dict(fields, post_processor=steps),
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast", chat_template=SOURCE, eos_token="<|end|>"
        ),
        "generation_config.json": dict(eos_token_id=[END, 65]),
    }.items():
        Path("theirs", name).write_text(json.dumps(content), encoding="utf-8")
    assert finetune("--block-size", 32, base="theirs") == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained("theirs")
    for path in ("theirs", "tuned"):
        run = load(path)
        assert (run.model.config.vocab_size, run.tokenizer.vocab_size) == (300, 259), path
        assert run.template == TEMPLATE and run.tokenizer.ends == {256, END, 65}
        assert encode_prompt(run.tokenizer, "a").tolist() == tokenizer("a").input_ids == [TURN, 97]
        message = [dict(role="user", content="Who?")]
        prompt = encode_prompt(run.tokenizer, run.template.prompt(message, run.tokenizer)).tolist()
        assert prompt == tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
