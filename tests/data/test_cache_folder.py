"""The cache folder of each platform, and folders that appear complete or not at all."""

import sys

from slm_np import paths


def test_the_cache_folder_of_each_platform(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "_writable", lambda folder: folder)
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path / "own"))
    assert paths.cache_dir() == tmp_path / "own" and paths.cache_dir(tmp_path) == tmp_path
    monkeypatch.setenv("SLM_NP_CACHE", "")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache_dir() == tmp_path / ".cache" / "slm_np"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.cache_dir() == tmp_path / ".cache" / "slm_np"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache_dir() == tmp_path / "xdg" / "slm_np"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert paths.cache_dir() == tmp_path / "Library" / "Caches" / "slm_np"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert paths.cache_dir() == tmp_path / "local" / "slm_np"


def test_a_temporary_folder_replaces_a_cache_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"in the way")
    first = paths.cache_dir(tmp_path / "file" / "cache")
    assert first.is_dir() and paths.cache_dir(tmp_path / "file" / "cache") == first
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be written" in error and str(first) in error and "SLM_NP_CACHE" in error


def test_of_two_processes_that_publish_a_folder_the_first_wins(tmp_path):
    folder = tmp_path / "store"
    with paths.published(folder) as part:
        (part / "ours").write_text("x", encoding="utf-8")
        with paths.published(folder) as other:
            (other / "theirs").write_text("y", encoding="utf-8")
    assert [path.name for path in folder.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [folder]
