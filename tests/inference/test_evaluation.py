"""Evaluation: every target counts once, with the loss of a plain forward; bytes; answers only; the command."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.config import ModelConfig
from slm_np.data import embedded
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.token_store import load_corpus
from slm_np.data.tokenizer_factory import with_end_of_text
from slm_np.data.tokens import Tokens
from slm_np.errors import UserError
from slm_np.formats import sources
from slm_np.inference.evaluation import Evaluation, evaluate, text_bytes, tokens_of, windows_of
from slm_np.nn.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")

T = 8
TOKENIZER = with_end_of_text(ByteTokenizer())


@pytest.fixture(scope="module")
def model():
    made = Model(
        ModelConfig(vocab_size=TOKENIZER.vocab_size, block_size=T, n_layer=1, n_head=2, n_embd=16, n_hidden=16), seed=3
    )
    made.parameters.weights *= 20  # so that logits differ
    return made


def losses_after(model, ids):
    """Losses of all tokens of `ids` but the first, from one forward."""
    logits = model.logits(np.array([ids[:-1]], np.int32))[0].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def split(ids, mask=None, n_bytes=None):
    ids = np.array(ids, np.uint16)
    return Tokens(
        "validation",
        ids,
        n_bytes,
        None,
        None if mask is None else np.array(mask, np.uint8),
        None if mask is None else int(sum(mask)),
        1,
    )


def window_by_window(model, ids, stride):
    """Nats of all targets of `ids`: of the first window, then of the new targets of each later one."""
    nats, done, end = 0.0, 0, min(T, len(ids) - 1)
    while True:
        start = end - min(T, len(ids) - 1)
        nats += losses_after(model, ids[start : end + 1])[done - start :].sum()
        done = end
        if end == len(ids) - 1:
            return nats
        end = min(end + stride, len(ids) - 1)


@pytest.mark.parametrize("n", [2, T, T + 1, T + 2, 3 * T + 5])
@pytest.mark.parametrize("stride", [1, 3, T])
def test_every_target_counts_once(model, n, stride):
    ids = np.random.default_rng(n).integers(0, 256, n).tolist()
    found = evaluate(model, split(ids, n_bytes=n), TOKENIZER, stride)
    assert found.tokens == n - 1 and found.bytes == n - 1
    assert found.nats == pytest.approx(window_by_window(model, ids, stride), rel=1e-4)
    ended = ids[:-1] + [TOKENIZER.end_of_text]  # then the first token follows an end-of-text token too
    found = evaluate(model, split(ended, n_bytes=n - 1), TOKENIZER, stride)
    assert (found.tokens, found.bytes) == (n, n - 1)
    assert found.nats == pytest.approx(window_by_window(model, [TOKENIZER.end_of_text, *ended], stride), rel=1e-4)


def test_derived_figures():
    found = Evaluation(nats=20 * math.log(2), tokens=5, bytes=40)
    assert (
        found.bits_per_byte == pytest.approx(0.5)
        and found.nats_per_token == pytest.approx(4 * math.log(2))
        and found.perplexity == pytest.approx(16)
    )
    assert Evaluation(1.0, 1, None).bits_per_byte is None and math.isfinite(Evaluation(1e9, 1, 1).perplexity)


def test_only_answers_count_with_their_document_before_them(model):
    end, draw = TOKENIZER.end_of_text, np.random.default_rng(0)
    ids = [*draw.integers(0, 256, 5), end, *draw.integers(0, 256, 5), end]
    found = evaluate(model, split(ids, [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1]), TOKENIZER)
    # Windows of 8 targets start with the first document and as late as possible; the second has three new ones.
    wanted = losses_after(model, ids[:9])[[2, 3, 4, 7]].sum() + losses_after(model, ids[3:])[-3:].sum()
    assert found.nats == pytest.approx(wanted, rel=1e-4)
    assert (found.tokens, found.bytes) == (7, 5)  # end-of-text tokens have no bytes


def test_windows_contain_every_target_once():
    for n in (2, 9, 10, 17, 40):
        for steps in range(1, min(n, 12)):
            for stride in {1, max(1, steps // 2), steps}:
                for after_end in (False, True):
                    tokens = split(range(n))
                    targets = [
                        start + 1 + i
                        for start, new in windows_of(tokens, steps, stride, after_end, 0)
                        for i in range(steps - new, steps)
                    ]
                    assert targets == [*range(not after_end, n)], (n, steps, stride, after_end)


def test_the_first_token_of_a_document_has_no_loss(model):
    """Nothing comes before it in its window, so the mean is over the other targets."""
    end, draw = TOKENIZER.end_of_text, np.random.default_rng(1)
    ids = [*draw.integers(0, 256, 19), end, *draw.integers(0, 256, 10), end]
    found = evaluate(model, split(ids, [0] * 20 + [1] * 11), TOKENIZER)
    wanted = losses_after(model, ids[20:29]).sum() + losses_after(model, ids[22:])[-2:].sum()
    assert (
        found.tokens == 10
        and found.nats_per_token == pytest.approx(wanted / 10, rel=1e-4)
        and found.bytes == pytest.approx(10 * 10 / 11)
    )
    with pytest.raises(UserError, match="no token to predict"):
        evaluate(model, split(ids[:20] + ids[20:29], [0] * 20 + [1] + [0] * 8), TOKENIZER)


def test_the_batch_size_changes_nothing(model):
    ids = np.random.default_rng(5).integers(0, 256, 50).tolist()
    few, many = (evaluate(model, split(ids), TOKENIZER, batch=batch).nats for batch in (1, 3 * T))
    assert few == pytest.approx(many, rel=1e-6)


def test_the_tokenizer_counts_bytes():
    ids = [*"größe".encode(), TOKENIZER.end_of_text, *b"ab", TOKENIZER.end_of_text]
    assert text_bytes(split(ids), TOKENIZER) == len("größe".encode()) + 2
    assert text_bytes(split(ids, [0] * 3 + [1] * 5 + [0] * 3), TOKENIZER) == 4
    assert text_bytes(split(ids), None) is None and text_bytes(split(ids, n_bytes=7), None) == 7


@pytest.mark.parametrize(
    "ids, mask, stride, message",
    [
        ([1], None, 0, "no token to predict"),
        ([], None, 0, "no token to predict"),
        ([1, 2, 3], [0, 0, 0], 0, "no token to predict"),
        ([1, 2, 3], None, T + 1, "--stride 9 exceeds the model.s context of 8"),
        ([1, 300, 3], None, 0, "id 300 at position 1"),
    ],
)
def test_what_cannot_be_evaluated(model, ids, mask, stride, message):
    with pytest.raises(UserError, match=message):
        evaluate(model, split(ids, mask), TOKENIZER, stride)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs `bytes` and `char`, the documents that they were trained on, and others."""
    folder = tmp_path_factory.mktemp("runs")
    text = "\n<|endoftext|>\n".join(small.text(seed, 12) for seed in range(30)) + "\n<|endoftext|>\n"
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="\n")
    (folder / "other.txt").write_text(text[:3000], encoding="utf-8", newline="\n")
    for name, tokenizer in (("bytes", "byte"), ("char", "char")):
        assert (
            small.status(
                "train",
                *small.flags(
                    folder / "text.txt", max_iters=8, learning_rate=0.01, out_dir=folder / name, tokenizer=tokenizer
                ),
            )
            == 0
        )
    return folder


def evaluated(capsys, *words):
    capsys.readouterr()
    assert small.status("evaluate", "--threads", 1, *words) == 0
    return capsys.readouterr()


def test_the_command(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    said = evaluated(capsys, "--model", "bytes", "--data", "other.txt")
    found = re.fullmatch(r"(\d\.\d{4}) nats/token, (\d\.\d{4}) bits/byte, perplexity ([\d.]+)\n", said.out)
    assert found and "on other.txt: " in said.err and "documents, " in said.err
    fields = json.loads(evaluated(capsys, "--model", "bytes", "--data", "other.txt", "--json").out)
    assert f"{fields['nats_per_token']:.4f}" == found[1] and f"{fields['bits_per_byte']:.4f}" == found[2]
    assert fields["perplexity"] == pytest.approx(math.exp(fields["nats_per_token"]))
    text = Path("other.txt").read_bytes()
    parts = [part for part in text.split(b"\n<|endoftext|>\n") if part]
    assert fields["documents"] == len(parts) and fields["bytes"] == sum(map(len, parts))
    assert fields["tokens"] == fields["bytes"] + len(parts)  # an end-of-text token has no bytes
    assert fields["bits_per_byte"] == pytest.approx(
        fields["nats_per_token"] * fields["tokens"] / math.log(2) / fields["bytes"]
    )
    run = sources.load("bytes")
    assert evaluate(run.model, tokens_of(run, "other.txt"), run.tokenizer).nats_per_token == pytest.approx(
        fields["nats_per_token"]
    )
    chars = json.loads(evaluated(capsys, "--model", "char", "--data", "other.txt", "--json").out)
    assert chars["bytes"] == fields["bytes"]  # the same text for any tokenizer
    assert (
        json.loads(evaluated(capsys, "--model", "char", "--data", "other.txt", "--limit-bytes", 100, "--json").out)[
            "documents"
        ]
        == 1
    )


def test_without_data_it_evaluates_the_runs_validation_split(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    fields = json.loads(evaluated(capsys, "--model", "bytes", "--json").out)
    own = load_corpus(str(folder / "text.txt"), tokenizer="byte", progress=False).validation
    assert fields["documents"] == own.n_documents and fields["bytes"] == own.n_bytes


def test_only_the_evaluated_data_is_prepared(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=20_000, validation=3000))
    run = sources.load("bytes")
    whole, part = (tokens_of(run, "other.txt", limit_bytes=limit) for limit in (0, 1000))
    assert 0 < part.n_documents < whole.n_documents and part.ids.tolist() == whole.ids[: len(part)].tolist()
    assert sum(path.stat().st_size for path in (tmp_path / "corpora").glob("*/*.bin")) == 2 * (len(whole) + len(part))
    own, few = (tokens_of(run, "dialogues", limit_bytes=limit) for limit in (0, 500))
    assert [path.name.split("-")[0] for path in (tmp_path / "dialogues").iterdir()] == [
        "validation"
    ] and 0 < few.n_documents < own.n_documents
    trained = dataclasses.replace(
        run, config=dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, data="dialogues"))
    )
    assert tokens_of(trained).ids.tolist() == own.ids.tolist() and len([*(tmp_path / "dialogues").iterdir()]) == 1


def test_threads_are_passed_to_the_tokenizer(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    asked = []
    monkeypatch.setattr(
        "slm_np.inference.evaluation.load_corpus",
        lambda *arguments, **options: asked.append(options["threads"]) or load_corpus(*arguments, **options),
    )
    evaluated(capsys, "--model", "bytes", "--data", "other.txt")
    assert asked == [1]


@pytest.mark.parametrize("limit_bytes", [0, 4000])
def test_evaluate_agrees_with_the_last_line_of_a_run(folder, capsys, monkeypatch, tmp_path, limit_bytes):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert (
        small.status(
            "train",
            *small.flags(
                "text.txt", limit_bytes=limit_bytes, max_iters=8, learning_rate=0.01, out_dir=tmp_path / "run"
            ),
        )
        == 0
    )
    last = re.search(r"^validation (\d\.\d{4}) bits/byte$", capsys.readouterr().out, re.MULTILINE)[1]
    fields = json.loads(evaluated(capsys, "--model", tmp_path / "run", "--json").out)
    own = load_corpus("text.txt", limit_bytes=limit_bytes, progress=False).validation
    assert f"{fields['bits_per_byte']:.4f}" == last and (fields["documents"], fields["bytes"]) == (
        own.n_documents,
        own.n_bytes,
    )


def test_of_prepared_tokens_it_evaluates_the_validation_split(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    made = load_corpus("text.txt", out_dir=tmp_path / "tokens", progress=False)
    run = sources.load("bytes")
    assert tokens_of(run, str(tmp_path / "tokens")).ids.tolist() == made.validation.ids.tolist()
    assert tokens_of(run, str(tmp_path / "tokens" / "train.bin")).ids.tolist() == made.train.ids.tolist()
    fields = json.loads(evaluated(capsys, "--model", "bytes", "--data", tmp_path / "tokens", "--json").out)
    assert fields["bytes"] == made.validation.n_bytes and fields["documents"] == made.validation.n_documents


def test_answers_of_a_jsonl_file(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    rows = [
        {"prompt": "the cat sat", "completion": "a red ball"},
        {"messages": [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "ran home"}]},
    ] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields = json.loads(evaluated(capsys, "--model", "bytes", "--data", tmp_path / "rows.jsonl", "--json").out)
    assert fields["answers_only"] and fields["documents"] == 40 and fields["stride"] is None
    assert "stride" not in evaluated(capsys, "--model", "bytes", "--data", tmp_path / "rows.jsonl").err
    assert 20 * len("a red ball" + "ran home") <= fields["bytes"] < fields["tokens"] < 40 * 16


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "nothing"], "nothing is not a model: it does not exist"),
        (["--model", "bytes", "--data", "nothing.txt"], "--data nothing.txt does not exist"),
        (
            ["--model", "bytes", "--data", "other.txt", "--stride", "99"],
            "--stride 99 exceeds the model's context of 16",
        ),
        (["--model", "bytes", "--stride", "-1"], "--stride '-1' must be a whole number"),
        (["--model", "bytes", "--documents", "lines"], "did you mean line"),
        (["--model", "char", "--data", "upper.txt"], "'Z'"),
        (["--model", "bytes", "--date", "x"], "did you mean --data"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    Path("upper.txt").write_text("the Zoo " * 99, encoding="utf-8")
    capsys.readouterr()
    assert small.status("evaluate", *words) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"slm_np: [^\n]+\n", shown.err) and said in shown.err and shown.out == ""
