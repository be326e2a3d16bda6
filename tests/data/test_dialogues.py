"""The embedded corpus `dialogues`: every answer can be read in its story, and guessing an answer fails."""

import hashlib
import itertools
import json
import random
import re
from collections import Counter

import pytest

from slm_np.data import dialogues, embedded, stories
from slm_np.data.chat_template import DEFAULT, check_messages
from slm_np.data.plain_bpe import PlainBPE
from slm_np.data.stories.words import LISTS, ROLES

MEGABYTE = 1_000_000
GOLDEN = "057be3332122939c5036a07fbf1c0a3b16e11e1aa529ed2f5f9ec73e9009a8d3"
QUESTION = re.compile(r"[A-Z][A-Za-z', -]*\?")


@pytest.fixture(scope="module")
def some():
    return list(itertools.islice(dialogues.dialogues(1), 2000))


def words_of(text):
    return set(re.findall("[a-z]+", text.lower().replace("'s", "")))


def test_every_fact_of_an_answer_is_in_its_story(some):
    drawn = words_of(" ".join(entry.full for entries in LISTS.values() for entry in (*entries.pairs, *entries.entries)))
    answered = Counter()
    for dialogue in some:
        for turn in dialogue.turns:
            assert re.fullmatch(r"[A-Z][^?\n]*[.!]", turn.answer) and QUESTION.fullmatch(turn.question), turn
            facts = words_of(turn.answer) & drawn - {"in", "to", "a", "an"}
            assert facts <= words_of(dialogue.story), (facts - words_of(dialogue.story), turn, dialogue.story)
            answered[bool(facts)] += 1
    assert answered[True] > 5 * answered[False]


def test_the_first_name_of_a_story_is_a_bad_guess(some):
    guessed = Counter()
    for dialogue in some:
        names = [word for word in re.findall("[A-Z][a-z]+", dialogue.story) if word in stories.WORDS["name"]]
        guessed.update(names[0] in turn.answer for turn in dialogue.turns if turn.kind == "who")
    assert guessed[True] < 0.6 * guessed.total()


def swaps(story, rng):
    """Yield (role, old word, new word) for each role: a word of its list with the same adjective and pronouns."""
    for role, old in story.facts.items():
        if role not in ROLES or not old.isalpha():
            continue
        options = LISTS[ROLES[role]].pairs if story.facts.get(f"{role}.look") else LISTS[ROLES[role]].entries
        told = dict(word=old, key=old) | (
            {"look": story.facts[f"{role}.look"]} if f"{role}.look" in story.facts else {}
        )
        known = next(vars(entry) for entry in options if told.items() <= vars(entry).items())
        same = {key: value for key, value in known.items() if key not in ("word", "key", "full") and value != old}
        for entry in rng.sample(options, len(options)):
            if same.items() <= vars(entry).items() and entry.word.isalpha() and entry.word not in story.facts.values():
                yield role, old, entry.word
                break


def replaced(old, new, text):
    """The text with a word instead of another one, in the same case."""
    for before, after in ((old, new), (old.capitalize(), new.capitalize())):
        text = re.sub(rf"\b{before}\b", after, text)
    return text


def with_a(text):
    """The text with "a" for "an", because an answer leaves out the adjective between the article and the thing."""
    return re.sub(r"\b([Aa])n\b", r"\1", text)


def test_an_answer_changes_with_the_fact_it_tells():
    """Replaced everywhere in a story, a word is replaced in its questions and answers, and nothing else is."""
    rng, changed, refused = random.Random(5), Counter(), 0
    for story in itertools.islice(stories.tales(6), 300):
        for role, old, new in swaps(story, rng):
            try:
                other = stories.read(replaced(old, new, story.text))
            except stories.StoryError:  # "a" before a vowel, or a word that a template has, too
                refused += 1
                continue
            assert (other.plot, other.facts[role]) == (story.plot, new)
            for before, after in zip(story.questions, other.questions, strict=True):
                assert after.question == replaced(old, new, before.question)
                assert with_a(after.answer) == with_a(replaced(old, new, before.answer))
                changed[before.kind] += before.answer != after.answer
    assert changed.total() > 2 * refused
    assert all(changed[kind] > 10 for kind in ("who", "what", "where", "how")), changed


def test_kinds_and_answers_are_spread(some):
    turns = [turn for dialogue in some for turn in dialogue.turns]
    kinds = Counter(turn.kind for turn in turns)
    assert kinds.keys() == set(dialogues.KINDS) and min(kinds.values()) > 0.04 * len(turns), kinds
    for kind, count in kinds.items():
        answers = Counter(turn.answer for turn in turns if turn.kind == kind)
        assert answers.most_common(1)[0][1] < 0.15 * count, (kind, answers.most_common(3))
    assert {dialogue.plot for dialogue in some} == set(stories.PLOTS)


def test_no_question_comes_twice_in_a_dialogue(some):
    assert all(len({turn.question for turn in one.turns}) == len(one.turns) for one in some)
    assert {len(one.turns) for one in some} == {1, 2, 3, 4}


def test_a_dialogue_fits_a_context_of_256_tokens(some):
    tokenizer = PlainBPE.stories()
    sizes = [
        sum(len(tokenizer.encode(span)) for span, _ in DEFAULT.spans(dialogues.messages(dialogue))) for dialogue in some
    ]
    assert max(sizes) + 1 <= 256  # with the end-of-text token
    assert sum(len(dialogue.turns) for dialogue in some) > 2 * len(some)


def test_a_story_is_one_line_of_a_whole_new_story(some):
    corpus = {" ".join(text.split()) for seed in embedded.SEEDS.values() for text, _ in stories.write(MEGABYTE, seed)}
    told = {" ".join(story.text.split()) for story in itertools.islice(stories.tales(dialogues.STORIES + 1), 3000)}
    for dialogue in some[:300]:
        assert dialogue.story in told and dialogue.story not in corpus and "\n" not in dialogue.story


def test_a_seed_gives_the_same_rows_on_every_machine():
    text = "".join(line for line, _ in dialogues.write(100_000, 1))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == GOLDEN


def test_rows_are_conversations_with_the_story_first():
    for (line, _), dialogue in zip(dialogues.write(20_000, 4), dialogues.dialogues(4)):
        assert line.endswith("\n") and "\n" not in line[:-1]
        row = json.loads(line)
        assert list(row) == ["messages"]
        check_messages(row["messages"], "the row")
        questions, answers = row["messages"][0::2], row["messages"][1::2]
        assert [message["content"] for message in answers] == [turn.answer for turn in dialogue.turns]
        assert questions[0]["content"] == f"{dialogue.story} {dialogue.turns[0].question}"
        assert [message["content"] for message in questions[1:]] == [turn.question for turn in dialogue.turns[1:]]


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_write_stops_after_the_row_that_reaches_the_size(n):
    sizes = [len(line) for line, _ in dialogues.write(n, 4)]
    assert sum(sizes) >= n and (not sizes or sum(sizes[:-1]) < n)


def test_rows_are_generated_lazily():
    endless = dialogues.write(10**15, 7)
    assert list(itertools.islice(endless, 20)) == list(itertools.islice(dialogues.write(30_000, 7), 20))


def test_seeds_have_no_story_in_common():
    first, second = (
        [dialogue.story for dialogue in itertools.islice(dialogues.dialogues(seed), 1000)] for seed in (1, 2)
    )
    assert len(set(first)) == len(first) and not set(first) & set(second)
