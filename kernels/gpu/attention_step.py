"""Attention of one decoded token: one query per sequence and head over the newest keys in the cache.

A warp takes eight keys at a time, its lanes have the columns. At the end the block combines the sums of its warps.
"""

from .attention import score_scale
from .source import Kernel

step_kernel = Kernel(
    "attention_step",
    r"""
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_step(Storage* out, Cached* keys, Cached* values, const Storage* qkv, int heads, int kv_heads, int slots,
               int window, Accum scale, Scalar<int> position) {
    constexpr int PER_LANE = (W + 31) / 32, KEYS = 8;
    __shared__ Accum sums[WARPS][W], maxima[WARPS], totals[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int h = blockIdx.x % heads, group = heads / kv_heads, b = blockIdx.x / heads, kv = h / group;
    const int slot = position() % slots, length = min(position() + 1, window);  // of the keys that the token sees
    const int oldest = window < slots ? (slot - length + 1 + slots) % slots : 0;  // all slots are read in their order
    const Storage* q = qkv + ((size_t)b * (heads + 2 * kv_heads) + h) * W;
    const Storage *k = q + (heads - h + kv) * W, *v = k + kv_heads * W;
    keys += ((size_t)b * kv_heads + kv) * slots * W, values += ((size_t)b * kv_heads + kv) * slots * W;
    if (h % group == 0)  // one head per group stores the new key and value; all of them read these from qkv
        for (int c = threadIdx.x; c < W; c += 32 * WARPS) {
            keys[(size_t)slot * W + c] = store<Cached>(load(k[c]));
            values[(size_t)slot * W + c] = store<Cached>(load(v[c]));
        }
    Accum query[PER_LANE], sum[PER_LANE] = {}, largest = -INF, total = 0;
    for (int i = 0; i < PER_LANE; ++i) query[i] = lane + 32 * i < W ? load(q[lane + 32 * i]) * scale : 0;
    for (int start = warp * KEYS; start < length; start += WARPS * KEYS) {
        Accum score[KEYS], value[KEYS][PER_LANE], new_largest = largest;
        #pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            const int from = oldest + start + j, key = from < slots ? from : from - slots;  // its slot
            score[j] = 0;
            #pragma unroll
            for (int i = 0; i < PER_LANE; ++i) {
                const int c = lane + 32 * i;
                const bool exists = start + j < length && c < W, is_new = key == slot;
                const size_t index = (size_t)key * W + c;
                score[j] += exists ? query[i] * load(is_new ? store<Cached>(load(k[c])) : keys[index]) : 0;
                value[j][i] = exists ? load(is_new ? store<Cached>(load(v[c])) : values[index]) : 0;
            }
        }
        #pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            score[j] = start + j < length ? warp_sum(score[j]) : -INF;
            new_largest = larger(new_largest, score[j]);
        }
        const Accum factor = exp_(largest - new_largest);
        largest = new_largest, total *= factor;
        for (int i = 0; i < PER_LANE; ++i) sum[i] *= factor;
        #pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            const Accum p = exp_(score[j] - largest);
            total += p;
            #pragma unroll
            for (int i = 0; i < PER_LANE; ++i) sum[i] += p * value[j][i];
        }
    }
    for (int i = 0; i < PER_LANE; ++i) if (lane + 32 * i < W) sums[warp][lane + 32 * i] = sum[i];
    if (lane == 0) maxima[warp] = largest, totals[warp] = total;
    __syncthreads();
    largest = maxima[0];
    for (int w = 1; w < WARPS; ++w) largest = larger(largest, maxima[w]);
    for (int c = threadIdx.x; c < W; c += 32 * WARPS) {
        Accum denominator = 0, numerator = 0;
        for (int w = 0; w < WARPS; ++w) {
            const Accum factor = exp_(maxima[w] - largest);  // 0 for a warp without a key
            denominator += totals[w] * factor, numerator += sums[w][c] * factor;
        }
        out[((size_t)b * heads + h) * W + c] = store<Storage>(numerator / denominator);
    }
}""",
    variants=[
        dict(Storage=t, Cached=cached, W=width, WARPS=warps)
        for t, cached, width, warps in (
            ("float", "float", 33, 16),
            ("double", "double", 64, 16),
            ("bfloat16", "bfloat16", 64, 16),
            ("half", "float", 512, 8),
        )
    ],
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
    """Store the new keys and values of qkv in the caches, at slot position % T; out = attention to the newest keys

    out (B, H w)   keys, values (B, K, T, w)   qkv (B, (H + 2 K) w)   position: a number, or a device array of one int32
    """
    slots, width = keys.shape[2:]
    window = min(window or slots, slots)
    scale = score_scale(qkv, width) if scale is None else scale
    warps = max(1, min(16, 4096 // width))
    step_kernel(
        out.shape[0] * heads,
        (out, keys, values, qkv, heads, kv_heads, slots, window, scale, position),
        threads=32 * warps,
        Storage=qkv,
        Cached=keys,
        W=width,
        WARPS=warps,
    )
