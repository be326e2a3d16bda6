"""Training settings that need a certain model or corpus."""

from slm_np.errors import UserError


def check_settings(run, corpus):
    """Raise UserError if a training setting of `run` (RunConfig) has no effect on its model, or does not fit it."""
    train, model = run.train, run.model
    if train.carry_state and model.has_attention:
        raise UserError(
            "--carry-state needs layers with a recurrent state only, and attention has none; "
            "choose a --pattern of M and S"
        )
    if train.carry_state and corpus.train.mask is not None:
        raise UserError("--carry-state is not supported with masked targets, as in conversations; leave it out")
    if train.max_spectral_norm and "S" not in model.letters:
        raise UserError(
            f"--max-spectral-norm {train.max_spectral_norm:g} has no effect without linear recurrences; leave it out, "
            "or choose a --pattern with S"
        )
