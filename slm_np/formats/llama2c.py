"""The files of llama2.c (Karpathy 2023), whose checkpoints of version 0 are a header and float32 weights, nothing else.

    checkpoint    7 int32: dim, hidden dim, layers, heads, key-value heads, vocabulary (negative: the output is not tied), context
                  float32, each tensor for all layers in turn: embedding, norm 1, q, k, v, o, norm 2, w1, w2, w3, last norm, cos, sin, output
    tokenizer     int32 longest piece, then for each id: float32 score, int32 length, that many bytes of UTF-8

Little-endian. Matrices are (out, in); rotary pairs lie side by side in a head, (2i, 2i + 1); w1 is the gate, w3 what it lets through.
"""

import struct
from pathlib import Path

import numpy as np

from slm_np.config import ModelConfig
from slm_np.errors import UserError

HEADER = struct.Struct("<7i")
VERSIONED = 0x616B3432  # what later versions begin with
UNKNOWN, BEGIN, BYTES = (
    0,
    1,
    3,
)  # ids of llama2.c: unknown, begin of text, (2, end of text), and from 3 on the 256 byte values


def read_checkpoint(path):
    """(ModelConfig, {name: array}) of a checkpoint of version 0, in this package's names and layout.

    UserError if the file is another program's, of another version, cut short, or holds weights that are not finite.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a checkpoint of llama2.c") from None
    foreign = f"{path} is no checkpoint of llama2.c's version 0"
    if len(header) < HEADER.size:
        raise UserError(f"{foreign}, it has {size} bytes and the header alone takes {HEADER.size}; copy it again")
    if int.from_bytes(header[:4], "little") == VERSIONED:
        version = int.from_bytes(header[4:8], "little")
        raise UserError(f"{foreign} but of version {version}; write it with llama2.c's export.py --version 0")
    dim, hidden, layers, heads, kv_heads, vocab, steps = HEADER.unpack(header)
    shape = f"dim {dim}, hidden {hidden}, layers {layers}, heads {heads}, key-value heads {kv_heads}, vocabulary {abs(vocab)}, context {steps}"
    if min(dim, hidden, layers, heads, kv_heads, abs(vocab), steps) < 1 or dim % (2 * heads) or heads % kv_heads:
        raise UserError(
            f"{foreign}: its first numbers make no model ({shape}); name a .bin that llama2.c's training wrote"
        )
    width = dim // heads
    kv = kv_heads * width
    sizes = dict(
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
        cos=(steps, width // 2),
        sin=(steps, width // 2),
        **({"output": (abs(vocab), dim)} if vocab < 0 else {}),
    )
    counts = {name: _product(shape) for name, shape in sizes.items()}
    wanted = HEADER.size + 4 * sum(counts.values())
    if size != wanted:
        raise UserError(
            f"{path} has {size:,} bytes but its header ({shape}) asks for {wanted:,}: it is cut short, or {foreign[len(str(path)) + 4 :]}; copy it again"
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
    flat, theirs, at = np.memmap(path, "<f4", "r", HEADER.size), {}, 0
    for name, count in counts.items():
        theirs[name] = flat[at : at + count].reshape(sizes[name])
        at += count
        if not np.isfinite(theirs[name]).all():
            raise UserError(f"{path} holds weights that are not finite, in {name}; convert an earlier checkpoint")
    return config, _tensors(theirs, layers, heads, kv_heads)


def _tensors(theirs, layers, heads, kv_heads):
    """Their arrays in our layout: matrices (in, out), q | k | v and gate | up side by side, rotary pairs half a head apart."""
    ours = {"embedding.weight": theirs["embedding"]}
    for i in range(layers):
        q, k = _half_split(theirs["q"][i], heads), _half_split(theirs["k"][i], kv_heads)
        ours |= {
            f"layers.{i}.mixer_norm.weight": theirs["norm1"][i],
            f"layers.{i}.attention.qkv.weight": np.concatenate([q, k, theirs["v"][i]]).T,
            f"layers.{i}.attention.output.weight": theirs["o"][i].T,
            f"layers.{i}.feed_forward_norm.weight": theirs["norm2"][i],
            f"layers.{i}.feed_forward.input.weight": np.concatenate([theirs["w1"][i], theirs["w3"][i]]).T,
            f"layers.{i}.feed_forward.output.weight": theirs["w2"][i].T,
        }
    ours["norm.weight"] = theirs["norm"]
    return ours | ({"head.weight": theirs["output"]} if "output" in theirs else {})


def _half_split(rows, heads):
    """The rows (heads w, in) with each head's pairs (2i, 2i + 1) at (i, i + w/2), as our rotation has them."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _product(shape):
    count = 1  # in Python's integers, which a foreign header cannot overflow
    for size in shape:
        count *= size
    return count


def read_tokenizer(path, vocab_size):
    """[(piece, score)] of a tokenizer file, as (str, float). UserError if it is damaged, foreign, or not of `vocab_size` pieces."""
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--tokenizer {path} cannot be read ({error.strerror}); name the tokenizer.bin that belongs to the checkpoint"
        ) from None
    pieces, at = [], 4
    try:
        while at < len(raw):
            score, length = struct.unpack_from("<fi", raw, at)
            at += 8 + length
            if length < 0 or at > len(raw):
                raise ValueError
            pieces.append((raw[at - length : at].decode("utf-8"), score))
    except (struct.error, ValueError):
        raise UserError(
            f"--tokenizer {path} is cut short or no tokenizer of llama2.c (piece {len(pieces)} cannot be read); copy it again"
        ) from None
    if len(pieces) != vocab_size:
        raise UserError(
            f"--tokenizer {path} has {len(pieces)} pieces, the model {vocab_size}; give the tokenizer it was trained with"
        )
    if [piece for piece, _ in pieces[BYTES : BYTES + 256]] != [f"<0x{byte:02X}>" for byte in range(256)] or len(
        {piece for piece, _ in pieces}
    ) < len(pieces):
        raise UserError(
            f"--tokenizer {path} is no tokenizer of llama2.c: ids {BYTES} to {BYTES + 255} must be the bytes <0x00> to <0xFF>, and no piece come twice"
        )
    return pieces


def tokenizer_json(pieces):
    """The tokenizer of `read_tokenizer` as the fields of Hugging Face's tokenizer.json, with the same ids on any text.

    A space goes in front; a character that is no piece becomes its bytes; then, while two neighbours make a piece, the pair whose piece has
    the highest score is joined. Merge lists rank pairs, llama2.c scores what they make. They agree, for a piece is only ever joined from one
    pair: within its characters the joins come in the same order wherever it stands, so that the last of them is always the same.

    Pieces keep their space as it is (SentencePiece's U+2581 would be one with that character in a text). Begin of text is `<s>`, the one
    special piece: it alone stands between the documents that llama2.c trains on, and ends what it generates. Id 2 it never uses.
    """
    names = [piece for piece, _ in pieces]
    names[UNKNOWN], names[BEGIN] = "<unk>", "<s>"
    scores = {name: score for name, (_, score) in zip(names, pieces)}
    joined = sorted(
        (
            (-scores[name], id, pair)
            for id, name in enumerate(names)
            if id >= BYTES + 256 and (pair := _last_join(name, scores))
        )
    )
    # Where a space only ever begins a piece, no join crosses to one: texts may be cut there, which keeps the work linear in their length.
    cut = dict(type="Split", pattern={"String": " "}, behavior="MergedWithNext", invert=False)
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[dict(id=id, content=names[id], **special) for id in (UNKNOWN, BEGIN)],
        normalizer=dict(type="Prepend", prepend=" "),
        pre_tokenizer=None if any(" " in name[1:] for name in names) else cut,
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
            merges=[list(pair) for *_, pair in joined],
        ),
    )


def _last_join(piece, scores):
    """The pair whose join makes `piece` out of its characters, the highest score first; None if they never come to that."""
    parts = list(piece)
    while all(part in scores for part in parts) and len(parts) > 1:
        best = max(
            range(len(parts) - 1), key=lambda i: scores.get(parts[i] + parts[i + 1], -np.inf)
        )  # the first of equals
        pair = parts[best], parts[best + 1]
        if "".join(pair) not in scores:
            return None
        parts[best : best + 2] = ["".join(pair)]
        if len(parts) == 1:
            return pair
    return None
