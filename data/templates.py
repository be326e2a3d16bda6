"""Chat templates of both kinds: restored from the directory of a run, or from the plan of a token store."""

import json
from pathlib import Path

from slm_np.data import chat_template
from slm_np.data.chat_template import DEFAULT, FILE, Template
from slm_np.data.jinja_template import JinjaTemplate


def identity_of(template):
    """What the tokens of a template depend on, as JSON can hold it; None for the default one."""
    return None if template == DEFAULT else template.identity()


def restored(identity):
    """The template that `identity_of` describes."""
    if identity is None:
        return DEFAULT
    if "source" in identity:
        return JinjaTemplate(identity["source"], identity["tokens"])
    return Template(**identity)


def load(run_dir):
    """The template in the directory of a run, None if it has none. UserError if the file is damaged or unreadable."""
    path = Path(run_dir) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (
            found.keys() == {"source", "tokens"}
            and isinstance(found["source"], str)
            and isinstance(found["tokens"], dict)
        ):
            return JinjaTemplate(found["source"], found["tokens"], str(path))
    except (OSError, ValueError, RecursionError, AttributeError):
        pass  # and `chat_template.load` says what is wrong
    return chat_template.load(run_dir)
