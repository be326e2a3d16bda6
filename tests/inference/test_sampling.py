"""Sampling against brute force: small vocabularies whose probabilities plain Python can compute."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from slm_np.config import SAMPLERS, SamplingConfig
from slm_np.errors import UserError
from slm_np.formats.generation_config import from_generation_config, to_generation_config
from slm_np.inference.sampling import confidence, distribution, sample, top_k, uniform
from slm_np.presets import PRESETS, generation_defaults

PLAIN = SamplingConfig(temp=1.0, top_k=0, top_p=1.0, min_p=0.0)  # every filter off: the softmax


def brute_force(logits, settings, recent):
    """{id: probability} in plain Python, every filter from its definition, without the engine's code."""

    def probabilities(scores):
        most = max(scores.values())
        weights = {i: math.exp(z - most) for i, z in scores.items()}
        return {i: w / math.fsum(weights.values()) for i, w in weights.items()}

    def ranked(scores):
        return sorted(scores, key=lambda i: (-scores[i], i))

    def penalty(scores):
        lately = set(recent[-settings.repeat_last_n :] if settings.repeat_last_n else [])
        return {
            i: z if i not in lately else z / settings.repeat_penalty if z > 0 else z * settings.repeat_penalty
            for i, z in scores.items()
        }

    def k_likeliest(scores):
        return {i: scores[i] for i in ranked(scores)[: settings.top_k or None]}

    def nucleus(scores):
        if settings.top_p == 1:
            return scores
        # The smallest set, found by trying every size; ranked order makes it the likeliest of its size.
        likelihoods, order = probabilities(scores), ranked(scores)
        size = next(
            n
            for n in range(1, len(order) + 1)
            if math.fsum(likelihoods[i] for i in order[:n]) >= settings.top_p - 1e-12
        )
        return {i: scores[i] for i in order[:size]}

    def relative_threshold(scores):
        likelihoods = probabilities(scores)
        return {i: z for i, z in scores.items() if likelihoods[i] >= settings.min_p * max(likelihoods.values())}

    def tempered(scores):
        return {i: z / settings.temp for i, z in scores.items()} if settings.temp else {ranked(scores)[0]: 0.0}

    scores = {i: float(z) for i, z in enumerate(logits) if z > -math.inf}
    for name in settings.samplers.split(","):
        scores = dict(zip(SAMPLERS, (penalty, k_likeliest, nucleus, relative_threshold, tempered)))[name](scores)
    return probabilities(scores)


def ids_of(logits, settings, recent=()):
    return distribution(np.array(logits), settings, recent)[0].tolist()


def test_distribution_equals_brute_force():
    random, compared, cut = np.random.default_rng(0), 0, set()
    grid = itertools.product(
        (0.0, 0.5, 1.0, 3.0), (0, 1, 3, 50), (0.3, 0.9, 1.0), (0.0, 0.2, 0.9), (1.0, 0.7, 1.8), (0, 2, 64)
    )
    for temp, k, p, share, penalty, last in grid:
        settings = SamplingConfig(temp, k, p, share, penalty, last)
        logits = (random.standard_normal(random.integers(1, 12)) * 2).astype(np.float32)
        recent = random.integers(0, len(logits), random.integers(0, 6)).tolist()
        ids, probabilities = distribution(logits, settings, recent)
        expected = brute_force(logits, settings, recent)
        assert ids.tolist() == sorted(expected) and probabilities.dtype == np.float64, settings
        np.testing.assert_allclose(probabilities, [expected[i] for i in ids], rtol=1e-13, err_msg=str(settings))
        compared, cut = compared + 1, cut | {len(ids)}
    assert compared == 1296 and cut >= set(range(1, 12))


ORDERS = [",".join(order) for n in range(1, 6) for order in itertools.permutations(SAMPLERS, n)]


def test_every_order_of_every_choice_of_samplers():
    random, results = np.random.default_rng(3), {}
    logits = (random.standard_normal(9) * 2).astype(np.float32)
    for samplers in ORDERS:
        for temp in (0.0, 0.4, 2.5):
            settings = SamplingConfig(temp, 6, 0.9, 0.1, 1.7, 2, samplers=samplers)
            ids, probabilities = distribution(logits, settings, [4, 0, 7])
            expected = brute_force(logits, settings, [4, 0, 7])
            assert ids.tolist() == sorted(expected), settings
            np.testing.assert_allclose(probabilities, [expected[i] for i in ids], rtol=1e-12, err_msg=str(settings))
            results[samplers, temp] = tuple(np.round(probabilities, 9))
    assert len(ORDERS) == 325 and len(set(results.values())) > 20  # the order matters


@pytest.mark.parametrize("samplers", ["temp,top-p", "min-p,penalty,top-k", "temp,penalty,min-p,top-p,top-k", "penalty"])
def test_draws_follow_any_order(samplers):
    logits, n = np.array([2.0, 1.0, 0.5, 0.5, -1.0, -2.0, 1.5]), 4000
    settings = SamplingConfig(temp=1.3, top_k=6, top_p=0.95, min_p=0.05, repeat_penalty=1.5, seed=5, samplers=samplers)
    expected = brute_force(logits, settings, [0, 3])
    counts = np.bincount([sample(logits, settings, [0, 3], counter) for counter in range(n)], minlength=len(logits))
    ids = sorted(expected)
    assert counts[ids].sum() == n and chisquare(counts[ids], [n * expected[i] for i in ids]).pvalue > 1e-3


def test_draws_follow_the_distribution():
    logits, settings = (
        np.array([2.0, 1.0, 0.5, 0.5, -1.0, -9.0, 1.5]),
        SamplingConfig(temp=1.3, top_k=6, top_p=0.97, min_p=0.03, repeat_penalty=1.5, seed=11),
    )
    ids, probabilities = distribution(logits, settings, [0, 3])
    assert ids.tolist() == [0, 1, 2, 3, 6]
    n = 4000
    for draws in (
        [sample(logits, settings, [0, 3], counter) for counter in range(n)],
        [sample(logits, settings, [0, 3], 5, substream) for substream in range(n)],
        [sample(logits, replace(settings, seed=seed), [0, 3], 5) for seed in range(n)],
    ):
        counts = np.bincount(draws, minlength=len(logits))
        assert counts.sum() == counts[ids].sum() == n
        assert chisquare(counts[ids], probabilities * n).pvalue > 1e-3  # the seeds are fixed, so the result is too


def test_a_draw_depends_on_seed_substream_and_counter_only():
    logits = np.random.default_rng(1).standard_normal(50)
    settings = SamplingConfig(temp=2.0)
    sequences = {
        (seed, substream): [
            sample(logits, replace(settings, seed=seed), [], counter, substream) for counter in range(40)
        ]
        for seed in (0, 1)
        for substream in (0, 1)
    }
    assert len({tuple(ids) for ids in sequences.values()}) == 4 and len(set(sequences[0, 0])) > 5
    np.random.seed(3)  # neither the global generator nor the order of calls matters
    assert [sample(logits, settings, [], counter) for counter in reversed(range(40))] == sequences[0, 0][::-1]


def philox(key, counter):
    """The first word of Philox4x64-10 in plain integers. Source: Salmon et al. 2011."""
    (k0, k1), (c0, c1, c2, c3), mask = key, counter, (1 << 64) - 1
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & mask, (a >> 64) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c0


@pytest.mark.parametrize(
    "seed, substream, counter", [(0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), ((1 << 63) - 1, 7, 1 << 40)]
)
def test_uniform_is_philox_on_every_machine(seed, substream, counter):
    # NumPy increments the counter before it draws, hence the 1.
    assert uniform(seed, substream, counter) == (philox((seed, substream), (1, counter, 0, 0)) >> 11) / 2**53


def test_uniform_numbers_are_spread_over_the_unit_interval():
    numbers = np.array([uniform(3, 0, counter) for counter in range(4000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert chisquare(np.histogram(numbers, 20, (0, 1))[0]).pvalue > 1e-3


@pytest.mark.parametrize("top", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_never_draw_tokens_of_probability_zero(monkeypatch, top):
    monkeypatch.setattr("slm_np.inference.sampling.uniform", lambda *key: top)
    logits = np.array([-2000.0, -np.inf, 0.0, 0.1, 0.3, -np.inf, -2000.0])  # exp(-2000) is 0
    assert sample(logits, PLAIN, [], 0) == (2 if top == 0 else 4)


def test_greedy_and_almost_greedy():
    random = np.random.default_rng(2)
    for scale in (1.0, 1e30):
        for counter in range(50):
            logits = (random.standard_normal(20) * scale).astype(np.float32)
            for temp in (0.0, 1e-6, 1e-300, 5e-324):
                with np.errstate(all="raise", under="ignore"):
                    for samplers in (PLAIN.samplers, "temp,min-p,top-p,top-k,penalty", "temp"):
                        assert sample(logits, replace(PLAIN, temp=temp, samplers=samplers), [], counter) == np.argmax(
                            logits
                        )
    near = np.float32([1, np.nextafter(np.float32(1), np.float32(2)), 1])  # neighbors in float32
    assert {sample(near, replace(PLAIN, temp=1e-6), [], counter) for counter in range(50)} == {1}
    assert ids_of([1.0, 3.0, 3.0, 2.0], SamplingConfig(temp=0.0)) == [1]  # the lowest id at a tie
    assert ids_of([3.0, 2.9], SamplingConfig(temp=0.0, repeat_penalty=2.0), [0]) == [1]  # after the penalty


def test_a_high_temperature_makes_tokens_equally_likely():
    np.testing.assert_allclose(distribution(np.array([5.0, -5.0, 0.0]), replace(PLAIN, temp=1e9))[1], 1 / 3, rtol=1e-7)


def test_top_k_at_ties_and_beyond_the_vocabulary():
    assert ids_of([0.0, 1.0, 0.0, 2.0, 0.0], replace(PLAIN, top_k=3)) == [0, 1, 3]
    for k in (0, 5, 6, 10**9):
        assert ids_of([0.0, 1.0, 0.0, 2.0, 0.0], replace(PLAIN, top_k=k)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [7, 80, 999, 5000])
def test_top_k_is_that_of_a_sorted_vocabulary(size):
    random = np.random.default_rng(size)
    for values in (
        random.standard_normal(size),
        random.integers(0, 5, size),
        np.zeros(size),
        np.arange(size),
        -np.arange(size),
    ):
        for k in (1, 2, 7, 40, size - 1):
            row = values.astype(np.float32)
            ids, logits = top_k(np.arange(size) * 2, row, k)
            expected = np.sort(np.argsort(-row, kind="stable")[:k])  # the lower id at a tie
            assert ids.tolist() == (2 * expected).tolist() and np.array_equal(logits, row[expected])


def test_nucleus_of_a_large_vocabulary():
    random = np.random.default_rng(4)
    for scale in (0.0, 0.1, 3.0, 12.0):
        logits = (random.standard_normal(700) * scale).round(3)
        for p in (1e-9, 0.3, 0.9, 0.999, 1 - 1e-9):
            settings = replace(PLAIN, top_p=p)
            assert ids_of(logits, settings) == sorted(brute_force(logits, settings, [])), (scale, p)


def test_nucleus_contains_the_token_that_crosses_p():
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    for p, size in ((1e-300, 1), (0.25, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.88, 4), (1.0, 4)):
        assert ids_of(logits, replace(PLAIN, top_p=p)) == list(range(size)), p
    for n in range(1, 30):  # equal logits: k of n tokens reach k / n, however their sum is rounded
        for k in range(1, n + 1):
            assert ids_of([1.5] * n, replace(PLAIN, top_p=k / n)) == list(range(k))


def test_min_p_is_relative_to_the_likeliest():
    logits = np.log([0.6, 0.31, 0.05, 0.04])
    assert ids_of(logits, replace(PLAIN, min_p=0.5)) == [0, 1]
    assert ids_of(logits, replace(PLAIN, min_p=0.07)) == [0, 1, 2]
    assert ids_of(logits, replace(PLAIN, min_p=0.99)) == [0]


def test_truncation_comes_before_temperature():
    logits = np.log([0.7, 0.2, 0.1])
    for temp in (0.1, 1.0, 100.0):
        assert ids_of(logits, replace(PLAIN, temp=temp, top_p=0.85)) == [0, 1]
        assert ids_of(logits, replace(PLAIN, temp=temp, min_p=0.2)) == [0, 1]


def test_temperature_may_come_before_truncation():
    """At a high temperature the nucleus is wider."""
    logits = np.log([0.7, 0.2, 0.1])
    for temp, kept in ((0.1, [0]), (1.0, [0, 1]), (100.0, [0, 1, 2])):
        assert ids_of(logits, replace(PLAIN, temp=temp, top_p=0.85, samplers="temp,top-p")) == kept


def test_omitted_samplers_are_off():
    logits = np.array([1.0, 2.0, 0.0])
    settings = SamplingConfig(temp=0.0, top_k=1, top_p=0.1, min_p=0.9, repeat_penalty=9.0, samplers="penalty")
    np.testing.assert_array_equal(distribution(logits, settings)[1], distribution(logits, PLAIN)[1])


@pytest.mark.parametrize(
    "samplers, message",
    [
        ("top-q", "--samplers 'top-q' is unknown; did you mean top-p or top-k"),
        ("tempp", "did you mean temp"),
        ("temp,,top-k", "--samplers '' is unknown; known are penalty, top-k"),
        ("", "known are penalty"),
        ("temp,top-k,temp", "has 'temp' twice"),
        ("top-k, temp", "' temp' is unknown; did you mean temp"),
        ("temp;top-k", "did you mean"),
    ],
)
def test_unknown_and_repeated_samplers(samplers, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(samplers=samplers)


def test_confidence_is_the_plain_softmax():
    logits = np.log(np.float32([0.5, 0.3, 0.2]))
    for id, share in enumerate((0.5, 0.3, 0.2)):
        np.testing.assert_allclose(confidence(logits, id), (0.5, share), rtol=1e-6)
    np.testing.assert_allclose(confidence(np.array([-np.inf, 1e30, 1e30], np.float32), 1), (0.5, 0.5))


def test_repetition_penalty():
    settings, logits = replace(PLAIN, repeat_penalty=2.0, repeat_last_n=2), np.array([2.0, -1.0, 0.0, 1.0])
    np.testing.assert_allclose(
        np.log(distribution(logits, settings, [3, 0, 1])[1] / distribution(np.array([1.0, -2.0, 0.0, 1.0]), PLAIN)[1]),
        0,
        atol=1e-15,
    )
    for recent in ([0, 0], np.array([0, 0]), (0, 99)):  # penalized once; other ids are ignored
        np.testing.assert_array_equal(distribution(logits, settings, recent)[1], distribution(logits, settings, [0])[1])
    np.testing.assert_array_equal(
        distribution(logits, replace(settings, repeat_last_n=0), [0, 1])[1], distribution(logits, PLAIN)[1]
    )


def test_equal_logits_one_token_and_excluded_tokens():
    np.testing.assert_array_equal(distribution(np.zeros(8), PLAIN)[1], np.full(8, 0.125))
    for logits in ([-3.0], [-np.inf, 5.0, -np.inf]):
        ids, probabilities = distribution(np.array(logits), SamplingConfig(repeat_penalty=3.0), [0, 1])
        assert (
            len(ids) == 1
            and probabilities.tolist() == [1.0]
            and sample(np.array(logits), SamplingConfig(), [], 9) == ids[0]
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_huge_logits_do_not_overflow(dtype):
    big = np.finfo(dtype).max
    for settings in (
        PLAIN,
        SamplingConfig(),
        SamplingConfig(temp=1.1e-6, repeat_penalty=1e-6),
        SamplingConfig(temp=1.1e-6, repeat_penalty=1e6, samplers="temp,penalty,min-p"),
    ):
        with np.errstate(all="raise", under="ignore"):
            assert distribution(np.array([-big, big, 0], dtype), replace(settings, repeat_penalty=1.0))[1].max() == 1.0
            ids, probabilities = distribution(np.array([big, big], dtype), settings, [0, 1])
        assert ids.tolist() == [0, 1] and probabilities.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "logits, message",
    [
        ([0.0, np.nan], "NaN or infinity.*diverged"),
        ([np.inf, 0.0], "NaN or infinity"),
        ([np.nan] * 3, "NaN"),
        ([-np.inf, np.nan], "NaN"),
        ([-np.inf, -np.inf], "every token is excluded"),
    ],
)
def test_logits_without_a_distribution(logits, message):
    for settings in (SamplingConfig(), SamplingConfig(temp=0.0), PLAIN):
        with pytest.raises(UserError, match=message):
            sample(np.array(logits, np.float32), settings, [], 0)


def test_batched_logits_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        sample(np.zeros((1, 3)), SamplingConfig(), [], 0)


@pytest.mark.parametrize(
    "field, value",
    [
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("top_p", math.nan),
        ("min_p", 1.0),
        ("min_p", -0.1),
        ("temp", -1.0),
        ("temp", math.inf),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_confidence", 1.5),
        ("min_confidence", -0.1),
        ("confidence_patience", 0),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -1),
        ("seed", -1),
        ("seed", 1 << 63),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        SamplingConfig(**{field: value})


def test_generation_config_files_keep_all_settings():
    settings = SamplingConfig(
        temp=0.3,
        top_k=7,
        top_p=0.5,
        min_p=0.1,
        repeat_penalty=1.2,
        repeat_last_n=9,
        samplers="temp,top-p",
        min_confidence=0.15,
        confidence_patience=2,
    )
    fields = to_generation_config(settings)
    assert fields == {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 7,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "repeat_last_n": 9,
        "samplers": "temp,top-p",
        "min_confidence": 0.15,
        "confidence_patience": 2,
    }
    assert from_generation_config(fields | {"eos_token_id": 3, "max_length": None}) == settings
    assert from_generation_config(fields, temp=0.0, seed=4) == replace(settings, temp=0.0, seed=4)
    assert (
        from_generation_config({}) == SamplingConfig()
        and not to_generation_config(SamplingConfig(temp=0.0))["do_sample"]
    )
    assert from_generation_config({"do_sample": False, "temperature": 0.6, "top_k": None}) == SamplingConfig(
        temp=0.0
    )  # as other programs write them
    assert from_generation_config({"do_sample": False}, temp=0.6).temp == 0.6
    with pytest.raises(UserError, match="--top-p is 2.0"):
        from_generation_config({"top_p": 2})
    with pytest.raises(UserError, match="--samplers 'topk' is unknown"):
        from_generation_config({"samplers": "topk"})


def test_presets_have_sampling_defaults():
    made = {name: generation_defaults(name) for name in PRESETS}
    assert made["slim"] == SamplingConfig(min_confidence=0.15, confidence_patience=3)
    assert all(
        settings == SamplingConfig()
        for name, settings in made.items()
        if name != "slim" and not name.startswith("byte-ssm")
    )
    assert made["byte-ssm"] == SamplingConfig(samplers="temp,top-p")  # temperature first, then the nucleus
    with pytest.raises(UserError, match="did you mean slim"):
        generation_defaults("slimm")
