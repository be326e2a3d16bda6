"""Causal multi-head attention with grouped queries. Sizes: B batch, T steps, N = B T, H query heads, K key-value heads, w head width."""

from slm_np.ops.device import kernels_of


def attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout):
    """For each head:  S = q k^T / sqrt(w),   P = softmax(S) over keys no later than the query,   out = dropout(P) v,   lse = log sum exp S

    out (N, H w)   lse (B H, T)   qkv (N, (H + 2 K) w): queries, then keys, then values; key head h serves queries h H/K ... (h+1) H/K - 1.
    scratch: what `attention_scratch` says. A block of queries at a time (Dao et al. 2022): no (T, T) matrix exists.
    """
    kernels_of(out).attention_forward(out, lse, scratch, qkv, heads, kv_heads, steps, dropout)


def attention_backward(qkv, scratch, dout, out, lse, heads, kv_heads, steps, dropout):
    """P = exp(S - lse) again,   dP = dropout(dout v^T),   dS = P * (dP - sum_j P dP) / sqrt(w):

    dq = dS k,   dk = dS^T q,   dv = dropout(P)^T dout, the last two summed over the query heads of a group.
    qkv (N, (H + 2 K) w) becomes its gradient in place; out (N, H w) and lse (B H, T) are forward's.
    The softmax's derivative is P * (dP - <P, dP>) because its outputs sum to one. <P, dP> = <dout, out>, by which a GPU saves a product (Dao et al. 2022).
    """
    kernels_of(qkv).attention_backward(qkv, scratch, dout, out, lse, heads, kv_heads, steps, dropout)


def attention_scratch(block_size, width, tasks, array):
    """Shape of the scratch that attention over `block_size` tokens, `tasks` heads in all (B H) that are `width` wide, wants on the device of `array`."""
    return kernels_of(array).attention_scratch(block_size, width, tasks)
