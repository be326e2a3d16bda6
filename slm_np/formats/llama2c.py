"""The files of llama2.c (Karpathy 2023): checkpoints of version 0 and tokenizers.

    checkpoint    7 int32: width, hidden width, layers, heads, key-value heads, vocabulary size (negative if the output
                  matrix is not tied to the embedding), context length. Then float32, tensor after tensor, each for all
                  layers: embedding, norm 1, q, k, v, o, norm 2, w1, w2, w3, last norm, cos, sin, and the output matrix
                  if it is not tied
    tokenizer     int32 length of the longest token. Then for each id: float32 score, int32 length, UTF-8 of that length

All is little-endian. Matrices are (out, in). Rotary pairs are neighbors within a head, (2i, 2i + 1). w1 makes the gate
of SwiGLU, w3 what the gate multiplies.
"""

import math
import struct
from pathlib import Path

import numpy as np

from slm_np.config import ModelConfig, SamplingConfig
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.tokenizer_factory import load_tokenizer
from slm_np.errors import UserError
from slm_np.formats.model_parts import ModelParts
from slm_np.words import counted

HEADER = struct.Struct("<7i")
VERSIONED = 0x616B3432  # the first four bytes of later versions
UNKNOWN, BEGIN, BYTES = 0, 1, 3  # ids: unknown, begin of text, and the first of the 256 byte values; 2 is end of text


def read(path, tokenizer=""):
    """The `ModelParts` of a checkpoint of version 0.

    tokenizer  its tokenizer.bin, or a tokenizer.json; "" means the one beside the checkpoint, tokN.bin for a vocabulary
               of N or tokenizer.bin, if there is one
    Raises UserError if a file is of another program or version or truncated, or if the tokenizer does not fit; while
    the tensors are read, if one is not finite.
    """
    path = Path(path)
    size, sizes = _read_header(path)
    dim, hidden, layers, heads, kv_heads, vocab, steps = sizes
    expected = HEADER.size + 4 * sum(math.prod(shape) for shape in _shapes(*sizes).values())
    if size != expected:
        raise UserError(
            f"{path} has {counted(size, 'byte')} but its header ({_sizes_in_words(sizes)}) asks for {expected:,}: "
            "it is cut short or not a llama2.c checkpoint of version 0; copy it again"
        )
    config = ModelConfig(
        vocab_size=abs(vocab),
        block_size=steps,
        n_layer=layers,
        n_head=heads,
        n_kv_head=kv_heads,
        n_embd=dim,
        n_hidden=hidden,
        positions="rotary",
        norm="rmsnorm",
        feed_forward="swiglu",
        head="linear" if vocab < 0 else "tied",
    )
    file = tokenizer or _tokenizer_beside(path, config.vocab_size)
    return ModelParts(
        path,
        config,
        lambda: _tensors(path, sizes),
        file and _tokenizer(file, config.vocab_size),
        None,
        SamplingConfig(),
        f"llama2.c, {path.name}",
    )


def may_start_with(start):
    """Whether a checkpoint, of any version, may start with these bytes."""
    if len(start) < HEADER.size or int.from_bytes(start[:4], "little") == VERSIONED:
        return len(start) >= HEADER.size
    return _is_model(HEADER.unpack_from(start))


def _read_header(path):
    """(bytes of the file, the seven sizes). UserError if the file is unreadable or not a checkpoint of version 0."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a llama2.c checkpoint") from None
    if len(header) < HEADER.size:
        raise UserError(
            f"{path} is not a llama2.c checkpoint of version 0: it has {counted(size, 'byte')} and the header alone "
            f"takes {HEADER.size}; copy it again"
        )
    if int.from_bytes(header[:4], "little") == VERSIONED:
        version = int.from_bytes(header[4:8], "little")
        raise UserError(
            f"{path} is a llama2.c checkpoint of version {version}, and only version 0 is supported; "
            "write it with llama2.c's export.py --version 0"
        )
    sizes = HEADER.unpack(header)
    if not _is_model(sizes):
        raise UserError(
            f"{path} is not a llama2.c checkpoint of version 0: its header is not that of a model "
            f"({_sizes_in_words(sizes)}); name a .bin that llama2.c's training wrote"
        )
    return size, sizes


def _is_model(sizes):
    """Whether the seven sizes of a header are those of a model."""
    dim, hidden, layers, heads, kv_heads, vocab, steps = sizes
    return (
        min(dim, hidden, layers, heads, kv_heads, abs(vocab), steps) >= 1
        and dim % (2 * heads) == 0
        and heads % kv_heads == 0
    )


def _sizes_in_words(sizes):
    dim, hidden, layers, heads, kv_heads, vocab, steps = sizes
    return (
        f"dim {dim}, hidden {hidden}, layers {layers}, heads {heads}, key-value heads {kv_heads}, "
        f"vocabulary {abs(vocab)}, context {steps}"
    )


def _shapes(dim, hidden, layers, heads, kv_heads, vocab, steps):
    """{name: shape} of the file's tensors, in its order."""
    head = dim // heads
    kv = kv_heads * head
    shapes = dict(
        embedding=(abs(vocab), dim),
        norm1=(layers, dim),
        q=(layers, dim, dim),
        k=(layers, kv, dim),
        v=(layers, kv, dim),
        o=(layers, dim, dim),
        norm2=(layers, dim),
        w1=(layers, hidden, dim),
        w2=(layers, dim, hidden),
        w3=(layers, hidden, dim),
        norm=(dim,),
        cos=(steps, head // 2),
        sin=(steps, head // 2),
    )
    return shapes | ({"output": (abs(vocab), dim)} if vocab < 0 else {})


def _tensors(path, sizes):
    """Yield llama2.c's tensors as (our name, array), read from the file one after another.

    Matrices are (in, out), q | k | v and gate | up are one matrix each, and rotary pairs are those of slm_np.
    """
    _, _, layers, heads, kv_heads, _, _ = sizes
    flat, theirs, start = np.memmap(path, "<f4", "r", HEADER.size), {}, 0
    for name, shape in _shapes(*sizes).items():
        theirs[name] = flat[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)

    def finite(name, array):
        if not np.isfinite(array).all():
            raise UserError(f"{path} holds weights that are not finite, in {name}; convert an earlier checkpoint")
        return name, array

    for name in ("cos", "sin"):  # not needed, but their damage shows that of the file
        finite(name, theirs[name])
    yield finite("embedding.weight", theirs["embedding"])
    for i in range(layers):
        q, k = _split_pairs(theirs["q"][i], heads), _split_pairs(theirs["k"][i], kv_heads)
        for name, array in (
            ("mixer_norm.weight", theirs["norm1"][i]),
            ("attention.qkv.weight", np.concatenate([q, k, theirs["v"][i]]).T),
            ("attention.output.weight", theirs["o"][i].T),
            ("feed_forward_norm.weight", theirs["norm2"][i]),
            ("feed_forward.input.weight", np.concatenate([theirs["w1"][i], theirs["w3"][i]]).T),
            ("feed_forward.output.weight", theirs["w2"][i].T),
        ):
            yield finite(f"layers.{i}.{name}", array)
    yield finite("norm.weight", theirs["norm"])
    if "output" in theirs:
        yield finite("head.weight", theirs["output"])


def _split_pairs(rows, heads):
    """rows (heads w, in) with the rotary pairs (2i, 2i + 1) of each head moved to (i, i + w/2), as we rotate them."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)  # (heads, w/2, 2, in) before


def _tokenizer_beside(path, vocab_size):
    """The tokenizer in the checkpoint's directory, or None."""
    paths = [path.with_name(name) for name in (f"tok{vocab_size}.bin", "tokenizer.bin")]
    return next((path for path in paths if path.is_file()), None)


def _tokenizer(path, vocab_size):
    """The Tokenizer in a file of llama2.c or a tokenizer.json. UserError if it does not fit the model."""
    if Path(path).suffix != ".json":
        return LibraryTokenizer(tokenizer_json(read_tokenizer(path, vocab_size)), str(path))
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"--tokenizer {path} has {counted(tokenizer.vocab_size, 'token')}, but the model {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    return tokenizer


def read_tokenizer(path, vocab_size):
    """[(token, score)] of a tokenizer file, as (str, float).

    Raises UserError if the file is damaged, of another program, or does not hold `vocab_size` tokens.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--tokenizer {path} cannot be read ({error.strerror}); "
            "name the tokenizer.bin that belongs to the checkpoint"
        ) from None
    tokens, end = [], 4
    try:
        while end < len(raw):
            score, length = struct.unpack_from("<fi", raw, end)
            end += 8 + length
            if length < 0 or end > len(raw):
                raise ValueError
            tokens.append((raw[end - length : end].decode("utf-8"), score))
    except (struct.error, ValueError):
        raise UserError(
            f"--tokenizer {path} is cut short or not a llama2.c tokenizer (token {len(tokens)} cannot be read); "
            "copy it again"
        ) from None
    if len(tokens) != vocab_size:
        raise UserError(
            f"--tokenizer {path} has {counted(len(tokens), 'token')}, but the model {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    names = [token for token, _ in tokens]
    if names[BYTES : BYTES + 256] != [f"<0x{byte:02X}>" for byte in range(256)] or len(set(names)) < len(names):
        raise UserError(
            f"--tokenizer {path} is not a llama2.c tokenizer: ids {BYTES} to {BYTES + 255} must be the bytes <0x00> to "
            "<0xFF>, and tokens must be unique"
        )
    return tokens


def tokenizer_json(tokens):
    """The tokenizer of `read_tokenizer` as the fields of Hugging Face's tokenizer.json, with the same ids for any text.

    Both prepend a space, replace characters that are not tokens by their bytes, and then merge neighbors. llama2.c
    merges the pair with the highest score of its result; tokenizer.json ranks pairs. The two agree, since a token only
    ever results from one pair: the merges within its characters happen in the same order wherever the token occurs, so
    the last of them is always the same.

    Tokens keep their space as it is: replaced by SentencePiece's U+2581, they would match that character in a text.
    Begin of text is `<s>`, the only special token: llama2.c trains with it alone between documents, and generation ends
    at it. It never uses id 2.
    """
    names = [token for token, _ in tokens]
    names[UNKNOWN], names[BEGIN] = "<unk>", "<s>"
    scores = {name: score for name, (_, score) in zip(names, tokens)}
    merges = sorted(
        (-scores[name], id, pair)
        for id, name in enumerate(names)
        if id >= BYTES + 256 and (pair := last_merge(name, scores))
    )
    # Where spaces only begin tokens, no merge crosses to one. Text can be split there: encoding then takes linear time.
    split = dict(type="Split", pattern={"String": " "}, behavior="MergedWithNext", invert=False)
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[dict(id=id, content=names[id], **special) for id in (UNKNOWN, BEGIN)],
        normalizer=dict(type="Prepend", prepend=" "),
        pre_tokenizer=None if any(" " in name[1:] for name in names) else split,
        post_processor=None,
        decoder=dict(
            type="Sequence",
            decoders=[dict(type="ByteFallback"), dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0)],
        ),
        model=dict(
            type="BPE",
            dropout=None,
            unk_token="<unk>",
            continuing_subword_prefix=None,
            end_of_word_suffix=None,
            fuse_unk=False,
            byte_fallback=True,
            ignore_merges=False,
            vocab={name: id for id, name in enumerate(names)},
            merges=[list(pair) for *_, pair in merges],
        ),
    )


def last_merge(token, scores):
    """The pair that merges into `token`, if its characters are merged by score; None if they never become it."""
    parts = list(token)
    while all(part in scores for part in parts) and len(parts) > 1:
        # The first of the pairs with the highest score.
        best = max(range(len(parts) - 1), key=lambda i: scores.get(parts[i] + parts[i + 1], -np.inf))
        pair = parts[best], parts[best + 1]
        if "".join(pair) not in scores:
            return None
        parts[best : best + 2] = ["".join(pair)]
        if len(parts) == 1:
            return pair
    return None
