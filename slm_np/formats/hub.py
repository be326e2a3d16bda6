"""Models of the Hugging Face hub by name: `org/name`, `org/name@revision`, or one file, `org/name/file.gguf`.

Only what is needed is downloaded: settings, tokenizer and safetensors, no copy in another format. The files lie in
huggingface_hub's cache, which other programs share. A model that is there completely is used without any request, so it
works without a network; name a revision to get another one.
"""

import json
import re
import sys
from pathlib import Path

from slm_np.errors import UserError, imported
from slm_np.progress import interactive

NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[\w-][\w.-]{0,95})(?:@([\w./-]+?))?(?:/(.+\.gguf))?", re.ASCII)
URL = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/+(.+)")
TIMEOUT_S = 10.0  # for an answer of the hub, before the cache is used
# What a model needs beside its weights, as far as it has it.
SETTINGS = (
    "run.json",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
SAY_WHAT = ("run.json", "config.json", "adapter_config.json")  # one of these says what the weights are
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
PICKLED = re.compile(r"(pytorch_model|adapter_model).*\.bin|.*\.(pt|pth|ckpt)")


def parsed(name):
    """(repository, revision or None, file or "") of a name on the hub, None if it cannot be one."""
    match = NAME.fullmatch(Path(name).as_posix())
    return match and (match[1], match[2], match[3] or "")


def fetch(name):
    """The local path of the model with that name: a directory, or the file if the name has one.

    Raises UserError if there is no such model, it has no file that this package reads, it cannot be downloaded, or
    huggingface_hub is missing.
    """
    repository, revision, file = parsed(name)
    use = f"{name}, which does not exist here, as a name on the Hugging Face hub"
    hub, cached = imported("huggingface_hub", use, "slm_np[hub]"), None
    try:
        cached = _cached(hub, repository, revision, file)
        if cached and (file or (cached / "tokenizer.json").is_file()):
            return cached
        info = hub.HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_S)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        return _download(hub, repository, revision, names, file)
    except UserError:
        raise
    except Exception as error:  # its own classes, and those of the HTTP library it uses
        if cached:  # without a tokenizer, which it may not have
            return cached
        raise _failure(name, repository, revision, error) from None


def _cached(hub, repository, revision, file):
    """The path in the cache, None if it is not there or not complete."""
    marks = [file] if file else SAY_WHAT
    found = [hub.try_to_load_from_cache(repository, mark, revision=revision) for mark in marks]
    found = next((Path(path) for path in found if isinstance(path, str)), None)
    if file or found is None:
        return found
    return found.parent if _is_complete(found.parent) else None


def _is_complete(folder):
    """Whether a snapshot in the cache has all its weights."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any((folder / name).is_file() for name in WEIGHTS)
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _download(hub, repository, revision, names, file):
    """Download what is needed of the files `names`. Returns the directory, or the path of `file`."""
    wanted = [file] if file else needed(repository, names)
    if file and file not in names:
        raise UserError(f"{repository} has no file {file}; {_files_in_words(names)}")
    if not interactive():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        print(f"downloading {repository}: {', '.join(wanted)}", file=sys.stderr, flush=True)
    paths = [Path(hub.hf_hub_download(repository, one, revision=revision)) for one in wanted]
    if file:
        return paths[0]
    if len({path.parent for path in paths}) > 1:
        raise UserError(f"{repository} was changed while it was downloaded; try again")
    return paths[0].parent


def needed(repository, names):
    """The files among `names` that a model needs, weights last. UserError if there are none that this package reads."""
    names = set(names)
    weights = next(([name] for name in WEIGHTS if name in names), [])
    if weights == ["model.safetensors.index.json"]:
        weights += sorted(filter(SHARD.fullmatch, names))
    if weights and names & set(SAY_WHAT):
        return [name for name in SETTINGS if name in names] + weights
    if any(name.endswith(".gguf") for name in names):
        raise UserError(f"{repository} has GGUF files, not one model; {_files_in_words(names)}")
    if any(map(PICKLED.fullmatch, names)):
        raise UserError(
            f"{repository} has only pickled weights, which may run any code; "
            "ask for safetensors at https://huggingface.co/spaces/safetensors/convert, or name another model"
        )
    raise UserError(f"{repository} has no config.json with safetensors; name another model, or a .gguf file in it")


def _files_in_words(names):
    """Which GGUF files can be named."""
    found = sorted(name for name in names if name.endswith(".gguf"))
    shown = ", ".join(found[:8]) + " and more" * (len(found) > 8)
    return f"name one of its files: {shown}" if found else "it has no GGUF file"


def _failure(name, repository, revision, error):
    """The UserError for a model that can be neither downloaded nor found in the cache."""
    from huggingface_hub import constants, errors

    by_hand = "or download its files elsewhere, and name their directory"
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{repository} needs a license to be accepted at https://huggingface.co/{repository}; "
            f"accept it, run hf auth login, and try again, {by_hand}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repository} has no revision {revision}; name another branch, tag or commit")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return UserError(
            f"{name} does not exist here, and the Hugging Face hub has no such model, or only for its members; "
            "check the name, or run hf auth login"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(
            f"{name} does not exist here and is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            f"a download; unset HF_HUB_OFFLINE, {by_hand}"
        )
    reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
    return UserError(f"{name} does not exist here and cannot be downloaded ({reason}); check the network, {by_hand}")
