"""Runs that train adapters: their best model holds the adapters only, and the weights are those of the base.

Loading such a run opens the base that run.json names, verifies that its weights are those that the run started from,
and merges the adapters into them.
"""

import zlib

import numpy as np

from slm_np.errors import UserError
from slm_np.formats import hub
from slm_np.formats.checkpoint import load_best, newest_checkpoint
from slm_np.formats.format1 import original_name
from slm_np.formats.layouts import AdapterLayout
from slm_np.formats.lora_adapter import merged_tensors
from slm_np.formats.model_parts import metered
from slm_np.ops.device import put
from slm_np.paths import is_run


class BaseTensors:
    """The tensors of `parts` (ModelParts), one at a time, and the checksum of those that were read so far.

    That of a run is the CRC-32 of all weights and their names of format 1, as earlier versions recorded it. The tensors
    of other programs come in any order, so theirs is the sum of the CRC-32 of each.
    """

    def __init__(self, parts):
        self.parts, self.total = parts, 0

    def __iter__(self):
        if is_run(self.parts.path):
            tensors = sorted(self.parts.tensors(), key=lambda item: original_name(item[0]))
            while tensors:
                name, array = tensors.pop(0)
                self.total = zlib.crc32(array, zlib.crc32(original_name(name).encode(), self.total))
                yield name, array
        else:
            for name, array in metered(self.parts, "loading").tensors():
                array = np.ascontiguousarray(array, np.float32)
                self.total = (self.total + zlib.crc32(array, zlib.crc32(name.encode()))) & 0xFFFFFFFF
                yield name, array

    @property
    def checksum(self):
        """In hexadecimal."""
        return f"{self.total:08x}"


def base_path(path, config):
    """The base of the run in `path` with the RunConfig `config`, as it is written in the current directory."""
    from slm_np.formats.run_paths import directories, written_here

    text = config.base["run"]
    found = written_here(text, directories(path, config), several=False)
    if found is None and not hub.parsed(text):
        raise UserError(f"the base of {path}, {text}, is missing; put it back: the run holds adapters to it only")
    return found or text  # perhaps a name on the hub


def check_base(path, config, checksum):
    """UserError unless the base of a run has the checksum that run.json says."""
    if checksum != config.base["weights"]:
        raise UserError(
            f"{path} holds adapters to other weights than those in {config.base['run']}, which have changed since; "
            "restore that base"
        )


def merged_weights(path, config, into, open_model):
    """({name: array}, step): the weights of the base with the best adapters of the run in `path` merged, in float32.

    config: RunConfig.   into: {name: array} to fill, of any device; None makes new arrays
    open_model: function (path) -> ModelParts
    """
    layout = AdapterLayout(config)
    if (path / layout.file).exists():
        trained, metadata = load_best(path, None, layout)
        step = int(metadata["step"])
    else:
        found = newest_checkpoint(path)
        trained, step = found.model, found.step
    base, filled = BaseTensors(open_model(base_path(path, config))), {}
    for name, array in merged_tensors(config.model, base, layout.adapter(trained)):
        if into is None:
            filled[name] = array
        else:
            put(into[name], array)
    check_base(path, config, base.checksum)
    return filled if into is None else into, step
