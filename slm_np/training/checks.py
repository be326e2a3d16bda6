"""Training settings that need a certain model."""

from slm_np.errors import UserError


def check_effect(model, train):
    """Raise UserError if a setting of `train` (TrainConfig) has no effect on a model of this ModelConfig."""
    if train.carry_state and model.has_attention:
        raise UserError(
            "--carry-state needs layers with a recurrent state only, and attention has none; "
            "choose a --pattern of M and S"
        )
    if train.max_spectral_norm and "S" not in model.letters:
        raise UserError(
            f"--max-spectral-norm {train.max_spectral_norm} has no effect without linear recurrences; set it to 0, "
            "or choose a --pattern with S"
        )
    if train.lr_decay_iters and (train.max_time or train.lr_schedule == "constant"):
        other = f"--max-time {train.max_time}" if train.max_time else "--lr-schedule constant"
        raise UserError(f"--lr-decay-iters {train.lr_decay_iters} has no effect with {other}; set it to 0")
