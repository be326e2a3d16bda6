"""Document boundaries, independent of how the text is cut into blocks, and the rows of .jsonl files."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm_np.data import documents
from slm_np.data.chat_template import DEFAULT
from slm_np.data.text_files import Text
from slm_np.errors import UserError

M = "<|endoftext|>"
quick = settings(max_examples=300, deadline=None)
parts = st.lists(
    st.sampled_from(["a", "b c", "\n", "\r\n", M, M + "\n", f"\n{M}\n", f"\r\n{M}\r\n", "\n\n", "<|", "é", " "]),
    max_size=14,
)


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
        (f"one {M}\n{M} two\n {M}\n{M}\n", [f"one {M}\n{M} two\n {M}"]),  # a marker is alone on its line
        (f"one{M}", [f"one{M}"]),
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
    ],
)
def test_blank_lines_separate_documents(text, found):
    assert split(text, "blank-line") == found


@quick
@given(parts.map("".join), st.sampled_from(documents.DOCUMENTS), st.integers(1, 9))
@example(f"a\n{M}\n{M}", "marker", 1)
@example(f"aaaaaaaaaaaaaaaaaaaaaaa{M}", "marker", 3)
def test_documents_do_not_depend_on_blocks(text, kind, size):
    whole = split(text, kind)
    assert split(text, kind, size) == whole
    if kind == "marker":  # compare with the definition: the lines between marker lines
        lines, expected = re.split(r"(?<=\n)", text), [[]]
        for line in lines:
            expected.append([]) if re.fullmatch(re.escape(M) + r"(\r?\n)?", line) else expected[-1].append(line)
        joined = ["".join(document) for document in expected]
        joined = [re.sub(r"\r?\n\Z", "", one) for one in joined[:-1]] + joined[-1:]
        assert whole == [one for one in joined if one]


@quick
@given(parts.map("".join), st.sampled_from(documents.DOCUMENTS), st.integers(0, 60))
def test_a_text_cut_at_a_document_start_has_the_same_documents(tmp_path_factory, text, kind, position):
    whole = text_of(tmp_path_factory.mktemp("cut"), text)
    cut = documents.next_start(whole, position, 0, whole.size, kind)
    if cut is None:
        separator = re.escape(M.encode()) if kind == "marker" else b""
        assert not re.search(rb"(?<=\n)" + separator + rb"\r?\n", text.encode()[position:])
    else:
        first, second = text.encode()[:cut].decode(), text.encode()[cut:].decode()
        assert cut >= position and split(first, kind) + split(second, kind) == split(text, kind)


def test_what_counts_as_a_separator(tmp_path):
    for text, marker, blank in (
        (f"a\n{M}\nb", True, False),
        (f"a\n{M}", True, False),
        (f"{M}\na", True, False),
        (f"a {M}\nb", False, False),
        ("a\n\nb", False, True),
        ("a\n", False, False),
        ("a" * 50, False, False),
        (f"{'a' * 50}\n{M}", True, False),
    ):
        whole = text_of(tmp_path, text)
        found = [documents.has_separator(whole, 0, whole.size, kind) for kind in documents.DOCUMENTS]
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
        ('{"text": ""}', 'an empty "text"'),
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


def test_surrogate_escapes_in_a_row_are_bytes(tmp_path):
    assert rows(tmp_path, '{"text": "a\\udcffb"}\n') == [[(b"a\xffb", True)]]
