"""The default run, `python -m slm_np.train` without arguments. It takes a minute and a half on two cores."""

import re
import subprocess
import sys

import pytest
import small


@pytest.mark.slow
def test_the_default_run_comes_near_the_floor_and_not_below(tmp_path):
    environment = small.environment()
    del environment["NUMBA_NUM_THREADS"]
    done = subprocess.run(
        [sys.executable, "-m", "slm_np.train"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    reached, floor = map(
        float, re.search(r"^validation ([\d.]+) bits/byte, floor ([\d.]+) bits/byte$", done.stdout, re.M).groups()
    )
    assert floor < reached <= 1.2 * floor, done.stdout
    assert "run: runs" in done.stdout and "python -m slm_np.generate --model" in done.stdout
    assert re.search(r"loss [\d.]+ +[\d.]+ bits/byte +[\d,]+ tokens/s.*ETA", done.stderr)
    story = done.stdout.split("validation")[0].strip()
    assert len(story) > 200 and story[-1] in '.!?"'
