"""The embedded corpus `stories`: deterministic, without duplicates, exact about its entropy, consistent, readable."""

import bz2
import hashlib
import itertools
import lzma
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from slm_np.data import stories
from slm_np.data.stories import home_plots, outdoor_plots, shared, skimmer, teller
from slm_np.data.stories.words import LISTS, PHRASES, ROLES

SIZE = 10_000_000
GOLDEN = "afe5e43cd92c11d80a8f4bf166eb42a809399485cdc3996e4c424412f08167ea"
KINDS = dict(
    feeling={"glad", "sad", "scared", "cross"},
    name={"name", "pet_name", "teacher"},
    food={"treat", "bake", "soup", "ingredient", "crop"},
    animal={"pet", "dog", "hider", "wild", "kept"},
    place={"spot", "room", "open_place", "water", "landmark", "shelter", "tree"},
)  # {kind: lists}; the others are things


@pytest.fixture(scope="module")
def corpus():
    return list(stories.write(SIZE, 1))


@pytest.fixture(scope="module")
def tales():
    return list(itertools.islice(stories.tales(3), 2600))


@pytest.fixture(scope="module")
def floor(corpus):
    return sum(bits for _, bits in corpus) / sum(len(text) for text, _ in corpus)


# The corpus


def test_a_seed_gives_the_same_text_on_every_machine():
    text = "".join(text for text, _ in stories.write(100_000, 1)).encode("ascii")
    assert hashlib.sha256(text).hexdigest() == GOLDEN


def test_story_k_depends_on_seed_and_k_only(corpus):
    assert list(itertools.islice(stories.stories(1), 50)) == corpus[:50]
    assert next(stories.stories(2)) != corpus[0]


def test_write_stops_after_the_story_that_reaches_the_size():
    for n in (1, 700, 5000):
        texts = [text for text, _ in stories.write(n, 4)]
        assert sum(map(len, texts)) >= n > sum(map(len, texts[:-1]))


def test_no_two_stories_are_equal(corpus):
    texts = [text for text, _ in corpus]
    assert len(set(texts)) == len(texts)
    assert min(bits for _, bits in corpus) > 60  # so duplicates are improbable, and none had to be removed


def test_the_entropy_is_between_a_quarter_and_two_fifths_of_a_bit_per_byte(floor):
    assert 0.25 < floor < 0.40


@pytest.mark.parametrize(
    "compress",
    [lambda d: lzma.compress(d, preset=9 | lzma.PRESET_EXTREME), lambda d: bz2.compress(d, 9)],
    ids=["lzma", "bz2"],
)
def test_a_strong_compressor_stays_above_the_floor(corpus, floor, compress):
    data = "".join(text for text, _ in corpus).encode()[: SIZE // 5]
    assert 8 * len(compress(data)) / len(data) > floor


def test_every_plot_is_equally_likely(tales):
    counts = Counter(tale.plot for tale in tales)
    assert set(counts) == set(stories.PLOTS) and len(counts) == 26
    assert all(60 < n < 140 for n in counts.values())  # 100 are expected, with a standard deviation of 10


# Reading


def test_every_story_is_read_back_with_the_same_bits(tales):
    for tale in tales[:1300]:
        assert stories.read(tale.text) == tale
    text, bits = next(stories.stories(1))
    assert stories.bits_of(text) == bits


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: t + "x",
        lambda t: t.replace(" ", "  ", 1),
        lambda t: t[0].lower() + t[1:],
        lambda t: t.replace(".", "!", 1),
        lambda t: t.replace("\n", " ", 1),
        lambda t: "",
        lambda t: "\n\n",
        lambda t: "Once upon a time.\n\n",
        lambda t: t + t,
    ],
)
def test_read_refuses_other_texts(tales, change):
    for tale in tales[:20]:
        with pytest.raises(stories.StoryError) as refused:
            stories.read(change(tale.text))
        assert 0 <= refused.value.position <= len(change(tale.text)) and refused.value.reason in str(refused.value)


def test_an_error_says_where_a_text_stops_being_a_story(tales):
    [text] = [tale.text for tale in tales[:1]]
    at = text.rindex(". ") + 2  # where the last sentence starts
    with pytest.raises(stories.StoryError) as refused:
        stories.read(text[:at] + "The xylophone was loud.\n\n")
    assert at - 1 <= refused.value.position <= at + 1


class Recorder(teller.Writer):
    """A Writer that records where it mentions a role by a word of its list."""

    def __init__(self, integer):
        super().__init__(integer)
        self.mentions = []  # (Mention, start, stop)

    def mention(self, mention):
        start = len(self.text())
        super().mention(mention)
        if mention.field in ("word", "full"):
            self.mentions.append((mention, start, len(self.text())))


def recorded(seed, n):
    """n `Recorder`s that have told a story."""
    plots = list(stories.PLOTS.values())
    for integer in itertools.islice(stories.random_integers(seed), n):
        integer, plot = divmod(integer, len(plots))
        recorder = Recorder(integer)
        plots[plot](recorder)
        yield recorder


def kind_of(mention):
    """The kind of what a `Mention` names."""
    return next((kind for kind, lists in KINDS.items() if ROLES[mention.role] in lists), "thing")


def swapped(recorder, draw):
    """(kind, text, start) with one mention replaced by another word of its list."""
    mention, start, stop = draw.choice(recorder.mentions)
    text = recorder.text()
    old = recorder.cast[mention.role]
    new = draw.choice([entry for entry in mention.options if entry.word != old.word])
    return kind_of(mention), text[:start] + mention.spelled(new) + text[stop:], start


def test_one_wrong_word_is_noticed():
    draw, noticed, kinds = random.Random(5), Counter(), Counter()
    for recorder in recorded(6, 1000):
        kind, text, _ = swapped(recorder, draw)
        kinds[kind] += 1
        try:
            stories.read(text + stories.SEPARATOR)
        except stories.StoryError:
            noticed[kind] += 1
    assert set(kinds) == {*KINDS, "thing"}
    assert noticed.total() >= 950, {kind: f"{noticed[kind]} of {n}" for kind, n in kinds.items()}
    assert all(noticed[kind] >= 0.9 * n for kind, n in kinds.items()), (noticed, kinds)


# Texts that may be wrong


def joined(found):
    return " ".join(sentence for sentence, _ in found)


def test_all_sentences_of_a_story_are_accepted(tales):
    for tale in tales[:60]:
        found = stories.sentences(tale.text)
        assert all(accepted for _, accepted in found) and joined(found) == " ".join(tale.text.split())
    assert stories.sentences("") == stories.sentences("\n\n") == []


def test_a_story_has_no_other_trait_than_the_child_s(tales):
    for tale in tales:
        found = set(re.findall("[a-z]+", tale.text.lower())).intersection(stories.WORDS["trait"])
        assert found == {tale.facts["trait"]}, tale.text


def test_only_the_sentence_with_a_wrong_word_is_rejected():
    """A wrong first mention is the only one that the sentences after it contradict, so a few more may be wrong."""
    draw, wrong = random.Random(8), []
    for recorder in recorded(9, 20):
        _, text, _ = swapped(recorder, draw)
        found = stories.sentences(text)
        assert joined(found) == " ".join(text.split())
        wrong.append(sum(not accepted for _, accepted in found))
        assert wrong[-1] < len(found) / 2
    assert wrong.count(1) >= 15


def test_a_sentence_that_is_skipped_missing_or_new_does_not_spoil_the_others(tales):
    for tale in tales[:8]:
        whole = [sentence for sentence, _ in stories.sentences(tale.text)]
        for changed in (
            [*whole[:3], "The xylophone was loud.", *whole[3:]],
            [*whole[:3], "The xylophone was loud.", *whole[4:]],
        ):
            found = stories.sentences(" ".join(changed))
            assert sum(not accepted for _, accepted in found) <= 4, found
            assert ("The xylophone was loud.", False) in found


def test_no_sentence_of_another_text_is_accepted():
    found = stories.sentences("It rained. The cat sat on the mat! Then nothing happened")
    assert found == [("It rained.", False), ("The cat sat on the mat!", False), ("Then nothing happened", False)]


def test_sentences_end_at_their_marks():
    text = '"Stop! Why?" she said. He ran.'
    assert [sentence for sentence, _ in skimmer.sentences(text, [])] == ['"Stop!', 'Why?" she said.', "He ran."]


# Questions


def test_questions_are_well_formed_and_answered_in_words_of_the_story(tales):
    kinds = Counter()
    for tale in tales[:1000]:
        assert 6 <= len(tale.questions) <= 12, tale.plot
        asked = [question.question for question in tale.questions]
        assert len(set(asked)) == len(asked), tale.plot
        words = set(re.findall("[a-z]+", tale.text.lower()))
        for question, answer, kind in tale.questions:
            assert re.fullmatch(r"[A-Z][A-Za-z' -]+\?", question), question
            assert re.fullmatch(r"[A-Z][A-Za-z',\" -]+\.", answer) and len(answer) < 80, answer
            assert set(re.findall("[A-Z][a-z]+", f"{question[1:]} {answer[1:]}")) <= set(
                re.findall("[A-Z][a-z]+", tale.text)
            ), (question, answer)
            assert any(word in words for word in re.findall("[a-z]+", answer.lower())), answer
            kinds[kind] += 1
    assert set(kinds) == {"who", "whose", "what", "where", "why", "how", "before", "after"}
    assert min(kinds.values()) > 50


def test_the_answers_depend_on_the_story(tales):
    """The questions of a kind about a plot have different answers in different stories."""
    answers = {}
    for tale in tales:
        for question, answer, kind in tale.questions:
            answers.setdefault((tale.plot, kind), set()).add(answer)
    same = [key for key, found in answers.items() if len(found) == 1 and key[1] in ("who", "whose", "what", "where")]
    assert same == [("lost_in_the_woods", "where")]  # in the woods


# The English


def test_the_words_are_lowercase_and_no_two_entries_of_a_list_are_spelled_alike():
    for name, words in LISTS.items():
        pairs = [entry.full for entry in words.pairs]
        assert len(set(pairs)) == len(pairs), name
        assert len(words.words) == len(words.entries) > 1, name
        assert all(re.fullmatch("[A-Za-z' -]+", text) for text in pairs), name
        assert name in {*ROLES.values(), "girl", "boy"}, name


def test_every_phrase_and_role_is_used_and_no_phrase_has_an_option_twice():
    source = "".join(
        Path(module.__file__).read_text(encoding="utf-8") for module in (home_plots, outdoor_plots, shared)
    )
    source += "".join(PHRASES.values())
    assert {name[0].lower() + name[1:] for name in re.findall(r"<(\w+)>", source)} == set(PHRASES)
    roles = {role[0].lower() + role[1:] for role in re.findall(r"{(?:[aA] )?(\w+)[.}]", source)}
    assert set(ROLES) <= roles
    for name, text in PHRASES.items():
        texts = list(all_texts(teller.parsed(text)))
        assert len(set(texts)) == len(texts) > 1, name


def all_texts(parts):
    """All texts of a template, its mentions as numbers."""
    if not parts:
        yield ""
        return
    part, *rest = parts
    if isinstance(part, teller.Choice):
        starts = (text for option in part.options for text in all_texts(option))
    else:
        starts = [part if isinstance(part, str) else f"{part.role}.{part.field}"]
    for start in starts:
        for end in all_texts(rest):
            yield start + end


def test_the_text_is_clean_english(corpus):
    text = "".join(text for text, _ in corpus)
    words = set(re.findall("[a-z]+", text.lower()))
    assert 800 < len(words) < 2500
    assert set(text) <= set(" \n.,:!?\"'-" + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert "  " not in text and " ." not in text and " ," not in text and " !" not in text
    assert not re.search(r"\b[Aa] ([aeio]|u(?!ni|se|ku)|hour|honest)|\b[Aa]n (?!hour|honest)[^aeiou]", text)
    assert not (doubled := re.search(r"\b(?!very|no|there|yes)([a-z]+),? \1\b", text)), doubled
    for story, _ in corpus[:3000]:
        assert story.endswith("\n\n") and "\n\n" not in story[:-2] and 450 <= len(story) <= 900
        assert 80 <= len(story.split()) <= 200
        for line in story[:-2].split("\n"):
            assert re.match('["A-Z]', line) and re.search('[.!?"]$', line) and line.count('"') % 2 == 0
            for sentence in re.split(r'(?<=[.!?]) "?', line.lstrip('"')):
                assert sentence[0].isupper(), sentence
