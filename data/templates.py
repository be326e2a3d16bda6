"""Chat templates by where they come from: the directory of a run or of another program's model, or a plan."""

from slm_np.data.chat_template import DEFAULT, Template
from slm_np.data.jinja_template import JinjaTemplate


def identity_of(template):
    """What distinguishes the tokens that a template makes, as JSON; None for the default one, and without a template."""
    return None if template in (None, DEFAULT) else template.identity()


def restored(identity):
    """The template that `identity_of` describes."""
    if identity is None:
        return DEFAULT
    if "source" in identity:
        return JinjaTemplate(identity["source"], identity["tokens"])
    return Template(**identity)
