"""The trunk: parameters, activations, and the parts of a block, each with its forward and backward."""
