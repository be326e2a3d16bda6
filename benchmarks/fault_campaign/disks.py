"""Full disks: file systems with N kB left, N growing (as root, where they can be mounted), and limits on file sizes.

The size of a file is limited by RLIMIT_FSIZE with SIGXFSZ ignored, so a write beyond it fails with EFBIG.
"""

import math
import resource
import signal
import subprocess

from fault_campaign import fixtures, scenes
from fault_campaign.fixtures import SCENES
from fault_campaign.judges import UNAVAILABLE, Fault, after_fault, check_end

TRIES = None
NAMES = "train", "resume", "finetune", "prepare", "rows", "convert", "chat"
PAGE = 4  # kB that a file takes at least
STEPS = 24  # disks of each command
LIMITS = [int(10 ** (i / 4)) for i in range(4, 20)]  # bytes, 10 to 60,000


def cases(context):
    found = [f"{name} files of at most {limit} bytes" for name in NAMES for limit in LIMITS]
    for name in NAMES:
        inputs = sum(pages(context.fixtures / fixtures.named(item)[1]) for item in SCENES[name].inputs)
        needed = inputs + pages(context.fixtures / SCENES[name].reference) + 120
        step = max(PAGE, math.ceil((needed - inputs) / STEPS / PAGE) * PAGE)
        found += [f"{name} on a disk of {size} kB" for size in range(inputs + PAGE, needed, step)]
    return found


def pages(path):
    """kB that a file or a folder takes on a tmpfs."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(math.ceil(file.stat().st_size / 1024 / PAGE) * PAGE for file in files)


def mount(folder, options):
    """Mount a tmpfs on a folder, or change its options. Unavailable without the right to."""
    try:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise Fault(UNAVAILABLE, "a tmpfs cannot be mounted; run it as root") from None


def attempt(case, context, folder):
    name, on, *_, number, unit = case.split()
    scene = SCENES[name]
    if on == "files":
        before = scenes.begin(scene, context, folder)
        result = scenes.command(scene, folder, setup=lambda: limit_files(int(number)), pipes=True)
        judge(scene, context, folder, result, before)
        return
    mount(folder, f"size={number}k")
    try:
        before = scenes.begin(scene, context, folder)
        result = scenes.command(scene, folder)
        mount(folder, "remount,size=64m")
        judge(scene, context, folder, result, before)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def limit_files(size):
    """`setup` of a child that can write no file beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def judge(scene, context, folder, result, before):
    try:
        check_end(result, scene.verb)
    finally:
        after_fault(scene, context.fixtures, folder, result, before)
