"""A counting baseline: n-grams with interpolated absolute discounting, which every table of losses has beside it.

    python benchmarks/ngram.py --data FILE [--tokenizer char|byte] [--split tail|blocks] [--orders 8] [--json FILE]

A model is worth training only below the loss that counting reaches in a second. With c(h w) the count of w after the
history h of k - 1 tokens, u(h) the number of different tokens after it, and h' the history without its first token,
    p_k(w | h) = (max(c(h w) - d, 0) + d u(h) p_(k-1)(w | h')) / c(h),   p_0 = 1 / V,   d = 0.75,
and p_k = p_(k-1) where c(h) is 0 (Ney, Essen and Kneser 1994). Nothing is tuned but the order, which is read off the
validation split itself.
"""

import argparse
import math
import time

import checkout  # noqa: F401
import numpy as np
from measure import write_json
from tasks import SPLITS, split_text

from slm_np.data.tokenizer_factory import make_tokenizer
from slm_np.errors import UserError, command

DISCOUNT = 0.75


def losses(train, validation, vocab_size, orders):
    """Mean loss of the validation tokens in nats, by order from 1 on. train, validation: integer arrays."""
    found, p = [], np.full(len(validation), 1 / vocab_size)
    history, seen = np.zeros(len(train), np.int64), np.zeros(len(validation), np.int64)  # number of h; -1 if unknown
    for _ in range(orders):
        known = history >= 0
        grams, inverse, counts = np.unique(
            history[known] * vocab_size + train[known], return_inverse=True, return_counts=True
        )
        after, different = np.bincount(history[known]), np.bincount(grams // vocab_size)  # c(h), u(h)
        code = seen * vocab_size + validation
        place = np.minimum(np.searchsorted(grams, code), len(grams) - 1)
        place = np.where((seen >= 0) & (grams[place] == code), place, -1)
        count = np.where(place >= 0, counts[place], 0)
        p = np.where(
            seen >= 0,
            (np.maximum(count - DISCOUNT, 0) + DISCOUNT * different[seen] * p) / after[seen],
            p,
        )
        found.append(float(-np.log(p).mean()))
        gram = np.full(len(train), -1)
        gram[known] = inverse
        history, seen = (np.concatenate([[-1], one[:-1]]) for one in (gram, place))
    return found


def counted(train, validation, tokenizer, orders=8):
    """(losses by order in nats per token, seconds) of two texts (bytes). tokenizer: byte or char"""
    started = time.perf_counter()
    made = make_tokenizer(tokenizer, [lambda: [train], lambda: [validation]], progress=False)
    found = losses(*(made.encode(text).astype(np.int64) for text in (train, validation)), made.vocab_size, orders)
    return found, time.perf_counter() - started


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="n-grams with interpolated absolute discounting.")
    parser.add_argument("--data", required=True, help="a text file")
    parser.add_argument("--tokenizer", default="byte", choices=("byte", "char"), help="(default: %(default)s)")
    parser.add_argument("--split", default="tail", choices=tuple(SPLITS), help="held-out text (default: %(default)s)")
    parser.add_argument("--orders", type=int, default=8, help="the longest n-gram (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the result into FILE")
    args = parser.parse_args(argv)
    if args.orders < 1:
        raise UserError(f"--orders is {args.orders}; it must be at least 1")
    found, seconds = counted(*split_text(args.data, args.split), args.tokenizer, args.orders)
    print("| order | nats per token | bits per token |\n|---|---|---|")
    for order, loss in enumerate(found, 1):
        print(f"| {order} | {loss:.3f} | {loss / math.log(2):.3f} |")
    print(f"counted in {seconds:.1f} s")
    if args.json:
        write_json(args.json, dict(data=args.data, split=args.split, losses=found, seconds=seconds))


if __name__ == "__main__":
    main()
