"""run.json: it comes back, and bad content is named."""

from dataclasses import asdict

import pytest

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.formats.files import read_json, write_json
from slm_np.formats.run_config import RunConfig, read_config, write_config


def config():
    return RunConfig(
        ModelConfig(n_layer=2, n_embd=32),
        TrainConfig(max_iters=7),
        "stories",
        {"fingerprint": "ab12", "source": "größe.txt"},
    )


def test_config_round_trip(tmp_path):
    write_config(tmp_path / "new" / "run", config())
    assert read_config(tmp_path / "new" / "run") == config()
    assert read_json(tmp_path / "new" / "run" / "run.json")["model"] == asdict(config().model)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.update(format=5), "is of format 5, and this version reads up to 4; upgrade"),
        (lambda f: f.update(format=0), "is not a run of slm_np"),
        (lambda f: f.update(format="1"), "is not a run of slm_np"),
        (lambda f: f.update(model_type="gpt2"), "has model_type 'gpt2' .* is not a run of slm_np"),
        (lambda f: f.pop("model_type"), "is not a run of slm_np"),
        (lambda f: f.update(extra=1), "run.json: unknown field 'extra'"),
        (lambda f: f["model"].update(n_layers=1), "unknown field 'n_layers'.*did you mean n_layer"),
        (lambda f: f["train"].update(speed=1), "unknown field 'speed'"),
        (lambda f: f["model"].update(n_layer=-1), r"run.json: --n-layer is -1; it must be at least 1"),
        (
            lambda f: f["model"].update(n_layer=10**400),
            r"run.json: --n-layer is an integer of 1329 bits; it must be below 1e300",
        ),
        (
            lambda f: f["train"].update(learning_rate=-(10**400)),
            r"run.json: --learning-rate is an integer of 1329 bits; it must be below 1e300",
        ),
        (lambda f: f["model"].update(norm=["rmsnorm"]), "run.json: --norm must be of type str"),
        (lambda f: f.pop("model"), "has None for 'model'; it must be an object"),
        (lambda f: f.update(train=[]), r"has \[\] for 'train'"),
        (lambda f: f.update(preset=3), "has 3 for 'preset'; it must be a string"),
    ],
)
def test_broken_configs(tmp_path, change, message):
    write_config(tmp_path, config())
    fields = read_json(tmp_path / "run.json")
    del fields["crc32"]
    change(fields)
    write_json(tmp_path / "run.json", fields)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe\xfa", b'{"format": ' + b"1" * 5000 + b"", b"[" * 100_000])
def test_broken_json(tmp_path, raw):
    (tmp_path / "run.json").write_bytes(raw)
    with pytest.raises(UserError, match="run.json is not valid JSON"):
        read_config(tmp_path)


def test_a_directory_that_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="run.json missing: .* is not a run of slm_np"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a run: it does not exist"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "generation_config.json")
