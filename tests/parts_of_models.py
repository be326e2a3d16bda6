"""`ModelParts` of a `Model`, and back."""

from slm_np.config import SamplingConfig
from slm_np.formats.model_parts import ModelParts
from slm_np.nn.model import Model


def parts_of(model, tokenizer=None, template=None, sampling=SamplingConfig(), path="model"):
    """The `ModelParts` of a model. Its tensors are the model's own."""
    weights = model.parameters.weight
    return ModelParts(path, model.config, lambda: iter(weights.items()), tokenizer, template, sampling, "a test")


def filled(parts, **options):
    """The `Model` of `ModelParts`."""
    model, names = Model(parts.config, None, **options), set()
    for name, tensor in parts.tensors():
        model.parameters.weight[name][...] = tensor
        names.add(name)
    assert names == model.parameters.weight.keys()
    return model
