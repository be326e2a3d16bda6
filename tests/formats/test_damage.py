"""Every byte of a run is verified or harmless: flipped bits, cut files, and settings that are anything but settings."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import small
from damaged_files import broken, changed, mutated

from slm_np.errors import UserError
from slm_np.formats import checkpoint, run_config, runs, sources
from slm_np.formats.checksum import read_settings, with_checksum, write_settings
from slm_np.inference.generation import text_of

pytestmark = pytest.mark.usefixtures("one_thread")

END = 16  # steps of the resumed runs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run on conversations, which has every file that a run can have, in `run`; and what it leads to."""
    folder = tmp_path_factory.mktemp("damage")
    rows = [json.dumps(dict(prompt=f"Who is {i}?", completion=f"It is {i} again.")) for i in range(100)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    trainer(folder, folder / "run", max_iters=8).train()
    shutil.copytree(folder / "run", folder / "whole")
    resumed(folder, "whole")
    return folder


@pytest.fixture
def folder(base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def trainer(folder, directory=None, **changes):
    return small.trainer(folder / "rows.jsonl", directory, vocab_size=257, lr_schedule="constant", **changes)


def resumed(folder, run):
    """Resume a run to the step END. Returns its Trainer."""
    continued = trainer(folder, max_iters=END)
    small.resume(continued, folder / run)
    continued.train()
    return continued


def loaded(run):
    """What a run says: its weights, its tokens, its template, a text."""
    found = sources.load(run)
    text = text_of(found.model, found.tokenizer, "Who", 8, found.sampling)
    return found.model.parameters.weights.tobytes(), found.tokenizer.to_json(), found.template, found.sampling, text


LOADED = ["run.json", "generation_config.json", "tokenizer.json", "chat_template.json", "model.safetensors"]
MADE = ["config.json", "tokenizer_config.json", "chat_template.jinja"]  # written for other programs


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*LOADED, *MADE, "metrics.jsonl", "checkpoint-8/tokenizer.json"])
def test_damage_to_a_file_that_is_loaded_is_found_or_harmless(folder, name, n):
    run, expected = folder / "run", loaded(folder / "run")
    raw, found = (run / name).read_bytes(), 0
    for content in changed(raw, 1, n, n // 5):
        (run / name).write_bytes(content)
        try:
            assert loaded(run) == expected
        except UserError as error:
            found += 1
            assert Path(name).name in str(error)
    restored = name in ("tokenizer.json", "chat_template.json", *MADE, "metrics.jsonl", "checkpoint-8/tokenizer.json")
    assert found == 0 if restored else found > n
    if name in MADE:
        assert (run / name).read_bytes() == raw


def test_every_byte_of_the_settings(folder):
    """Each byte with three of its bits flipped, in turn."""
    for name in ("run.json", "generation_config.json"):
        path, undetected = folder / "run" / name, 0
        raw, fields = path.read_bytes(), read_settings(path)
        for i, byte in enumerate(raw):
            path.write_bytes(raw[:i] + bytes([byte ^ 1 << i % 8]) + raw[i + 1 :])
            try:
                read = read_settings(path)
                assert {key: value for key, value in read.items() if key in fields} == fields
                undetected += read.keys() != fields.keys()  # the name "crc32" itself: an unknown field
            except UserError as error:
                assert name in str(error)
        assert undetected <= 5


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"])
def test_damage_to_a_checkpoint_is_found(folder, name):
    path = folder / "run" / "checkpoint-8" / name
    raw = path.read_bytes()
    for content in changed(raw, 2, 200, 40):
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            checkpoint.load_checkpoint(path.parent)


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.json",
        *MADE,
        "model.safetensors",
        "metrics.jsonl",
        "lock",
        "checkpoint-8/model.safetensors",
        "checkpoint-8/optimizer.safetensors",
        "checkpoint-8/trainer_state.json",
        "checkpoint-8/chat_template.json",
    ],
)
def test_a_damaged_run_resumes_with_the_same_bits_or_not_at_all(folder, name):
    path = folder / "run" / name
    raw = path.read_bytes() if path.exists() else b"{}"
    for number, content in enumerate([*changed(raw, 3, 2, 1), b""]):
        run = f"run-{number}"
        shutil.copytree(folder / "run", folder / run)
        (folder / run / name).write_bytes(content)
        try:
            resumed(folder, run)
        except UserError as error:
            assert name == "run.json" and name in str(error)
            continue
        small.assert_same_state(folder / "whole", folder / run, END)
        assert all((folder / "whole" / made).read_bytes() == (folder / run / made).read_bytes() for made in MADE)
        (best, metadata), (same, same_metadata) = (checkpoint.load_best(folder / each) for each in ("whole", run))
        assert metadata == same_metadata
        for tensor in best:
            np.testing.assert_array_equal(best[tensor], same[tensor])


def test_an_edit_by_hand_is_accepted_without_the_checksum(folder):
    run = folder / "run"
    for name, old, new, value in (
        ("run.json", '"max_iters": 8', '"max_iters": 9', lambda: run_config.read_config(run).train.max_iters == 9),
        ("generation_config.json", '"top_k": 40', '"top_k": 7', lambda: runs.sampling_of(run).top_k == 7),
    ):
        path = run / name
        text = path.read_text(encoding="utf-8")
        assert text.splitlines()[1].startswith('  "crc32": "') and old in text, text
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=f'{name} was damaged or edited, .* remove its line "crc32" to accept'):
            value()
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\r\n".join(lines[:1] + lines[2:]), encoding="utf-8", newline="")
        assert value()


def test_settings_may_be_indented_otherwise(tmp_path):
    fields = {"a": [1, 2.5, None, True], "b": {"c": "größe \udcff"}}
    write_settings(tmp_path / "x", fields)
    written = json.loads((tmp_path / "x").read_bytes())
    assert read_settings(tmp_path / "x") == fields and written.keys() == {"crc32", *fields}
    (tmp_path / "x").write_text(json.dumps(written, indent="\t"), encoding="utf-8")
    assert read_settings(tmp_path / "x") == fields


# Invalid settings


@pytest.mark.parametrize("n", [60, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["run.json", "generation_config.json", "trainer_state.json", "metrics.jsonl"])
def test_mutated_settings_are_refused_or_work(folder, name, n, capsys):
    """Without their checksum, or with the right one: the values alone have to be refused. Any other error fails."""
    draw, outcomes, run = random.Random(n), {2: 0, 0: 0}, folder / "run"
    path = run / "checkpoint-8" / name if name == "trainer_state.json" else run / name
    shutil.rmtree(run / "checkpoint-4")
    raw = path.read_bytes()
    for i in range(n):
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in raw.splitlines()]
            rows[draw.randrange(len(rows))] = mutated(draw.choice(rows), draw)
            content = b"\n".join(json.dumps(row).encode() for row in rows)
        else:
            fields = json.loads(raw)
            fields.pop("crc32")
            content = json.dumps(mutated(fields, draw)).encode()
            if name == "trainer_state.json" and i % 4:
                fields = json.loads(content)
                content = with_checksum(fields, fields)
        path.write_bytes(content if draw.random() < 0.9 else broken(content, draw))
        run_copy = folder / "again"
        for action in ("load", "info", "resume"):
            try:
                if action == "load":
                    loaded(run)
                elif action == "info":
                    outcomes[small.status("info", run)] += 1
                elif i % 5 == 0:
                    shutil.rmtree(run_copy, ignore_errors=True)
                    shutil.copytree(run, run_copy)
                    resumed(folder, "again")
            except UserError as error:
                assert str(error)
    capsys.readouterr()
    assert outcomes[0] > 0 and (
        outcomes[2] > 0 or name in ("generation_config.json", "trainer_state.json", "metrics.jsonl")
    )
