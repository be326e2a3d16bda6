"""Sampling: from one row of logits to one token.

A filter takes (ids, logits), the tokens still in play in ascending order of id and their float64 logits, and returns them changed or
fewer. `distribution` chains the filters in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature. (The transformers
library applies the temperature right after the penalty, so the same numbers cut more or less there.)
"""
import math
from dataclasses import dataclass

import numpy as np

from slm_np.config import check, setting
from slm_np.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""
    temp: float = setting(0.8, "temperature: logits are divided by it; 0 always takes the likeliest token", low=0.0)
    top_k: int = setting(40, "keep the k likeliest tokens; 0 is off", low=0)
    top_p: float = setting(0.95, "keep the fewest likeliest tokens whose probability reaches p; 1 is off", above=0.0, high=1.0)
    min_p: float = setting(0.05, "keep tokens at least this share as likely as the likeliest; 0 is off", low=0.0, high=1.0)
    repeat_penalty: float = setting(1.0, "weakens tokens that occurred lately; 1 is off", above=0.0, high=1e6)
    repeat_last_n: int = setting(64, "how many tokens back the penalty looks; 0 is off", low=0)
    seed: int = setting(0, "seed of the draws", low=0, high=(1 << 63) - 1)

    def __post_init__(self):
        check(self)
        if self.min_p == 1.0:
            raise UserError(f"--min-p is {self.min_p}; it must be less than 1 (for the likeliest token alone use --temp 0)")


# The names that generation_config.json has for them in Hugging Face's layout.
GENERATION_NAMES = dict(temp="temperature", top_k="top_k", top_p="top_p", min_p="min_p", repeat_penalty="repetition_penalty")


def to_generation_config(settings):
    """The fields of generation_config.json for a `SamplingConfig`."""
    return {"do_sample": settings.temp > 0} | {theirs: getattr(settings, ours) for ours, theirs in GENERATION_NAMES.items()}


def from_generation_config(fields, **others):
    """A `SamplingConfig` from the fields of generation_config.json, then `others`. UserError for values out of range; unknown fields of
    the layout are passed over, as other programs add theirs."""
    given = {ours: fields[theirs] for ours, theirs in GENERATION_NAMES.items() if theirs in fields}
    return SamplingConfig(**(given | others))


def softmax(logits):
    """exp(z - max z) / sum exp(z - max z) of a row (N,)."""
    with np.errstate(over="ignore"):  # a difference beyond the largest float64 becomes -inf, and its probability the 0 that it is
        weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def repetition_penalty(ids, logits, recent, penalty):
    """z / penalty where z > 0, z * penalty elsewhere, for ids among `recent`. Source: CTRL (Keskar et al. 2019), with llama.cpp's signs."""
    if penalty == 1 or len(recent) == 0:
        return ids, logits
    weakened = np.where(logits > 0, logits / penalty, logits * penalty)
    return ids, np.where(np.isin(ids, recent), weakened, logits)


def top_k(ids, logits, k):
    """The k largest logits; at a tie the lower id stays. Source: Fan et al. 2018."""
    if not 0 < k < len(ids):
        return ids, logits
    threshold = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > threshold)
    kept = np.sort(np.concatenate([above, np.flatnonzero(logits == threshold)[:k - len(above)]]))
    return ids[kept], logits[kept]


def top_p(ids, logits, p):
    """The smallest set of likeliest tokens whose probability reaches p, the one that crosses p included; at a tie the lower id comes first.

    Source: nucleus sampling, Holtzman et al. 2019.
    """
    if p == 1:
        return ids, logits
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")
    # The sum of nine tenths rounds to just below 0.9, yet it reaches it: allow for the rounding.
    count = np.searchsorted(np.cumsum(probabilities[order]), p - 1e-12) + 1
    kept = np.sort(order[:count])
    return ids[kept], logits[kept]


def min_p(ids, logits, p):
    """Tokens at least p times as likely as the likeliest: z >= max z + ln p. Source: Nguyen et al. 2024."""
    if p == 0:
        return ids, logits
    kept = logits >= logits.max() + math.log(p)
    return ids[kept], logits[kept]


def temperature(ids, logits, temp):
    """(z - max z) / temp, whose softmax is that of z / temp but does not overflow. temp 0 leaves the largest logit, of the lowest id."""
    if temp == 0:
        best = np.argmax(logits)
        return ids[best:best + 1], np.zeros(1)
    with np.errstate(over="ignore"):
        return ids, (logits - logits.max()) / temp


def distribution(logits, settings, recent=()):
    """(ids, probabilities), both (N,) with N <= V, that `sample` draws from.

    logits  (V,), any float type; -inf rules a token out
    recent  ids of the text so far, latest last
    Raises UserError if a logit is NaN or +inf, or if all are -inf.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 1:
        raise ValueError(f"logits have shape {logits.shape}; one row (V,) is sampled at a time")
    ids = np.flatnonzero(logits > -np.inf)
    if not np.all(logits < np.inf):
        raise UserError("the model's logits hold NaN or infinity, it has diverged; use an earlier checkpoint, or train with a lower --learning-rate")
    if len(ids) == 0:
        raise UserError("every token is ruled out (all logits are -inf); allow at least one")
    logits = logits[ids]
    recent = recent[len(recent) - min(settings.repeat_last_n, len(recent)):]
    ids, logits = repetition_penalty(ids, logits, recent, settings.repeat_penalty)
    ids, logits = top_k(ids, logits, settings.top_k)
    ids, logits = top_p(ids, logits, settings.top_p)
    ids, logits = min_p(ids, logits, settings.min_p)
    ids, logits = temperature(ids, logits, settings.temp)
    return ids, softmax(logits)


def uniform(seed, stream, counter):
    """A number in [0, 1) with 53 random bits that depends on these three integers alone.

    Counter-based, so it does not matter what was drawn before. Source: Philox, Salmon et al. 2011. The raw bits are used because NumPy
    promises them to stay the same in all versions.
    """
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, counter, 0, 0], np.uint64)).random_raw()
    return (int(bits) >> 11) * 2.0 ** -53


def sample(logits, settings, recent, counter, stream=0):
    """The id of the next token, drawn from `distribution(logits, settings, recent)`, whose errors it raises.

    counter  position of the token in the text; stream: which of several texts. Both, with settings.seed, choose the random number.
    """
    ids, probabilities = distribution(logits, settings, recent)
    cumulative = np.cumsum(probabilities)
    # side="right" steps over tokens of probability 0; u < 1 keeps the index inside.
    return int(ids[np.searchsorted(cumulative, uniform(settings.seed, stream, counter) * cumulative[-1], side="right")])
