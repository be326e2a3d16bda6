"""generation_config.json: a run's sampling defaults, under Hugging Face's names where its format has the field."""

from slm_np.config import SamplingConfig

GREEDY = 1e-6  # temperatures up to this count as 0: float32 logits can hardly differ by less than a few of them

# SamplingConfig's fields and the names in the file. The seed is missing: it is not a property of a run.
NAMES = dict(
    temp="temperature",
    top_k="top_k",
    top_p="top_p",
    min_p="min_p",
    repeat_penalty="repetition_penalty",
    repeat_last_n="repeat_last_n",
    samplers="samplers",
    min_confidence="min_confidence",
    confidence_patience="confidence_patience",
)


def to_generation_config(settings, **token_ids):
    """The fields of generation_config.json for a SamplingConfig.

    token_ids: bos_token_id and the like, for other programs, see interchange.py
    """
    sampling = {theirs: getattr(settings, ours) for ours, theirs in NAMES.items()}
    return {"do_sample": settings.temp > GREEDY} | sampling | token_ids


def from_generation_config(fields, **others):
    """A SamplingConfig from the fields of generation_config.json, with `others` on top.

    Unknown fields are ignored, since other programs add theirs. Raises UserError for values out of range.
    """
    given = {ours: fields[theirs] for ours, theirs in NAMES.items() if fields.get(theirs) is not None}
    greedy = {"temp": 0.0} if fields.get("do_sample") is False else {}  # other programs keep the unused temperature
    return SamplingConfig(**(given | greedy | others))
