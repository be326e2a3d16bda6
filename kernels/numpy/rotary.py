"""Rotary positional encoding, in place. Sizes: N = B T rows, w head width, r <= w rotated columns of a head."""


def halves(x, cos, heads, width):
    """Views of both halves of the rotated columns of the first `heads` heads of a row, (B, T, heads, r/2) each"""
    steps, half = cos.shape
    rows = x[:, : heads * width].reshape(-1, steps, heads, width)
    return rows[..., :half], rows[..., half : 2 * half]


def rotary_forward(x, cos, sin, heads, width):
    a, b = halves(x, cos, heads, width)
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, r/2)
    a[...], b[...] = a * cos - b * sin, b * cos + a * sin


def rotary_backward(dx, cos, sin, heads, width):
    rotary_forward(dx, cos, -sin, heads, width)  # a rotation's transpose is its inverse
