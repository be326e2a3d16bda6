"""Corpora with documents become tokens: the ids and the mask, shards and processes, a kill, memory, the names, and the command `prepare`."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import small
from test_tokenizer import LLAMA

from slm_np.data import corpus, download, shards
from slm_np.data.bpe import PieceTokenizer
from slm_np.data.chat_template import DEFAULT
from slm_np.data.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer, with_end_of_text
from slm_np.data.tokens import gather, load_corpus
from slm_np.errors import UserError
from slm_np.prepare import main

M, END = "<|endoftext|>", 256
LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file(tmp_path, text, name="t.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, (LONG_AGO, LONG_AGO))
    return str(path)


def tokens_of(documents):
    return [id for document in documents for id in [*document.encode(), END]]


def made(*arguments, **options):
    return load_corpus(*arguments, progress=False, **options)


def numbered(n, of=lambda i: f"Story {i} of a café.\nIt ends."):
    return [of(i) for i in range(n)]


# ---- documents as tokens


def test_end_of_text_follows_every_document_and_markers_are_no_text(tmp_path):
    documents = numbered(20)
    found = made(
        file(tmp_path, "".join(f"{one}\n{M}\n" for one in documents)), file(tmp_path, f"one\n{M}\ntwo", "v.txt")
    )
    assert found.train.ids.tolist() == tokens_of(documents) and found.validation.ids.tolist() == tokens_of(
        ["one", "two"]
    )
    assert (found.vocab_size, found.tokenizer.end_of_text, found.train.n_documents, found.validation.n_documents) == (
        257,
        END,
        20,
        2,
    )
    assert (
        found.train.n_bytes == sum(len(one.encode()) for one in documents)
        and found.train.mask is None
        and found.train.n_learnt == len(found.train)
    )
    assert found.tokenizer.decode(found.train.ids) == "".join(documents).encode()


def test_without_borders_it_is_one_document_and_has_no_end_of_text(tmp_path):
    found = made(file(tmp_path, f"one {M}\n\ntwo" * 9), file(tmp_path, "three", "v.txt"))
    assert (found.vocab_size, found.train.n_documents, found.validation.n_documents) == (256, 1, 1)
    assert bytes(found.train.ids.astype(np.uint8)).decode() == f"one {M}\n\ntwo" * 9
    blank = made(file(tmp_path, f"one {M}\n\ntwo" * 9), file(tmp_path, "three", "v.txt"), documents="blank-line")
    assert (blank.vocab_size, blank.train.n_documents) == (257, 10) and blank.validation.ids.tolist() == tokens_of(
        ["three"]
    )


def test_characters_of_documents_and_their_end(tmp_path):
    found = made(file(tmp_path, f"ab\n{M}\nba\n{M}\n"), file(tmp_path, f"c\n{M}\n", "v.txt"), "char")
    assert (
        found.tokenizer.characters == "abc"
        and found.train.ids.tolist() == [0, 1, 3, 1, 0, 3]
        and found.validation.ids.tolist() == [2, 3]
    )


def test_a_given_tokenizer_without_end_of_text_puts_a_blank_line(tmp_path):
    path = file(tmp_path, f"one\n{M}\ntwo\n{M}\n")
    found = made(path, path, ByteTokenizer())
    assert (
        bytes(found.train.ids.astype(np.uint8)) == b"one\n\ntwo\n\n"
        and found.train.n_bytes == 6
        and found.vocab_size == 256
    )
    assert made(path, path, with_end_of_text(ByteTokenizer())).train.ids.tolist() == tokens_of(["one", "two"])
    assert made(path, path, CharTokenizer("enotw")).train.ids.tolist() == [2, 1, 0, 3, 4, 2]


def test_the_last_tenth_begins_with_a_document(tmp_path):
    documents = numbered(100)
    for text, name in (
        ("".join(f"{one}\n{M}\n" for one in documents), "a.txt"),
        ("".join(json.dumps(dict(text=one)) + "\n" for one in documents), "a.jsonl"),
    ):
        found = made(file(tmp_path, text, name))
        n = found.train.n_documents
        assert (
            n in (90, 91)
            and found.train.ids.tolist() == tokens_of(documents[:n])
            and found.validation.ids.tolist() == tokens_of(documents[n:])
        )
    found = made(file(tmp_path, f"one\n{M}\n{'x' * 1000}"))  # no document begins there, so one is cut
    assert len(found.validation) - 1 == found.validation.n_bytes == 102
    rows = file(
        tmp_path, json.dumps(dict(text="a")) + "\n" + json.dumps(dict(text="b" * 500)), "b.jsonl"
    )  # but a row is not
    found = made(rows)
    assert found.train.ids.tolist() == tokens_of(["a"]) and found.validation.ids.tolist() == tokens_of(["b" * 500])


def test_limit_bytes_ends_at_a_documents_end(tmp_path):
    documents = numbered(100)
    path, val = file(tmp_path, "".join(f"{one}\n{M}\n" for one in documents)), file(tmp_path, f"v\n{M}\n", "v.txt")
    each = len(f"{documents[50]}\n{M}\n".encode())
    for limit in (10 * each, 1000, 1):
        found = made(path, val, limit_bytes=limit)
        n = found.train.n_documents
        assert found.train.ids.tolist() == tokens_of(documents[:n])
        assert 0 <= sum(len(f"{one}\n{M}\n".encode()) for one in documents[:n]) - limit < each
    assert made(path, val, limit_bytes=10**9).train.n_documents == 100
    both = made(path, limit_bytes=1000)
    assert both.train.ids.tolist() + both.validation.ids.tolist() == tokens_of(
        documents[: both.train.n_documents + both.validation.n_documents]
    )
    plain = made(file(tmp_path, "é" * 500, "p.txt"), val, limit_bytes=101)
    assert plain.train.n_bytes == 100


# ---- rows, and what is learnt of them


def conversation(question, answer):
    return dict(messages=[dict(role="user", content=question), dict(role="assistant", content=answer)])


def test_answers_alone_are_learnt(tmp_path):
    rows = [
        conversation("Who lost the ball?", "Lily."),
        dict(prompt="Where?", completion="By the sea."),
        dict(text="A story."),
    ]
    path = file(tmp_path, "\n".join(map(json.dumps, rows)), "r.jsonl")
    found = made(path, path)
    assert (
        found.train.n_documents == 3
        and found.train.mask.shape == found.train.ids.shape
        and found.train.mask.dtype == np.uint8
    )
    learnt = found.train.ids[found.train.mask == 1].tolist()
    text = found.tokenizer.decode([id for id in learnt if id != END]).decode()
    assert [part.strip() for part in bytes(b if b != END else 0 for b in learnt).decode().split("\0")] == [
        "Lily.",
        "By the sea.",
        "A story.",
        "",
    ]
    assert found.train.n_bytes == len(text.encode()) and found.train.n_learnt == len(learnt) == len(text.encode()) + 3
    whole = found.tokenizer.decode(found.train.ids).decode()
    assert "Who lost the ball?" in whole and "Who" not in text


def test_targets_that_are_not_learnt_are_minus_one(tmp_path):
    path = file(
        tmp_path, "".join(json.dumps(conversation(f"Who {i}?", f"Me {i}.")) + "\n" for i in range(30)), "r.jsonl"
    )
    tokens = made(path, path).train
    x, y = np.zeros((4, 50), np.int32), np.zeros((4, 50), np.int32)
    gather(x, y, tokens, [0, 3, 100, 200])
    for row, start in enumerate((0, 3, 100, 200)):
        ids, mask = tokens.ids[start + 1 : start + 51].astype(int), tokens.mask[start + 1 : start + 51]
        assert (y[row] == np.where(mask == 1, ids, -1)).all() and (x[row] == tokens.ids[start : start + 50]).all()
    assert (y == -1).any() and (y >= 0).any()


def test_where_a_blank_line_ends_a_conversation_it_is_not_learnt(tmp_path):
    path = file(
        tmp_path, json.dumps(conversation("Who?", "Me.")) + "\n" + json.dumps(conversation("Who?", "You.")), "r.jsonl"
    )
    tokens = made(path, path, ByteTokenizer()).train
    assert bytes(tokens.ids.astype(np.uint8)) == b"Q: Who?\nA: Me.\n\nQ: Who?\nA: You.\n\n"
    assert (
        bytes(tokens.ids[tokens.mask == 1].astype(np.uint8)) == b" Me.\n You.\n"
        and tokens.n_bytes == tokens.n_learnt == 11
    )


def test_an_answer_goes_on_where_the_question_ended(tmp_path):
    """Also with a tokenizer that puts a space in front of texts: then what is learnt is what chat reads."""
    tokenizer = PieceTokenizer(LLAMA)
    messages = conversation("the cat", "that the hat")["messages"]
    path = file(tmp_path, json.dumps(dict(messages=messages)) + "\n", "r.jsonl")
    tokens = made(path, path, tokenizer).train
    asked = tokenizer.encode(DEFAULT.prompt(messages[:1])).tolist()
    assert (
        tokens.ids[: len(asked)].tolist() == asked
        and not tokens.mask[: len(asked)].any()
        and tokens.mask[len(asked) :].all()
    )
    assert tokenizer.decode(tokens.ids) == b"".join(piece for piece, _ in DEFAULT.pieces(messages))


def test_a_text_in_shards_begins_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 500)
    text, tokenizer = b"the cat that had a hat " * 200, PieceTokenizer(LLAMA)
    path = file(tmp_path, text)
    found = made(path, path, tokenizer, threads=1)
    assert tokenizer.decode(found.train.ids) == text == tokenizer.decode(found.validation.ids)


def test_rows_and_texts_together(tmp_path):
    a, b, c = (
        file(tmp_path, "one\ntwo", "a.txt"),
        file(tmp_path, json.dumps(conversation("Who?", "Me.")), "b.jsonl"),
        file(tmp_path, f"x\n{M}\ny", "c.txt"),
    )
    found = made(f"{a},{b},{c}", c)
    assert (
        found.train.n_documents == 4
        and found.train.ids[:8].tolist() == tokens_of(["one\ntwo"])
        and found.train.mask[:8].all()
    )
    assert (
        found.train.ids[-4:].tolist() == tokens_of(["x", "y"])
        and found.train.mask[-4:].all()
        and not found.train.mask.all()
    )


def test_a_wrong_row_ends_it_and_leaves_nothing(tmp_path, cache):
    path = file(tmp_path, '{"text": "good"}\n{"text": ""}\n' * 50, "r.jsonl")
    with pytest.raises(UserError, match=r"r.jsonl, line 2\b.*\"text\""):
        made(path, path)
    assert not [path for path in (cache / "corpora").iterdir() if path.is_dir()]


# ---- shards


def a_corpus(tmp_path, n=150):
    """Texts and rows, some documents longer than a shard, characters of all widths."""
    text = (
        "".join(f"{'Lily and Ben 漢字 🙂, naïve. ' * (1 + i % 7 * 9)}{i}\n{M}\n" for i in range(n))
        + f"end\n\n{M}\n{M}\n\nlast"
    )
    rows = "".join(json.dumps(conversation(f"Who is {i}?", "Ünï " * (i % 5) + "x")) + "\n" for i in range(n))
    return ",".join([file(tmp_path, text, "a.txt"), file(tmp_path, rows, "b.jsonl"), file(tmp_path, text * 2, "c.txt")])


def store(path):
    return {one.name: one.read_bytes() for one in Path(path).iterdir()}


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
@pytest.mark.parametrize("plain", [False, True])
def test_shards_and_processes_change_nothing(tmp_path, monkeypatch, tokenizer, plain):
    text = "One two  three.\nFour 漢字 🙂 naïve,\n\n five! " * 1500
    data = file(tmp_path, text, "plain.txt") if plain else a_corpus(tmp_path)
    once = made(data, tokenizer=tokenizer, out_dir=tmp_path / "once")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    made(data, tokenizer=tokenizer, threads=1, out_dir=tmp_path / "many")
    assert store(tmp_path / "once") == store(tmp_path / "many")
    if tokenizer == "bpe:300":
        made(data, tokenizer=tokenizer, threads=2, out_dir=tmp_path / "processes")
        assert store(tmp_path / "once") == store(tmp_path / "processes")
    if plain:
        assert once.tokenizer.decode(once.train.ids) + once.tokenizer.decode(once.validation.ids) == text.encode()


def test_bad_text_in_a_process_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 5000)
    path = file(
        tmp_path, "".join(json.dumps(dict(text="abc " * 50)) + "\n" for _ in range(200)) + '{"text": 3}\n', "r.jsonl"
    )
    with pytest.raises(UserError, match=r"r.jsonl, line 201\b"):
        made(path, file(tmp_path, "v", "v.txt"), threads=2)


def test_a_process_that_dies_is_told_and_what_is_finished_is_kept(tmp_path, cache, monkeypatch):
    data = a_corpus(tmp_path)
    expected = made(data, out_dir=tmp_path / "expected")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    real = subprocess.Popen

    def dying(command, **options):
        process = real(command, **options)
        threading.Timer(0.6, process.kill).start()
        return process

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", dying)
        try:
            made(data, threads=2)
        except UserError as error:
            assert "a process that tokenised ended" in str(error) and "what is finished is kept" in str(error)
    found = made(data, threads=2)
    assert found.train.ids.tolist() == expected.train.ids.tolist()


SLOW = """
import sys, time
from slm_np.data import shards
from slm_np.prepare import main
tokenise, shards.SHARD = shards.tokenise, 20_000
shards.tokenise = lambda *arguments: (tokenise(*arguments), time.sleep(0.05))
main(sys.argv[1:])
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_and_run_again_equals_at_once(tmp_path, threads):
    data = a_corpus(tmp_path)
    made(data, out_dir=tmp_path / "once")
    environment, out = small.environment() | dict(SLM_NP_CACHE=str(tmp_path / "cache")), tmp_path / "out"
    arguments = [sys.executable, "-c", SLOW, *data.split(","), "--out-dir", str(out), "--threads", str(threads)]
    done = lambda: {path.stem for path in (tmp_path / "out.part" / "shards").glob("*.json") if path.stem.isdigit()}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    while len(done()) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = done()
    stamps = {name: (tmp_path / "out.part" / "shards" / f"{name}.json").stat().st_mtime_ns for name in kept}
    assert kept and not out.exists()
    time.sleep(0.3)  # what its processes have begun, they end; then they find nobody to tell
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:  # what was finished is not made again
        for name, stamp in stamps.items():
            try:
                assert (tmp_path / "out.part" / "shards" / f"{name}.json").stat().st_mtime_ns == stamp
            except FileNotFoundError:
                pass
        time.sleep(0.01)
    assert process.returncode == 0 and store(out) == store(tmp_path / "once")
    assert not (tmp_path / "out.part").exists() and not (tmp_path / "out.lock").exists()


def test_a_break_while_shards_are_joined_costs_nothing(tmp_path, monkeypatch):
    data = a_corpus(tmp_path)
    made(data, out_dir=tmp_path / "once")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    real, syncs = os.fsync, []

    def breaking(descriptor):
        syncs.append(descriptor)
        if len(syncs) % 4 == 0:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(os, "fsync", breaking)
    tokenised = []
    tokenise = shards.tokenise
    monkeypatch.setattr(
        shards,
        "tokenise",
        lambda staging, plan, number, *rest: (tokenised.append(number), tokenise(staging, plan, number, *rest)),
    )
    for _ in range(200):
        try:
            made(data, threads=1, out_dir=tmp_path / "out")
            break
        except KeyboardInterrupt:
            pass
    assert (
        len(tokenised) == len(set(tokenised)) > 10
        and len(syncs) > 20
        and store(tmp_path / "out") == store(tmp_path / "once")
    )


def test_a_store_that_was_begun_long_ago_is_gone_on_with(tmp_path, cache, monkeypatch):
    data = a_corpus(tmp_path)
    monkeypatch.setattr(shards, "SHARD", 20_000)
    tokenise, begun = shards.tokenise, []

    def breaking(staging, plan, number, *rest):
        begun.append(number)
        if len(begun) == 3:
            raise KeyboardInterrupt
        tokenise(staging, plan, number, *rest)

    monkeypatch.setattr(shards, "tokenise", breaking)
    with pytest.raises(KeyboardInterrupt):
        made(data, threads=1)
    [part] = (cache / "corpora").glob("*.part")
    for path in (*part.iterdir(), part):
        os.utime(path, (LONG_AGO, LONG_AGO))
    made(data, threads=1)
    assert begun[:4] == [0, 1, 2, 2] and sorted(begun[3:]) == [*range(2, begun[-1] + 1)]


def test_a_kill_while_the_shards_are_removed_blocks_nothing(tmp_path, monkeypatch):
    data, out = a_corpus(tmp_path), tmp_path / "out"
    made(data, out_dir=tmp_path / "once")
    rmtree = shards.shutil.rmtree

    def killed(path, **options):
        rmtree(path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            made(data, threads=1, out_dir=out)
    assert (tmp_path / "out.part" / "plan.json").exists() and not (tmp_path / "out.part" / "shards").exists()
    made(data, threads=1, out_dir=out)
    assert store(out) == store(tmp_path / "once")


def test_two_at_once_share_the_work(tmp_path, monkeypatch):
    data = a_corpus(tmp_path)
    monkeypatch.setattr(shards, "SHARD", 20_000)
    found = []
    workers = [threading.Thread(target=lambda: found.append(made(data, threads=1))) for _ in range(3)]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    assert (
        len({one.fingerprint for one in found}) == 1
        and len(found) == 3
        and len({one.train.ids.tobytes() for one in found}) == 1
    )


# ---- memory

WATCHED = """
import sys, threading, time
from pathlib import Path
peak = 0
def watch():
    global peak
    while True:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        peak = max(peak, int(fields["RssAnon"].split()[0]) * 1024)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
from slm_np.prepare import main
main(sys.argv[1:])
print("peak", peak)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell anonymous memory")
def test_anonymous_memory_does_not_grow_with_the_corpus(tmp_path):
    document, peaks = f"{'The quick brown fox jumps over the lazy dog, naïvely. ' * 20}\n{M}\n" * 900, []  # a megabyte
    for megabytes in (10, 40):
        with open(tmp_path / f"{megabytes}.txt", "wb") as out:
            for _ in range(megabytes):
                out.write(document.encode())
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                WATCHED,
                str(tmp_path / f"{megabytes}.txt"),
                "--threads",
                "1",
                "--out-dir",
                str(tmp_path / f"{megabytes}"),
            ],
            env=small.environment() | dict(SLM_NP_CACHE=str(tmp_path / "cache")),
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 12e6 and peaks[1] < 200e6, peaks


# ---- what `prepare` wrote, as data


def test_a_prepared_directory_is_data(tmp_path):
    path = file(tmp_path, "".join(f"{one}\n{M}\n" for one in numbered(50)))
    first = made(path, tokenizer="char", out_dir=tmp_path / "out")
    for data, val in (
        ("out", ""),
        ("out/train.bin", ""),
        ("out/train.bin", "out/validation.bin"),
        ("out", "out/validation.bin"),
    ):
        found = made(str(tmp_path / data), str(tmp_path / val) if val else "", "byte")
        assert (
            found.train.ids.tolist() == first.train.ids.tolist()
            and found.validation.ids.tolist() == first.validation.ids.tolist()
        )
        assert found.tokenizer.to_json() == first.tokenizer.to_json() and found.vocab_size == first.vocab_size
        assert (found.train.n_documents, found.train.n_bytes, found.validation.n_bytes) == (
            first.train.n_documents,
            first.train.n_bytes,
            first.validation.n_bytes,
        )
    assert made(str(tmp_path / "out"), "", first.tokenizer).vocab_size == first.vocab_size
    with pytest.raises(UserError, match="was made with another tokenizer"):
        made(str(tmp_path / "out"), "", ByteTokenizer())


def test_a_prepared_directory_keeps_its_mask(tmp_path):
    path = file(tmp_path, "".join(json.dumps(conversation(f"Who {i}?", "Me.")) + "\n" for i in range(30)), "r.jsonl")
    first = made(path, out_dir=tmp_path / "out")
    found = made(str(tmp_path / "out"))
    assert (
        (found.train.mask == first.train.mask).all()
        and found.train.n_learnt == first.train.n_learnt
        and found.validation.n_bytes == first.validation.n_bytes
    )
    (tmp_path / "out" / "train.mask.bin").write_bytes(b"\1")
    with pytest.raises(UserError, match="mask.bin has 1 entries for"):
        made(str(tmp_path / "out"))


def test_nanogpt_folders_are_data(tmp_path):
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    np.arange(50, dtype="<u2").tofile(tmp_path / "val.bin")
    found = made(str(tmp_path))
    assert (len(found.train), len(found.validation), found.tokenizer, found.vocab_size) == (100, 50, None, 100)
    with pytest.raises(UserError, match="hold the id 99 at position 99, but the vocabulary has 3"):
        made(str(tmp_path), "", CharTokenizer("abc"))


def test_half_written_tokens_and_ids_out_of_range_are_refused(tmp_path):
    path = file(tmp_path, "".join(f"{one}\n{M}\n" for one in numbered(50)))
    made(path, out_dir=tmp_path / "out")
    whole = (tmp_path / "out" / "train.bin").read_bytes()
    for content, sentence in (
        (whole[:-1], "no whole number of uint16 tokens"),
        (whole[:-2], "tokens, but its meta.json says .* half written"),
        (whole[:-2] + b"\1\2", "hold the id 513 at position .*, but the vocabulary has 257"),
    ):
        (tmp_path / "out" / "train.bin").write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            made(str(tmp_path / "out"))


# ---- the command


def run(*arguments, capsys):
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()


def test_the_command(tmp_path, capsys):
    path, out = file(tmp_path, "".join(f"{one}\n{M}\n" for one in numbered(50))), tmp_path / "out"
    status, said, error = run(path, "--tokenizer", "byte", "--out-dir", out, capsys=capsys)
    assert status == 0 and "train: 45 documents" in said or "train: 46 documents" in said
    assert f"python -m slm_np.train --data {out}" in said and not error
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    ids = np.fromfile(out / "train.bin", "<u2")
    assert (
        meta["tokens"]["train"] == len(ids)
        and meta["dtype"] == "uint16"
        and meta["vocab_size"] == 257
        and meta["tokenizer"] == "byte"
    )
    assert (
        meta["documents"]["train"] == (ids == END).sum()
        and meta["bytes"]["train"] == (ids != END).sum()
        and len(meta["sha256"]["train"]) == 64
    )
    assert load_tokenizer(out / "tokenizer.json").end_of_text == END
    before = {one.name: one.stat().st_mtime_ns for one in out.iterdir()}
    assert run(path, "--tokenizer", "byte", "--out-dir", out, capsys=capsys)[0] == 0  # it is there already
    assert {one.name: one.stat().st_mtime_ns for one in out.iterdir()} == before
    status, said, error = run(
        file(tmp_path, "plain text\n" * 20, "p.txt"), "--out-dir", tmp_path / "plain", capsys=capsys
    )
    assert status == 0 and "one document" in error and "--documents blank-line" in error


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["{text}", "--out-dir", "{tmp}/full"], "full holds something else; name a new directory"),
        (["{text}", "--out-dir", "{text}"], "t.txt is a file; name a directory"),
        (["{text}", "--out-dir", "{tmp}/o", "--tokenizer", "bite"], "'bite' is unknown; did you mean byte"),
        (["{text}", "--out-dir", "{tmp}/o", "--documents", "lines"], "--documents 'lines' is unknown"),
        (["{text}", "--out-dir", "{tmp}/o", "--limit-bytes", "-1"], "--limit-bytes is -1; it must be at least 0"),
        (["{tmp}/nope", "--out-dir", "{tmp}/o"], "nope does not exist"),
        (["{tmp}/bad.txt", "--out-dir", "{tmp}/o", "--tokenizer", "char"], "not UTF-8 .byte 0xff"),
        (["{tmp}/bad.jsonl", "--out-dir", "{tmp}/o"], "bad.jsonl, line 2.*not JSON"),
        (["{text}"], "--out-dir"),
        (["--out-dir", "{tmp}/o"], "CORPUS"),
    ],
)
def test_refusals_of_the_command(tmp_path, capsys, arguments, sentence):
    import re

    text = file(tmp_path, "some text\n" * 20)
    file(tmp_path, b"ab\xffcd" * 20, "bad.txt"), file(tmp_path, '{"text": "a"}\n{"text"', "bad.jsonl")
    (tmp_path / "full").mkdir()
    file(tmp_path / "full", "x", "mine.txt")
    status, said, error = run(*(one.format(tmp=tmp_path, text=text) for one in arguments), capsys=capsys)
    assert status == 2 and re.search(sentence, error) and error.count("\n") == 1 and "Traceback" not in error, error
    assert (
        not (tmp_path / "o").exists()
        and not (tmp_path / "o.part").exists()
        and os.listdir(tmp_path / "full") == ["mine.txt"]
    )


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:270"])
def test_that_nothing_separates_documents_is_said(tmp_path, capsys, tokenizer):
    plain, marked = file(tmp_path, "plain text\n" * 20, "p.txt"), file(tmp_path, f"one\n{M}\n", "m.txt")
    status, said, error = run(plain, "--tokenizer", tokenizer, "--out-dir", tmp_path / "plain", capsys=capsys)
    assert status == 0 and "each split is one document" in error
    status, said, error = run(
        marked, "--val-data", marked, "--tokenizer", tokenizer, "--out-dir", tmp_path / "marked", capsys=capsys
    )
    assert status == 0 and "train: 1 document," in said and not error


def test_the_folder_in_which_one_is(tmp_path, capsys, monkeypatch):
    path, here = file(tmp_path, "plain text\n" * 20), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    status, said, error = run(path, "--out-dir", ".", capsys=capsys)
    os.chdir(tmp_path)  # on Linux a new folder stands where the empty one was
    if os.name != "nt":  # where no folder in use can be replaced
        assert status == 0 and (here / "train.bin").exists() and "--data ." in said, error
    assert "Traceback" not in error


def test_several_files_and_a_glob(tmp_path, capsys):
    paths = [file(tmp_path, f"{name}\n{M}\n" * 9, f"{name}.txt") for name in "abc"]
    assert (
        run(*paths, "--out-dir", tmp_path / "one", capsys=capsys)[0]
        == run(tmp_path / "*.txt", "--out-dir", tmp_path / "two", capsys=capsys)[0]
        == 0
    )
    assert (tmp_path / "one" / "train.bin").read_bytes() == (tmp_path / "two" / "train.bin").read_bytes()


# ---- names


def test_a_file_of_a_names_name_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file(tmp_path, "mine", "stories")
    assert b"".join(corpus.find("stories", "train", tmp_path, False).blocks()) == b"mine"


def test_dialogues_are_rows(monkeypatch):
    monkeypatch.setattr(corpus, "EMBEDDED_BYTES", dict(train=20_000, validation=3000))
    found = made("dialogues")
    assert (
        found.train.n_documents > 20
        and found.train.mask is not None
        and 0 < found.train.n_learnt < len(found.train) / 2
    )
    assert len(found.validation) + found.validation.n_documents * 150 > 3000 and found.source == "dialogues"


@pytest.mark.parametrize(
    "name, kept", [("tinyshakespeare", "tinyshakespeare.txt"), ("tinystories", "TinyStories-train.txt")]
)
def test_without_a_network_a_sentence_says_where_the_file_goes(name, kept, cache, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    hub = type(sys)("huggingface_hub")
    hub.hf_hub_download = refuse
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError) as error:
        load_corpus(name)
    assert f"--data {name} cannot be downloaded (no network); put https://" in str(error.value) and str(
        cache / "downloads" / kept
    ) in str(error.value)
    assert "licence" in capsys.readouterr().err
    (cache / "downloads").mkdir(exist_ok=True)
    (cache / "downloads" / kept).write_text("put by hand " * 20, encoding="utf-8")
    (cache / "downloads" / "TinyStories-valid.txt").write_text("held out " * 20, encoding="utf-8")
    found = made(name)
    assert bytes(found.train.ids[:11].astype(np.uint8)) == b"put by hand"
    assert bytes(found.validation.ids[:8].astype(np.uint8)) == (
        b"held out" if name == "tinystories" else bytes(found.validation.ids[:8].astype(np.uint8))
    )


def test_tinystories_come_through_the_hub(tmp_path, cache, monkeypatch):
    asked, hub = [], type(sys)("huggingface_hub")

    def hf_hub_download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        return file(tmp_path, f"{name}\n{M}\n" * 30, name)

    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = made("tinystories", limit_bytes=200)
    assert asked == [("roneneldan/TinyStories", f"TinyStories-{split}.txt", "dataset") for split in ("train", "valid")]
    assert found.validation.n_documents == 30 and 0 < found.train.n_documents < 10
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'slm_np\[hub\]', or put https://\S+ at "):
        made("tinystories")


class Server(threading.Thread):
    """An HTTP server on this machine that sends `data`, breaks off after `most` bytes, and knows ranges."""

    def __init__(self, data, most):
        import http.server

        super().__init__(daemon=True)
        self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):
                self.asked.append(handler.headers.get("Range"))
                start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
                handler.send_response(206 if start else 200)
                handler.send_header("Content-Length", str(len(data) - start))
                handler.end_headers()
                handler.wfile.write(data[start : start + most])

            def log_message(handler, *arguments):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/input.txt"
        self.start()

    def run(self):
        self.server.serve_forever()


def test_an_answer_that_is_no_http_is_one_sentence(monkeypatch):
    import http.client

    def broken(*arguments, **options):
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(download.urllib.request, "urlopen", broken)
    with pytest.raises(UserError, match=r"--data tinyshakespeare cannot be downloaded \(IncompleteRead.*put https://"):
        load_corpus("tinyshakespeare")


def test_a_download_is_resumed_and_verified(tmp_path, monkeypatch):
    import hashlib

    data = bytes(range(256)) * 40
    server, path = Server(data, 4000), tmp_path / "downloads" / "t.txt"
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        with pytest.raises(OSError, match="broke off"):
            download._download(server.url, path, digest, False)
        assert not path.exists()
    download._download(server.url, path, digest, False)
    assert path.read_bytes() == data and server.asked == [None, "bytes=4000-", "bytes=8000-"]
    with pytest.raises(ValueError, match="not the file that was expected"):
        download._download(Server(data, 10**6).url, tmp_path / "other.txt", "0" * 64, False)
    assert not (tmp_path / "other.txt").exists() and not (tmp_path / "other.txt.part").exists()
    server.server.shutdown()


# ---- real text


def test_every_story_of_a_real_file_is_a_document(test_data, tmp_path):
    path = test_data / "tinystories" / "stories.txt"
    whole, n = path.read_bytes(), 13_255
    found = made(str(path), out_dir=tmp_path / "out")
    assert (
        found.train.n_documents + found.validation.n_documents
        == n
        == int((found.train.ids == END).sum() + (found.validation.ids == END).sum())
    )
    assert found.train.n_bytes + found.validation.n_bytes == len(whole) - n * len(f"\n{M}\n")
    text = found.tokenizer.decode(found.train.ids) + found.tokenizer.decode(found.validation.ids)
    assert text == whole.replace(f"\n{M}\n".encode(), b"")
