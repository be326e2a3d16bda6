"""Normalization.

Sizes: N tokens, D width, H query heads, K key-value heads, w head width. The norms of whole rows read a residual
branch, so their backward accumulates into the residual's gradient.
"""

from slm_np.ops.device import kernels_of


def rmsnorm_forward(out, rstd, x, weight, eps):
    """out = x * rstd * weight,   rstd = (mean(x^2) + eps)^(-1/2)

    out, x (N, D)   rstd (N,)   weight (D,)   (Zhang and Sennrich 2019)
    """
    kernels_of(out).rmsnorm_forward(out, rstd, x, weight, eps)


def rmsnorm_backward(dx, dweight, dout, x, weight, rstd):
    """With g = dout * weight and x^ = x * rstd:   dx += rstd * (g - x^ * mean(g * x^)),   dweight += sum_n dout * x^

    x enters directly, which gives rstd * g, and through rstd, whose differential is -rstd^3 mean(x * dx). Scaling x
    changes nothing, so dx has no component along x (except for eps). dweight None: the weight is frozen.
    """
    kernels_of(dout).rmsnorm_backward(dx, dweight, dout, x, weight, rstd)


def layernorm_forward(out, mean, rstd, x, weight, bias, eps):
    """out = (x - mean) * rstd * weight + bias,   rstd = (var(x) + eps)^(-1/2)

    out, x (N, D)   mean, rstd (N,)   weight (D,)   bias (D,) or None   (Ba et al. 2016)
    """
    kernels_of(out).layernorm_forward(out, mean, rstd, x, weight, bias, eps)


def layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd):
    """With g = dout * weight and x^ = (x - mean) * rstd:

    dx += rstd * (g - mean(g) - x^ * mean(g * x^)),   dweight += sum_n dout * x^,   dbias += sum_n dout

    Shifting or scaling x changes nothing, so dx has no component along the constant vector, nor along x^ (except for
    eps). dweight None: weight and bias are frozen.
    """
    kernels_of(dout).layernorm_backward(dx, dweight, dbias, dout, x, weight, mean, rstd)


def head_norm_forward(
    out,
    rstd,
    qkv,
    q_weight,
    k_weight,
    heads,
    kv_heads,
    eps,
):
    """Per head of queries and keys:   out = x * rstd * weight,   rstd = (mean(x^2) + eps)^(-1/2).   Values are copied.

    out, qkv            (N, (H + 2 K) w): queries | keys | values
    rstd                (N, H + K)
    q_weight, k_weight  (w,), shared by the heads of queries and by those of keys
    Source: Dehghani et al., Scaling Vision Transformers to 22 Billion Parameters, 2023; with RMSNorm as in Qwen3.
    """
    kernels_of(out).head_norm_forward(
        out,
        rstd,
        qkv,
        q_weight,
        k_weight,
        heads,
        kv_heads,
        eps,
    )


def head_norm_backward(
    qkv,
    dq_weight,
    dk_weight,
    dout,
    q_weight,
    k_weight,
    rstd,
    heads,
    kv_heads,
):
    """Per head, with g = dout * weight and x^ = x * rstd:   dx = rstd * (g - x^ * mean(g * x^)),   dv = dout

    dq_weight += the sum of dout * x^ over tokens and query heads, dk_weight over key heads. The derivation is that of
    `rmsnorm_backward`. qkv (N, (H + 2 K) w), which forward read, becomes its gradient.
    """
    kernels_of(qkv).head_norm_backward(
        qkv,
        dq_weight,
        dk_weight,
        dout,
        q_weight,
        k_weight,
        rstd,
        heads,
        kv_heads,
    )
