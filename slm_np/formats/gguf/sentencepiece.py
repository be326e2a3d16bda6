"""The tokenizer of kind llama in GGUF files, as SentencePiece runs byte-pair encoding: with scores instead of merges.

A text gets a space in front, spaces become U+2581, characters that are not tokens become the tokens of their bytes, and
the neighbors that make the token with the highest score are merged first. A tokenizer.json ranks pairs instead. The
two agree where each token results from one pair only, see `llama2c.tokenizer_json`.
"""

import math

from slm_np.data.library_tokenizer import steps_of
from slm_np.errors import UserError
from slm_np.formats.llama2c import last_merge

SPACE = "\u2581"
NORMAL, UNKNOWN, BYTE = 1, 2, 6  # types of tokens
BYTES = dict.fromkeys(f"<0x{byte:02X}>" for byte in range(256))


def to_metadata(fields, tokens, kinds):
    """The metadata of a tokenizer.json. UserError if scores cannot say the same as its merges.

    tokens, kinds: names and types of all ids
    """
    space, prefixed = _spaces(fields)
    if not BYTES.keys() <= set(tokens):
        raise _refused("it lacks tokens of bytes")
    if space != SPACE and any(SPACE in token for token in tokens):
        raise _refused(f"its tokens have the character {SPACE!r}, which stands for a space there")
    pairs = {}
    for rank, merge in enumerate(fields["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.setdefault(left + right, []).append((rank, (left, right)))
    ranks = [rank for found in pairs.values() for rank, _ in found]
    if ranks != sorted(ranks):  # the merges of one token lie together, so that the token has a rank
        raise _refused("its merges are not in the order of their tokens")
    scores = {token: float(-i) for i, token in enumerate(pairs)}
    lowest = float(-len(pairs) - 1)
    everything = {token: scores.get(token, lowest) for token in tokens}
    for token in tokens:
        if len(token) > 1 and token not in BYTES:
            merged = last_merge(token, everything)
            if merged and merged not in [pair for _, pair in pairs.get(token, [])]:
                raise _refused(f"its token {token!r} would be merged from other parts")
    kinds = [BYTE if token in BYTES else kind for token, kind in zip(tokens, kinds)]
    return dict(
        model="llama",
        pre="default",
        tokens=[token.replace(" ", SPACE) for token in tokens],
        scores=[everything[token] if kind == NORMAL else 0.0 for token, kind in zip(tokens, kinds)],
        token_type=kinds,
        add_space_prefix=prefixed,
    )


def _spaces(fields):
    """(what a space becomes in tokens, whether a text gets one in front). UserError for other steps."""
    steps = steps_of(fields.get("normalizer")) + steps_of(fields.get("pre_tokenizer"))
    space, prefixed = " ", False
    for step in steps:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] in (" ", SPACE):
            prefixed = True
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            space = SPACE
        elif kind == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            space, prefixed = SPACE, step.get("prepend_scheme", "always") != "never"
        elif kind == "Split" and step["pattern"] == {"String": " "} and step["behavior"] == "MergedWithNext":
            pass  # where spaces only begin tokens, it changes nothing
        else:
            raise _refused(f"it has the step {kind}")
    return space, prefixed


def _refused(reason):
    return UserError(
        f"llama.cpp cannot run this tokenizer of characters and bytes: {reason}; convert to a Hugging Face directory"
    )


def from_metadata(get, vocab, kinds):
    """The fields of tokenizer.json. vocab: {token: id}.   kinds: types.   get: the metadata, see tokenizer.py"""
    if not BYTES.keys() <= vocab.keys():
        raise get.damaged("it lacks tokens of bytes")
    scores = dict(zip(vocab, get.array("scores", float, len(vocab), None)))
    if not all(map(math.isfinite, scores.values())):
        raise get.damaged("scores are not finite")
    # Any two neighbors that make a token are merged, the highest score first.
    merges = sorted(
        (-scores[token], id, token, n)
        for token, id in vocab.items()
        if kinds[id] not in (UNKNOWN, BYTE)
        for n in range(1, len(token))
        if token[:n] in scores and token[n:] in scores
    )
    prefixed = get.value("add_space_prefix", bool, True)
    replaced = dict(type="Replace", pattern={"String": " "}, content=SPACE)
    shown_again = dict(type="Replace", pattern={"String": SPACE}, content=" ")
    strip = [dict(type="Strip", content=" ", start=1, stop=0)] * prefixed
    unknown = next((token for token, id in vocab.items() if kinds[id] == UNKNOWN), None)
    return dict(
        normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend=SPACE)] * prefixed + [replaced]),
        decoder=dict(type="Sequence", decoders=[shown_again, dict(type="ByteFallback"), dict(type="Fuse"), *strip]),
        model=dict(
            type="BPE",
            dropout=None,
            unk_token=unknown,
            continuing_subword_prefix=None,
            end_of_word_suffix=None,
            fuse_unk=True,
            byte_fallback=True,
            ignore_merges=False,
            vocab=vocab,
            merges=[[token[:n], token[n:]] for *_, token, n in merges],
        ),
    )
