"""Files that are not plain text: converted once, named in messages as the user's own, or refused with what to do."""

import bz2
import codecs
import csv
import io
import json
import lzma
import os
import shutil
import time
import zlib

import pytest
from compressed import gzipped
from data_files import LONG_AGO, MARKER, byte_ids, conversation, jsonl, load, marked, old_file, stories, text_file

from slm_np.data import converted, corpus, json_values, tables
from slm_np.data.converted import readable
from slm_np.data.json_values import values
from slm_np.data.text_files import Text
from slm_np.data.unpacking import unpacked
from slm_np.errors import UserError

TEXT = "".join(f"{one}\n" for one in stories(200)).encode()
PACKED = dict(
    gzip=gzipped(TEXT),
    bzip2=bz2.compress(TEXT),
    xz=lzma.compress(TEXT),
    lzma=lzma.compress(TEXT, lzma.FORMAT_ALONE),
)
SUFFIXES = dict(gzip=".gz", bzip2=".bz2", xz=".xz", lzma=".lzma", zstd=".zst")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def packed(method, data=TEXT):
    """`data`, compressed. Skips the test without a package for zstd."""
    if method == "zstd":
        try:
            from compression import zstd
        except ImportError:
            zstd = pytest.importorskip("zstandard")
        return zstd.compress(data)
    return dict(gzip=gzipped, bzip2=bz2.compress, xz=lzma.compress, lzma=_lzma)[method](data)


def _lzma(data):
    return lzma.compress(data, lzma.FORMAT_ALONE)


def found(path, cache, documents="marker"):
    """The readable `Text` of a file or a `--data` string."""
    return readable(corpus.find(str(path), "train", cache, progress=False), documents, cache, progress=False)


def read(path, cache, documents="marker"):
    """The bytes of the readable `Text`."""
    return b"".join(found(path, cache, documents).blocks())


def rows_in(path, cache, documents="marker"):
    """The rows of the readable `Text` of a file."""
    return [json.loads(line) for line in read(path, cache, documents).splitlines()]


@pytest.mark.parametrize("method", SUFFIXES)
def test_compressed_text_is_read_by_its_content(tmp_path, cache, method):
    data = packed(method)
    for name in ("t.txt" + SUFFIXES[method], "renamed" + (".lzma" if method == "lzma" else ".txt")):
        path = old_file(tmp_path / name, data)
        assert read(path, cache) == TEXT
    made = [*cache.rglob("text.txt")]
    before = [(one, one.stat().st_ino) for one in made]
    assert len(made) == 2 and read(path, cache) == TEXT  # it is not converted again
    assert [(one, one.stat().st_ino) for one in cache.rglob("text.txt")] == before
    assert (
        load(path, cache_dir=cache).train.ids.tobytes() == load(old_file(tmp_path / "p.txt", TEXT)).train.ids.tobytes()
    )


@pytest.mark.parametrize("method", SUFFIXES)
def test_several_streams_and_zeros_after_them_are_one_text(method, monkeypatch):
    data = packed(method, TEXT[:999]) + packed(method, TEXT[999:]) + bytes(300)
    for size in (1, 7, 1000, len(data)):
        blocks = (data[i : i + size] for i in range(0, len(data), size))
        assert b"".join(unpacked(blocks, method, "t")) == TEXT


@pytest.mark.parametrize("method", SUFFIXES)
def test_damaged_and_incomplete_archives_are_refused_by_name(tmp_path, cache, method):
    data = packed(method)
    for n, cut in enumerate((len(data) - 1, len(data) // 2, 30)):
        path = old_file(tmp_path / f"cut{n}{SUFFIXES[method]}", data[:cut])
        with pytest.raises(UserError, match=rf"cut{n}\S+ (is incomplete|is damaged).*get it again"):
            found(path, cache)
    with pytest.raises(UserError, match="t is damaged"):
        list(unpacked([data, b"something else"], method, "t"))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    path = old_file(tmp_path / f"flip{SUFFIXES[method]}", bytes(flipped))
    try:
        assert read(path, cache) != TEXT and method in ("lzma", "zstd")  # these need not have a checksum
    except UserError as error:
        assert "flip" in str(error)
    assert not [*cache.rglob("*.part")] and (method in ("lzma", "zstd") or not [*cache.rglob("text.txt")])


def test_what_expands_without_end_is_refused_and_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(converted, "LARGE", 1 << 20)
    for name, data in {"a.gz": gzipped(b"a" * 10**7), "a.bz2": bz2.compress(b"a" * 10**7)}.items():
        with pytest.raises(UserError, match=rf"{name} expands to more than 500 times its size"):
            found(old_file(tmp_path / name, data), cache)
    assert not [path for path in (cache / "converted").iterdir()]


def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the cache folder \S+ cannot be written \(No space left on device\); free"):
        found(old_file(tmp_path / "t.gz", PACKED["gzip"]), cache)
    assert not [path for path in (cache / "converted").iterdir()]


@pytest.mark.parametrize("damage", ["cut", "flip", "origin", "gone"])
def test_a_damaged_converted_file_is_converted_again(tmp_path, cache, damage):
    path = old_file(tmp_path / "t.gz", PACKED["gzip"])
    text = found(path, cache)
    [(made, size, mtime)] = text.files
    (cache / "corpora" / "index.json").unlink()
    if damage == "cut":
        made.write_bytes(TEXT[:100])
    elif damage == "flip":
        made.write_bytes(TEXT[:-2] + b"?\n")
        os.utime(made, ns=(mtime, mtime))  # same size and time
    elif damage == "origin":
        (made.parent / "origin.json").write_text("{", encoding="utf-8")
    else:
        shutil.rmtree(made.parent)
    assert read(path, cache) == TEXT and read(path, cache) == TEXT


def test_a_file_that_changes_is_converted_again(tmp_path, cache):
    path, now = tmp_path / "t.gz", time.time_ns() + 10**10
    for text in (b"one\n" * 9, b"two\n" * 9):  # just written: the same size, and the same time
        path.write_bytes(gzipped(text, compresslevel=0))
        os.utime(path, ns=(now, now))
        assert read(path, cache) == text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig"])
def test_encodings_with_a_byte_order_mark_are_read(tmp_path, cache, encoding, monkeypatch):
    text = "Zoë 漢字 🙂\r\n\ufeffmiddle\n" * 99
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else codecs.BOM_UTF16_LE
    mark = {"utf-16-be": mark, "utf-16-le": mark, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    data = mark + text.encode(encoding)
    assert read(old_file(tmp_path / "t.txt", data), cache) == text.encode()
    assert read(old_file(tmp_path / "t.txt.gz", gzipped(data)), cache) == text.encode()
    row = json.dumps(dict(text=text), ensure_ascii=False) + "\n"
    data = mark + (row * 2).encode(encoding)
    for name in ("r.jsonl", "r.json"):
        assert rows_in(old_file(tmp_path / name, data), cache)[1:] == [dict(text=text)]


def test_a_mark_of_another_encoding_than_the_text_is_refused(tmp_path, cache):
    with pytest.raises(UserError, match="t.txt starts with the mark of UTF-16, but is not in that encoding"):
        found(old_file(tmp_path / "t.txt", codecs.BOM_UTF16_LE + b"\x00\xd8a"), cache)


@pytest.mark.parametrize(
    "name, data, sentence",
    [
        ("a.txt", b"ab\0cd", "a.txt is binary .byte 2 is zero.; give text, or pass --binary"),
        (
            "a.txt",
            "plain".encode("utf-16-le") * 9,
            "a.txt is text in UTF-16 without a byte-order mark; save it in UTF-8",
        ),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"a.png is an image \(PNG\); leave it out"),
        ("a.pdf", b"%PDF-1.7\nabc", "a.pdf is a PDF; save it as plain text"),
        ("a.docx", b"PK\x03\x04\x14\0\0\0", "a.docx is a ZIP archive .or a file of an office program.; unpack it"),
        ("a.tar", b"name".ljust(257, b"\0") + b"ustar\0", "a.tar is a tar archive; unpack it"),
        ("a.db", b"SQLite format 3\0\x10", "a.db is an SQLite database; export its text"),
        ("a.pkl", b"\x80\x04\x95\x01\0\0\0", "a.pkl is a pickle of Python"),
        ("a.safetensors", b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}', "a.safetensors is a model"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a.7z is a 7-Zip archive; unpack it"),
        ("a.rtf", b"{\\rtf1 hello}", "a.rtf is an RTF document; save it as plain text"),
        ("a.elf", b"\x7fELF\x02", "a.elf is a program"),
        ("a.gz", gzipped(b"%PDF-1.4"), "a.gz is a PDF"),
        ("a.gz", gzipped(b"text" * 10**6 + b"\0"), "a.gz contains binary data once it is unpacked"),
        ("a.gz", gzipped(b""), "a.gz contains no text"),
        ("a.gz", gzipped(gzipped(gzipped(gzipped(b"a")))), "compressed more than 3 times"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, cache, name, data, sentence):
    path = old_file(tmp_path / name, data)
    with pytest.raises(UserError, match=sentence):
        load(path, path, cache_dir=cache)
    assert not [*cache.rglob("text.txt")]
    raw = load(path, path, cache_dir=cache, binary=True).train
    assert bytes(raw.ids.astype("u1")) == data


def test_binary_content_is_found_far_from_the_start(tmp_path, cache):
    data = bytearray(b"text and " * (1 << 20))
    data[8 << 20 : 9 << 20] = bytes(1 << 20)
    with pytest.raises(UserError, match="a.txt is binary"):
        found(old_file(tmp_path / "a.txt", bytes(data)), cache)


def test_texts_that_start_like_other_files_are_texts(tmp_path, cache):
    for i, start in enumerate(("MZ and PK", "GGUF is", "OggS", "ARROW1", "BZh9 is bzip2", "ID3", "fLaC", "II* and MM")):
        data = f"{start}, and so on.\n".encode()
        text = found(old_file(tmp_path / f"{i}.txt", data), cache)
        assert b"".join(text.blocks()) == data and not text.notes


def test_other_encodings_are_accepted_and_said(tmp_path, cache, capsys):
    data = "Où est-il ? Là-bas.\n".encode("latin-1") * 99
    tokens = load(old_file(tmp_path / "a.txt", data), cache_dir=cache)
    assert bytes(tokens.train.ids.astype("u1")) + bytes(tokens.validation.ids.astype("u1")) == data
    said = capsys.readouterr().err
    assert "a.txt: 9.9% of its first bytes are not UTF-8" in said and "save it in UTF-8" in said
    assert (
        load(old_file(tmp_path / "b.txt", "Là-bas 漢字.\n" * 99_999), cache_dir=cache) and not capsys.readouterr().err
    )


ALPACA = [dict(instruction=f"Add {i}.", input="", output=str(i)) for i in range(40)]


@pytest.mark.parametrize(
    "name, text, rows",
    [
        ("a.json", json.dumps(ALPACA), ALPACA),
        ("a.json", json.dumps(ALPACA, indent=2), ALPACA),
        ("a.jsonl", json.dumps(ALPACA, indent="\t"), ALPACA),  # an array in spite of its name
        ("a.json", "\ufeff" + jsonl(ALPACA), ALPACA),  # lines in spite of its name
        ("a.json", json.dumps(ALPACA[0], indent=1), ALPACA[:1]),  # a single object
        ("a.jsonl", json.dumps(ALPACA[0], indent=1), ALPACA[:1]),
        ("a.jsonl", json.dumps(ALPACA[0]) * 3, ALPACA[:1] * 3),
        ("a.jsonl", "\r".join(map(json.dumps, ALPACA)), ALPACA),
        ("a.json", "[" + ",\n".join(map(json.dumps, ALPACA)) + ",]", ALPACA),
        ("a.json", json.dumps(stories(9)), stories(9)),
        ("a.json", '["a\\ud83d", "\\ud83d\\ude42"]', ["a\ud83d", "🙂"]),
        ("a.ndjson", jsonl(ALPACA), ALPACA),
    ],
)
def test_json_is_read_as_rows_however_it_is_laid_out(tmp_path, cache, monkeypatch, name, text, rows):
    path = old_file(tmp_path / name, text)
    if "\\ud83d" in text:
        with pytest.raises(UserError, match="a.json, row 1, has .*half of a surrogate pair"):
            found(path, cache)
        return
    assert rows_in(path, cache) == rows
    assert found(path, cache).segments("marker")[0][0] == "jsonl"
    for method in ("gzip", "xz"):
        assert rows_in(old_file(tmp_path / (name + SUFFIXES[method]), packed(method, text.encode())), cache) == rows


def test_an_alpaca_file_becomes_conversations(tmp_path, cache):
    array, lines = text_file(tmp_path, json.dumps(ALPACA), "a.json"), text_file(tmp_path, jsonl(ALPACA), "a.jsonl")
    first, second = load(array, cache_dir=cache), load(lines, cache_dir=cache)
    assert first.train.ids.tolist() == second.train.ids.tolist() and first.train.mask is not None
    assert first.tokenizer.decode(first.train.ids).startswith(b"Q: Add 0.\nA: 0\nQ: Add 1.")


@pytest.mark.parametrize("size", [1, 5, 64, 10**6])
def test_json_values_do_not_depend_on_blocks(size):
    rows = [dict(a=[1, 2.5e-3, None], b='\\"[{é漢', c={"d": "🙂"}), 12345, "x" * 300, [], {}, True, -1.5]
    lines = "\n".join(json.dumps(row) for row in rows if row != [])
    for text in (json.dumps(rows), json.dumps(rows, indent=3, ensure_ascii=False), lines):
        data = text.encode()
        found = [*values((data[i : i + size] for i in range(0, len(data), size)), "a")]
        assert found == [row for row in rows if row != [] or text != lines]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('[{"text": "a"}, {"text": "b"', "a.json, row 2, is not JSON"),
        ('[{"text": "a"}', "a.json is incomplete: its array does not end"),
        ('[{"text": "a"}, {"text": tru}]', "a.json, row 2, is not JSON"),
        ("[" * 100_000, "a.json, row 1, is not JSON that can be read"),
        ('[{"text": "a"}, {"txt": 1}, {"txt": 2}]', "a.json, row 2, has 'txt', but needs .*2 of 3 rows .*rows 2 and 3"),
        ('{"data": [{"text": "a"}]}', r"a.json is an object with rows in 'data'; save that array alone, or rename it"),
        (b'["\xff"]', "a.json is not UTF-8"),
        ("[]", "a.json contains no text"),
        ("[1, 2]", "a.json, row 1, is not a JSON object.*2 of 2 rows"),
    ],
)
def test_json_that_cannot_be_read_is_refused(tmp_path, cache, text, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        found(old_file(tmp_path / "a.json", text), cache)
    assert "\n" not in str(error.value) and not [*cache.rglob("rows.jsonl")][1:]


def test_an_entry_of_json_has_a_limit(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(json_values, "LONGEST", 100)
    with pytest.raises(UserError, match="a.json, row 2, has more than"):
        found(old_file(tmp_path / "a.json", json.dumps(["a", "b" * 3 * 2**20])), cache)


def test_json_that_is_no_data_is_read_as_text_and_said(tmp_path, cache):
    for text in ('{"name": "app", "version": 3}', "{// comment\n}", "3", '"a'):
        result = found(old_file(tmp_path / f"{len(text)}.json", text), cache)
        assert b"".join(result.blocks()) == text.encode() and "read as text" in result.notes[0]
    result = found(old_file(tmp_path / "a.txt", json.dumps(ALPACA)), cache)
    assert "a.txt looks like JSON, and is read as text; to read its rows, rename it" in result.notes[0]


def table(rows, **options):
    """Rows as CSV."""
    out = io.StringIO()
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("delimiter", tables.DELIMITERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_column_of_csv_becomes_documents(tmp_path, cache, delimiter, end):
    texts = ["one, two", 'a "quoted" word', "two\nlines", "cr\r\nlf", "", "é漢🙂", "tab\tand;semi|bar", "x" * 200_000]
    quoting = (
        csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    )  # which sees only its own line ends before Python 3.13
    rows = [["id", "text"], *([i, text] for i, text in enumerate(texts))]
    data = table(rows, delimiter=delimiter, lineterminator=end, quoting=quoting)
    limit = csv.field_size_limit()
    result = found(old_file(tmp_path / "a.csv", "\ufeff" + data + end), cache, "csv:text")
    assert [json.loads(line) for line in b"".join(result.blocks()).splitlines()] == texts
    assert csv.field_size_limit() == limit and "1 of 8 rows has an empty text" in result.notes[0]
    documents = load(str(tmp_path / "a.csv"), cache_dir=cache, documents="csv:text", whole="train").train
    assert documents.ids.tolist() == byte_ids([text for text in texts if text])


@pytest.mark.parametrize(
    "data, sentence",
    [
        ("id,text\n1,a\n", "a.csv has no column 'story'; its columns are 'id', 'text'"),
        ("story,story\na,b\n", "a.csv has the column 'story' 2 times"),
        (
            "story,n\nOnce, upon a time,1\nb,2\nc\n",
            r"a.csv has 2 rows without the 2 fields of its header \(rows 1, 3\); put",
        ),
        ('story,n\na,1\n"b" c,2\n', "a.csv, row 2, is not CSV"),
        ('story,n\na,1\n"b,2\n', "a.csv, row 2, is not CSV"),
        (b"story,n\n\xe9,1\n", "a.csv, after row 0, is not UTF-8"),
        ("story,n\n", "a.csv contains no text"),
        ("story\n \n \n", "a.csv has no row with anything to learn"),
    ],
)
def test_csv_that_cannot_be_read_is_refused(tmp_path, cache, data, sentence):
    with pytest.raises(UserError, match=sentence):
        found(old_file(tmp_path / "a.csv", data), cache, "csv:story")


def test_a_column_without_a_table_is_refused(tmp_path, cache):
    path = old_file(tmp_path / "a.csv", "text\na\n")
    with pytest.raises(UserError, match="--documents csv:text has no effect with --binary; leave it out"):
        load(path, cache_dir=cache, documents="csv:text", binary=True)
    with pytest.raises(UserError, match="--documents csv:text has no effect on stories; leave it out"):
        load("stories", cache_dir=cache, documents="csv:text")


def test_parquet(tmp_path, cache):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [*stories(50), None, ""]
    columns = dict(text=texts, n=list(range(52)), story=texts[::-1])
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    os.utime(tmp_path / "a.parquet", (LONG_AGO, LONG_AGO))
    for documents, expected in (("marker", [dict(text=text) for text in texts]), ("csv:story", texts[::-1])):
        assert rows_in(tmp_path / "a.parquet", cache, documents) == expected
    assert "2 of 52 rows have" in found(tmp_path / "a.parquet", cache).notes[0]
    loaded = load(str(tmp_path / "a.parquet"), cache_dir=cache, whole="train").train
    assert loaded.ids.tolist() == byte_ids(stories(50))
    messages = [conversation(f"Who {i}?", "Me.")["messages"] for i in range(20)]
    parquet.write_table(arrow.table(dict(messages=messages, id=list(range(20)))), tmp_path / "b.parquet")
    assert rows_in(tmp_path / "b.parquet", cache) == [dict(messages=one) for one in messages]
    with pytest.raises(UserError, match="b.parquet has no column 'text'; its columns are 'messages', 'id'"):
        found(tmp_path / "b.parquet", cache, "csv:text")
    parquet.write_table(arrow.table(dict(tale=["a"], blob=[b"\0"])), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="c.parquet has the columns 'tale', 'blob', and none .*--documents csv:COLUMN"):
        found(tmp_path / "c.parquet", cache)
    with pytest.raises(UserError, match="c.parquet, row 1, has a value that is not text"):
        found(tmp_path / "c.parquet", cache, "csv:blob")
    data = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(UserError, match="cut.parquet is damaged"):
        found(old_file(tmp_path / "cut.parquet", data[:-20]), cache)
    parquet.write_table(arrow.table(dict(text=["a", "b"], prompt=["c", None])), tmp_path / "d.parquet")
    with pytest.raises(UserError, match='d.parquet, row 1, has no string "completion"'):
        found(tmp_path / "d.parquet", cache)


def test_a_missing_package_is_named_with_what_to_install(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a.parquet, a Parquet file, needs the package pyarrow.*slm_np\[parquet\]"):
        found(old_file(tmp_path / "a.parquet", b"PAR1" + bytes(99)), cache)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    if __import__("sys").version_info < (3, 14):
        with pytest.raises(
            UserError, match=r"a.zst, which zstd compressed, needs the package zstandard.*slm_np\[zst\]"
        ):
            found(old_file(tmp_path / "a.zst", b"\x28\xb5\x2f\xfd" + bytes(99)), cache)


def test_errors_name_the_line_of_the_users_file(tmp_path, cache):
    data = jsonl([dict(text="a"), dict(txt="b"), dict(text="c")]).encode()
    with pytest.raises(UserError, match=r"r.jsonl.gz, line 2, has 'txt'"):
        found(old_file(tmp_path / "r.jsonl.gz", gzipped(data)), cache)
    with pytest.raises(UserError, match=r"r.json, row 2, has 'txt'"):
        found(old_file(tmp_path / "r.json", json.dumps([json.loads(line) for line in data.splitlines()])), cache)


def test_files_of_all_kinds_in_one_folder(tmp_path, cache):
    folder = tmp_path / "texts"
    folder.mkdir()
    old_file(folder / "a.txt", marked(["one"]))
    old_file(folder / "b.txt.gz", gzipped(marked(["two"]).encode()))
    old_file(folder / "c.json", json.dumps(["three", "four"]))
    old_file(folder / "d.txt", marked(["five"]).encode("utf-16"))
    old_file(folder / "e.jsonl.xz", lzma.compress(b'{"text": "six"}\n'))
    tokens = load(str(folder), cache_dir=cache, whole="train").train
    assert tokens.ids.tolist() == byte_ids(["one", "two", "three", "four", "five", "six"]) and tokens.n_documents == 6


def test_a_compressed_corpus_is_the_same_corpus(tmp_path, cache):
    """So that a run can be resumed after its data were compressed."""
    path, text = tmp_path / "t.txt", marked(stories(60))
    plain, gz = load(old_file(path, text), cache_dir=cache), old_file(tmp_path / "t.gz", gzipped(text.encode()))
    assert load(gz, cache_dir=cache).fingerprint == plain.fingerprint
    assert MARKER.encode() in b"".join(Text(((path, len(text.encode()), 1),)).blocks())


def test_zlib_reads_what_gzip_wrote_in_blocks_of_any_size():
    data = zlib.compress(TEXT, wbits=31)
    for size in (1, 2, 100):
        assert b"".join(unpacked((data[i : i + size] for i in range(0, len(data), size)), "gzip", "t")) == TEXT
