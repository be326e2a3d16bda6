"""Messages for a path that is not a run or a model: what it is, and what to name instead."""

import difflib
import os
from pathlib import Path

from slm_np.errors import UserError
from slm_np.paths import is_run
from slm_np.words import quoted

MODEL = "a run, a Hugging Face directory, a .gguf file, or a name on the hub such as org/name"
# What files begin with, and what they are.
ZIP, PICKLES = b"PK\x03\x04", tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
ARCHIVES = {
    b"\x1f\x8b": "a compressed file",
    b"BZh": "a compressed file",
    b"\xfd7zXZ": "a compressed file",
    b"\x28\xb5\x2f\xfd": "a compressed file",
    b"7z\xbc\xaf": "a compressed file",
    b"\x89HDF": "an HDF5 file",
    b"ggml": "a GGML file, the format before GGUF",
    b"tjgg": "a GGML file, the format before GGUF",
    b"lmgg": "a GGML file, the format before GGUF",
}
SAFE = 'run in Python transformers.AutoModelForCausalLM.from_pretrained("FOLDER").save_pretrained("NEW"), and name NEW'


def is_model_directory(path):
    """Whether a directory holds settings of a run, of a model of transformers, or of an adapter."""
    return any(os.path.isfile(Path(path) / name) for name in ("run.json", "config.json", "adapter_config.json"))


def not_a_run(path):
    """The UserError for a path that was named as a run and is none: what it is, and what helps."""
    path = Path(path)
    if error := _of_any(path, "a run"):
        return error
    if os.path.isfile(path):
        return UserError(f"{path} is not a run but a file; {_use_of(path)}")
    if os.path.isfile(path / "metrics.jsonl"):
        or_start = f", or {_finetune(path)}" * is_model_directory(path)
        return UserError(f"run.json missing: {path} is not a run of slm_np; restore that file{or_start}")
    if is_model_directory(path):
        return UserError(f"{path} is not a run but a model of another program; {_finetune(path)}")
    return UserError(f"run.json missing: {path} is not a run of slm_np; name a directory that --out-dir made")


def not_a_model(path):
    """The UserError for a path that was given as a model, and that this package cannot read."""
    path = Path(path)
    if os.path.isfile(path):
        return _file(path)
    if error := _of_any(path, "a model"):
        return error
    try:
        names = sorted(file.name for file in path.iterdir() if file.is_file())
    except OSError as error:
        return UserError(f"{path} cannot be read ({error.strerror}); check its permissions")
    if "metrics.jsonl" in names:  # a run that has lost its settings
        return not_a_run(path)
    if not names and not any(path.iterdir()):
        return UserError(f"{path} is an empty folder, not a model; name {MODEL}")
    if found := [name for name in names if name.lower().endswith(".gguf")]:
        return UserError(f"{path} is a folder with GGUF files; name one: {_shown(path / name for name in found)}")
    if any(name.endswith(".safetensors") for name in names):
        return UserError(f"{path} has weights but no config.json; copy that file from where the weights come from")
    if any(Path(name).suffix in (".bin", ".pt", ".pth", ".ckpt") for name in names):
        return UserError(f"{path} has no config.json with safetensors; name a checkpoint of llama2.c in it, or {MODEL}")
    return UserError(f"{path} is a folder without a model; name {MODEL}")


def pickled(path):
    """The UserError for weights in a pickle, which are never loaded: a pickle may run any code."""
    return UserError(f"{path} holds pickled weights of PyTorch, which may run any code, so it is not read; {SAFE}")


def starts_with_pickle(start):
    """Whether a file that begins with these bytes is a pickle, or the ZIP file of PyTorch that holds one."""
    return start.startswith(ZIP) or start.startswith(PICKLES)


def _of_any(path, wanted):
    """The UserError for a path that helps in the same way whatever was `wanted`, or None."""
    parent = Path(os.path.abspath(path)).parent
    if str(path) and is_model_directory(parent):
        wrong = f"is not {wanted} but a part of" if os.path.lexists(path) else "does not exist in"
        kind = "the run" if is_run(parent) else "the model"
        return UserError(f"{path} {wrong} {kind} {path.parent}; name {kind}: {path.parent}")
    if not os.path.lexists(path):
        return UserError(f"{path} is not {wanted}: it does not exist; {similar_run(path, wanted)}")
    if not path.exists():
        return UserError(f"{path} is a link to {os.readlink(path)}, which does not exist; name {MODEL}")
    if not path.is_dir():
        return None
    if (path / "train.bin").is_file():
        return UserError(f"{path} is not {wanted} but a folder of tokens; train on it with --data {quoted(path)}")
    if models := sorted(folder for folder in _folders(path) if is_model_directory(folder)):
        kind = "runs" if all(map(is_run, models)) else "models"
        return UserError(f"{path} is not {wanted} but a folder with {kind}; name one: {_shown(models)}")
    return None


def _folders(path):
    try:
        return [folder for folder in path.iterdir() if folder.is_dir()]
    except OSError:
        return []


def _shown(paths):
    paths = list(map(str, paths))
    return ", ".join(paths[:5]) + " and more" * (len(paths) > 5)


def similar_run(path, wanted="a run"):
    """What to name instead of a path that does not exist."""
    models = [folder.name for folder in _folders(path.parent) if is_model_directory(folder)]
    if near := difflib.get_close_matches(path.name, models, n=2):
        return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return "name a directory that --out-dir made" if wanted == "a run" else f"name {MODEL}"


def _use_of(file):
    """What can be done with a file that is not a run."""
    name = quoted(file)
    if file.suffix.lower() == ".gguf":
        return _finetune(file)
    if file.suffix == ".bin":
        return f"convert a llama2.c checkpoint with python -m slm_np.convert {name}, train on tokens with --data {name}"
    if file.suffix == ".safetensors":
        return "name the directory of its run"
    return f"train on a text with --data {name}"


def _finetune(model):
    return f"start one from it with python -m slm_np.finetune --base {quoted(model)}"


def _file(file):
    """The UserError for a file that is not a model."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(1 << 12)
    except OSError as error:
        return UserError(f"{file} cannot be read ({error.strerror}); check its permissions")
    if not start:
        return UserError(f"{file} is empty, not a model; copy it again from its source")
    if starts_with_pickle(start):
        return pickled(file)
    if is_model_directory(file.parent):
        kind = "the run" if is_run(file.parent) else "the model"
        return UserError(f"{file} is not a model but a part of {kind} {file.parent}; name {kind}: {file.parent}")
    if file.suffix == ".safetensors" or start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return UserError(
            f"{file} has weights but no config.json beside it; put it into a folder with its config.json, and name that"
        )
    if what := next((what for mark, what in ARCHIVES.items() if start.startswith(mark)), None):
        return UserError(f"{file} is {what}, not a model; name {MODEL}")
    if b"\0" not in start:
        what = "a tokenizer or settings" if file.suffix == ".json" else "a text"
        use = "" if file.suffix == ".json" else f"train on it with --data {quoted(file)}, or "
        return UserError(f"{file} is {what}, not a model; {use}name {MODEL}")
    if file.suffix == ".bin":
        size = len(start)
        reason = (
            f"it has {size} bytes and the header alone takes 28" if size < 28 else "its header is not that of a model"
        )
        return UserError(
            f"{file} is not a checkpoint of llama2.c: {reason}; name a .bin that its training "
            f"wrote, or train on tokens with --data {quoted(file)}"
        )
    return UserError(f"{file} is a file of unknown format, not a model; name {MODEL}")
