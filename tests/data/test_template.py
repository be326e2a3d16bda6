"""The chat template: what is written, what is learnt, what comes back from disk, and what is refused with which sentence."""

import json

import pytest

from slm_np.data import chat_template as template
from slm_np.data.chat_template import DEFAULT, EXAMPLE, Template, parse_row
from slm_np.errors import UserError

SYSTEM = dict(role="system", content="Be brief.")
ASK, TELL = dict(role="user", content="Who lost the ball?"), dict(role="assistant", content="Mia.")
ASK_MORE, TELL_MORE = dict(role="user", content="Where?"), dict(role="assistant", content="By the hut.")
WHOLE = [SYSTEM, ASK, TELL, ASK_MORE, TELL_MORE]


def test_only_answers_and_their_ends_are_learnt():
    assert DEFAULT.pieces(WHOLE) == [
        (b"Be brief.\nQ: Who lost the ball?\nA:", False),
        (b" Mia.\n", True),
        (b"Q: Where?\nA:", False),
        (b" By the hut.\n", True),
    ]
    assert template.pieces(WHOLE) == DEFAULT.pieces(WHOLE)


@pytest.mark.parametrize("turns", [1, 2])
def test_a_prompt_is_the_text_before_the_answer_learnt(turns):
    messages = WHOLE[: 2 * turns + 1]
    assert (
        DEFAULT.prompt(messages[:-1])
        == b"".join(piece for piece, _ in DEFAULT.pieces(messages))[: -len(f" {messages[-1]['content']}\n")]
    )


def test_markers_are_cheap():
    assert sum(len(piece) for piece, _ in DEFAULT.pieces([ASK, TELL])) == len(ASK["content"] + TELL["content"]) + 8


def test_space_around_what_is_said_does_not_matter():
    spaced = [dict(message, content=f"\n {message['content']} \n") for message in WHOLE]
    assert DEFAULT.pieces(spaced) == DEFAULT.pieces(WHOLE) and DEFAULT.prompt(spaced[:-1]) == DEFAULT.prompt(WHOLE[:-1])


def test_every_character_is_written():
    odd = "Zo\u00eb \U0001f980\n\n\x00 \udcff"  # the last stands for a byte that was no UTF-8
    pieces = DEFAULT.pieces([dict(ASK, content=odd + "?"), dict(TELL, content=odd + "!")])
    assert b"".join(piece for piece, _ in pieces).count(odd.encode("utf-8", "surrogateescape")) == 2


def test_pieces_one_by_one_are_the_ids_of_the_whole_text():
    """A GPT-2-like vocabulary cuts before a word's space; the template must not cut elsewhere, or chat would see other ids than training did."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    pieces = [piece.decode() for piece, _ in DEFAULT.pieces(WHOLE)]
    tokenizer.train_from_iterator(["".join(pieces)] * 5, vocab_size=320, show_progress=False)
    assert sum((tokenizer.encode(piece).ids for piece in pieces), []) == tokenizer.encode("".join(pieces)).ids


def test_an_answer_ends_with_end_of_text_or_with_its_line():
    assert DEFAULT.stops(256) == ["\nQ: "] and DEFAULT.stops(None) == ["\n"]


def test_a_template_is_kept_in_the_run(tmp_path):
    assert template.load(tmp_path) is None
    other = Template(before_user="<\u00fc> ", after_user=" ", before_assistant="<a>", after_assistant="</a>")
    for made in (DEFAULT, other):
        made.save(tmp_path)
        assert template.load(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["chat_template.json"]
    assert other.pieces([ASK, TELL]) == [("<\u00fc> Who lost the ball? <a>".encode(), False), (b"Mia.</a>", True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
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
        template.load(tmp_path)


def test_rows():
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
        ("[" * 100_000, "is not JSON .it is nested"),
        ("[1]", "is not a JSON object; write"),
        ("{}", "neither .* but nothing; write"),
        ('{"question": "a"}', "neither .* but 'question'; write"),
        (r'{"text": "a\ud800"}', r"has '.ud800' in its .text., half of a character; write"),
        ('{"text": ""}', 'an empty "text"; write'),
        ('{"text": 5}', 'no text "text"; add'),
        ('{"prompt": "a"}', 'no text "completion"; add'),
        ('{"completion": "a"}', 'no text "prompt"; add'),
        ('{"prompt": "a", "completion": " "}', 'an empty "completion"; write'),
        (dict(messages=[]), "no list with a message in it; write"),
        (dict(messages="a"), "no list .*; write"),
        (dict(messages=["a"]), "message 1, is no object; write"),
        (dict(messages=[dict(ASK, role="usr"), TELL]), "message 1, has the role 'usr'; did you mean user"),
        (dict(messages=[dict(content="a")]), "message 1, has the role None; known are system"),
        (dict(messages=[dict(ASK, role=["user"])]), "message 1, has the role .*; "),
        (dict(messages=[ASK, dict(TELL, content=" \n")]), 'message 2, has an empty "content"; write'),
        (dict(messages=[ASK, dict(role="assistant")]), 'message 2, has no text "content"; add'),
        (dict(messages=[ASK]), "ends with the user's words.*add the assistant's"),
        (dict(messages=[SYSTEM]), "ends with the system's words.*add the assistant's"),
        (dict(messages=[TELL]), "message 1, is the assistant's where the user's is due; let"),
        (dict(messages=[ASK, TELL, TELL]), "message 3, is the assistant's where the user's is due; let"),
        (dict(messages=[ASK, ASK, TELL]), "message 2, is the user's where the assistant's is due; let"),
        (dict(messages=[ASK, SYSTEM, TELL]), "message 2, is the system's; put it first"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_mend(row, sentence):
    with pytest.raises(UserError, match=rf"^rows.jsonl, line 12,? .*{sentence}") as refused:
        parse_row(json.dumps(row) if isinstance(row, dict) else row, "rows.jsonl", 12)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_conversations_of_the_wrong_end_are_refused():
    with pytest.raises(UserError, match="no answer to learn; add"):
        DEFAULT.pieces([ASK])
    with pytest.raises(UserError, match="add what the user asks"):
        DEFAULT.prompt([ASK, TELL])
    with pytest.raises(UserError, match=EXAMPLE[:10].replace("{", r"\{").replace("[", r"\[")):
        DEFAULT.prompt([])
