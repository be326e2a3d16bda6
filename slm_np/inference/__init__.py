"""A trained model at work: decoding, sampling, generation, evaluation."""
