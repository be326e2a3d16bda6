"""A trained model in use: decoding, sampling, generation, evaluation."""
