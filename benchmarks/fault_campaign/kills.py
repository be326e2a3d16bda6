"""SIGKILL at random moments of train, resume, finetune, prepare and convert: nothing lost, every directory usable.

Half of the moments are drawn from the duration of the undisturbed command, half are the k-th operation on files: before
it, or after it (of a write: after half of its bytes).
"""

import random
from itertools import count

from fault_campaign import scenes
from fault_campaign.fixtures import SCENES, make_grown
from fault_campaign.injection import KILL, Injection
from fault_campaign.judges import after_fault, check_end, require

TRIES = 200
GROWING, GROWING_S = 8, 3.0  # tries of a corpus that is read while processes tokenize it, and the latest moment
NAMES = "train", "resume", "finetune", "refinetune", "prepare", "rows", "convert"


def cases(context):
    draw = random.Random(context.seed)
    # A set that keeps its order.
    found = {f"grow at {draw.uniform(0.0, GROWING_S):.4f} s": None for _ in range(GROWING)}
    for i in count():
        name = NAMES[i % len(NAMES)]
        seconds, operations = scenes.measured(name, context)
        if i // len(NAMES) % 2:
            found[f"{name} at {draw.uniform(0.0, 1.05 * seconds):.4f} s"] = None
        else:
            found[f"{name} {draw.choice(('before', 'after'))} operation {draw.randint(1, len(operations))}"] = None
        if len(found) == TRIES:
            return list(found)


def attempt(case, context, folder):
    name, when, *_, number = case.removesuffix(" s").split()
    scene = SCENES[name]
    if name == "grow":
        make_grown(context.fixtures)
    before = scenes.begin(scene, context, folder)
    if when == "at":
        result = scenes.command(scene, folder, kill_after=float(number))
    else:
        result = scenes.command(scene, folder, setup=Injection(folder, int(number), KILL, when == "after"))
    # The moment drawn may come after the end. Fewer operations may happen than were counted.
    if result.status != 0:
        require(not result.orphans, "failed", "processes are left over")
        require(result.status == -9, "failed", f"it ended with status {result.status} instead: {result.tail()}")
    else:
        check_end(result, name)
    after_fault(scene, context.fixtures, folder, result, before)
