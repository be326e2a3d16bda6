"""Odd corpora by the hundred: files as users have them, with the documents that must be found in them, or a refusal.

Each is made from its documents, so what is expected does not depend on the code that reads them.
"""

import bz2
import csv
import io
import json
import lzma
import random
from typing import NamedTuple

from compressed import gzipped

MARKER = "<|endoftext|>"
WORDS = [
    "a",
    "the",
    "Zoë",
    "漢字",
    "👩‍👩‍👧",
    "e\u0301",
    "نص",
    "\u00a0",
    "I'm",
    '"quoted"',
    "1,5",
    "x;y",
    "<|end|>",
    "{",
    "]",
    "%",
]
WORDS += ["\u200d", "a\ufeffb", "\u2028", "</s>", "tab\tbed", "\\n", "null", "--", "&amp;", "\u202fOui\u202f?", "🙂"]
LINE_ENDS = ["\n", "\r\n", "\r"]
BINARY = {
    "image.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0",
    "paper.pdf": b"%PDF-1.5\n%\xe2\xe3\n1 0 obj",
    "letter.docx": b"PK\x03\x04\x14\0\6\0letter",
    "data.db": b"SQLite format 3\0\x10\0",
    "zeros.txt": b"text\n" * 50 + b"\0" + b"text\n" * 50,
    "utf16.txt": "no mark here\n".encode("utf-16-le") * 9,
    "model.safetensors": (64).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}',
    "rows.pkl": b"\x80\x04\x95\x10\0\0\0\0\0\0\0",
}


class OddCorpus(NamedTuple):
    """A folder of files, how it is read, and what must come out."""

    name: str
    files: dict  # {name: bytes}
    options: dict  # arguments of `load_corpus`: documents
    documents: list | None  # of bytes, in order; None if it must be refused
    refusal: str = ""  # a regular expression that the message of a refusal matches


def odd_corpora(n, seed):
    """Yield `n` `OddCorpus`, the same for the same seed. All kinds occur within the first `len(KINDS)`."""
    draw = random.Random(seed)
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        name, files, options, documents, *refusal = kind(draw)
        yield OddCorpus(f"{i}-{kind.__name__.lstrip('_')}-{name}", files, options, documents, *refusal)


def _text(draw, ends=(" ",), size=None):
    """A text of words, without white space at its ends. ends: what may be between two words besides blanks."""
    n = size or draw.choice([1, 1, 2, 5, 30, 200])
    parts = ["x"]
    for _ in range(n):
        parts += [draw.choice([" ", " ", "  ", draw.choice(list(ends))]), draw.choice(WORDS)]
    return "".join(parts) + draw.choice("x.?!")


def _documents(draw, ends=(" ",)):
    """A few texts, of which one may be huge or have a single character."""
    found = [_text(draw, ends) for _ in range(draw.randint(2, 12))]
    found += draw.choice([[], [], ["x"], ["é"], ["🙂" * draw.choice([1, 70_000])], ["long line " * 30_000 + "."]])
    draw.shuffle(found)
    return found


def _encoded(draw, text):
    """(name of the encoding, bytes) of a text."""
    name = draw.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"])
    return name, text.encode(name)


def _packed(draw, name, data):
    """(name of the compression, file name, bytes). Sometimes the file name does not tell."""
    known = {
        "": lambda data: data,
        "gz": gzipped,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        "gz-parts": lambda data: gzipped(data[:5]) + gzipped(data[5:]) + bytes(10),
    }
    method = draw.choice(["", "", *known])
    suffix = method.partition("-")[0]
    hidden = suffix in ("gz", "bz2", "xz") and draw.random() < 0.3
    return method, name + f".{suffix}" * bool(suffix and not hidden), known[method](data)


def _file(draw, name, text):
    """(description, {name: bytes}) of one file with this text."""
    encoding, data = _encoded(draw, text)
    method, name, data = _packed(draw, name, data)
    return f"{encoding}-{method}", {name: data}


def _bytes(documents):
    return [document.encode() for document in documents]


def _marker(draw):
    end = draw.choice(LINE_ENDS)
    documents = _documents(draw, (end,))
    between = [MARKER, f"{end}{MARKER}{end}", f"{MARKER}{end}", f"{end}{MARKER}", f"{end} \t{MARKER}  {end}"]
    text = documents[0]
    for document in documents[1:]:
        text += draw.choice(between) * draw.choice([1, 1, 1, 2]) + document
    text = draw.choice(["", MARKER, f"{MARKER}{end}"]) + text + draw.choice(["", f"{end}{MARKER}", f"{MARKER} {end}"])
    text += MARKER * (MARKER not in text)
    what, files = _file(draw, "t.txt", text)
    return what, files, dict(documents="marker"), _bytes(documents)


def _blank_line(draw):
    end = draw.choice(LINE_ENDS)
    documents = _documents(draw, (end,))
    # White space around a line end could make a blank line.
    documents = [end.join(line.strip() or "x" for line in document.split(end)) for document in documents]
    between = [end * 2, end * 3, f"{end} \t{end}", f"{end}\u3000\u00a0{end}{end}"]
    text = documents[0]
    for document in documents[1:]:
        text += draw.choice(between) + document
    what, files = _file(draw, "t.txt", draw.choice(["", end, f" {end}"]) + text + draw.choice(["", end * 2]))
    return what, files, dict(documents="blank-line"), _bytes(documents)


def _line(draw):
    documents = _documents(draw)
    text = "".join(document + draw.choice([*LINE_ENDS, "\n\n", "\n \t\n", "\r\r"]) for document in documents)
    text = text.rstrip() if draw.random() < 0.3 else text
    what, files = _file(draw, "names.txt", text)
    return what, files, dict(documents="line"), _bytes(documents)


def _one(draw):
    """A text that nothing separates: no final newline, a single character, bytes of another encoding."""
    data = draw.choice(
        [
            _text(draw, LINE_ENDS).encode(),
            b"x",
            "é".encode(),
            "🙂".encode(),
            b" \n\t \n",
            b"\n",
            "Où est-il ? Là-bas.\r\n".encode("cp1252") * 9,
            b"bytes \xff\xfe\x80 \xed\xa0\x80 of no encoding",
            b"x" * 300_000,
            b"\xed\xb3\xbf surrogate",
        ]
    )
    method, name, data_in = _packed(draw, "t.md", data)
    return method, {name: data_in}, {}, [data]


def _row(draw, document):
    """(row, bytes that are trained on) with a document in one of the known forms."""
    asked = _text(draw, size=3)
    said = f"Q: {asked}\nA: {document}\n"
    return draw.choice(
        [
            (dict(text=document), document),
            (document, document),
            (dict(content=document, id=7), document),
            (dict(prompt=asked, completion=document), said),
            (dict(instruction=asked, input="", output=document), said),
            (dict(question=asked, answer=document), said),
            (dict(messages=[dict(role="user", content=asked), dict(role="assistant", content=document)]), said),
            (dict(conversations=[{"from": "human", "value": asked}, {"from": "gpt", "value": document}]), said),
        ]
    )


def _json(draw):
    rows, documents = zip(*(_row(draw, document) for document in _documents(draw, ("\n",))))
    rows, ascii = list(rows), draw.random() < 0.5
    for _ in range(draw.choice([0, 0, 2])):  # nothing to learn
        rows.insert(
            draw.randint(0, len(rows)), draw.choice([dict(text=None), dict(text=" "), dict(prompt="a", completion="")])
        )
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    name, text = draw.choice(
        [
            ("r.jsonl", "\n".join(lines)),
            ("r.jsonl", "\r\n\r\n".join(lines) + "\r\n"),
            ("r.ndjson", "\n \n".join(lines) + "\n"),
            ("r.jsonl", ",\n".join(lines) + ","),
            ("r.json", json.dumps(rows, ensure_ascii=ascii)),
            ("r.json", json.dumps(rows, ensure_ascii=ascii, indent=draw.choice([1, 4, "\t"]))),
            ("r.json", "\n".join(lines)),
            ("r.jsonl", json.dumps(rows, ensure_ascii=ascii, indent=2)),
            ("r.jsonl", "\n".join(json.dumps(row, indent=1) for row in rows if not isinstance(row, str)))
            if not any(isinstance(row, str) for row in rows)
            else ("r.json", json.dumps(rows)),
        ]
    )
    what, files = _file(draw, name, text)
    return f"{name}-{what}", files, {}, _bytes(documents)


def _csv(draw):
    documents, out = _documents(draw, ("\n", "\r\n")), io.StringIO()
    end, delimiter = draw.choice(["\n", "\r\n"]), draw.choice(",\t;|")
    writer = csv.writer(
        out, delimiter=delimiter, lineterminator=end, quoting=draw.choice([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    )
    writer.writerow(["id", "the text", "label"])
    writer.writerows([i, document, draw.choice(WORDS)] for i, document in enumerate(documents))
    text = out.getvalue() if draw.random() < 0.5 else out.getvalue().rstrip("\r\n")
    what, files = _file(draw, draw.choice(["t.csv", "t.tsv", "table.txt"]), text)
    return what, files, dict(documents="csv:the text"), _bytes(documents)


def _folder(draw):
    """Files of several kinds. They are read in the order of their names."""
    files, documents = {}, []
    for i in range(draw.randint(2, 4)):
        _, made, _, found = draw.choice([_marker, _json])(draw)
        for name, data in made.items():
            files[f"{i}{name}"] = data
        documents += found
        # What begins the next file continues the last document of this one, if both are text: end it.
        files[f"{i}~.txt"] = f"{MARKER}\n".encode()
    return f"{len(files)} files", files, {}, documents


def _refused(draw):
    """Files that are not text, damaged, or malformed."""
    rows = [json.dumps(dict(text=_text(draw))) for _ in range(9)]
    wrong = rows[:3] + ["{"] + rows[3:] + ['{"txt": 1}']
    packed = draw.choice([gzipped, bz2.compress, lzma.compress])(_text(draw, size=300).encode())
    binary = draw.choice(list(BINARY))
    name, data, options, refusal = draw.choice(
        [
            (binary, BINARY[binary], {}, f"{binary} is "),
            ("t.gz", gzipped(BINARY[binary]), {}, "t.gz (is|contains binary)"),
            ("t.pack", packed[: draw.randint(20, len(packed) - 1)], {}, "t.pack is (incomplete|damaged)"),
            ("t.pack", packed + b"and more", {}, "t.pack is damaged"),
            ("empty.txt", b"", {}, "empty"),
            ("empty.gz", gzipped(b""), {}, "empty.gz contains no text"),
            ("r.jsonl", "\n".join(wrong).encode(), {}, "line 4, is not JSON.*2 of 11 rows.*lines 4 and 11"),
            ("r.json", ("[" + ",".join(rows) + ', {"text": "cut').encode(), {}, "r.json, row 10, is not JSON"),
            ("r.json", ("[" + ",".join(rows)).encode(), {}, "r.json is incomplete"),
            ("r.json", b'{"data": [' + rows[0].encode() + b"]}", {}, "r.json is an object with rows in 'data'"),
            ("r.jsonl", b'{"text": ""}\n{"text": null}\n', {}, "no row with anything to learn"),
            ("t.csv", b"a,b\n1,2\n", dict(documents="csv:c"), "has no column 'c'; its columns are 'a', 'b'"),
            ("t.csv", b"a,b\n1,2,3\n4,5\n", dict(documents="csv:b"), "1 row without the 2 fields"),
            ("t.csv", b'a,b\n1,"2\n', dict(documents="csv:b"), "t.csv, row 1, is not CSV"),
            ("t.txt", b"\xff\xfea", {}, "starts with the mark of UTF-16"),
            ("t.parquet", b"PAR1" + bytes(40), {}, "t.parquet"),
        ]
    )
    return name, {name: data}, options, None, refusal


KINDS = (_marker, _json, _csv, _blank_line, _line, _one, _folder, _refused)
