"""Sampling: from one row of logits to one token.

A filter takes (ids, logits), the tokens still in play in ascending order of id and their logits, and returns them changed or fewer. It
computes in float64; the logits come as the model has them, so that top-k need not widen a vocabulary of which it leaves little.
`distribution` chains the filters, by default in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature. (The
transformers library applies the temperature right after the penalty, so the same numbers cut more or less there.)
"""

import math

import numpy as np

from slm_np.errors import UserError
from slm_np.formats.generation_config import GREEDY


def softmax(logits):
    """exp(z - max z) / sum exp(z - max z) of a row (N,)."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def repetition_penalty(ids, logits, recent, penalty):
    """z / penalty where z > 0, z * penalty elsewhere, for ids among `recent`. Source: CTRL (Keskar et al. 2019), with llama.cpp's signs."""
    if penalty == 1 or len(recent) == 0:
        return ids, logits
    logits = np.asarray(logits, np.float64)
    weakened = np.where(logits > 0, logits / penalty, logits * penalty)
    return ids, np.where(np.isin(ids, recent), weakened, logits)


def top_k(ids, logits, k):
    """The k largest logits; at a tie the lower id stays. Source: Fan et al. 2018."""
    if not 0 < k < len(ids):
        return ids, logits
    if len(ids) >= 8 * k:
        # The k-th largest of the blocks' maxima is no more than the k-th largest of all, and little reaches it: a look instead of a partition.
        size = len(ids) // (4 * k)
        reached = np.flatnonzero(logits >= np.partition(logits[: 4 * k * size].reshape(4 * k, size).max(1), -k)[-k])
        ids, logits = ids[reached], logits[reached]
    threshold = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > threshold)
    kept = np.sort(np.concatenate([above, np.flatnonzero(logits == threshold)[: k - len(above)]]))
    return ids[kept], logits[kept]


def top_p(ids, logits, p):
    """The smallest set of likeliest tokens whose probability reaches p, the one that crosses p included; at a tie the lower id comes first.

    Source: nucleus sampling, Holtzman et al. 2019.
    """
    if p == 1:
        return ids, logits
    probabilities = softmax(logits)
    # N tokens below (1 - p) / N are together below 1 - p: the others reach p without them, and only those need sorting.
    likely = np.flatnonzero(probabilities >= (1 - p) / len(ids))
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    # The sum of nine tenths rounds to just below 0.9, yet it reaches it: allow for the rounding.
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
    """z / temp; up to a temperature of 1e-6 the largest logit alone, of the lowest id at a tie."""
    if temp <= GREEDY:
        best = np.argmax(logits)
        return ids[best : best + 1], logits[best : best + 1]
    return ids, np.asarray(logits, np.float64) / temp


def distribution(logits, settings, recent=()):
    """(ids, probabilities), both (N,) with N <= V, that `sample` draws from.

    logits  (V,), any float type; -inf rules a token out
    recent  ids of the text so far, latest last
    Raises UserError if a logit is NaN or +inf, or if all are -inf.
    """
    logits = np.asarray(logits)
    if logits.ndim != 1:
        raise ValueError(f"logits have shape {logits.shape}; one row (V,) is sampled at a time")
    ids, logits = checked(logits)
    recent = recent[len(recent) - min(settings.repeat_last_n, len(recent)) :]
    steps = {
        "penalty": lambda row: repetition_penalty(*row, recent, settings.repeat_penalty),
        "top-k": lambda row: top_k(*row, settings.top_k),
        "top-p": lambda row: top_p(*row, settings.top_p),
        "min-p": lambda row: min_p(*row, settings.min_p),
        "temp": lambda row: temperature(*row, settings.temp),
    }
    for name in settings.samplers.split(","):
        ids, logits = steps[name]((ids, logits))
    return ids, softmax(logits)


def checked(logits):
    """(ids, logits) of the tokens of a row (V,) that are not ruled out. UserError if there is none, or a logit is NaN or +inf."""
    high, low = float(logits.max()), float(logits.min())
    if not high < math.inf:
        raise UserError(
            "the model's logits hold NaN or infinity, it has diverged; use an earlier checkpoint, or train with a lower --learning-rate"
        )
    if high == -math.inf:
        raise UserError("every token is ruled out (all logits are -inf); allow at least one")
    ids = np.arange(len(logits)) if low > -math.inf else np.flatnonzero(logits > -np.inf)
    logits = logits if low > -math.inf else logits[ids]
    # Within 1e290 neither the penalty nor the temperature, whatever their order, leaves the range of float64.
    return ids, np.clip(logits, -1e290, 1e290) if max(high, -low) > 1e290 and logits.dtype == np.float64 else logits


def confidence(logits, id):
    """(probability of the likeliest token, probability of the token `id`): softmax of the row (V,) at temperature 1, nothing cut or penalised."""
    weights = np.exp(logits - logits.max(), dtype=np.float64)
    return 1 / weights.sum(), weights[id] / weights.sum()


def uniform(seed, stream, counter):
    """A number in [0, 1) with 53 random bits that depends on these three integers alone.

    Counter-based, so it does not matter what was drawn before. Source: Philox, Salmon et al. 2011. The raw bits are used because NumPy
    promises them to stay the same in all versions.
    """
    bits = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([0, counter, 0, 0], np.uint64)
    ).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def sample(logits, settings, recent, counter, stream=0):
    """The id of the next token, drawn from `distribution(logits, settings, recent)`, whose errors it raises.

    counter  position of the token in the text; stream: which of several texts. Both, with settings.seed, choose the random number.
    """
    ids, probabilities = distribution(logits, settings, recent)
    cumulative = np.cumsum(probabilities)
    # side="right" steps over tokens of probability 0; u < 1 keeps the index inside.
    return int(ids[np.searchsorted(cumulative, uniform(settings.seed, stream, counter) * cumulative[-1], side="right")])
