"""Training checks one matmul every few updates. A wrong one restarts the run from its last checkpoint, without AMX."""

import os
from types import SimpleNamespace

import pytest
import small

from slm_np import train
from slm_np.training import matmul_check


def test_one_update_in_fifty_is_checked(monkeypatch):
    errors, watched = iter([0.5, 3.0]), []
    kernels = SimpleNamespace(watch_matmul=watched.append, watched_error=lambda: next(errors))
    monkeypatch.setattr(matmul_check, "kernels_of", lambda array: kernels)
    for update in range(50):
        matmul_check.watch_matmul(None, update)
        matmul_check.check_watched_matmul(None, update)
    matmul_check.watch_matmul(None, 50)
    with pytest.raises(matmul_check.WrongMatmul, match="a matmul of update 50 is wrong by 3 times"):
        matmul_check.check_watched_matmul(None, 50)
    assert watched == [0, 1]


def test_a_wrong_matmul_restarts_the_run_without_amx(tmp_path, monkeypatch, capsys):
    started = {}

    class Replaced(BaseException):
        """Stands for the end of this process, which os.execve replaces by another."""

    def execve(program, words, environment):
        started.update(words=words, environment=environment)
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    kernels = SimpleNamespace(watch_matmul=lambda number: None, watched_error=lambda: 9.0)
    monkeypatch.setattr(matmul_check, "kernels_of", lambda array: kernels)
    run = str(tmp_path / "run")
    with pytest.raises(Replaced):
        train.main([*small.flags(small.text_file(tmp_path)), "--out-dir", run])
    assert started["words"][1:] == ["-m", "slm_np.train", "--resume", run]
    assert started["environment"]["SLM_NP_AMX"] == "0"
    message = capsys.readouterr().err
    assert "AMX is switched off for this run" in message and "last checkpoint" in message
    resumed = small.command("train", "--resume", run, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr  # the checkpoint that was saved can be resumed
