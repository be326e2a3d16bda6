"""The Modelfile of a GGUF file, from which ollama makes a model: `ollama create NAME -f NAME.Modelfile`.

It lies beside NAME.gguf as NAME.Modelfile, so a folder may hold several models. It says what the GGUF file cannot:
how much context ollama gives the model, its temperature, and the texts that end a reply.
"""

from slm_np.errors import UserError
from slm_np.formats.files import write_file

MOST_CONTEXT = 4096  # tokens, as ollama reserves memory for all of them


def write_modelfile(path, parts):
    """Write the Modelfile of the GGUF file `path`, which holds `parts`. UserError if it cannot be written.

    Special tokens that end a reply are in the GGUF file.
    """
    context = min(parts.config.block_size, MOST_CONTEXT)
    lines = [f"FROM ./{path.name}", f"PARAMETER num_ctx {context}", f"PARAMETER temperature {parts.sampling.temp:g}"]
    lines += [f'PARAMETER stop """{stop}"""' for stop in stops_of(parts) if isinstance(stop, str)]
    write_file(path.with_suffix(".Modelfile"), ("\n".join(lines) + "\n").encode("utf-8"))


def stops_of(parts):
    """[str or int, ...]: the texts and the ids of special tokens that end a reply.

    None if the template does not say: another program may still run it.
    """
    if parts.template is None or parts.tokenizer is None:
        return []
    try:
        return parts.template.stops(parts.tokenizer)
    except UserError:
        return []
