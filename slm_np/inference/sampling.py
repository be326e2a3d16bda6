"""Sampling: from one row of logits to one token.

A filter takes (ids, logits), the tokens that are still candidates in ascending order of id and their logits, and
returns fewer of them or changes the logits. It computes in float64. The logits come in the model's dtype, so that top-k
does not convert a large vocabulary to keep little of it. `distribution` chains the filters, by default in
llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature. (Hugging Face's transformers apply the
temperature right after the penalty, so there the same settings keep more or fewer tokens.)

Sizes: V vocabulary, N candidates.
"""

import math

import numpy as np

from slm_np.errors import UserError
from slm_np.formats.generation_config import GREEDY

LIMIT = 1e290  # larger float64 logits are clipped: then neither penalty nor temperature overflows, in any order


def softmax(logits):
    """exp(z - max z) / sum exp(z - max z)        logits (N,)"""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def repetition_penalty(ids, logits, recent, penalty):
    """z / penalty where z > 0, else z * penalty, for ids among `recent`

    Source: CTRL (Keskar et al. 2019), with the signs of llama.cpp.
    """
    if penalty == 1 or len(recent) == 0:
        return ids, logits
    logits = np.asarray(logits, np.float64)
    penalized = np.where(logits > 0, logits / penalty, logits * penalty)
    return ids, np.where(np.isin(ids, recent), penalized, logits)


def top_k(ids, logits, k):
    """The k largest logits; of equal ones those with the lowest ids. Source: Fan et al. 2018."""
    if not 0 < k < len(ids):
        return ids, logits
    if len(ids) >= 8 * k:
        # The k-th largest of the blocks' maxima is at most the k-th largest logit, and few logits reach it. One
        # comparison of all logits is cheaper than a partition of them.
        size = len(ids) // (4 * k)
        maxima = logits[: 4 * k * size].reshape(4 * k, size).max(1)
        candidates = np.flatnonzero(logits >= np.partition(maxima, -k)[-k])
        ids, logits = ids[candidates], logits[candidates]
    threshold = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > threshold)
    kept = np.sort(np.concatenate([above, np.flatnonzero(logits == threshold)[: k - len(above)]]))
    return ids[kept], logits[kept]


def top_p(ids, logits, p):
    """The fewest likeliest tokens that together have probability p, including the one that crosses p; equal ones by id.

    Source: nucleus sampling, Holtzman et al. 2019.
    """
    if p == 1:
        return ids, logits
    probabilities = softmax(logits)
    # N tokens that are each below (1 - p) / N are together below 1 - p. The others reach p without them, and only the
    # others need sorting.
    likely = np.flatnonzero(probabilities >= (1 - p) / len(ids))
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    # Nine times 0.1 sum to just below 0.9 by rounding, yet they reach it: hence the tolerance.
    count = np.searchsorted(np.cumsum(probabilities[order]), p - 1e-12) + 1
    kept = np.sort(order[:count])
    return ids[kept], logits[kept]


def min_p(ids, logits, p):
    """Tokens at least p times as likely as the likeliest: z >= max z + ln p. Source: Nguyen et al. 2024."""
    if p == 0:
        return ids, logits
    logits = np.asarray(logits, np.float64)
    kept = logits >= logits.max() + math.log(p)
    return ids[kept], logits[kept]


def temperature(ids, logits, temp):
    """z / temp; for temp up to 1e-6 only the largest logit, of equal ones that with the lowest id"""
    if temp <= GREEDY:
        best = np.argmax(logits)
        return ids[best : best + 1], logits[best : best + 1]
    return ids, np.asarray(logits, np.float64) / temp


def distribution(logits, settings, recent=()):
    """(ids, probabilities), both (N,), N <= V, of the tokens that `sample` draws from.

    logits    (V,), any float dtype; -inf excludes a token
    settings  SamplingConfig
    recent    ids of the sequence so far, the latest last
    Raises UserError if a logit is NaN or +inf, or if all are -inf.
    """
    logits = np.asarray(logits)
    if logits.ndim != 1:
        raise ValueError(f"logits have shape {logits.shape}; one row (V,) is sampled at a time")
    ids, logits = candidates_of(logits)
    recent = recent[len(recent) - min(settings.repeat_last_n, len(recent)) :]
    filters = {
        "penalty": lambda row: repetition_penalty(*row, recent, settings.repeat_penalty),
        "top-k": lambda row: top_k(*row, settings.top_k),
        "top-p": lambda row: top_p(*row, settings.top_p),
        "min-p": lambda row: min_p(*row, settings.min_p),
        "temp": lambda row: temperature(*row, settings.temp),
    }
    for name in settings.samplers.split(","):
        ids, logits = filters[name]((ids, logits))
    return ids, softmax(logits)


def candidates_of(logits):
    """(ids, logits) of the tokens of a row (V,) that are not excluded. Raises UserError as `distribution`."""
    highest, lowest = float(logits.max()), float(logits.min())
    if not highest < math.inf:
        raise UserError(
            "the logits contain NaN or infinity, so the model has diverged; train it with a lower --learning-rate"
        )
    if highest == -math.inf:
        raise UserError("every token is excluded (all logits are -inf); allow at least one")
    ids = np.arange(len(logits)) if lowest > -math.inf else np.flatnonzero(logits > -np.inf)
    logits = logits if lowest > -math.inf else logits[ids]
    too_large = logits.dtype == np.float64 and max(highest, -lowest) > LIMIT
    return ids, np.clip(logits, -LIMIT, LIMIT) if too_large else logits


def confidence(logits, id):
    """(probability of the likeliest token, probability of token `id`): softmax of a row (V,), before any filter"""
    weights = np.exp(logits - logits.max(), dtype=np.float64)
    return 1 / weights.sum(), weights[id] / weights.sum()


def uniform(seed, substream, counter):
    """A number in [0, 1) with 53 random bits, a function of these three integers.

    It is counter-based, so earlier draws do not matter. Source: Philox, Salmon et al. 2011. The raw bits are used
    because NumPy guarantees that they stay the same in all versions.
    """
    key, counters = np.array([seed, substream], np.uint64), np.array([0, counter, 0, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=counters).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def sample(logits, settings, recent, counter, substream=0):
    """The id of the next token, drawn from `distribution(logits, settings, recent)`.

    counter    how many tokens of the sequence were drawn before
    substream  which sequence's random numbers; the seed, the substream and the counter select the number
    Raises UserError as `distribution`.
    """
    ids, probabilities = distribution(logits, settings, recent)
    cumulative = np.cumsum(probabilities)
    threshold = uniform(settings.seed, substream, counter) * cumulative[-1]  # below the last one
    return int(ids[np.searchsorted(cumulative, threshold, side="right")])  # "right" skips tokens of probability 0
