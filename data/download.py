"""Corpora that are downloaded by name: fetched once, resumed after an interruption, verified, kept in the cache."""

import errno
import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from slm_np.data.files import sha256_of
from slm_np.data.meter import metered
from slm_np.data.text_files import BLOCK
from slm_np.errors import UserError, imported, remedy
from slm_np.paths import sync


@dataclass(frozen=True)
class Source:
    """Where a corpus comes from."""

    url: str  # of the file, or, ending in "/", of the folder
    files: dict  # {split: file name}
    license: str
    repository: str = ""  # the dataset on the Hugging Face hub; its client verifies what it downloads
    sha256: str = ""  # of the file, where there is no repository


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


def download(name, split, cache, progress=True):
    """The path of the file with `split` (train or validation) of the corpus `name`, downloaded if necessary.

    A file in CACHE/downloads is used as it is, so it can also be put there by hand; if it is known to have another
    SHA-256, a line on stderr says so. A corpus without a validation file gives its training file. UserError if the
    download fails, with the URL and where to put the file, or if huggingface_hub is needed and missing.
    """
    source = SOURCES[name]
    file = source.files.get(split, source.files["train"])
    url, path = source.url + file * source.url.endswith("/"), cache / "downloads" / file
    if progress:
        print(f"{name}: license {source.license}, from {url}", file=sys.stderr)
    if path.is_file():
        if source.sha256 and sha256_of(path) != source.sha256:
            print(
                f"slm_np: {path} is not the file at {url}, since its SHA-256 differs; it is used as it is: remove it "
                "to download it again",
                file=sys.stderr,
            )
        return path
    by_hand = f"check the network and try again, or put {url} at {path} yourself"
    if source.repository:
        try:
            hub = imported("huggingface_hub", f"--data {name}", "slm_np[hub]")
        except UserError as error:
            raise UserError(f"{error}, or put {url} at {path} yourself") from None
        try:
            return Path(hub.hf_hub_download(source.repository, file, repo_type="dataset"))
        except Exception as error:  # its own classes, and those of the HTTP library it uses
            raise UserError(f"--data {name} cannot be downloaded ({_first_line(error)}); {by_hand}") from None
    try:
        _download(url, path, source.sha256, progress)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES):  # of the disk
            elsewhere = remedy(error, "set SLM_NP_CACHE to another folder")
            raise UserError(
                f"the cache folder {path.parent} cannot be written ({error.strerror}); {elsewhere}"
            ) from None
        raise UserError(
            f"--data {name} cannot be downloaded ({_first_line(getattr(error, 'reason', error))}); {by_hand}"
        ) from None
    return path


def _download(url, path, sha256, progress):
    """Fetch `url` to `path`, which appears only once it is complete and verified. A rerun resumes the download."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: all bytes are here, and only the hash is left to check
            raise
        answer = None
    if answer is not None:
        length = int(answer.headers.get("Content-Length") or 0)
        with answer, open(part, "ab" if answer.status == 206 else "wb") as out:
            length += out.tell()
            blocks = iter(lambda: answer.read(BLOCK), b"")
            out.writelines(metered(blocks, length, f"downloading {path.name}", progress))
        if part.stat().st_size < length:
            raise OSError("the connection was lost")
    if sha256_of(part) != sha256:
        part.unlink()
        raise ValueError("the checksum of the file is wrong")
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def _first_line(error):
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
