"""The default run, `python -m slm_np.train` without arguments, and the same preset for a fixed number of updates."""

import re
import subprocess
import sys

import pytest
import small

from slm_np.formats import checkpoint, run_config


def trained(folder, *words):
    """The finished command with all threads, which may take minutes."""
    environment = small.environment()
    del environment["NUMBA_NUM_THREADS"]
    done = subprocess.run(
        [sys.executable, "-m", "slm_np.train", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done


def losses(done):
    """(bits per byte that the run reached, floor of its corpus)."""
    line = re.search(r"^validation ([\d.]+) bits/byte, floor ([\d.]+) bits/byte$", done.stdout, re.M)
    return map(float, line.groups())


@pytest.mark.slow
def test_the_default_run_fits_its_updates_to_90_seconds(tmp_path):
    done = trained(tmp_path)
    said = re.search(r"^([\d,]+) updates, about 90 s on this machine$", done.stderr, re.M)
    updates = int(said[1].replace(",", ""))
    run = tmp_path / "runs" / "stories"
    assert run_config.read_config(run).fitted_iters == checkpoint.newest_checkpoint(run).step == updates
    reached, floor = losses(done)
    assert reached > floor
    assert done.stderr.count("validation loss") == min(10, -(-updates // 20))
    assert re.search(r"loss [\d.]+ +[\d.]+ bits/byte +[\d,]+ tokens/s.*ETA", done.stderr)
    story, _, end = done.stdout.partition("validation")
    assert len(story.strip()) > 100
    for line in ("\nrun: runs", "python -m slm_np.generate --model", "python -m slm_np.chat", "python -m slm_np.train"):
        assert line in end


@pytest.mark.slow
def test_1600_updates_come_near_the_entropy_of_the_corpus(tmp_path):
    done = trained(tmp_path, "--max-iters", "1600")
    reached, floor = losses(done)
    assert floor < reached <= 1.2 * floor, done.stdout
    story = done.stdout.split("validation")[0].strip()
    assert len(story) > 200 and story[-1] in '.!?"'
