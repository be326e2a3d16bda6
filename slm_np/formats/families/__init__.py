"""The families of models that other programs know. One module each, with these names:

    MODEL_TYPES                 {model_type: class of transformers}
    config_from(fields)         ModelConfig from the fields of config.json. UserError that names what is not supported
    config_to(config)           the fields of config.json of a ModelConfig, or None if the family lacks what it has
    pieces(config, fields)      [Piece, ...]: where the tensors of our model lie in those of the family

`pieces` is the only description of the layout, for reading and for writing, of weights and of gradients.
"""
