"""The Modelfile of a GGUF file, from which ollama makes a model: `ollama create NAME -f NAME.Modelfile`.

It lies beside NAME.gguf as NAME.Modelfile, so a folder may hold several models. It says what the GGUF file cannot:
how much context ollama gives the model, its temperature, and the texts that end a reply.
"""

from slm_np.formats.files import write_file

MOST_CONTEXT = 4096  # tokens, as ollama reserves memory for all of them


def write_modelfile(path, parts):
    """Write the Modelfile of the GGUF file `path`, which holds `parts`. UserError if it cannot be written."""
    context = min(parts.config.block_size, MOST_CONTEXT)
    lines = [f"FROM ./{path.name}", f"PARAMETER num_ctx {context}", f"PARAMETER temperature {parts.sampling.temp:g}"]
    lines += [f'PARAMETER stop """{stop}"""' for stop in _stops(parts)]
    write_file(path.with_suffix(".Modelfile"), ("\n".join(lines) + "\n").encode("utf-8"))


def _stops(parts):
    """The texts that end a reply. Special tokens do by themselves: the file names them."""
    if parts.template is None or parts.tokenizer is None:
        return []
    return [stop for stop in parts.template.stops(parts.tokenizer) if isinstance(stop, str)]
