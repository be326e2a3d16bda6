"""Training on a user's own text: which data are one, and the settings that follow from it and from the machine."""

import dataclasses

from slm_np.config import ModelConfig, TrainConfig, duration_seconds, typed
from slm_np.errors import UserError
from slm_np.presets import changes, preset
from slm_np.words import counted

NOMINAL = 1 << 20, 1e14  # bytes and operations for which settings are checked before the text is read


def is_own_text(train):
    """Whether the settings {field: value} name a text to train on that is neither embedded nor made of tokens."""
    from slm_np.data.corpus import WRITERS, named, split_list
    from slm_np.data.token_files import is_token_file

    fields = TrainConfig.__dataclass_fields__
    data, val_data = (typed(fields[name], train.get(name, fields[name].default)) for name in ("data", "val_data"))
    embedded = all(named(item) in WRITERS for item in split_list(data))
    return not (embedded or is_token_file(data) or is_token_file(val_data))


class OwnText:
    """A new run of a preset that follows its text, with the changes {field: value} to its model and its training.

    UserError for a change that is wrong by itself.
    """

    def __init__(self, name, model, train):
        self.name = name
        self.model, self.train = changes("model", model, ModelConfig), changes("train", train, TrainConfig)

    def settings(self, n_bytes, operations, where=""):
        """((ModelConfig, TrainConfig), lines) for a text of so many bytes, see `training.own_text.chosen`."""
        from slm_np.training.own_text import chosen

        model, train, lines = chosen(n_bytes, operations, self.model | self.train, where)
        return preset(self.name, self.model, self.train, model | train), lines

    def nominal(self):
        """(ModelConfig, TrainConfig) before the text is known. UserError for changes that are wrong in any model."""
        return self.settings(*NOMINAL)[0]

    def fitted(self, run):
        """(`run` (RunConfig) with the settings for its text on this machine, lines that say which and why).

        Files that have to be converted are converted into the cache. UserError for bad data, as `load_corpus`.
        """
        from slm_np.data.bpe import check_packages
        from slm_np.data.token_files import is_token_file
        from slm_np.data.token_store import text_size
        from slm_np.ops.device import device
        from slm_np.ranks.current import world
        from slm_np.training.own_text import rate_of, time_of

        train, on = run.train, device(run.train.device)
        if is_token_file(train.data) or is_token_file(train.val_data):
            raise UserError(
                f"--preset {self.name} follows the length of a text, but {train.data} contains tokens already; give "
                "the text, or choose another --preset"
            )
        n_bytes = text_size(
            train.data,
            train.val_data,
            self.train.get("tokenizer", "byte"),
            documents=train.documents,
            limit_bytes=train.limit_bytes,
            binary=train.binary,
        )
        n = world().size
        operations = n * duration_seconds("fit_time", time_of(self.train)) * rate_of(on, train.dtype)
        where = counted(n * on.kernels.thread_count(), "core") if on.name == "cpu" else "the GPU"
        (model, train), lines = self.settings(n_bytes, operations, where)
        if "tokenizer" not in self.train and train.tokenizer != "byte":
            try:
                check_packages(train.tokenizer)
            except UserError as error:
                self.train["tokenizer"] = "byte"
                (model, train), lines = self.settings(n_bytes, operations, where)
                lines.append(f"it is read as bytes: {error}")
        return dataclasses.replace(run, model=model, train=train), lines
