"""The chat template: the text of a conversation, its targets, templates on disk, rows, and what is refused."""

import json

import pytest

from slm_np.data import chat_template
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.chat_template import DEFAULT, EXAMPLE, Template, parse_row
from slm_np.errors import UserError

SYSTEM = dict(role="system", content="Be brief.")
ASK, REPLY = dict(role="user", content="Who lost the ball?"), dict(role="assistant", content="Mia.")
ASK_MORE, REPLY_MORE = dict(role="user", content="Where?"), dict(role="assistant", content="By the hut.")
WHOLE = [SYSTEM, ASK, REPLY, ASK_MORE, REPLY_MORE]


def test_only_replies_and_their_line_ends_are_targets():
    assert DEFAULT.spans(WHOLE) == [
        (b"Be brief.\nQ: Who lost the ball?\nA:", False),
        (b" Mia.\n", True),
        (b"Q: Where?\nA:", False),
        (b" By the hut.\n", True),
    ]


@pytest.mark.parametrize("turns", [1, 2])
def test_a_prompt_is_the_text_before_the_reply(turns):
    messages = WHOLE[: 2 * turns + 1]
    text = b"".join(span for span, _ in DEFAULT.spans(messages))
    assert DEFAULT.prompt(messages[:-1]) == [text.removesuffix(f" {messages[-1]['content']}\n".encode())] != [text]


def test_the_template_adds_eight_bytes_per_turn():
    assert sum(len(span) for span, _ in DEFAULT.spans([ASK, REPLY])) == len(ASK["content"] + REPLY["content"]) + 8


def test_white_space_around_a_message_is_removed():
    spaced = [dict(message, content=f"\n {message['content']} \n") for message in WHOLE]
    assert DEFAULT.spans(spaced) == DEFAULT.spans(WHOLE) and DEFAULT.prompt(spaced[:-1]) == DEFAULT.prompt(WHOLE[:-1])


def test_any_character_can_be_in_a_message():
    odd = "Zo\u00eb \U0001f980\n\n\x00 \udcff"  # the last one stands for a byte that is not UTF-8
    spans = DEFAULT.spans([dict(ASK, content=odd + "?"), dict(REPLY, content=odd + "!")])
    assert b"".join(span for span, _ in spans).count(odd.encode("utf-8", "surrogateescape")) == 2


def test_spans_encoded_one_by_one_have_the_ids_of_the_whole_text():
    """GPT-2's vocabulary splits before the space of a word. If the template did not, chat would see other ids."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    spans = [span.decode() for span, _ in DEFAULT.spans(WHOLE)]
    tokenizer.train_from_iterator(["".join(spans)] * 5, vocab_size=320, show_progress=False)
    assert sum((tokenizer.encode(span).ids for span in spans), []) == tokenizer.encode("".join(spans)).ids


def test_a_reply_ends_with_end_of_text_or_with_its_line():
    assert DEFAULT.stops(ByteTokenizer(end=True)) == ["\nQ: "] and DEFAULT.stops(ByteTokenizer()) == ["\n"]


def test_a_template_is_saved_in_the_run(tmp_path):
    assert chat_template.load(tmp_path) is None
    other = Template(before_user="<\u00fc> ", after_user=" ", before_assistant="<a>", after_assistant="</a>")
    for made in (DEFAULT, other):
        (tmp_path / "chat_template.json").write_bytes(made.to_bytes())
        assert chat_template.load(tmp_path) == made
    assert other.spans([ASK, REPLY]) == [("<\u00fc> Who lost the ball? <a>".encode(), False), (b"Mia.</a>", True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        "[" * 100_000,
        b"\xff",
        '{"before_user": "Q: "}',
        json.dumps(dict(vars(DEFAULT), after_user=3)),
        json.dumps(dict(vars(DEFAULT), more="")),
        json.dumps(dict(vars(DEFAULT), after_assistant="")),
    ],
)
def test_a_damaged_template_is_refused(tmp_path, text):
    (tmp_path / "chat_template.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="chat_template.json .*copy it again"):
        chat_template.load(tmp_path)


def test_the_three_forms_of_rows():
    assert parse_row(json.dumps(dict(messages=WHOLE)), "rows.jsonl", 1) == WHOLE
    assert parse_row(b'{"prompt": "Who?", "completion": " Mia.", "id": 7}\n', "rows.jsonl", 2) == [
        dict(role="user", content="Who?"),
        dict(role="assistant", content=" Mia."),
    ]
    assert parse_row('{"text": "Once."}', "rows.jsonl", 3) == "Once."


@pytest.mark.parametrize(
    "row, sentence",
    [
        ("", "is not JSON"),
        ("{'a': 1}", "is not JSON .*column 2"),
        (b'{"text": "\xff"}', "is not UTF-8; save"),
        ("[" * 100_000, "is not JSON .it is nested too deeply"),
        ("[1]", "is not a JSON object; write"),
        ("{}", "has no keys, but needs .*; write"),
        ('{"question": "a"}', "has 'question', but needs .*; write"),
        (r'{"text": "a\ud800"}', r"has '.ud800' in its .text., half of a surrogate pair; write"),
        ('{"text": 5}', 'no string "text"; add'),
        ('{"prompt": "a"}', 'no string "completion"; add'),
        ('{"completion": "a"}', 'no string "prompt"; add'),
        (dict(messages=[]), 'needs a list of at least one message in "messages"; write'),
        (dict(messages="a"), "needs a list .*; write"),
        (dict(messages=["a"]), "message 1, is not an object; write"),
        (dict(messages=[dict(ASK, role="usr"), REPLY]), "message 1, has the role 'usr'; did you mean user"),
        (dict(messages=[dict(content="a")]), "message 1, has the role None; known are system"),
        (dict(messages=[dict(ASK, role=["user"])]), "message 1, has the role .*; "),
        (dict(messages=[ASK, dict(role="assistant")]), 'message 2, has no string "content"; add'),
        (
            dict(messages=[ASK]),
            "ends with a message of the user, which leaves nothing to train on; add the assistant's",
        ),
        (dict(messages=[SYSTEM]), "ends with a message of the system.*add the assistant's"),
        (
            dict(messages=[REPLY]),
            "message 1, has the role assistant, but user is expected; user and assistant must alternate",
        ),
        (dict(messages=[ASK, REPLY, REPLY]), "message 3, has the role assistant, but user is expected; "),
        (dict(messages=[ASK, ASK, REPLY]), "message 2, has the role user, but assistant is expected; "),
        (dict(messages=[ASK, SYSTEM, REPLY]), "message 2, has the role system; only the first message may have it"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_remedy(row, sentence):
    with pytest.raises(UserError, match=rf"^rows.jsonl, line 12,? .*{sentence}") as refused:
        parse_row(json.dumps(row) if isinstance(row, dict) else row, "rows.jsonl", 12)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "row",
    [
        dict(text=""),
        dict(text=None),
        "",
        dict(prompt="a", completion=" "),
        dict(prompt=None, completion="a"),
        dict(messages=[ASK, dict(REPLY, content=" \n")]),
        dict(conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]),
        dict(instruction="a", input="", output=""),
    ],
)
def test_a_row_without_anything_to_learn_is_none(row):
    assert parse_row(json.dumps(row), "rows.jsonl", 1) is None


@pytest.mark.parametrize(
    "row, found",
    [
        ("Once.", "Once."),
        (dict(content="Once."), "Once."),
        (dict(text="Once.", instruction="a", output="b"), "Once."),
        (dict(instruction="Add.", input="", output="3"), ["Add.", "3"]),
        (dict(instruction="Add.", input="1 2", output="3"), ["Add.\n1 2", "3"]),
        (dict(instruction="Who?", context="Mia ran.", response="Mia", category="qa"), ["Who?\nMia ran.", "Mia"]),
        (dict(question="Who?", answer="Mia"), ["Who?", "Mia"]),
        (dict(system_prompt="Be brief.", question="Who?", response="Mia"), ["Be brief.", "Who?", "Mia"]),
        (dict(input="Who?", output="Mia"), ["Who?", "Mia"]),
        (dict(prompt="Who?", response="Mia"), ["Who?", "Mia"]),
        (dict(conversations=[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Mia"}]), ["Who?", "Mia"]),
        (
            dict(system="Be brief.", conversations=[ASK, REPLY], id="7"),
            ["Be brief.", ASK["content"], REPLY["content"]],
        ),
        (dict(messages=[dict(ASK, content=[dict(type="text", text="Who?")]), REPLY]), ["Who?", REPLY["content"]]),
    ],
)
def test_the_keys_of_widespread_datasets(row, found):
    content = parse_row(json.dumps(row) + ",\n", "rows.jsonl", 1)
    if isinstance(found, list):
        roles = ["system", "user", "assistant"][-len(found) :]
        assert content == [dict(role=role, content=text) for role, text in zip(roles, found)]
    else:
        assert content == found


@pytest.mark.parametrize(
    "row",
    [
        dict(instruction="a", output="b", response="c"),
        dict(question="a", answer="b", response="c"),
        dict(story="a"),
    ],
)
def test_keys_that_are_ambiguous_or_unknown_are_listed(row):
    with pytest.raises(UserError, match=", ".join(sorted(map(repr, row)))):
        parse_row(json.dumps(row), "rows.jsonl", 1)


def test_conversations_that_end_with_the_wrong_role_are_refused():
    with pytest.raises(UserError, match="ends with a message of the user, which leaves nothing to train on; add"):
        DEFAULT.spans([ASK])
    with pytest.raises(UserError, match="ends with a message of the assistant; add a message of the user"):
        DEFAULT.prompt([ASK, REPLY])
    with pytest.raises(UserError, match=EXAMPLE[:10].replace("{", r"\{").replace("[", r"\[")):
        DEFAULT.prompt([])
