"""The commands of `fixtures.SCENES` in a try's folder: how long they take undisturbed, and which files they change."""

import functools
import json
import shutil

from fault_campaign import children, fixtures, injection, judges


def begin(scene, context, folder):
    """Copy the inputs of a scene into `folder`. Returns {input: digest} of those that its command must not change."""
    fixtures.place(context.fixtures, folder, scene.inputs)
    kept = [fixtures.named(item)[0] for item in scene.inputs]
    return {name: judges.digest(folder / name) for name in kept if name not in (scene.output, "cache")}


def command(scene, folder, **options):
    """The `Result` of the command of a scene in its folder."""
    return children.forked(scene.verb, *scene.words.split(), cwd=folder, stdin=scene.stdin, **options)


@functools.cache
def measured(name, context):
    """(seconds, [[operation, path], ...]) of an undisturbed command, which also has to end as the fixture did."""
    file = context.work / f"scene-{name}.json"
    if not file.exists():
        scene, folder = fixtures.SCENES[name], context.work / f"scene-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begin(scene, context, folder)
        log = context.work / f"scene-{name}.log"
        result = command(scene, folder, setup=injection.Injection(folder, log=log))
        judges.done(result, f"undisturbed {name}")
        judges.finished(scene, context.fixtures, folder)
        shutil.rmtree(folder)
        file.write_text(json.dumps([result.seconds, injection.operations(log)]), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))
