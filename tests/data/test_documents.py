"""Document boundaries, independent of how the text is cut into blocks, and the rows of .jsonl files."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm_np.data import documents, meter
from slm_np.data.chat_template import DEFAULT
from slm_np.data.text_files import Text
from slm_np.data.token_store import load_corpus
from slm_np.errors import UserError

M = "<|endoftext|>"
LONG = "x" * 5000  # longer than any separator
quick = settings(max_examples=300, deadline=None)
PARTS = ["a", "b c", "\n", "\r\n", "\r", M, M + "\n", f"\n{M}\n", f"\r\n{M}\r\n", f" {M}\t\r", "\n\n", "<|", "é", " "]
PARTS += ["\u00a0", "\u2028", " \n", " " * 999, LONG]
parts = st.lists(st.sampled_from(PARTS), max_size=14)
EOL, BLANK = r"(?:\r\n|\n|\r(?!\n))", r"[^\S\r\n]{0,1000}"


def defined(text, kind):
    """The documents of a text by the definition, from regular expressions over the whole text."""
    if kind == "marker":
        tabs = r"[ \t]{0,1000}"
        separator = rf"(?:{EOL}{tabs})?{re.escape(M)}(?:{tabs}(?:{EOL}|\Z))?"
        separator = rf"(?:\A{tabs}{re.escape(M)}(?:{tabs}(?:{EOL}|\Z))?|{separator})"
        found = []
        while match := re.search(separator, text):
            found.append(text[: match.start()])
            text = text[match.end() :]
        return [one for one in (*found, text) if one]
    found = []
    while text:
        if match := re.match(rf"{BLANK}(?:{EOL}|\Z)", text):
            text = text[match.end() :]
            continue
        match = re.search(EOL + (BLANK + EOL) * (kind == "blank-line"), text)
        found.append(text[: match.start()] if match else text)
        text = text[match.end() :] if match else ""
    return found


def split(text, kind="marker", size=None):
    """The documents of a text, given in blocks of `size` bytes."""
    data, found = text.encode(), [b""]
    size = size or max(1, len(data))
    for block in documents.split((data[i : i + size] for i in range(0, len(data), size)), kind):
        if block is None:
            found.append(b"")
        else:
            assert block
            found[-1] += block
    assert found.pop() == b"", "END is missing after the last document"
    return [one.decode() for one in found]


def text_of(tmp_path, data, name="t.txt"):
    """A `Text` with these contents."""
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    status = (tmp_path / name).stat()
    return Text(((tmp_path / name, status.st_size, status.st_mtime_ns),))


@pytest.mark.parametrize(
    "text, found",
    [
        (f"one\n{M}\ntwo\n{M}\n", ["one", "two"]),
        (f"one\n{M}\ntwo", ["one", "two"]),
        (f"one\n{M}", ["one"]),
        (f"{M}\none\n{M}\n{M}\n\n{M}\ntwo\n", ["one", "two\n"]),  # empty documents are left out
        (f"one\n\n{M}\n\ntwo", ["one\n", "\ntwo"]),  # one newline on each side belongs to the marker
        (f"one\r\n{M}\r\ntwo\r\n{M}\r\n", ["one", "two"]),
        (f"one {M}\n{M} two\n {M}\n{M}\n", ["one ", " two"]),  # blanks beside text on the same line belong to it
        (f"one{M}", ["one"]),
        (f"one{M}two{M} three", ["one", "two", " three"]),
        (f"one\n {M}\t\ntwo {M} \n three{M} ", ["one", "two ", " three"]),
        (f"one\r{M}\rtwo\r{M}\r", ["one", "two"]),
        (f"one\r\r\n{M}\n", ["one\r"]),
        (f" {M} {M}\n\n{M}one", ["one"]),
        (M, []),
        (M + "\n", []),
        ("", []),
        ("one\n", ["one\n"]),
    ],
)
def test_marker_lines_separate_documents(text, found):
    assert split(text) == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three\n"]),
        ("one\n\n\n\n\ntwo", ["one", "two"]),
        ("\n\none\r\n\r\ntwo\n\n", ["one", "two"]),
        (f"one\n{M}\ntwo", [f"one\n{M}\ntwo"]),
        ("one\n \t\ntwo\n\u00a0\n\u3000\n three\n", ["one", "two", " three\n"]),  # white space only
        ("one\r\rtwo\r \rthree", ["one", "two", "three"]),  # CR alone ends a line
        ("one\rtwo\r\nthree\n\rfour", ["one\rtwo\r\nthree", "four"]),
        (" \n\none\n\n \n  ", ["one"]),
        ("one\u2028\u2028two", ["one\u2028\u2028two"]),  # no line end
        (f"one\n{' ' * 1000}\ntwo\n{' ' * 1001}\nthree", ["one", f"two\n{' ' * 1001}\nthree"]),
    ],
)
def test_blank_lines_separate_documents(text, found):
    assert split(text, "blank-line") == found


@pytest.mark.parametrize(
    "text, found",
    [
        ("Ann\nBob\r\nCid\rDan", ["Ann", "Bob", "Cid", "Dan"]),
        ("\n \nAnn\n\n\tBob \n  ", ["Ann", "\tBob "]),
        (f"Ann\n{M}\n", ["Ann", M]),
        (" \n", []),
    ],
)
def test_lines_are_documents(text, found):
    assert split(text, "line") == found


@quick
@given(parts.map("".join), st.sampled_from(documents.DOCUMENTS), st.integers(1, 9) | st.integers(1000, 9000))
@example(f"a\n{M}\n{M}", "marker", 1)
@example(f"aaaaaaaaaaaaaaaaaaaaaaa{M}", "marker", 3)
@example(f"{LONG}\n{' ' * 1000}{M}{' ' * 1000}\r\n{LONG}", "marker", 1)
@example(f"{LONG}\r\n{chr(0x3000) * 1000}\r\n{LONG}", "blank-line", 1)
def test_documents_do_not_depend_on_blocks(text, kind, size):
    assert split(text, kind, size) == split(text, kind) == defined(text, kind)


@quick
@given(parts.map("".join), st.sampled_from(documents.DOCUMENTS), st.integers(0, 60) | st.integers(0, 20_000))
def test_a_text_cut_at_a_document_start_has_the_same_documents(tmp_path_factory, text, kind, position):
    data = text.encode()
    whole = text_of(tmp_path_factory.mktemp("cut"), data)
    cut = documents.next_start(whole, position, 0, whole.size, kind)
    if cut is None:
        separator = dict(marker=re.escape(M), line=EOL).get(kind, rf"(?:(?<=\n)|(?<=\r)(?!\n)){BLANK}{EOL}")
        ends = [len(text[: match.end()].encode()) for match in re.finditer(separator, text)]
        assert not any(end > position for end in ends)
    else:
        first, second = data[:cut].decode(), data[cut:].decode()
        assert cut >= position and split(first, kind) + split(second, kind) == split(text, kind)
        assert documents.has_separator(whole, 0, whole.size, kind)


def test_what_counts_as_a_separator(tmp_path):
    for text, marker, blank, line in (
        (f"a\n{M}\nb", True, False, True),
        (f"a\n{M}", True, False, True),
        (f"{M}\na", True, False, True),
        (f"a {M} b", True, False, False),
        ("a\n\nb", False, True, True),
        ("a\r \rb", False, True, True),
        ("a\n", False, False, True),
        ("a" * 5000, False, False, False),
        (f"{'a' * 5000}{M}", True, False, False),
    ):
        whole = text_of(tmp_path, text)
        found = [documents.has_separator(whole, 0, whole.size, kind) for kind in documents.DOCUMENTS]
        assert found == [marker, blank, line], text


def split_before(text, kind):
    """The documents that version 0.3 found: between lines of a marker alone, or empty lines."""
    line, found = re.escape(M) if kind == "marker" else "", []
    while text:
        match = re.match(line + r"\r?\n", text) or re.search(rf"\r?\n{line}\r?\n", text)
        if kind == "marker":
            match = match or re.search(rf"(\A|\r?\n){line}\r?\Z", text)
        found.append(text[: match.start()] if match else text)
        text = text[match.end() :] if match else ""
    return [one for one in found if one]


@quick
@given(parts.map("".join), st.sampled_from(["marker", "blank-line"]))
@example(f"a\n{M}\r\nb\r\n{M}", "marker")
@example("a\n\nb\r\n\r\n", "blank-line")
def test_a_text_that_reads_as_before_has_the_documents_of_earlier_versions(tmp_path_factory, text, kind):
    whole = text_of(tmp_path_factory.mktemp("before"), text)
    if documents.reads_as_before(whole, 0, whole.size, kind):
        assert split(text, kind) == split_before(text, kind)


def test_what_reads_as_before(tmp_path):
    for text, marker, blank in (
        (f"{M}\na\n{M}\nb\r\n{M}\r\n{M}", True, True),
        ("a\n\nb\r\n\r\nc\n", True, True),
        (LONG, True, True),
        (f"{LONG} {M}", False, True),
        (f"{LONG}\n{M} \n", False, True),
        (f"{LONG}\n \n", True, False),
        (f"{LONG}\r\r", True, False),
        (" \na", True, False),
        ("a\n\n ", True, False),
    ):
        whole = text_of(tmp_path, text)
        found = [documents.reads_as_before(whole, 0, whole.size, kind) for kind in ("marker", "blank-line")]
        assert found == [marker, blank], text


def rows(tmp_path, data):
    """The spans of each row of a .jsonl file."""
    text = text_of(tmp_path, data, "r.jsonl")
    return [spans for _, spans in documents.rows(text, 0, text.size)]


def test_rows_become_spans_of_targets_and_context(tmp_path):
    messages = [dict(role="user", content="Who?"), dict(role="assistant", content="Lily.")]
    data = "\ufeff" + "\n".join(
        [
            json.dumps(dict(text="a\nbé")),
            "",
            json.dumps(dict(messages=messages)),
            json.dumps(dict(prompt="Who?", completion="Lily.")),
        ]
    )
    text, blank, conversation, completion = rows(tmp_path, data)
    assert text == [("a\nbé".encode(), True)] and blank == []
    assert conversation == completion == DEFAULT.spans(messages)
    assert b"Lily." in b"".join(span for span, target in conversation if target)
    assert b"Who?" in b"".join(span for span, target in conversation if not target)


@pytest.mark.parametrize(
    "row, sentence",
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"text": 5}', 'no string "text"'),
        ('{"txt": "a"}', "has 'txt', but needs"),
        ('{"prompt": "a"}', '"completion"'),
        ('{"messages": []}', '"messages"'),
        (b'{"text": "\xff"}', "is not UTF-8"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "robot"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, sentence):
    row = row.encode() if isinstance(row, str) else row
    with pytest.raises(UserError) as error:
        rows(tmp_path, b'{"text": "good"}\n\n' + row + b"\n")
    assert re.search(rf"r\.jsonl, line 3\b.*{sentence}", str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


@quick
@given(st.binary(max_size=40), st.integers(1, 9))
def test_lines_do_not_depend_on_blocks(data, size):
    found = [*documents.lines(data[i : i + size] for i in range(0, len(data), size))]
    assert found == re.findall(rb"[^\n]*\n|[^\n]+", data)


def test_rows_without_anything_to_learn_have_no_spans(tmp_path):
    data = '{"text": ""}\n{"text": null}\n{"prompt": "a", "completion": " "}\n{"text": "b"},\r\n"c"\n'
    assert rows(tmp_path, data) == [[], [], [], [(b"b", True)], [(b"c", True)]]


def test_surrogate_escapes_in_a_row_are_bytes(tmp_path):
    assert rows(tmp_path, '{"text": "a\\udcffb"}\n') == [[(b"a\xffb", True)]]


def test_a_search_through_a_long_text_shows_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(meter, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(meter, "LINE_S", 0.0)
    (tmp_path / "text.txt").write_bytes(b"one line\n" * 300_000)
    load_corpus(str(tmp_path / "text.txt"), documents="blank-line", cache_dir=tmp_path / "cache")
    assert re.search(r"looking for documents: \d of 2 MB, ETA \d+s\n", capsys.readouterr().err)
    load_corpus(str(tmp_path / "text.txt"), documents="blank-line", cache_dir=tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_the_cut_before_the_last_tenth_is_not_within_a_marker(tmp_path):
    """Of short texts the last tenth is a few bytes, which may be part of the last marker."""
    for n in range(1, 40):
        documents = ["a first one", "b c", "d" * n + "e"]
        (tmp_path / "text.txt").write_text("<|endoftext|>\n".join([*documents, ""]), encoding="utf-8")
        found = load_corpus(str(tmp_path / "text.txt"), progress=False, cache_dir=tmp_path / f"cache-{n}")
        texts = [bytes(id for id in tokens.ids if id < 256).decode() for tokens in (found.train, found.validation)]
        assert "".join(texts) == "".join(documents), n
