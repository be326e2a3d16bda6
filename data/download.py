"""Corpora by name from the network: fetched once, resumed after a break, verified, kept."""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from slm_np.data.corpus import BLOCK, shown
from slm_np.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from. files: {split: name}.   repository: on the Hugging Face hub, which verifies what it sends; without
    one the file at `url` has the given `sha256`."""

    url: str
    files: dict
    licence: str
    repository: str = ""
    sha256: str = ""


SOURCES = {
    "tinyshakespeare": Source(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        dict(train="tinyshakespeare.txt"),
        "public domain",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "tinystories": Source(
        "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/",
        dict(train="TinyStories-train.txt", validation="TinyStories-valid.txt"),
        "CDLA-Sharing-1.0 (Eldan and Li 2023, written by GPT-3.5 and GPT-4)",
        repository="roneneldan/TinyStories",
    ),
}


def fetched(name, split, cache, progress=True):
    """The path of a corpus' file for `split`, from CACHE/downloads, where it may be put by hand, or from the network.

    UserError without a network names the URL and where to put the file; another one if huggingface_hub is needed and missing.
    """
    source = SOURCES[name]
    file = source.files.get(split, source.files["train"])
    url, path = source.url + file * source.url.endswith("/"), cache / "downloads" / file
    if progress:
        print(f"{name}: licence {source.licence}, from {url}", file=sys.stderr)
    if path.is_file():
        return path
    by_hand = f"put {url} at {path} yourself, or try again with a network"
    if source.repository:
        try:
            import huggingface_hub
        except ImportError:
            raise UserError(
                f"--data {name} needs huggingface_hub: pip install 'slm_np[hub]', or put {url} at {path}"
            ) from None
        try:
            return Path(huggingface_hub.hf_hub_download(source.repository, file, repo_type="dataset"))
        except Exception as error:  # its own classes, and those of whichever HTTP library it uses
            raise UserError(f"--data {name} cannot be downloaded ({_first_line(error)}); {by_hand}") from None
    try:
        _download(url, path, source.sha256, progress)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"--data {name} cannot be downloaded ({_first_line(getattr(error, 'reason', error))}); {by_hand}"
        ) from None
    return path


def _download(url, path, sha256, progress):
    """Fetch `url` to `path`, which appears only when it is whole and has the right hash; a rerun goes on where the last one broke off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: only the hash is to be seen to
            raise
        answer = None
    if answer is not None:
        length = int(answer.headers.get("Content-Length") or 0)
        with answer, open(part, "ab" if answer.status == 206 else "wb") as out:
            length += out.tell()
            out.writelines(shown(iter(lambda: answer.read(BLOCK), b""), length, f"downloading {path.name}", progress))
        if part.stat().st_size < length:
            raise OSError("the connection broke off")
    with open(part, "rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    if digest.hexdigest() != sha256:
        part.unlink()
        raise ValueError("what came is not the file that was expected")
    os.replace(part, path)


def _first_line(error):
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
