"""The embedded corpus `stories`: deterministic, without duplicates, and exact about its entropy."""

import bz2
import hashlib
import itertools
import lzma
import re

import pytest

from slm_np.data import stories

MEGABYTES = 2_000_000
GOLDEN = "4efc86d1e4f34c2e1bd264f39c5b89de2cc48c07b0d9792a5b3b47b3d3924ef3"


@pytest.fixture(scope="module")
def corpus():
    return list(stories.write(MEGABYTES, 1))


@pytest.fixture(scope="module")
def floor(corpus):
    return sum(bits for _, bits in corpus) / sum(len(text) for text, _ in corpus)


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


def test_the_entropy_is_between_0_6_and_1_bits_per_byte(floor):
    assert 0.6 < floor < 1.0


def test_the_text_determines_every_choice(corpus):
    for text, bits in corpus[:200]:
        assert stories.bits_of(text) == bits


def test_no_word_of_a_list_is_a_prefix_of_another():
    for name, words in stories.WORDS.items():
        assert not [(a, b) for a in words for b in words if a != b and b.startswith(a)], name
        assert len(set(words)) == len(words), name


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: t + "x",
        lambda t: t.replace(" ", "  ", 1),
        lambda t: t[0].lower() + t[1:],
        lambda t: t.replace(".", "!", 1),
        lambda t: "",
        lambda t: "Once upon a time.\n\n",
    ],
)
def test_bits_of_refuses_other_texts(corpus, change):
    with pytest.raises(ValueError):
        stories.bits_of(change(corpus[3][0]))


@pytest.mark.parametrize(
    "compress",
    [lambda d: lzma.compress(d, preset=9 | lzma.PRESET_EXTREME), lambda d: bz2.compress(d, 9)],
    ids=["lzma", "bz2"],
)
def test_a_strong_compressor_stays_above_the_floor(corpus, floor, compress):
    data = "".join(text for text, _ in corpus).encode()
    assert 8 * len(compress(data)) / len(data) > floor


def test_the_text_is_clean_english(corpus):
    text = "".join(text for text, _ in corpus)
    words = set(re.findall("[a-z]+", text.lower()))
    assert 300 < len(words) < 1500
    assert set(text) <= set(' \n.,:!?"' + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert "  " not in text and " ." not in text and " ," not in text
    assert not re.search(r"\ba ([aeio]|honest)|\ban (?!honest)[^aeiou]", text)
    for story, _ in corpus[:500]:
        assert story.endswith("\n\n") and "\n\n" not in story[:-2] and 400 <= len(story) <= 900
        for line in story[:-2].split("\n"):
            assert re.match('["A-Z]', line) and re.search('[.!?"]$', line) and line.count('"') % 2 == 0
            assert all(sentence[0].isupper() for sentence in re.split(r'(?<=[.!?]) "?', line.lstrip('"')))
