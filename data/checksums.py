"""CRC-32 checksums of the files in a folder of tokens. meta.json has them and its own (`files.checksummed`)."""

import zlib
from pathlib import Path

from slm_np.data.files import verified
from slm_np.data.meter import metered
from slm_np.data.text_files import Text
from slm_np.errors import UserError

ALWAYS = 256 << 20  # bytes of files that are verified whenever they are opened. It takes a fraction of a second


class Damaged(Exception):
    """Files of tokens differ from their checksums. The message is a clause that says which and how."""


def crc32(blocks):
    """The CRC-32 of blocks of bytes, as eight hexadecimal digits."""
    total = 0
    for block in blocks:
        total = zlib.crc32(block, total)
    return f"{total:08x}"


def described(meta):
    """The object `meta` of a meta.json without its checksum. `Damaged` if that is wrong.

    An object without a checksum, which another program or an earlier version wrote, is returned as it is.
    """
    if "checksum" not in meta and "crc32" not in meta:
        return meta
    if not verified(meta):
        raise Damaged("meta.json has other contents than its checksum says")
    return verified(meta)


def verify(folder, checksums, names, cache=None, progress=True):
    """Compare the files `names` in `folder` with {name: CRC-32}. `Damaged` for the first that differs or is missing.

    Files are read each time they are opened if they have up to `ALWAYS` bytes together. Larger ones are read once for
    each size and mtime, which `Text.cached` remembers in the folder `cache`, if one is given. Names without a checksum
    are skipped.
    """
    if not isinstance(checksums, dict):
        raise Damaged("meta.json has no checksums of files where they should be")
    paths = [folder / name for name in names if name in checksums]
    try:
        found = [path.stat() for path in paths]
        once = cache and sum(status.st_size for status in found) > ALWAYS
        for path, status in zip(paths, found):
            text = Text(((path, status.st_size, status.st_mtime_ns),))

            def computed(text=text, name=path.name):
                return crc32(metered(text.blocks(), text.size, f"verifying {name}", progress))

            if (text.cached(cache, "crc32", computed) if once else computed()) != checksums[path.name]:
                raise Damaged(f"{path.name} has other contents than its checksum in meta.json says")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from None
    except (OSError, UserError) as error:  # also: another process is just removing the folder, to make it again
        raise Damaged(str(error).partition(";")[0]) from None
