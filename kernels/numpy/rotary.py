"""Rotary positional encoding, in place. Sizes: N = B T rows, w head width."""


def halves(x, cos, heads):
    """Views of both halves of the first `heads` heads of a row, (B, T, heads, w/2) each"""
    steps, half = cos.shape
    pairs = x[:, : heads * 2 * half].reshape(-1, steps, heads, 2, half)
    return pairs[..., 0, :], pairs[..., 1, :]


def rotary_forward(x, cos, sin, heads):
    a, b = halves(x, cos, heads)
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, w/2)
    a[...], b[...] = a * cos - b * sin, b * cos + a * sin


def rotary_backward(dx, cos, sin, heads):
    rotary_forward(dx, cos, -sin, heads)  # a rotation's transpose is its inverse
