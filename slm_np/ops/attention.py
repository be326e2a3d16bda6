"""Causal multi-head attention with grouped queries.

Sizes: B batch, T steps, N = B T, H query heads, K key-value heads, w head width. Key head h serves the query heads
h H/K ... (h+1) H/K - 1.
"""

from slm_np.ops.device import kernels_of


def attention_forward(
    out,
    lse,
    scratch,
    qkv,
    heads,
    kv_heads,
    steps,
    dropout,
    window=0,
    scale=None,
):
    """Per head:  S = scale q k^T,   P = softmax(S) over the keys that the query sees,   out = dropout(P) v.

    out      (N, H w)
    lse      (B H, T) = log sum exp S, which backward reads
    scratch  of shape kernels.attention_scratch(T, w, B H)
    qkv      (N, (H + 2 K) w): queries | keys | values
    dropout  Dropout or None
    window   query i sees the keys j with i - window < j <= i; 0: all keys j <= i
    scale    of the scores; None: 1 / sqrt(w)
    The fast kernels take a block of queries at a time (Dao et al. 2022), so no (T, T) matrix exists.
    """
    kernels_of(out).attention_forward(
        out,
        lse,
        scratch,
        qkv,
        heads,
        kv_heads,
        steps,
        dropout,
        window,
        scale,
    )


def attention_backward(
    qkv,
    scratch,
    dout,
    out,
    lse,
    heads,
    kv_heads,
    steps,
    dropout,
    window=0,
    scale=None,
):
    """With P = exp(S - lse) again:   dP = dropout(dout v^T),   dS = scale P * (dP - sum_j P dP),

    dq = dS k,   dk = dS^T q,   dv = dropout(P)^T dout;   dk and dv are summed over the query heads of a group.

    Derivation, per head: out = dropout(P) v is a matmul, so its inputs' gradients are dropout(P)^T dout and dout v^T,
    and dropout applies the same mask to the latter. P = softmax(S) has the Jacobian dP_i/dS_j = P_i ([i = j] - P_j),
    which gives P * (dP - sum_j P dP). S = scale q k^T is a matmul again: dq = dS k, dk = dS^T q, with the scale in
    dS. Keys that a query does not see have P = 0, and so dS = 0. Also sum_j P dP = <dout, out>, which saves a GPU a
    matmul.

    qkv (N, (H + 2 K) w) becomes its gradient; out (N, H w) and lse (B H, T) are those of forward.
    """
    kernels_of(qkv).attention_backward(
        qkv,
        scratch,
        dout,
        out,
        lse,
        heads,
        kv_heads,
        steps,
        dropout,
        window,
        scale,
    )


def attention_step(
    out,
    keys,
    values,
    qkv,
    heads,
    kv_heads,
    position,
    window=0,
    scale=None,
):
    """Attention of one new token per sequence, whose key and value enter the cache at slot position % T.

    out           (B, H w)
    keys, values  (B, K, T, w): the cache, a ring that keeps the newest T tokens
    qkv           (B, (H + 2 K) w)
    position      how many tokens came before: an int, or a device array of one element
    window        the token sees the newest `window` tokens, itself included; 0: all T in the cache
    scale         of the scores; None: 1 / sqrt(w)
    """
    kernels_of(out).attention_step(
        out,
        keys,
        values,
        qkv,
        heads,
        kv_heads,
        position,
        window,
        scale,
    )
