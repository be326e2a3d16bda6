"""From one floating-point type to another."""


def convert(out, x):
    out[...] = x
