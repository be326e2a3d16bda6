"""Runs of format 3, which slm_np 0.4 wrote: they work as before, and resuming translates them to today's format."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import small

from slm_np.config import ModelConfig
from slm_np.formats import checkpoint, run_config, runs, sources
from slm_np.formats.checksum import read_settings, write_settings
from slm_np.formats.files import read_json
from slm_np.formats.layouts import layout_of
from slm_np.paths import has_old_settings

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = ("qkv_bias", "qk_norm", "score_scale", "window", "parallel", "rope_scaling", "rotary_dim")  # settings added since
MODELS = dict(llama={}, none=dict(pattern="S", positions="none", recurrence_size=8))


def to_format_3(run):
    """Write the files of the run as version 0.4 did, and remove those that it did not have."""
    config = run_config.read_config(run)
    fields = dataclasses.asdict(config)
    del fields["context"], fields["lora"]
    assert set(NEW) < {field.name for field in dataclasses.fields(ModelConfig)}
    for name in NEW:
        del fields["model"][name]
    fields["files"] = {name: sum for name, sum in config.files.items() if name in runs.KEPT}
    checkpoint.save_best(run, *checkpoint.load_best(run, layout=layout_of(config)))
    for name in ("run.json", "tokenizer_config.json", "chat_template.jinja"):
        (run / name).unlink(missing_ok=True)
    write_settings(run / "config.json", {"model_type": "slm_np", "format": 3, **fields})
    sampling = read_settings(run / "generation_config.json")
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_settings(run / "generation_config.json", {key: value for key, value in sampling.items() if key not in ids})


@pytest.fixture(params=MODELS)
def folder(request, tmp_path):
    """A folder with rows.jsonl, and a run after 8 updates: of format 3 in `run`, of today's format in `today`."""
    rows = [json.dumps(dict(prompt=f"Who is {i}?", completion=f"It is {i} again.")) for i in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    trainer(tmp_path, tmp_path / "today", MODELS[request.param], max_iters=8).train()
    shutil.copytree(tmp_path / "today", tmp_path / "run")
    to_format_3(tmp_path / "run")
    return tmp_path


def trainer(folder, directory, model, **changes):
    return small.trainer(folder / "rows.jsonl", directory, vocab_size=257, lr_schedule="constant", **model, **changes)


def resumed(folder, name, **changes):
    config = run_config.read_config(folder / name).model
    model = next(fields for fields in MODELS.values() if fields.get("pattern", "A") == config.pattern)
    continued = trainer(folder, None, model, **changes)
    small.resume(continued, folder / name)
    continued.train()


def test_it_is_used_as_before(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {
        path: (folder / "run" / path).read_bytes() for path in small.tree("run") if (folder / "run" / path).is_file()
    }
    old, new = sources.load("run"), sources.load("today")
    np.testing.assert_array_equal(old.model.parameters.weights, new.model.parameters.weights)
    assert (old.tokenizer.to_json(), old.template, old.sampling) == (
        new.tokenizer.to_json(),
        new.template,
        new.sampling,
    )
    texts = {}
    for name in ("run", "today"):
        assert small.status("generate", "--model", name, "--prompt", "Who", "-n", 9, "--seed", 3, "--threads", 1) == 0
        texts[name] = capsys.readouterr().out
    assert texts["run"] == texts["today"]
    for name in texts:
        words = ["--data", "rows.jsonl", "--max-iters", 1, "--eval-iters", 1, "--threads", 1]
        assert small.status("finetune", "--base", name, *words, "--out-dir", f"{name}-tuned") == 0
    small.assert_same_state("run-tuned", "today-tuned", 1)
    assert {path: (folder / "run" / path).read_bytes() for path in before} == before


def test_resuming_translates_it_to_todays_format(folder):
    for name in ("run", "today"):
        resumed(folder, name, max_iters=12)
    small.assert_same_state(folder / "run", folder / "today", 12)
    assert small.tree(folder / "run") == small.tree(folder / "today")
    for path in small.tree(folder / "today"):
        if path.endswith((".json", ".jinja", "model.safetensors")) and "trainer_state" not in path:
            one, other = ((folder / name / path).read_bytes() for name in ("run", "today"))
            assert path == "generation_config.json" or one == other, path
    sampling = [read_settings(folder / name / "generation_config.json") for name in ("run", "today")]
    assert sampling[0] == sampling[1] and sampling[0]["eos_token_id"] == 256
    assert read_json(folder / "run" / "run.json")["format"] == run_config.FORMAT


def test_a_leftover_of_the_old_format_does_not_count(folder):
    """Version 0.4 may leave one, or a kill during the translation."""
    old = (folder / "run" / "config.json").read_bytes()
    (folder / "today" / "config.json").write_bytes(old.replace(b'"n_embd": 16', b'"n_embd": 99'))
    assert sources.load(folder / "today").config.model.n_embd == 16
    assert small.status("info", folder / "today") == 0
    resumed(folder, "today", max_iters=9)
    assert not has_old_settings(folder / "today")
