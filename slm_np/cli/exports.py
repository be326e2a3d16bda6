"""Which other programs compute a model, as `info` says it."""

from slm_np.errors import UserError


def exports(config, tokenizer=None):
    """The lines about the programs for which `convert` can write a model with this ModelConfig, or why it cannot.

    tokenizer: the type of the model in its tokenizer.json; None if it has none
    """
    from slm_np.formats.families import family_of
    from slm_np.formats.gguf.architecture import architecture_of
    from slm_np.formats.gguf.tokenizer import check_kind

    family = family_of(config)
    if family is None:
        theirs = f"none: no class of transformers has {unusual(config)}"
    else:
        theirs = family.MODEL_TYPES[family.config_to(config)["model_type"]]
    try:
        gguf = architecture_of(config)
        if tokenizer is not None:
            check_kind(tokenizer)
    except UserError as error:
        gguf = f"none: {str(error).partition(', so ')[0]}"
    return [f"  exports    transformers: {theirs}", f"             GGUF: {gguf}"]


def unusual(config):
    """The setting because of which no class of transformers computes a model, as a flag."""
    letters = set(config.letters)
    found = {
        f"--pattern {config.pattern}": "S" in letters or "M" in letters and len(letters) > 1,
        f"--positions {config.positions}": config.positions == "sinusoidal",
        f"--norm {config.norm}": config.norm == "none",
        f"--head {config.head}": config.head not in ("tied", "linear"),
        "--no-residual": not config.residual,
        f"--feed-forward {config.feed_forward}": config.has_attention and config.feed_forward == "none",
    }
    together = f"--norm {config.norm}, --positions {config.positions} and --feed-forward {config.feed_forward} together"
    return next((setting for setting, lacking in found.items() if lacking), together)
