"""Token stores of conversations under chat templates with special tokens."""

import json

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="chat templates in Jinja need the package jinja2")
pytest.importorskip("tokenizers", reason="special tokens need the package tokenizers")

from data_files import conversation, jsonl, text_file
from special_tokens import bytes_and
from wild import CHATML, INSTRUCTIONS, NAMES, ROLES, TEXT, TOKENS, kinds

from slm_np.data import shards
from slm_np.data.assistant_windows import replies, window_starts
from slm_np.data.batches import gather
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.chat_template import DEFAULT, Template
from slm_np.data.jinja_template import JinjaTemplate
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.token_store import load_corpus
from slm_np.data.tokenizer import encode_spans
from slm_np.data.tokens import TARGET, WITHIN, targets
from slm_np.errors import UserError

ROWS = [
    conversation("Who?", "Mia."),
    dict(prompt="Where?", completion=" By the hut."),
    dict(text="Once upon <|im_end|> a time."),
    conversation("<|im_end|>", "<|im_start|>assistant", "</s>", "Yes."),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))


def loaded(tmp_path, source, rows=ROWS, **options):
    """(training split, tokenizer) of rows under a template of wild.py."""
    path = text_file(tmp_path, jsonl(rows), "rows.jsonl")
    options = (
        dict(template=JinjaTemplate(source, TOKENS[source]), tokenizer=bytes_and(*NAMES[source]), threads=1) | options
    )
    corpus = load_corpus(path, path, progress=False, **options)
    return corpus.train, corpus.tokenizer


def shown(ids, tokenizer):
    """Ids as text with the names of special tokens."""
    names = {token.id: name.encode() for name, token in tokenizer.special_tokens.items()}
    return b"".join(names.get(id) or tokenizer.decode([id]) for id in ids.tolist()).decode()


def test_ids_and_mask_of_a_conversation(tmp_path):
    tokens, tokenizer = loaded(tmp_path, CHATML)
    system = "<|im_start|>system\nYou help.<|im_end|>\n"
    wanted = [
        f"{system}<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMia.<|im_end|>\n<|endoftext|>",
        f"{system}<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nBy the hut.<|im_end|>\n<|endoftext|>",
        "Once upon <|im_end|> a time.<|endoftext|>",
        f"{system}<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n<|im_start|>assistant<|im_end|>\n"
        "<|im_start|>user\n</s><|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|endoftext|>",
    ]
    assert shown(tokens.ids, tokenizer) == "".join(wanted)
    start, end = (tokenizer.special_tokens[name].id for name in ("<|im_start|>", "<|im_end|>"))
    assert [int((tokens.ids == id).sum()) for id in (start, end, 256)] == [11, 11, 4]
    learned = tokens.ids[targets(tokens.mask)]
    assert shown(learned, tokenizer) == (
        "Mia.<|im_end|>By the hut.<|im_end|>Once upon <|im_end|> a time.<|endoftext|>"
        "<|im_start|>assistant<|im_end|>Yes.<|im_end|>"
    )
    assert tokens.n_targets == len(learned) and tokens.n_documents == 4
    assert tokens.n_bytes == len("Mia.By the hut.Once upon <|im_end|> a time.<|im_start|>assistantYes.")
    assert set(np.unique(tokens.mask)) == {0, TARGET}


def test_a_reply_ends_with_end_of_text_if_the_template_has_no_end_token(tmp_path):
    tokens, tokenizer = loaded(tmp_path, TEXT, ROWS[:1])
    assert shown(tokens.ids, tokenizer) == "### Instruction:\nWho?\n\n### Response:\nMia.\n\n<|endoftext|>"
    assert shown(tokens.ids[targets(tokens.mask)], tokenizer) == "Mia.\n\n<|endoftext|>"


@pytest.mark.parametrize("source", [ROLES, INSTRUCTIONS])
def test_messages_that_end_with_end_of_text_stay_one_document(tmp_path, source):
    """Windows start at conversations, not after a message that ends with end-of-text."""
    tokens, tokenizer = loaded(tmp_path, source, [conversation("a", "b", "c", "d"), conversation("e", "f"), "Once."])
    end = tokenizer.end_of_text
    last = np.flatnonzero((tokens.ids == end) & (tokens.mask & WITHIN == 0))
    assert len(last) == 3 and (tokens.ids == end).sum() > 5 and last[-1] == len(tokens) - 1
    starts = [0, *(last[:-1] + 1).tolist()]
    assert sorted(set(replies(tokens, end)[2].tolist())) == starts
    within = set((np.flatnonzero((tokens.ids == end) & (tokens.mask & WITHIN != 0)) + 1).tolist())
    found = set(window_starts(tokens, 40, end).tolist())
    assert 0 in found and within and not found & within
    x, y = np.zeros((1, len(tokens) - 1), np.int32), np.zeros((1, len(tokens) - 1), np.int32)
    gather(x, y, tokens, [0])
    np.testing.assert_array_equal(y[0] >= 0, targets(tokens.mask[1:]))


def test_the_bytes_do_not_depend_on_the_number_of_shards_and_processes(tmp_path, monkeypatch):
    rows = [conversation(f"Who is {i}?", f"It is {i}<|im_end|>.") for i in range(200)]
    one, _ = loaded(tmp_path, CHATML, rows)
    ids, mask = np.array(one.ids), np.array(one.mask)
    monkeypatch.setattr(shards, "SHARD", 2000)
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "other"))
    two, _ = loaded(tmp_path, CHATML, rows, threads=2)
    np.testing.assert_array_equal(two.ids, ids)
    np.testing.assert_array_equal(two.mask, mask)


def test_the_fingerprint_depends_on_the_template_only_with_conversations(tmp_path):
    rows, text = text_file(tmp_path, jsonl(ROWS), "rows.jsonl"), text_file(tmp_path, "Once upon a time. " * 9, "t.txt")
    chatml = JinjaTemplate(CHATML, TOKENS[CHATML], "one file")

    def fingerprint(data, template=None, tokenizer=ByteTokenizer(True)):
        return load_corpus(data, data, tokenizer, progress=False, template=template).fingerprint

    assert fingerprint(rows) == fingerprint(rows, DEFAULT)
    others = [chatml, JinjaTemplate(CHATML, {}), JinjaTemplate(TEXT, TOKENS[CHATML]), Template(before_user="<u>")]
    assert len({fingerprint(rows, template) for template in [None, *others]}) == 5
    assert fingerprint(rows, chatml) == fingerprint(rows, JinjaTemplate(CHATML, TOKENS[CHATML], "another file"))
    assert fingerprint(text) == fingerprint(text, chatml)


def test_a_row_that_the_template_refuses_is_named(tmp_path):
    rows = [*ROWS, dict(messages=[dict(role="system", content="Be brief."), *conversation("a", "b")["messages"]])]
    with pytest.raises(UserError, match=r"rows.jsonl, line 5: .* refuses the conversation: Only user and assistant"):
        loaded(tmp_path, INSTRUCTIONS, rows)
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: .*line 1, cannot write .*division"):
        loaded(tmp_path, CHATML, template=JinjaTemplate("{{ 1 / 0 }}"))


@pytest.mark.parametrize("kind", ["smollm", "llama3", "qwen", "tinyllama", "neox", "unigram"])
def test_conversations_with_tokenizers_of_other_programs(tmp_path, kind):
    """The ids of the chat prompt come first, without targets. The reply follows, and all of it is targets."""
    tokenizer = LibraryTokenizer(kinds()[kind])
    template = JinjaTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        dict(eos_token=next(n for n, t in tokenizer.special_tokens.items() if t.id == tokenizer.end_of_text)),
    )
    row = conversation("the cat", "the hat")
    tokens, ours = loaded(tmp_path, CHATML, [row], tokenizer=tokenizer, template=template)
    found = [
        ids.tolist()
        for ids, _ in encode_spans(ours, ((part, False) for part in template.prompt(row["messages"][:1], ours)))
    ]
    prompt = sum(found, [])
    assert tokens.ids[: len(prompt)].tolist() == prompt and not targets(tokens.mask[: len(prompt)]).any()
    assert tokens.ids[-2] == tokens.ids[-1] == ours.end_of_text and targets(tokens.mask[len(prompt) : -1]).all()
    assert json.loads(json.dumps(ours.to_json())) == ours.to_json()
