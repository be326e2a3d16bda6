"""What `info` says about a run, about several, and about other files; and its curves."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import small

from slm_np.cli.chart import MARK, PLAIN_BARS, chart, plain, sparkline, table
from slm_np.cli.summary import describe_model, summary
from slm_np.config import ModelConfig
from slm_np.formats import checkpoint, metrics, run_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs as training leaves them: configuration, tokenizer, metrics. `new` has no evaluation yet."""
    folder = tmp_path_factory.mktemp("runs")
    data = small.text_file(folder)
    for name, loss in (("low", 1.0), ("high", 2.0), ("new", None)):
        trainer = small.trainer(data, folder / name, max_iters=100)
        run_config.write_config(
            folder / name, dataclasses.replace(trainer.run, data=dict(source="text.txt", tokens=[9000, 1000]))
        )
        for step in range(1, 41 if loss else 1):
            course = loss * (1 + 3 * math.exp(-step / 10))
            row = dict(step=step, loss=course, lr=0.001)
            if step % 20 == 0:
                row = dict(
                    step=step,
                    train_loss=course,
                    val_loss=course + 0.1,
                    val_bpb=(course + 0.1) / math.log(2),
                    time_s=90.0,
                )
            metrics.append_metrics(folder / name, row)
        assert trainer.model.config.vocab_size == 256
    return folder


def told(capsys, *words):
    capsys.readouterr()
    assert small.status("info", *words) == 0
    return capsys.readouterr().out


def test_a_tokenizer_that_llama_cpp_lacks(tmp_path, capsys):
    small.trainer(small.text_file(tmp_path), tmp_path / "run", max_iters=0, tokenizer="char")
    out = told(capsys, tmp_path / "run")
    assert "transformers: LlamaForCausalLM" in out
    assert "GGUF: none: llama.cpp cannot run a tokenizer of characters or words\n" in out


def test_what_a_model_does_not_have():
    config = ModelConfig(pattern="S", positions="none", norm="none", feed_forward="none", recurrence_size=8)
    assert describe_model(config).endswith("context 256, no positions, no norm, no feed-forward, tied head")


@pytest.mark.parametrize(
    "model, wanted",
    [
        (dict(), "transformers: LlamaForCausalLM"),
        (dict(positions="learned", norm="layernorm", feed_forward="gelu"), "transformers: GPT2LMHeadModel"),
        (dict(norm="none"), "transformers: none: no class of transformers has --norm none"),
        (dict(pattern="S", recurrence_size=8), "transformers: none: no class of transformers has --pattern S"),
        (dict(head="mlp"), "transformers: none: no class of transformers has --head mlp"),
        (
            dict(norm="layernorm", positions="none"),
            "transformers: none: no class of transformers has --norm layernorm, --positions none and "
            "--feed-forward swiglu together",
        ),
    ],
)
def test_which_class_of_transformers_computes_the_model(tmp_path, capsys, model, wanted):
    small.trainer(small.text_file(tmp_path), tmp_path / "run", max_iters=0, **model)
    assert wanted in told(capsys, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists() == ("transformers: none" not in wanted)


def test_one_run(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    out, low = told(capsys, "low"), summary("low")
    assert low.step == 40 and low.tokens == 40 * 4 * 16 and low.best["step"] == 40
    for wanted in (
        "low: a run of slm_np, preset stories",
        f"{low.parameters:,} parameters: 1 layer (2 heads of 8)",
        "bytes, 256 tokens",
        "text.txt: 9,000 training and 1,000 validation tokens",
        "40 updates of 4 x 16 tokens, 2,560 in all, in 1m30s; cosine rate 0.003 to 0.0001",
        f"validation {low.best['val_loss']:.4f} nats/token, {low.best['val_bpb']:.4f} bits/byte at step 40, the best",
        "bits/byte over updates",
        MARK,
    ):
        assert wanted in out, wanted
    assert summary("low").parameters == sum(array.size for array in checkpoint.newest_checkpoint("low").model.values())
    base = dict(run="runs/low", step=40, weights="0", data="text.txt", val_data="", documents="marker", limit_bytes=0)
    run_config.write_config("new", dataclasses.replace(low.config, base=base, files={}))
    assert "new: a run of slm_np, preset stories, finetuned from step 40 of runs/low\n" in told(capsys, "new")
    assert "updates of" not in told(capsys, "new") and MARK not in told(capsys, "new")


def test_several_side_by_side(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    heading, *rows = told(capsys, "high", "low", "new").splitlines()
    assert heading.split()[:4] == ["run", "preset", "parameters", "vocabulary"] and "bits/byte" in heading
    assert [row.split()[0] for row in rows] == ["high", "low", "new"]
    bits = [f"{summary(name).best['val_bpb']:.4f}" for name in ("high", "low")]
    assert f"{bits[1]}*" in rows[1] and f"{bits[0]} " in rows[0] and "*" not in rows[0] + rows[2]


def test_ascii_where_the_output_can_show_nothing_else(runs):
    for words in (["low"], ["low", "high"]):
        done = small.subprocess.run(
            [small.sys.executable, "-m", "slm_np.info", *words],
            cwd=runs,
            env=small.environment(PYTHONIOENCODING="ascii"),
            capture_output=True,
        )
        assert done.returncode == 0 and done.stdout.isascii() and b"bits/byte" in done.stdout, done.stderr
    assert plain(type("Stream", (), dict(encoding="cp1252"))) and not plain(type("Stream", (), dict(encoding="utf-8")))


def test_other_files(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n", encoding="utf-8", newline="\n")
    Path("rows.jsonl").write_text('{"text": "a"}\n' * 3, encoding="utf-8", newline="\n")
    Path("train.bin").write_bytes(bytes(20))
    Path("meta.json").write_text(
        json.dumps(dict(dtype="uint16", vocab_size=300, bytes=dict(train=12))), encoding="utf-8"
    )
    out = told(capsys, "text.txt", "rows.jsonl", "train.bin", ".", runs / "low" / "tokenizer.json")
    for wanted in (
        r"text.txt: a text of 36 bytes, 4 lines, 2 documents\n",
        r"rows.jsonl: 42 bytes, 3 rows of JSON\n",
        r"train.bin: a file of 10 tokens",
        r"\.: prepared tokens, uint16, vocabulary 300\n",
        r"  train      12 bytes, 10 tokens\n",
        r"tokenizer.json: a tokenizer, bytes, 256 tokens\n",
    ):
        assert re.search(wanted, out), (wanted, out)


def test_masks_are_left_out_and_missing_counts_are_measured(tmp_path, capsys):
    for name, size in (("train.bin", 20), ("validation.bin", 8), ("train.mask.bin", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "meta.json").write_text(
        json.dumps(dict(tokens=dict(train=10), documents=dict(train=3))), encoding="utf-8"
    )
    lines = told(capsys, tmp_path).splitlines()
    assert lines[1:] == ["  train      10 tokens, 3 documents", "  validation 4 tokens"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["nothing"], "nothing does not exist"),
        (["."], "not a run of slm_np"),
        (["bad.json"], "is not valid JSON"),
        (["a.json"], "not a tokenizer.json"),
        (["other.json"], "its fields have other types"),
        (["other.json", "x" * 100_000], "..."),
        ([], "no run in runs/"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{", encoding="utf-8")
    Path("a.json").write_text("{}", encoding="utf-8")
    Path("other.json").write_text('{"model": {"vocab": {}}, "added_tokens": ["a"]}', encoding="utf-8")
    assert small.status("info", *words) == 2
    shown = capsys.readouterr()
    assert len(shown.err) < 1000
    assert re.fullmatch(r"slm_np: [^\n]+\n", shown.err) and said in shown.err and shown.out == ""


def test_a_run_before_its_first_evaluation(runs, capsys):
    assert "loss       not evaluated yet" not in told(capsys, runs / "low")
    trainer = small.trainer(runs / "text.txt", runs / "young", max_iters=100)
    metrics.append_metrics(runs / "young", dict(step=1, loss=3.0, lr=0.001))
    out = told(capsys, runs / "young")
    assert "1 update of 4 x 16 tokens" in out and "loss       not evaluated yet" in out and trainer.updates == 0


def test_damaged_rows_of_metrics_are_left_out(runs, capsys, tmp_path):
    shutil.copytree(runs / "low", tmp_path / "run")
    before = told(capsys, tmp_path / "run")
    for row in (dict(step="a", loss=1.0), dict(step=41, loss="b"), dict(step=42, val_loss=[]), dict(loss=1.0)):
        metrics.append_metrics(tmp_path / "run", row)
    assert told(capsys, tmp_path / "run") == before


def test_the_others_are_shown_beside_a_broken_one(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert small.status("info", "low", tmp_path / "broken", "high", "gone") == 2
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["run", "low", "high"]
    assert shown.err.count("\n") == 1 and "is not valid JSON" in shown.err and "gone does not exist" in shown.err


def test_parts_of_a_run(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    newest = max(Path("low").glob("checkpoint-*"))
    n = summary("low").parameters
    out = told(capsys, newest, newest / "model.safetensors", "low/run.json", "low/metrics.jsonl")
    step = int(newest.name.partition("-")[2])
    assert f"{newest}: a checkpoint after {step} updates of the run low\n" in out
    assert re.search(
        rf"model.safetensors: \d+ tensors, {n:,} elements of F32\n  metadata   format pt, step {step}", out
    )
    assert "low/run.json: settings of the run low, which python -m slm_np.info low describes" in out
    assert "40 rows of JSON" in out


def test_files_of_other_programs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = json.dumps(dict(a=dict(dtype="BF16", shape=[2, 3], data_offsets=[0, 12]))).encode()
    Path("model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    Path("image.png").write_bytes(b"\x89PNG" + bytes(60))
    Path("one.txt").write_text("a\n", encoding="utf-8", newline="\n")
    out = told(capsys, "model.safetensors", "image.png", "one.txt")
    assert "model.safetensors: 1 tensor, 6 elements of BF16\n" in out
    assert "image.png: a binary file of 64 bytes" in out and "one.txt: a text of 2 bytes, 1 line, 1 document" in out
    for damage in (b"", b"\xff" * 40, header):
        Path("model.safetensors").write_bytes(damage)
        assert small.status("info", "model.safetensors") == 2
        assert "is not a safetensors file, or it is damaged" in capsys.readouterr().err


# Curves


def test_a_chart_shows_its_curve():
    falling = [(step, 8 / step) for step in range(1, 200)]
    lines = chart(falling, [(1, 8.0), (199, 8 / 199)], 40, 6, ascii=True)
    assert lines[0] == "      8 |o" and lines[5].startswith(" 0.0402 |") and lines[5].endswith("o")
    assert lines[6] == "        +" + "-" * 40 and lines[7].split() == ["1", "199"]
    columns = [line.find(".") for line in (line[9:] for line in lines[:6])]
    assert columns[1:] == sorted(columns[1:]) and min(columns[1:]) >= 0
    braille = "".join(chart(falling, [], 40, 6))
    assert sum(0x2800 < ord(letter) <= 0x28FF for letter in braille) >= 40
    assert chart([], [], 40, 6) == [] == chart([(1, math.nan)], [(1, 2.0)], 40, 6)
    assert chart([(1, 2.0), (2, 2.0)], [], 40, 6)  # a curve without height


def test_the_height_of_a_sparkline_follows_the_values():
    assert sparkline([8, 4, 2, 1], 4) == "█▆▃▁" and sparkline([8, 4, 2, 1], 4, ascii=True)[0] == PLAIN_BARS[-1]
    assert (
        len(sparkline(range(1, 100), 16)) == 16
        and sparkline([], 4) == "" == sparkline([None, math.nan], 4)
        and sparkline([3.0], 4) == "▁"
    )


def test_the_columns_of_a_table_are_aligned():
    assert table([["name", "n", "x"], ["a", "10", "yes"]]) == ["name   n  x", "a     10  yes"]
