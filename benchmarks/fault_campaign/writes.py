"""Every k-th operation on files fails, for every command that writes: k = 1, 2, ... until the command does not reach k.

With ENOSPC the disk stays full: all later operations that need space fail, too. With EIO only the k-th fails. Processes
that a command starts are exempt; of the scenes here none starts any. `kernel` compiles one kernel into the cache, as
`warmup` does with hundreds: it runs even if it cannot be kept.
"""

import errno

from fault_campaign import children, injection, scenes
from fault_campaign.fixtures import SCENES
from fault_campaign.injection import Injection
from fault_campaign.judges import LOST, after_fault, check_end, done, require

TRIES = None
NAMES = "train", "resume", "finetune", "refinetune", "prepare", "rows", "convert", "chat"


def cases(context):
    operations = {name: scenes.measured(name, context)[1] for name in NAMES} | dict(kernel=of_kernel(context))
    return [
        f"{name} operation {k} {operation} {fault}"
        for name, found in operations.items()
        for k, (operation, _) in enumerate(found, 1)
        for fault in ("ENOSPC", "EIO")
    ]


def compile_kernel():
    """Compile a kernel, or take it from the cache, and print what it computes."""
    import numpy as np

    from slm_np.kernels import cpu

    out = np.ones(10, np.float32)
    cpu.accumulate(out, out.copy())
    print(out.tolist())


COMPUTED = str([2.0] * 10)


def of_kernel(context):
    """[[operation, path], ...] of a kernel that is compiled."""
    log = context.work / "scene-kernel.log"
    if not log.exists():
        folder = context.work / "scene-kernel"
        folder.mkdir(exist_ok=True)
        done(children.forked_call(compile_kernel, folder, setup=Injection(folder, log=log)), "undisturbed kernel")
    return injection.operations(log)


def attempt_kernel(folder, setup):
    """The kernel is computed although it cannot be kept; a later process keeps it, and finds it whole."""
    for fault in (setup, None, None):
        result = children.forked_call(compile_kernel, folder, setup=fault)
        check_end(result, "a kernel")
        require(result.status == 0 and result.out.strip() == COMPUTED, LOST, f"a kernel computes {result.out}")
    kept = [path.name for path in folder.rglob("kernels/*/*")]
    require(kept and not any(name.endswith(".part") for name in kept), LOST, f"the cache has {kept}")


def attempt(case, context, folder):
    name, _, number, operation, fault = case.split()
    setup = Injection(folder, int(number), getattr(errno, fault))
    if name == "kernel":
        attempt_kernel(folder, setup)
        return
    scene = SCENES[name]
    before = scenes.begin(scene, context, folder)
    result = scenes.command(scene, folder, setup=setup)
    try:
        check_end(result, f"{name}, {operation} fails,")
    finally:  # what is lost is worse than what is said
        after_fault(scene, context.fixtures, folder, result, before)
