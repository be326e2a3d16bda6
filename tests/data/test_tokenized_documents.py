"""Documents and conversations as tokens: end-of-text, splits between documents, the mask of assistant tokens."""

import json
import random

import numpy as np
import pytest
from data_files import END, MARKER, byte_ids, conversation, jsonl, load, marked, stories, text_file
from sample_tokenizers import LLAMA

from slm_np.data import shards, text_files
from slm_np.data.batches import gather
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.chat_template import DEFAULT
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.tokenizer_factory import with_end_of_text
from slm_np.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_end_of_text_follows_each_document_and_markers_are_left_out(tmp_path):
    documents = stories(20)
    path, val = text_file(tmp_path, marked(documents)), text_file(tmp_path, f"one\n{MARKER}\ntwo", "v.txt")
    found = load(path, val)
    assert found.train.ids.tolist() == byte_ids(documents) and found.validation.ids.tolist() == byte_ids(["one", "two"])
    assert (found.vocab_size, found.tokenizer.end_of_text) == (257, END)
    assert (found.train.n_documents, found.validation.n_documents) == (20, 2)
    assert found.train.n_bytes == sum(len(one.encode()) for one in documents)
    assert found.train.mask is None
    assert found.train.n_targets == len(found.train)
    assert found.tokenizer.decode(found.train.ids) == "".join(documents).encode()


def test_a_text_without_separators_is_one_document_without_end_of_text(tmp_path):
    text = "one <|end|>\n\ntwo" * 9
    path, val = text_file(tmp_path, text), text_file(tmp_path, "three", "v.txt")
    found = load(path, val)
    assert (found.vocab_size, found.train.n_documents, found.validation.n_documents) == (256, 1, 1)
    assert bytes(found.train.ids.astype(np.uint8)).decode() == text
    blank = load(path, val, documents="blank-line")
    assert (blank.vocab_size, blank.train.n_documents) == (257, 10)
    assert blank.validation.ids.tolist() == byte_ids(["three"])


def test_a_char_vocabulary_of_documents_has_end_of_text(tmp_path):
    path, val = text_file(tmp_path, marked(["ab", "ba"])), text_file(tmp_path, marked(["c"]), "v.txt")
    found = load(path, val, "char")
    assert found.tokenizer.characters == "abc"
    assert found.train.ids.tolist() == [0, 1, 3, 1, 0, 3]
    assert found.validation.ids.tolist() == [2, 3]


def test_a_blank_line_ends_documents_if_a_given_tokenizer_has_no_end_of_text(tmp_path):
    path = text_file(tmp_path, marked(["one", "two"]))
    found = load(path, path, ByteTokenizer())
    assert bytes(found.train.ids.astype(np.uint8)) == b"one\n\ntwo\n\n"
    assert found.train.n_bytes == 6
    assert found.vocab_size == 256
    assert load(path, path, with_end_of_text(ByteTokenizer())).train.ids.tolist() == byte_ids(["one", "two"])
    assert load(path, path, CharTokenizer("enotw")).train.ids.tolist() == [2, 1, 0, 3, 4, 2]


def test_the_validation_split_starts_with_a_document(tmp_path):
    documents = stories(100)
    for text, name in ((marked(documents), "a.txt"), (jsonl(dict(text=one) for one in documents), "a.jsonl")):
        found = load(text_file(tmp_path, text, name))
        n = found.train.n_documents
        assert n in (90, 91)
        assert found.train.ids.tolist() == byte_ids(documents[:n])
        assert found.validation.ids.tolist() == byte_ids(documents[n:])
    found = load(text_file(tmp_path, f"one\n{MARKER}\n{'x' * 1000}"))  # no document starts there, so one is cut
    assert len(found.validation) - 1 == found.validation.n_bytes == 102


def test_few_documents_are_divided_so_that_both_splits_have_text(tmp_path):
    long, tiny = "".join(stories(100)), "The end."
    n = len(long.encode())
    for i, rows in enumerate(([long], [long, tiny], [tiny, long])):
        for text, name in (
            (jsonl(dict(text=one) for one in rows), "a.jsonl"),
            (json.dumps([dict(text=one) for one in rows]), "a.json"),
            (marked(rows), "a.txt"),
            ("\n\n".join(rows), "b.txt"),
        ):
            (tmp_path / str(i)).mkdir(exist_ok=True)
            found = load(
                text_file(tmp_path / str(i), text, name), documents="blank-line" if name == "b.txt" else "marker"
            )
            assert 0.05 * n < found.validation.n_bytes < 0.2 * n, (name, [len(row) for row in rows])
            assert found.train.n_bytes > 0.8 * n
            whole = found.tokenizer.decode(found.train.ids) + found.tokenizer.decode(found.validation.ids)
            assert whole == "".join(rows).encode()
            assert name == "b.txt" and len(rows) == 1 or found.train.ids[-1] == END  # a divided document is two


def test_rows_of_conversations_are_not_divided(tmp_path):
    long, short = conversation("Who? " * 99, "Me."), conversation("Who?", "You.")
    for rows, n in (([long, short], 1), ([short, long], 1), ([long] * 4, 3), ([long] * 30, 27)):
        found = load(text_file(tmp_path, jsonl(rows), "r.jsonl"))
        assert found.train.n_documents == n and found.validation.n_documents == len(rows) - n
    with pytest.raises(UserError, match="r.jsonl is a single conversation, which cannot be divided; .*--val-data"):
        load(text_file(tmp_path, jsonl([long]), "r.jsonl"))
    with pytest.raises(UserError, match="a single text of one character.*--val-data"):
        load(text_file(tmp_path, jsonl([dict(text="a")]), "r.jsonl"))


def test_a_limit_and_a_divided_row(tmp_path):
    rows = jsonl(dict(text=str(i) * 1000) for i in range(10))
    found = load(text_file(tmp_path, rows, "r.jsonl"), limit_bytes=3000)
    assert found.train.n_bytes + found.validation.n_bytes == 3000
    assert bytes(found.validation.ids[found.validation.ids < 256].astype(np.uint8)).strip(b"2") == b""


def test_limit_bytes_extends_to_the_end_of_a_document(tmp_path):
    documents = stories(100)
    path, val = text_file(tmp_path, marked(documents)), text_file(tmp_path, marked(["v"]), "v.txt")
    each = len(marked(documents[50:51]).encode())
    for limit in (10 * each, 1000, 1):
        found = load(path, val, limit_bytes=limit)
        n = found.train.n_documents
        assert found.train.ids.tolist() == byte_ids(documents[:n])
        assert 0 <= len(marked(documents[:n]).encode()) - limit < each
    assert load(path, val, limit_bytes=10**9).train.n_documents == 100
    both = load(path, limit_bytes=1000)
    n = both.train.n_documents + both.validation.n_documents
    assert both.train.ids.tolist() + both.validation.ids.tolist() == byte_ids(documents[:n])
    plain = load(text_file(tmp_path, "é" * 500, "p.txt"), val, limit_bytes=101)
    assert plain.train.n_bytes == 100


def test_only_assistant_tokens_are_targets(tmp_path):
    rows = [
        conversation("Who lost the ball?", "Lily."),
        dict(prompt="Where?", completion="By the sea."),
        dict(text="A story."),
    ]
    path = text_file(tmp_path, jsonl(rows).rstrip(), "r.jsonl")  # the last row needs no newline
    found = load(path, path)
    assert found.train.n_documents == 3
    assert found.train.mask.shape == found.train.ids.shape
    assert found.train.mask.dtype == np.uint8
    targets = found.train.ids[found.train.mask == 1].tolist()
    parts = bytes(id if id != END else 0 for id in targets).decode().split("\0")
    assert [part.strip() for part in parts] == ["Lily.", "By the sea.", "A story.", ""]
    text = found.tokenizer.decode(targets)
    assert found.train.n_bytes == len(text) and found.train.n_targets == len(targets) == len(text) + 3
    assert b"Who lost the ball?" in found.tokenizer.decode(found.train.ids) and b"Who" not in text


def test_masked_targets_are_minus_one(tmp_path):
    path = text_file(tmp_path, jsonl(conversation(f"Who {i}?", f"Me {i}.") for i in range(30)), "r.jsonl")
    tokens = load(path, path).train
    x, y = np.zeros((4, 50), np.int32), np.zeros((4, 50), np.int32)
    gather(x, y, tokens, [0, 3, 100, 200])
    for row, start in enumerate((0, 3, 100, 200)):
        ids, mask = tokens.ids[start + 1 : start + 51].astype(int), tokens.mask[start + 1 : start + 51]
        assert (y[row] == np.where(mask == 1, ids, -1)).all() and (x[row] == tokens.ids[start : start + 50]).all()
    assert (y == -1).any() and (y >= 0).any()


def test_a_blank_line_after_a_conversation_is_not_a_target(tmp_path):
    path = text_file(tmp_path, jsonl([conversation("Who?", "Me."), conversation("Who?", "You.")]), "r.jsonl")
    tokens = load(path, path, ByteTokenizer()).train
    assert bytes(tokens.ids.astype(np.uint8)) == b"Q: Who?\nA: Me.\n\nQ: Who?\nA: You.\n\n"
    assert bytes(tokens.ids[tokens.mask == 1].astype(np.uint8)) == b" Me.\n You.\n"
    assert tokens.n_bytes == tokens.n_targets == 11


def test_a_reply_has_the_same_ids_in_training_and_in_chat(tmp_path):
    """Also with a tokenizer that puts a space before a text."""
    tokenizer = LibraryTokenizer(LLAMA)
    messages = conversation("the cat", "that the hat")["messages"]
    path = text_file(tmp_path, jsonl([dict(messages=messages)]), "r.jsonl")
    tokens = load(path, path, tokenizer).train
    prompt = tokenizer.encode(b"".join(DEFAULT.prompt(messages[:1]))).tolist()
    assert tokens.ids[: len(prompt)].tolist() == prompt
    assert not tokens.mask[: len(prompt)].any()
    assert tokens.mask[len(prompt) :].all()
    assert tokenizer.decode(tokens.ids) == b"".join(span for span, _ in DEFAULT.spans(messages))


def test_a_text_in_shards_starts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 500)
    text, tokenizer = b"the cat that had a hat " * 200, LibraryTokenizer(LLAMA)
    path = text_file(tmp_path, text)
    found = load(path, path, tokenizer, threads=1)
    assert tokenizer.decode(found.train.ids) == text == tokenizer.decode(found.validation.ids)


@pytest.mark.parametrize(
    "name, text, documents, fingerprint, same",
    [
        ("a.txt", f"one\n{MARKER}\ntwo\r\n{MARKER}\r\n", "marker", "0b7565f1f39af19c", True),
        ("b.txt", "one\n\ntwo\r\n\r\n", "blank-line", "2c33d3108ea563d8", True),
        ("c.txt", "plain text\n", "marker", "47d057e06fa5756c", True),
        ("d.jsonl", '{"text": "a"}\n', "marker", "90887337aaaf549c", True),
        ("e.txt", f"one {MARKER} two\n", "marker", "07ede4dcf665e0bd", False),
        ("f.txt", "one\n \ntwo\n \n", "blank-line", "afc5b731d58bbc2d", False),
    ],
)
def test_a_corpus_with_the_documents_of_version_0_3_has_its_fingerprint(
    tmp_path, name, text, documents, fingerprint, same
):
    """So that runs of version 0.3, which gave these fingerprints, are resumed on the same tokens only."""
    found = load(text_file(tmp_path, text * 40, name), documents=documents).fingerprint
    assert (found[:16] == fingerprint) == same


@pytest.mark.parametrize("kind", ["marker", "blank-line", "line"])
def test_shards_have_the_documents_of_the_whole_text(tmp_path, monkeypatch, kind):
    draw = random.Random(kind)
    between = [
        "\n",
        "\r\n",
        "\r",
        " ",
        "\n\n",
        "\n \t\n",
        "\r\r",
        MARKER,
        f" {MARKER}\t\n",
        f"\n{MARKER}\r\n",
        "\u3000\n",
    ]
    text = "".join(draw.choice(["a", "bc d", "é漢" * 3000, " " * 900, *between]) for _ in range(900))
    path = text_file(tmp_path, text)
    tokenizer = with_end_of_text(ByteTokenizer())
    whole = load(path, path, tokenizer, documents=kind, cache_dir=tmp_path / "one").train
    monkeypatch.setattr(shards, "SHARD", 3000)
    monkeypatch.setattr(text_files, "BLOCK", 1000)
    parts = load(path, path, tokenizer, documents=kind, cache_dir=tmp_path / "many", threads=1).train
    assert parts.n_documents == whole.n_documents > 50
    assert parts.ids.tolist() == whole.ids.tolist()


def test_rows_and_texts_in_one_corpus(tmp_path):
    a = text_file(tmp_path, "one\ntwo", "a.txt")
    b = text_file(tmp_path, jsonl([conversation("Who?", "Me.")]), "b.jsonl")
    c = text_file(tmp_path, f"x\n{MARKER}\ny", "c.txt")
    found = load(f"{a},{b},{c}", c)
    assert found.train.n_documents == 4
    assert found.train.ids[:8].tolist() == byte_ids(["one\ntwo"])
    assert found.train.mask[:8].all()
    assert found.train.ids[-4:].tolist() == byte_ids(["x", "y"])
    assert found.train.mask[-4:].all()
    assert not found.train.mask.all()


def test_a_bad_row_is_an_error_and_leaves_nothing_behind(tmp_path, cache):
    path = text_file(tmp_path, '{"text": "good"}\n{"text": 5}\n' * 50, "r.jsonl")
    with pytest.raises(UserError, match=r"r.jsonl, line 2\b.*\"text\"") as error:
        load(path, path)
    assert "50 of 100 rows of" in str(error.value) and "lines 2, 4, 6, 8, 10 and 45 more" in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.name != "corpora"]


def test_rows_without_anything_to_learn_are_left_out_and_counted(tmp_path, capsys):
    """Of public datasets of instructions, a few rows in a thousand have an empty answer."""
    rows = [conversation(f"Who {i}?", "Me.") for i in range(1000)]
    for i in (6, 499, 700):
        rows[i]["messages"][1]["content"] = " "
    found = load(text_file(tmp_path, jsonl(rows), "r.jsonl"))
    assert found.train.n_documents + found.validation.n_documents == 997
    said = capsys.readouterr().err
    assert "3 of 1,000 rows have an empty text or message and are left out (lines 7, 500 and 701)" in said
    assert said.count("\n") == 1
    one = load(text_file(tmp_path, jsonl([*rows[:20], dict(text=None)]), "r.jsonl"))
    assert "2 of 21 rows" in capsys.readouterr().err and one.train.n_documents + one.validation.n_documents == 19
    with pytest.raises(UserError, match="r.jsonl has no row with anything to learn"):
        load(text_file(tmp_path, jsonl([dict(text=""), dict(text=" ")]), "r.jsonl"))


def test_every_story_of_a_real_file_is_a_document(test_data, tmp_path):
    path = test_data / "tinystories" / "stories.txt"
    whole, n = path.read_bytes(), 13_255
    found = load(str(path), out_dir=tmp_path / "out")
    assert found.train.n_documents + found.validation.n_documents == n
    assert (found.train.ids == END).sum() + (found.validation.ids == END).sum() == n
    assert found.train.n_bytes + found.validation.n_bytes == len(whole) - n * len(f"\n{MARKER}\n")
    text = found.tokenizer.decode(found.train.ids) + found.tokenizer.decode(found.validation.ids)
    assert text == whole.replace(f"\n{MARKER}\n".encode(), b"")
