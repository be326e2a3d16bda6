"""Token embedding with its positions: rows of a table (V, D) picked forward and summed backward; size N x D of V.

Bytes: each row of the table that stands in the text once (twice where it is added to), and the N rows of out or dout.
"""

import numpy as np
from kernel_bench import RNG, F, autograd, bench, call, empty_like, normal, pair

from slm_np import ops


def cases(config, batch):
    T, d, learned = config.block_size, config.n_embd, config.positions == "learned"
    tokens = RNG.integers(0, config.vocab_size, (batch, T)).astype(np.int32)
    weight, dout, positions = normal(config.vocab_size, d), normal(batch * T, d), normal(T, d) if learned else None
    tables = (weight, positions) if learned else (weight,)
    out, *gradients = empty_like(dout, *tables)
    rows = 4 * d * (np.unique(tokens).size + (T if learned else 0))

    def embed():
        out = weight[tokens]
        if learned:
            out += positions
        return [out]

    def embed_backward():
        dweight = np.zeros_like(weight)
        np.add.at(dweight, tokens.reshape(-1), dout)
        return [dweight, dout.reshape(batch, T, d).sum(0)] if learned else [dweight]

    yield from pair(
        "embedding",
        f"{batch * T} x {d} of {config.vocab_size}",
        "GB/s",
        (rows + out.nbytes, 2 * rows + dout.nbytes),
        (
            call(ops.embedding_forward, 1, out, tokens, weight, positions),
            call(
                lambda *gradients: ops.embedding_backward(
                    gradients[0], gradients[1] if learned else None, dout, tokens
                ),
                len(tables),
                *gradients,
            ),
        ),
        (embed, embed_backward),
        autograd(
            lambda tokens, weight, *positions: sum(positions, F.embedding(tokens, weight)),
            (tokens, *tables),
            dout.reshape(batch, T, d),
        ),
    )


if __name__ == "__main__":
    bench(cases)
