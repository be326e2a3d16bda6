"""Low-rank adapters as a GGUF file, which llama.cpp and ollama apply to the GGUF file of the base.

llama.cpp adds alpha / r times B A, with one alpha for the whole file: where an adapter's scale is another one, the
rest is multiplied into its B. The tensors of a matrix NAME are NAME.lora_a (r, in) and NAME.lora_b (out, r).
"""

from collections import Counter
from pathlib import Path

import numpy as np

from slm_np.formats.files import replacing, saving
from slm_np.formats.gguf import layout
from slm_np.formats.gguf.architecture import architecture_of
from slm_np.formats.gguf.header import gguf_package
from slm_np.formats.lora_adapter import factors


def write(config, adapter, path):
    """Write a `LoraAdapter` of a base with the ModelConfig `config` at `path`, in float32. It replaces what was there.

    Raises UserError if no architecture of llama.cpp computes the base, or if the file cannot be written.
    """
    gguf, path = gguf_package(), Path(path)
    architecture = architecture_of(config)
    every = list(factors(config, layout.mappings(architecture, config), adapter))
    alpha = Counter(scale * a.shape[1] for _, (a, _, scale) in every).most_common(1)[0][0]
    with saving(path), replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            writer.add_type("adapter")
            writer.add_name(path.stem)
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", alpha)
            for mapping, (a, b, scale) in every:
                rows = (b * np.float32(scale * a.shape[1] / alpha)).T
                writer.add_tensor(f"{mapping.theirs}.lora_a", np.ascontiguousarray(a.T))
                changed = layout.changed(architecture, config, mapping, rows)
                writer.add_tensor(f"{mapping.theirs}.lora_b", np.ascontiguousarray(changed))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
