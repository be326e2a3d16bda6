"""The search around the settings of a text: each change is one, none is the choice itself, and seeds are run once."""

import importlib
import json

import pytest
import small

from slm_np.cli.own_text import OwnText
from slm_np.presets import preset


@pytest.fixture
def search():
    return importlib.import_module("own_text_search")  # of benchmarks/


def chosen(n_bytes, operations=1e14):
    return OwnText("own-text", {}, {}).settings(n_bytes, operations)[0]


@pytest.mark.parametrize("n_bytes", [20_000, 1_000_000, 100_000_000])
def test_every_change_makes_another_run(search, n_bytes):
    config = chosen(n_bytes)
    found = search.changed(*config)
    assert list(found)[0] == search.CHOSEN and len(found) > 10
    made = []
    for fields in found.values():
        text = OwnText("own-text", {}, {})
        text.model = {name: value for name, value in fields.items() if hasattr(config[0], name)}
        text.train = {name: value for name, value in fields.items() if hasattr(config[1], name)}
        made.append(text.settings(n_bytes, 1e14)[0])
    assert all(made.count(one) == 1 for one in made)
    assert made[0] == config


def test_vocabularies(search):
    def of(tokenizer, factor):
        return search.vocabulary(preset("slim", {}, dict(tokenizer=tokenizer))[1], factor)["tokenizer"]

    assert (of("bpe:1024", 2), of("bpe:1024", 0.5)) == ("bpe:2048", "bpe:512")
    assert (of("byte", 2), of("byte", 0.5)) == ("bpe:512", "byte")


def test_each_seed_is_run_once_and_compared_with_the_choice(search, tmp_path, capsys, monkeypatch):
    made, config = [], small.config("x", learning_rate=0.01)

    def trained(args, fields, seed, folder):
        made.append((tuple(fields.items()), seed))
        return (1.8 if "dropout" in fields else 2.0), config

    monkeypatch.setattr(search, "trained", trained)
    words = ["--data", "text", "--json", str(tmp_path / "out.json"), "--seeds"]
    search.main([*words, "1"])
    assert len(made) == len(set(made)) == len(search.changed(config.model, config.train))
    lines = capsys.readouterr().out.splitlines()
    assert "| dropout 0.1 | 1.8000 | 0.900 |" in lines and "| chosen | 2.0000 | 1.000 |" in lines
    n = len(made)
    search.main([*words, "1,2"])
    assert len(made) == 2 * n and len(set(made)) == 2 * n
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"]
    assert all(set(row["losses"]) == {"1", "2"} for row in rows.values())


def test_a_search_goes_on_where_it_stopped(search, tmp_path, capsys, monkeypatch):
    made, config = [], small.config("x", learning_rate=0.01)

    def trained(args, fields, seed, folder):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(fields)
        return 2.0, config

    monkeypatch.setattr(search, "trained", trained)
    words = ["--data", "text", "--json", str(tmp_path / "out.json")]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search.main(words)
    monkeypatch.setattr(search, "trained", lambda args, fields, seed, folder: made.append(fields) or (2.0, config))
    search.main(words)
    assert len(made) == len(search.changed(config.model, config.train))
    with pytest.raises(SystemExit):
        search.main([*words, "--time", "9s"])
    assert "has runs of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_of_real_runs(search, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_bytes(b"the cat sat on the mat, and the dog ran to the cat. " * 400)
    monkeypatch.setattr(search, "SEARCH", {"no dropout": search.SEARCH["no dropout"]})
    search.main(["--data", str(tmp_path / "text.txt"), "--time", "2s"])
    assert "| no dropout |" in capsys.readouterr().out


def test_wrong_flags(search, capsys):
    for words, message in ((["--time", "x"], "x"), (["--seeds", "a"], "whole numbers")):
        with pytest.raises(SystemExit) as ended:
            search.main(["--data", "text", *words])
        assert ended.value.code == 2 and message in capsys.readouterr().err
