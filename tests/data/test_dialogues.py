"""The embedded corpus `dialogues`: every answer can be read in its story, and guessing an answer fails."""

import hashlib
import itertools
import json
import math
import re
from collections import Counter

import pytest

from slm_np.data import dialogues, stories
from slm_np.data.chat_template import DEFAULT, check_messages

MEGABYTE = 1_000_000
GOLDEN = "1d4f927a5ab1b385472057ba1ee00a101d2a7eda24fe75706b79379fae51edba"

# Patterns of a question, of what answers it in the story, and of the answer. X and Y stand for words of the question,
# "a b" for two words of the story. The patterns use the English of the stories and not the roles of the writer.
PATTERNS = [
    line.split(" => ")
    for line in r"""
What was X like\? => ^X was (\w+ and \w+)\. => (He|She) was {}.
Where did X live\? => ^X lived by the (a b)\. => By the {}.
Who lived by the X\? => ^(\w+) lived by the \w+ X\. => {}.
Whose home was by the X\? => ^(\w+) lived by the \w+ X\. => {}'s.
Who loved the X\? => ^(\w+) loved the \w+ X\. => {}.
(What|Which animal) did X love\? => ^X loved the (a b)\. => The {}.
Who kept the X\? => ^(\w+) kept the \w+ X at home\. => {}.
Whose X was at home\? => ^(\w+) kept the \w+ X at home\. => {}'s.
What did X keep at home\? => ^X kept the (a b) at home\. => The {}.
(What was the day like|How was the day)\? => One (\w+) day, => It was {}.
What colour was the X\? => [Tt]he (\w+) X\b => It was {}.
How did (they|gran|the \w+|\w+) feel\? => felt (\w+ and \w+)\b => (He|She|It|They) felt {}.
Who (lost|packed|gave away|played by) the X\? => ^(\w+) .* s?he (lost|packed|played by) the \w+ X\b => {}.
Whose X (was lost|did \w+ (find|get))\? => ^(\w+) .* s?he (lost|packed) the \w+ X\b => {}'s.
What did X (lose|pack|give away)\? => ^X .* s?he (?:lost|packed) the (a b)\. => The {}.
Who found the X\? => X\. (\w+) found it => {}.
Who helped X\? => (\w+) found it .* X felt => {}.
What (was lost|did \w+ find)\? => s?he lost the (a b)\. \w+ found it => The {}.
Where did \w+ find the X\? => X\. \w+ found it by the (a b)\. => By the {}.
Who (got|was given) the X\? => (?=.* got the \w+ X from)(\w+) |made the \w+ X for (\w+)\. => {}.
Who (gave|brought) X the Y\? => s?he got the \w+ Y from (\w+)\. => {}.
Whose (present|gift) was the X\? => s?he got the \w+ X from (\w+)\. => {}'s.
What did X get from Y\? => ^X .* s?he got the (a b) from Y\. => The {}.
What did Y give X\? => ^X .* s?he got the (a b) from Y\. => The {}.
Where did X take the Y\? => ^X .* got the \w+ Y from .* and took it to the (a b)\. => To the {}.
Who felt X\? => (\w+) sat by .* felt \w+ and X, => {}.
Who got half of the X\? => X\. (\w+) sat by => {}.
Where (did|was) X( sit)?\? => X sat by the (a b) and => By the {}.
Who saw the X\? => (?=.* s?he saw the \w+ X stuck)^(\w+) |(\w+) saw that it was the \w+ X\. => {}.
Who (freed the \w+|pulled the \w+ out)\? => (\w+) pulled it out => {}.
(What|Which animal) did X see\? => ^X .*s?he saw the (a b) stuck|X saw that it was the (a b)\. => The {}.
(What|Which animal) was stuck\? => the (a b) stuck => The {}.
Where was the X stuck\? => X stuck under the (a b)\. => Under the {}.
Who wished to draw\? => ^(\w+) .*s?he wished to draw => {}.
Who (lent \w+|owned) the X\? => (\w+) lent \w+ the \w+ X, => {}.
Whose X was it\? => (\w+) lent \w+ the \w+ X, => {}'s.
(What|Which animal) did X wish to draw\? => ^X .*s?he wished to draw the (a b)\. => The {}.
What did X lend Y\? => ^Y .*X lent \w+ the (a b), => The {}.
Who (went to see|saw) gran\? => ^(\w+) .* s?he saw gran => {}.
Who brought the X\? => ^(\w+) .* S?[Hh]e brought the \w+ X, => {}.
Whose gran lived by the X\? => ^(\w+) .* saw gran by the \w+ X\. => {}'s.
What did (gran get|\w+ bring)\? => brought the (a b), => The {}.
Where (was|did \w+ see) gran\? => saw gran by the (a b)\. => By the {}.
Who had the X\? => (\w+) had the \w+ X inside => {}.
Whose X was inside\? => (\w+) had the \w+ X inside => {}'s.
What did X have\? => X had the (a b) inside => The {}.
Where did X play\? => ^X .* played by the (a b), => By the {}.
Who made the X\? => ^(\w+) .* s?he made the \w+ X for => {}.
Who was the X for\? => made the \w+ X for (\w+)\. => {}.
Whose work was the X\? => ^(\w+) .* s?he made the \w+ X for => {}'s.
What did X make\? => ^X .* s?he made the (a b) for => The {}.
What did X (get|put by the \w+)\? => made the (a b) for X\. X felt => The {}.
Where did X put the Y\? => made the \w+ Y for X\. X felt .* put it by the (a b)\. => By the {}.
Who heard (a|the) noise\? => ^(\w+) .* heard a noise => {}.
(What|Which animal) made the noise\? => saw that it was the (a b)\. => The {}.
Who put (a|the) seed by the X\? => ^(\w+) .* put a seed by the \w+ X\. => {}.
Who made (a|the) fence\? => so (\w+) made a fence => {}.
Whose seed was it\? => ^(\w+) .* put a seed => {}'s.
(What|Which animal) sat on the seed\? => The (a b) sat on it => The {}.
Where was the X\? => (?:(?:noise|seed) by|X\. \w+ found it by) the (a b)\b|noise by the (a b) and .* X\. => By the {}.
""".strip().split("\n")
]


@pytest.fixture(scope="module")
def some():
    return list(itertools.islice(dialogues.dialogues(5), 2000))


def answer_in(story, question):
    """(number of the pattern, pattern of the answer) from the text alone."""
    story, found = re.sub(r"^(One [a-z ]*day,) (\w+) ", r"\2 came. \1 he ", story), []  # now each starts with a name
    for number, (question_pattern, story_pattern, answer) in enumerate(PATTERNS):
        match = re.fullmatch(re.sub(r"\b[XY]\b", lambda word: rf"(?P<{word[0]}>\w+)", question_pattern), question)
        if match:
            for name, word in match.groupdict().items():
                story_pattern = re.sub(rf"\b{name}\b", word, story_pattern)
            shown = re.search(story_pattern.replace("a b", r"\w+ \w+"), story)
            if shown:
                found.append((number, answer.format(next(group for group in shown.groups() if group))))
    assert len(found) == 1, (question, story, found)
    return found[0]


def test_every_answer_can_be_read_in_the_story(some):
    seen = Counter()
    for dialogue in some:
        for turn in dialogue.turns:
            number, answer = answer_in(dialogue.story, turn.question)
            assert re.fullmatch(answer, turn.answer), (dialogue.story, turn)
            seen[number] += 1
    assert set(seen) == set(range(len(PATTERNS)))  # every pattern is used


def test_pronouns_match_the_names(some):
    for dialogue in some:
        for turn in dialogue.turns:
            named = re.search(r"(?:did|was) ([A-Z]\w+)", turn.question)
            if named and turn.answer.startswith(("He ", "She ")):
                assert turn.answer.startswith("She ") == (named[1] in stories.WORDS["girl"])


def test_no_question_has_two_answers(some):
    for dialogue in some:
        for source in ("name", "thing", "animal", "place"):
            words = [word for role, word in dialogue.facts.items() if dialogues.ROLES.get(role) == source]
            assert len(set(words)) == len(words) and all(re.search(rf"\b{word}\b", dialogue.story) for word in words)
        assert len({turn.question for turn in dialogue.turns}) == len(dialogue.turns)


def test_all_kinds_of_questions_occur_and_guessing_fails(some):
    turns = [turn for dialogue in some for turn in dialogue.turns]
    kinds = Counter(turn.kind for turn in turns)
    assert set(kinds) == {"who", "whose", "what", "where", "how", "color"} and min(kinds.values()) > 0.09 * len(turns)
    for kind, count in kinds.items():
        answers = Counter(turn.answer for turn in turns if turn.kind == kind)
        assert max(answers.values()) < 0.06 * count
        assert -sum(n / count * math.log2(n / count) for n in answers.values()) > 5
    assert {dialogue.facts["plot"] for dialogue in some} == set(dialogues.PLOTS)
    answers = [
        (turn.answer, dialogue.facts["hero"]) for dialogue in some for turn in dialogue.turns if turn.kind == "who"
    ]
    heroes = sum(answer == hero + "." for answer, hero in answers)
    assert 0.4 < heroes / kinds["who"] < 0.7  # so the first name of the story is a bad guess


def test_a_whole_dialogue_fits_a_context_of_256_bytes(some):
    sizes = [sum(len(span) for span, _ in DEFAULT.spans(dialogues.messages(dialogue))) for dialogue in some]
    assert max(sizes) <= dialogues.LONGEST < 256
    assert {len(dialogue.turns) for dialogue in some} == {1, 2, 3, 4}


def test_stories_are_clean_english_in_the_words_of_the_corpus_stories(some):
    vocabulary = set(re.findall("[a-z]+", "".join(text for text, _ in stories.write(MEGABYTE, 3)).lower()))
    new = Counter(
        word for dialogue in some for word in re.findall("[a-z]+", dialogue.story.lower()) if word not in vocabulary
    )
    assert len(new) < 15, new
    for dialogue in some:
        assert re.fullmatch(r"([A-Z][A-Za-z ,]+\.( |$))+", dialogue.story)
        assert "  " not in dialogue.story and not re.search(r" [.,]|[{}()\[\]|<>]", dialogue.story)


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
    assert list(itertools.islice(endless, 20)) == list(itertools.islice(dialogues.write(10_000, 7), 20))


def test_seeds_have_no_story_in_common():
    first, second = ([line for line, _ in dialogues.write(MEGABYTE, seed)] for seed in (1, 2))
    assert len(set(first)) == len(first) and not set(first) & set(second)
    stories_of = [
        {json.loads(line)["messages"][0]["content"].rsplit(". ", 1)[0] for line in lines} for lines in (first, second)
    ]
    assert not stories_of[0] & stories_of[1]
