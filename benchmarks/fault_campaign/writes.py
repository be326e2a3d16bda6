"""Every k-th operation on files fails, for every command that writes: k = 1, 2, ... until the command does not reach k.

With ENOSPC the disk stays full: all later operations that need space fail, too. With EIO only the k-th fails. Processes
that a command starts are exempt; of the scenes here none starts any.
"""

import errno

from fault_campaign import scenes
from fault_campaign.fixtures import SCENES
from fault_campaign.injection import Injection
from fault_campaign.judges import after_fault, check_end

TRIES = None
NAMES = "train", "resume", "finetune", "refinetune", "prepare", "rows", "convert", "chat"


def cases(context):
    return [
        f"{name} operation {k} {operation} {fault}"
        for name in NAMES
        for k, (operation, _) in enumerate(scenes.measured(name, context)[1], 1)
        for fault in ("ENOSPC", "EIO")
    ]


def attempt(case, context, folder):
    name, _, number, operation, fault = case.split()
    scene = SCENES[name]
    before = scenes.begin(scene, context, folder)
    setup = Injection(folder, int(number), getattr(errno, fault))
    result = scenes.command(scene, folder, setup=setup)
    try:
        check_end(result, f"{name}, {operation} fails,")
    finally:  # what is lost is worse than what is said
        after_fault(scene, context.fixtures, folder, result, before)
