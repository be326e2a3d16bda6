"""Chat templates in Jinja: ids, targets, injection, agreement with transformers, and hostile templates."""

import copy
import datetime
import pickle
import sys

import pytest

pytest.importorskip("jinja2", reason="chat templates in Jinja need the package jinja2")
pytest.importorskip("tokenizers", reason="special tokens need the package tokenizers")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from special_tokens import bytes_and
from wild import CHATML, HEADERS, INSTRUCTIONS, NAMES, ROLES, TEXT, THINKING, TOKENS, written

from slm_np.data import jinja_limits, templates
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.chat_template import DEFAULT, Template
from slm_np.data.jinja_template import PRIVATE, JinjaTemplate
from slm_np.data.tokenizer import encode_spans
from slm_np.errors import UserError

SYSTEM, ASK, REPLY = (
    dict(role=r, content=c) for r, c in (("system", "Be brief."), ("user", "Who?"), ("assistant", "Mia."))
)
ASK_MORE, REPLY_MORE = dict(role="user", content="Where?"), dict(role="assistant", content="By the hut.")
TURNS = [ASK, REPLY, ASK_MORE, REPLY_MORE]
ALL = [CHATML, THINKING, HEADERS, ROLES, INSTRUCTIONS, TEXT]
IDS = ["chatml", "thinking", "headers", "roles", "instructions", "text"]


def made(source):
    """(template, tokenizer) of one of the templates in wild.py."""
    return JinjaTemplate(source, TOKENS[source]), bytes_and(*NAMES[source])


def targets(spans, tokenizer):
    """The texts of consecutive targets, with the names of special tokens."""
    found, before = [], False
    for part, target in spans:
        if target:
            found += [] if before else [""]
            found[-1] += written([part], tokenizer)
        before = target
    return found


@pytest.mark.parametrize(
    "source, wanted",
    [
        (CHATML, ["Mia.<|im_end|>", "By the hut.<|im_end|>"]),
        (THINKING, ["Mia.<|im_end|>", "<think>\n\n</think>\n\nBy the hut.<|im_end|>"]),
        (HEADERS, ["Mia.<|eot_id|>", "By the hut.<|eot_id|>"]),
        (ROLES, ["Mia.</s>", "By the hut.</s>"]),
        (INSTRUCTIONS, [" Mia.</s>", " By the hut.</s>"]),
        (TEXT, ["Mia.\n\n", "By the hut.\n\n"]),
    ],
    ids=IDS,
)
def test_targets_are_what_the_model_writes_after_the_prompt(source, wanted):
    template, tokenizer = made(source)
    spans = template.spans(TURNS, tokenizer)
    assert targets(spans, tokenizer) == wanted
    assert {type(part) for part, _ in spans} == ({bytes} if source is TEXT else {bytes, int})


@pytest.mark.parametrize("source", ALL, ids=IDS)
def test_a_prompt_is_the_conversation_before_the_first_target(source):
    template, tokenizer = made(source)
    for turns in (TURNS[:2], TURNS):
        spans = template.spans(turns, tokenizer)
        last = max(i for i, (_, target) in enumerate(spans) if not target and i + 1 < len(spans) and spans[i + 1][1])
        # spans() uses a fixed day, prompt() today's.
        with_fixed_day = JinjaTemplate(source.replace("strftime_now('%d %b %Y')", "'01 Jan 2025'"), TOKENS[source])
        prompt = with_fixed_day.prompt(turns[:-1], tokenizer)
        assert written(prompt, tokenizer) == written([part for part, _ in spans[: last + 1]], tokenizer)


@pytest.mark.parametrize("source", ALL, ids=IDS)
def test_what_ends_a_reply(source):
    template, tokenizer = made(source)
    ends = dict(zip(ALL, ["<|im_end|>", "<|im_end|>", "<|eot_id|>", "</s>", "</s>", None]))[source]
    assert template.ends(tokenizer) == ([tokenizer.special_tokens[ends].id] if ends else [])
    assert template.stops(tokenizer) == ([] if ends else ["\n\n### Instruction:\n"])


def test_thoughts_of_the_last_reply_are_learned_and_those_of_earlier_ones_are_left_out():
    template, tokenizer = made(THINKING)
    turns = [ASK, dict(REPLY, content="<think>\nHm.\n</think>\n\nMia."), ASK_MORE]
    turns.append(dict(REPLY, content="<think>Oh.</think>Here."))
    spans = template.spans(turns, tokenizer)
    assert targets(spans, tokenizer) == ["Mia.<|im_end|>", "<think>\nOh.\n</think>\n\nHere.<|im_end|>"]


def test_the_reply_of_a_template_without_a_prompt_is_its_message():
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"  # ignores add_generation_prompt
    tokenizer = bytes_and("</s>")
    assert targets(JinjaTemplate(source).spans(TURNS, tokenizer), tokenizer) == [
        "<assistant>Mia.</s>",
        "<assistant>By the hut.</s>",
    ]
    source = "{{ messages | length }}" + source  # so that the prompt is not a prefix of the conversation
    assert targets(JinjaTemplate(source).spans(TURNS, tokenizer), tokenizer) == ["Mia.</s>", "By the hut.</s>"]


def test_a_template_that_hides_the_replies_is_refused():
    with pytest.raises(UserError, match="does not write the assistant's replies; use another"):
        JinjaTemplate("{{ messages | length }}{{ add_generation_prompt }}").spans(TURNS, bytes_and("</s>"))


# Injection

FRAGMENTS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "<", "|", ">", "<|", "<|im_end|"]
FRAGMENTS += [
    "system\n",
    "a",
    "é",
    "\n",
    " ",
    "\ue000",
    "\ue001",
    "\ue003",
    "\U000f0000",
    "\u200b",
    "﹤|im_end|﹥",
    "\udcff",
    "{{ 1 }}",
]
contents = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).map("".join).filter(lambda text: text.strip())


@settings(max_examples=300, deadline=None)
@given(contents, contents, contents)
@example("<|im_end|>", "<|im_end|>", "<|im_start|>")
@example("<|im_end", "|im_end|>", "|>")
@example("<<|im_end|>", "".join(map(chr, range(0xE000, 0xE010))), "<|im_end|><|im_end|>")
def test_no_message_can_forge_a_special_token(system, question, reply):
    template, tokenizer = made(CHATML)
    conversation = [dict(SYSTEM, content=system), dict(ASK, content=question), dict(REPLY, content=reply)]
    spans = template.spans(conversation, tokenizer)
    start, end = 257, 258
    assert [part for part, _ in spans if isinstance(part, int)] == [start, end] * 3
    shown = [content.strip().encode("utf-8", "surrogateescape") for content in (system, question, reply)]
    texts = [part for part, _ in spans if isinstance(part, bytes)]
    assert texts == [b"system\n" + shown[0], b"\n", b"user\n" + shown[1], b"\n", b"assistant\n", shown[2], b"\n"]
    assert targets(spans, tokenizer) == [written([shown[2], end], tokenizer)]
    ids = [id for found, _ in encode_spans(tokenizer, spans) for id in found.tolist()]
    assert [id for id in ids if id >= 256] == [start, end] * 3
    prompt = template.prompt(conversation[:2], tokenizer)
    assert [part for part in prompt if isinstance(part, int)] == [start, end] * 2 + [start]


@pytest.mark.parametrize("source", ALL, ids=IDS)
def test_the_special_tokens_of_every_template_stay_text_in_messages(source):
    template, tokenizer = made(source)
    for name in NAMES[source]:
        for content in (name, f"a{name}b", name[:2], name[1:], name * 3, name[:-1]):
            turns = [dict(ASK, content=content), dict(REPLY, content=content), dict(ASK, content=content)]
            known = [part for part in template.prompt([ASK, REPLY, ASK_MORE], tokenizer) if isinstance(part, int)]
            prompt = template.prompt(turns, tokenizer)
            assert [part for part in prompt if isinstance(part, int)] == known
            assert b"".join(part for part in prompt if isinstance(part, bytes)).count(content.encode()) >= 3


def test_a_special_token_of_one_character_cannot_be_forged():
    tokenizer = bytes_and("\x02", "\x03")
    template = JinjaTemplate("{% for m in messages %}\x02{{ m.role ~ m.content }}\x03{% endfor %}")
    assert template.prompt([dict(ASK, content="a\x02b\x03")], tokenizer) == [256, b"usera\x02b\x03", 257]


def test_a_template_cannot_complete_a_token_that_a_message_begins():
    tokenizer = bytes_and("<|im_end|>", "</s>")
    template = JinjaTemplate("{% for m in messages %}<|{{ m.content }}|>{% endfor %}")
    assert template.prompt([dict(ASK, content="im_end")], tokenizer) == [b"<|im_end|>"]
    template = JinjaTemplate("{% for m in messages %}<|im_{{ m.content }}end|>{{ m.content }}|>{% endfor %}")
    assert template.prompt([dict(ASK, content="<|im_end")], tokenizer) == [b"<|im_<|im_endend|><|im_end|>"]
    assert template.prompt([dict(ASK, content="end|>")], tokenizer) == [b"<|im_end|>end|>end|>|>"]


def test_messages_that_contain_every_private_character_are_refused():
    template, tokenizer = made(CHATML)
    everything = "".join(map(chr, PRIVATE))
    with pytest.raises(UserError, match="every private character of Unicode; remove some"):
        template.prompt([dict(ASK, content=everything)], tokenizer)
    most = everything[5:-5]
    assert most.encode() in b"".join(
        p for p in template.prompt([dict(ASK, content=most)], tokenizer) if isinstance(p, bytes)
    )


def test_white_space_beside_a_special_token_may_belong_to_it():
    tokenizer = bytes_and("<|end|>", lstrip=True, rstrip=True)
    template = JinjaTemplate("{% for m in messages %}{{ m.content }} <|end|>\n {% endfor %}|")
    assert template.prompt([ASK], tokenizer) == [b"Who?", 256, b"|"]


# Agreement with transformers


@pytest.mark.parametrize("source", ALL, ids=IDS)
def test_text_and_ids_match_transformers(source, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    import tokenizers

    monkeypatch.setattr("slm_np.data.jinja_template.TRAINING_DAY", None)  # today, as in transformers
    template, tokenizer = made(source)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode()), **TOKENS[source]
    )
    theirs.chat_template = source
    turns = [dict(ASK, content="Who is it?  {{ 1 }} é"), dict(REPLY, content="It's\n\nMia."), ASK_MORE, REPLY_MORE]
    for conversation in [turns] + [[SYSTEM, *turns]] * (source is not INSTRUCTIONS):
        spans = template.spans(conversation, tokenizer)
        assert written([part for part, _ in spans], tokenizer) == theirs.apply_chat_template(
            conversation, tokenize=False
        )
        ids = [id for found, _ in encode_spans(tokenizer, spans) for id in found.tolist()]
        assert ids == theirs.apply_chat_template(conversation, return_dict=False)
        prompt = template.prompt(conversation[:-1], tokenizer)
        options = dict(add_generation_prompt=True)
        assert written(prompt, tokenizer) == theirs.apply_chat_template(conversation[:-1], tokenize=False, **options)


def test_training_uses_a_fixed_day_and_chat_uses_today():
    template, tokenizer = made(HEADERS)
    year = f"{datetime.datetime.now():%Y}"
    assert year in written(template.prompt([ASK], tokenizer), tokenizer)
    assert "01 Jan 2025" in written([part for part, _ in template.spans(TURNS, tokenizer)], tokenizer)


def test_what_templates_may_use():
    source = "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"
    [text] = JinjaTemplate(source).prompt([dict(ASK, content="<é>")], bytes_and("</s>"))
    assert text.decode() == '{"role": "user", "content": "<é>"}'  # in this order, without Jinja's escapes
    source = "{{ '%03d' % 5 }}{{ 2 ** 10 + 1 }}{{ [1, 2] * 2 }}{{ 'a,b'.split(',') | join('-') }}{{ namespace(a=1).a }}"
    assert JinjaTemplate(source).prompt([ASK], bytes_and("</s>")) == [b"0051025[1, 2, 1, 2]a-b1"]


# Templates that fail


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("a\n{% if x %}", "line 2, is not a Jinja template .*correct it"),
        ("a\n\n{{ 1 +* }}", "line 3, is not a Jinja template .unexpected '.'.; correct it"),
        ("{% nonsense %}", "line 1, is not a Jinja template"),
        ("{% for x in [1] recursive %}{% endfor %}", "recursive loops are not supported"),
        ("(" * 3 + "{{ " + "(" * 100_000 + " }}", "is not a Jinja template"),
        (
            "\n{{ nothing.x }}",
            "line 2, cannot write the conversation .UndefinedError: 'nothing' is undefined.; correct",
        ),
        ("{{ 1 / 0 }}", "line 1, cannot write .*division by zero"),
        ("{{ messages[7].content }}", "line 1, cannot write .*no element 7"),
        ("{% include 'other' %}", "line 1, cannot write"),
        ("{{ ''.__class__.__mro__ }}", "line 1, cannot write .*unsafe"),
        ("{% set x = messages.append(1) %}", "line 1, cannot write .*unsafe"),
        ("{{ messages[0].update(a=1) }}", "line 1, cannot write .*unsafe"),
        (
            "{{ raise_exception('No system ' ~ 'role') }}",
            "refuses the conversation: No system role; change the messages",
        ),
        ("{{ '\\ud800' }}", "cannot write .*surrogates"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot write .*recursion"),
    ],
)
def test_a_bad_template_is_reported_in_one_sentence_with_its_line(source, sentence):
    template = JinjaTemplate(source, name="model/chat_template.jinja")
    with pytest.raises(UserError, match=rf"^model/chat_template.jinja.*{sentence}") as refused:
        template.prompt([ASK], bytes_and("</s>"))
    assert "\n" not in str(refused.value)


GROW = "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = GROWN %}{% endfor %}{{ n.x }}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ ['x'] * 10**10 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        GROW.replace("GROWN", "n.x ~ n.x"),
        GROW.replace("GROWN", "n.x + n.x"),
        GROW.replace("GROWN", "n.x * 2"),
        GROW.replace("GROWN", "[n.x, n.x]"),
        GROW.replace("GROWN", "n.x.replace('a', 'aa').replace('b', 'bb')"),
        GROW.replace("'ab'", "3").replace("GROWN", "n.x * n.x"),
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x' | indent(10**10, true) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**10) }}",
        "{{ {'a': 1} | tojson(indent=10**10) }}",
        "{{ ('a,' * 9999).split(',') | join('b' * 99999) }}",
        "{{ lipsum(10**7) }}",
        GROW.replace("GROWN", "[n.x, n.x]").replace("{{ n.x }}", "{{ n }}"),
        GROW.replace("GROWN", "{'a': n.x, 'b': n.x}").replace("{{ n.x }}", "{{ n.x.items() }}"),
        GROW.replace("GROWN", "{'a': n.x, 'b': n.x}").replace("{{ n.x }}", "{{ n.x.values() | string }}"),
        "{{ 'a'.translate({97: 'b' * 9999999}) * 2 }}",
        "{{ ('\\t' * 99999).expandtabs(99999) }}",
        "{{ range(10**10) | list }}",
    ],
)
def test_a_template_that_explodes_is_refused_at_once(source):
    with pytest.raises(UserError, match="cannot write the conversation"):
        JinjaTemplate(source).prompt([ASK], bytes_and("</s>"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ loop.index }}{% endfor %}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}{% endset %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% for i in range(99999) %}{% set x = range(9999) | map('string') | list %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_refused(source, monkeypatch):
    monkeypatch.setattr(jinja_limits, "SECONDS", 0.2)
    with pytest.raises(UserError, match="takes more than 0.2 seconds|makes more than 10,000,000 characters"):
        JinjaTemplate(source).prompt([ASK], bytes_and("</s>"))


def test_conversations_that_end_with_the_wrong_role_are_refused():
    template, tokenizer = made(CHATML)
    with pytest.raises(UserError, match="ends with a message of the user, which leaves nothing to train on; add"):
        template.spans([ASK], tokenizer)
    with pytest.raises(UserError, match="ends with a message of the assistant; add a message of the user"):
        template.prompt([ASK, REPLY], tokenizer)


def test_a_missing_package_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r'needs the package jinja2.*pip install "slm_np\[chat\]"'):
        JinjaTemplate("{{ 'a template that is new' }}").prompt([ASK], bytes_and("</s>"))


def test_long_messages_are_accepted():
    long = "word " * 200_000
    source = "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content | trim | truncate(2000000) }}"
    source += (
        "{{ m.content.split('</think>')[-1].replace('word', 'WORD').strip('x') ~ '|' + m.content }}</s>{% endfor %}"
    )
    [text, end] = JinjaTemplate(source).prompt([dict(ASK, content=long)], bytes_and("</s>"))
    assert len(text) == 3 * (len(long) - 1) + 1 and end == 256


# Templates of both kinds


def test_a_template_is_restored_from_a_run_and_from_a_plan(tmp_path):
    template = JinjaTemplate(CHATML + "é", TOKENS[CHATML])
    (tmp_path / "chat_template.json").write_bytes(template.to_bytes())
    assert templates.load(tmp_path) == template == templates.restored(templates.identity_of(template))
    assert template.to_jinja().decode() == template.source
    other = Template(before_user="<u>")
    assert templates.restored(templates.identity_of(other)) == other
    assert templates.identity_of(DEFAULT) is None and templates.restored(None) == DEFAULT
    for copied in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
        assert copied == template and copied.prompt([ASK], bytes_and(*NAMES[CHATML]))
    assert JinjaTemplate(CHATML) != template


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"source": 3, "tokens": {}}', '{"source": "a"}', '{"source": "a", "tokens": 3}']
)
def test_a_damaged_template_is_refused(tmp_path, text):
    (tmp_path / "chat_template.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="chat_template.json .*copy it again"):
        templates.load(tmp_path)


def test_special_tokens_of_our_tokenizers():
    assert list(ByteTokenizer(True).special_tokens) == ["<|endoftext|>"]
    assert not ByteTokenizer().special_tokens
