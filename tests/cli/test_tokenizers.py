"""Runs with tokenizers from the wild: what they lose is said, every run ends well, and no prompt is an error."""

import json
import os
import random
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import small

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from sample_tokenizers import TALE, WILD, wild  # noqa: E402

from slm_np.cli import report  # noqa: E402
from slm_np.cli.conversation import Conversation  # noqa: E402
from slm_np.config import SamplingConfig  # noqa: E402
from slm_np.errors import UserError  # noqa: E402
from slm_np.formats.sources import load  # noqa: E402
from slm_np.inference.generation import encode_prompt, text_of, unread  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
LOSSLESS = {"bpe_bytes", "bpe_dropout", "bpe_ignored_merges", "bpe_unk", "bpe_dropped", "llama"}  # for this text
PROMPTS = ["", " ", "\n\n", "   ", "\u0301", "\x00", "漢字", "zebra", "the cat", "THE CAT", "</s>", "[UNK]"]


def trained(folder, tokenizer, **changes):
    """Train a run on a text in `folder` with the fields of a tokenizer. Returns (exit status, the run)."""
    (folder / "text.txt").write_text(TALE * 30, encoding="utf-8")
    (folder / "found.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    options = dict(tokenizer=f"file:{folder / 'found.json'}", out_dir=folder / "run", max_iters=4) | changes
    return small.status("train", *small.flags(folder / "text.txt", **options)), folder / "run"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "many")) for name in WILD])
def test_a_run_with_any_tokenizer_ends_well(name, tmp_path, capsys):
    status, run = trained(tmp_path, wild()[name])
    printed = capsys.readouterr()
    lossy = [line for line in printed.err.splitlines() if "lossy" in line]
    assert status == 0 and len(lossy) == (name not in LOSSLESS)
    unit = "nats/token" if lossy else "bits/byte"
    assert f" {unit}\nrun: " in printed.out and "no sample" not in printed.err
    assert ("bits/byte" in printed.out + printed.err.replace("".join(lossy), "")) == (not lossy)
    if lossy:
        assert re.match(
            r"the tokenizer is lossy: of [\d,]+ bytes of the text (less than )?\d+\.\d % do not come back \(", lossy[0]
        )
        assert printed.err.index("lossy") < printed.err.index("step 3")

    loaded = load(run)
    for prompt in PROMPTS:
        ids = encode_prompt(loaded.tokenizer, prompt)
        assert ids.dtype == np.int32 and len(ids) >= 1 and 0 <= ids.min() <= ids.max() < loaded.tokenizer.vocab_size
        assert isinstance(text_of(loaded.model, loaded.tokenizer, prompt, 3, SamplingConfig()), str)
    for prompt in ("", "\x00", "\n\n"):
        capsys.readouterr()
        assert small.status("generate", "--model", run, "--prompt", prompt, "--max-tokens", 2) == 0
        said = capsys.readouterr().err
        read = loaded.tokenizer.decode(loaded.tokenizer.encode(prompt.encode()))
        assert ("cannot represent the prompt" in said) == bool(prompt and not read)

    assert small.status("evaluate", "--model", run, "--json") == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out)["bits_per_byte"] is None) == bool(lossy) == ("lossy" in printed.err)


@pytest.mark.parametrize("name", ["wordpiece", "bpe_dropped"])
def test_a_message_without_tokens_is_answered_with_a_warning(name, tmp_path, capsys):
    status, run = trained(tmp_path, wild()[name])
    chat = Conversation(load(run), SamplingConfig(), 3)
    capsys.readouterr()
    for message in ("\x00", "\x00\x00", "the cat"):
        assert chat.read(message) == (True, False)
        assert ("cannot represent the message" in capsys.readouterr().err) == (message != "the cat")
    assert status == 0


def test_a_prepared_folder_says_what_its_tokenizer_lost(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TALE * 30, encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(wild()["wordpiece"]), encoding="utf-8")
    words = (tmp_path / "text.txt", "--tokenizer", f"file:{tmp_path / 'found.json'}", "--out-dir", tmp_path / "tokens")
    assert small.status("prepare", *words) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "lossy" in line]
    assert small.status("train", *small.flags(tmp_path / "tokens", out_dir=tmp_path / "run", max_iters=4)) == 0
    printed = capsys.readouterr()
    assert line in printed.err and "nats/token\nrun: " in printed.out
    base = ("--base", tmp_path / "run", "--data", tmp_path / "text.txt", "--out-dir", tmp_path / "tuned")
    assert small.status("finetune", *base, "--max-iters", 2) == 0
    printed = capsys.readouterr()
    assert line in printed.err and "nats/token\nrun: " in printed.out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends the signals of POSIX")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_learning_of_a_vocabulary(number, status, tmp_path):
    letters = random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=4_000_000)  # minutes of merges
    (tmp_path / "text.txt").write_text("".join(letters), encoding="utf-8")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        words = (tmp_path / "text.txt", "--tokenizer", "bpe:200000", "--out-dir", tmp_path / "tokens")
        process = small.process("prepare", *words, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    said = next(line for line in process.stderr if line.startswith("learning bpe:200000"))
    process.send_signal(number)
    assert process.wait(30) == status and "ETA" in said
    assert "Traceback" not in process.stderr.read()
    assert not (tmp_path / "tokens").exists()


FAILURES = [UserError("the cat is gone"), MemoryError(), OSError(28, "No space left on device"), ValueError("odd")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("part", ["sample", "evaluation", "loss curve"])
def test_what_fails_after_training_is_one_line(part, failure, tmp_path, capsys, monkeypatch):
    def fails(*arguments, **named):
        raise failure

    where = {
        "sample": "slm_np.cli.report.sample",
        "evaluation": "slm_np.inference.evaluation.evaluate",
        "loss curve": "slm_np.cli.plot.loss_curve",
    }
    monkeypatch.setattr(where[part], fails)
    path = small.text_file(tmp_path)
    assert small.status("train", *small.flags(path, out_dir=tmp_path / "run", max_iters=4)) == 0
    printed = capsys.readouterr()
    assert f"no {part} (" in printed.err + printed.out and "Traceback" not in printed.err
    assert f"run: {tmp_path / 'run'}, best model of step 4" in printed.out
    assert ("validation" in printed.out) == (part != "evaluation") and "more text: " in printed.out


def test_a_sample_that_fails_during_training_is_said(tmp_path, capsys, monkeypatch):
    def fails(*arguments, **named):
        raise ValueError("odd")

    monkeypatch.setattr(report, "short_text", fails)
    assert small.status("train", *small.flags(small.text_file(tmp_path), out_dir=tmp_path / "run", max_iters=4)) == 0
    assert "bits/byte  | no sample (odd)" in capsys.readouterr().err


def test_a_prompt_that_is_no_text_is_named():
    from slm_np.data.byte_tokenizer import ByteTokenizer

    with pytest.raises(UserError, match="surrogate"):
        encode_prompt(ByteTokenizer(), "the \ud83d")
    assert encode_prompt(ByteTokenizer(), "\udcff").tolist() == [255]
    assert unread(ByteTokenizer(), "") == "" == unread(ByteTokenizer(), "a")
