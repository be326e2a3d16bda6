"""Model settings for tests that try many architectures with one set of sizes."""

from slm_np.config import ModelConfig
from slm_np.presets import STRUCTURE


def config_of(**settings):
    """The ModelConfig of `settings`, without the sizes that have no effect on its architecture."""
    unused = ModelConfig(**{name: value for name, value in settings.items() if name in STRUCTURE}).unused
    return ModelConfig(**{name: value for name, value in settings.items() if name not in unused})
