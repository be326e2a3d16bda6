"""Between bytes and token ids. Every tokenizer encodes, decodes, streams and saves itself as a Hugging Face `tokenizer.json`."""

import codecs
import json
import re
from pathlib import Path

import numpy as np

from slm_np.errors import UserError, near

TOKENIZERS = ("byte", "char", "bpe:N", "gpt2", "file:PATH")
END = "<|endoftext|>"  # what the piece that ends a document is called; the same letters within a text are text


class Tokenizer:
    """What all tokenizers share. A kind adds `vocab_size`, `encode_blocks(blocks, begins=True)`, `decode(ids)`, `with_end()` and `to_json()`.

    `encode_blocks` takes one text, cut into blocks of bytes anywhere, and yields arrays of ids that do not depend on the cuts. Where it does
    not begin there but goes on (`begins` false), a kind that puts a space in front of texts puts none.
    `decode` gives bytes; the end of a text has none.
    """

    end_of_text = None  # the id that ends a document, for the kinds that have one
    trained_ends = True  # whether the model at hand has seen that id, and so texts may begin after it

    @property
    def dtype(self):
        """The type of ids: uint16 where the vocabulary fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, data, begins=True):
        """The ids (n,) of the bytes `data`. UserError if the tokenizer cannot express them."""
        return np.concatenate([np.empty(0, self.dtype), *self.encode_blocks([data], begins)])

    def stream(self, after=()):
        """A `Stream`: the text of ids that come one at a time, behind the ids `after` (such as a prompt's)."""
        return Stream(self, after)

    def save(self, path):
        """Write `tokenizer.json` at `path`; the `tokenizers` library alone reads it too."""
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _checked(self, ids):
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UserError(
                f"token id {wrong} is outside the tokenizer's vocabulary of {self.vocab_size}; use the one it was made with"
            )
        return ids


class Stream:
    """Turns ids into text as they come, never showing half a UTF-8 character.

    A byte becomes U+FFFD only once no continuation can complete it, so that the pieces joined equal
    `tokenizer.decode(ids).decode("utf-8", "replace")` however the ids were split. With ids `after`, they are what follows those.
    """

    def __init__(self, tokenizer, after=()):
        self._tokenizer, self._decoder, self._before = (
            tokenizer,
            codecs.getincrementaldecoder("utf-8")("replace"),
            [int(id) for id in after],
        )

    def push(self, id):
        """The text that `id` completes: possibly none, possibly several characters."""
        # A piece may read otherwise where a text begins. The last piece with bytes, and those without after it, tell whether it does.
        whole = self._tokenizer.decode([*self._before, id])
        new = whole[len(self._tokenizer.decode(self._before)) :]
        self._before = [id] if new else [*self._before, id]
        return self._decoder.decode(new)

    def flush(self):
        """What an unfinished character at the end becomes; afterwards the stream starts anew, with a new text."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._before = []
        return rest


class ByteTokenizer(Tokenizer):
    """256 ids, each the value of a byte: any data, no unknowns. With `end`, one more, the last, ends a text."""

    def __init__(self, end=False):
        self.vocab_size, self.end_of_text = 256 + end, 256 if end else None

    def with_end(self):
        return ByteTokenizer(end=True)

    def encode_blocks(self, blocks, begins=True):
        for block in blocks:
            yield np.frombuffer(block, np.uint8).astype(self.dtype)

    def decode(self, ids):
        ids = self._checked(ids)
        return ids[ids < 256].astype(np.uint8).tobytes()

    def to_json(self):
        # Byte-pair encoding without a single merge leaves bytes.
        return tokenizer_json(
            byte_level(use_regex=False),
            byte_level(use_regex=False),
            bpe_model({letter: byte for byte, letter in enumerate(byte_letters())}, []),
            self.end_of_text,
        )


class CharTokenizer(Tokenizer):
    """One id per character of `characters`, in their order; the corpus' own, sorted, when it comes from `learn`. With `end`, one more."""

    def __init__(self, characters, end=False):
        self.characters, self.vocab_size, self.end_of_text = (
            characters,
            len(characters) + end,
            len(characters) if end else None,
        )
        self._codes = code_points(characters)
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)  # the last entry stands for all code points above
        self._ids[self._codes] = np.arange(len(characters))

    @classmethod
    def learn(cls, *streams):
        """The tokenizer of all characters in `streams`, each an iterable of blocks of UTF-8; one block is in memory at a time."""
        seen = np.zeros(0x110000, bool)
        for blocks in streams:
            for text in decoded_blocks(blocks):
                seen[code_points(text)] = True
        if not seen.any():
            raise UserError("a text without a single character has none to learn; give some text")
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def with_end(self):
        return CharTokenizer(self.characters, end=True)

    def encode_blocks(self, blocks, begins=True):
        for text in decoded_blocks(blocks):
            codes = code_points(text)
            ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
            if ids.size and ids.min() < 0:
                wrong, n = text[int(np.argmin(ids))], len(self.characters)
                known = self.characters if n <= 80 else self.characters[:80] + "..."
                raise UserError(
                    f"the character {wrong!r} (U+{ord(wrong):04X}) is not among the {n} that the tokenizer knows, "
                    f"{known!r}; leave it out, or train with --tokenizer byte"
                )
            yield ids.astype(self.dtype)

    def decode(self, ids):
        ids = self._checked(ids)
        return self._codes[ids[ids < len(self.characters)]].tobytes().decode("utf-32-le").encode()

    def to_json(self):
        split = dict(type="Split", pattern={"Regex": r"[\s\S]"}, behavior="Isolated", invert=False)
        # A word-level model must name an unknown piece; one that is not in the vocabulary makes an unknown character an error.
        return tokenizer_json(
            split,
            dict(type="Fuse"),
            dict(
                type="WordLevel",
                vocab={character: id for id, character in enumerate(self.characters)},
                unk_token="<unk>",
            ),
            self.end_of_text,
        )


def learn(name, streams, progress=True):
    """The `Tokenizer` that `--tokenizer` NAME asks for: byte, char, bpe:N, gpt2 or file:PATH.

    streams: functions without arguments, each of which returns a fresh iterable of blocks of bytes; char takes its characters and bpe:N
    its N pieces (end-of-text among them, the last) from all of them. UserError for an unknown name, an N out of range, a missing package,
    GPT-2's vocabulary out of reach, or a file that is no tokenizer.
    """
    kind, colon, value = name.partition(":")
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        return CharTokenizer.learn(
            *(shown(stream, size(stream) if progress else 0, "characters", progress) for stream in streams)
        )
    if kind == "file" and value:
        return load_tokenizer(Path(value).expanduser())
    if name == "gpt2" or kind == "bpe":
        from slm_np.data import bpe

        if name == "gpt2":
            return bpe.gpt2()
        if not re.fullmatch("[0-9]{1,7}", value) or not 257 <= int(value) <= 1 << 20:
            raise UserError(
                f"--tokenizer {name!r} must be bpe:N with a whole number N from 257 (the bytes and end-of-text) to {1 << 20}; "
                "give for instance bpe:4096"
            )
        return bpe.train(int(value), streams, progress)
    raise UserError(f"--tokenizer {name!r} is unknown; {near(name, TOKENIZERS)}")


def with_end_of_text(tokenizer):
    """The same tokenizer with a piece that ends a text: one more id, the last, where it has none yet."""
    return tokenizer if tokenizer.end_of_text is not None else tokenizer.with_end()


def load_tokenizer(path):
    """The tokenizer in the file `path`, whichever kind it is; it needs no network. UserError if it is missing or broken."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, vocab, end = found["model"].get("type"), found["model"]["vocab"], bool(found.get("added_tokens"))
        own = None
        if kind == "BPE" and len(vocab) == 256:
            own = ByteTokenizer(end)
        elif kind == "WordLevel" and all(len(piece) == 1 for piece in vocab):
            own = CharTokenizer("".join(sorted(vocab, key=vocab.get)), end)
        # Where all that we would write is there, both read alike, whatever fields a newer library has added.
        if own and _holds(found, own.to_json()):
            return own
        from slm_np.data.bpe import PieceTokenizer

        return PieceTokenizer(found, path)
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read ({error.strerror}); give one that `save` wrote") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a tokenizer.json, or a damaged one; copy it again from where it was made"
        ) from None


def byte_letters():
    """The 256 letters that stand for the byte values in GPT-2's vocabulary (Radford et al. 2019): 188 printable Latin-1 characters
    as themselves, the others, in order, as U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def code_points(text):
    """The code points (n,) of a string, uint32."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def decoded_blocks(blocks):
    """Each block of bytes as text; a character cut by a block's border goes to the later one. UserError if it is not UTF-8."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        for block in blocks:
            pending = len(decoder.getstate()[0])
            yield decoder.decode(block)
            position += len(block)
        pending, block = len(decoder.getstate()[0]), b""
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {position - pending + error.start}); "
            "convert it, or use --tokenizer byte"
        ) from None


def byte_level(use_regex):
    """GPT-2's way from text to letters and back, cut into words first with `use_regex`."""
    return dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=use_regex)


def bpe_model(vocab, merges):
    """The byte-pair model of {piece: id} and merges "left right", the first to be made first."""
    return dict(
        type="BPE",
        dropout=None,
        unk_token=None,
        continuing_subword_prefix=None,
        end_of_word_suffix=None,
        fuse_unk=False,
        byte_fallback=False,
        ignore_merges=False,
        vocab=vocab,
        merges=merges,
    )


def tokenizer_json(pre_tokenizer, decoder, model, end_of_text=None):
    """The fields of tokenizer.json; `end_of_text` is the id of that piece, if there is one."""
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[] if end_of_text is None else [end_piece(end_of_text)],
        normalizer=None,
        pre_tokenizer=pre_tokenizer,
        post_processor=None,
        decoder=decoder,
        model=model,
    )


def end_piece(id):
    """The entry of `added_tokens` for end-of-text."""
    return dict(id=id, content=END, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)


def _holds(found, wanted):
    """Whether `found` has every key of `wanted`, with its value, at every depth."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() >= wanted.keys() and all(_holds(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(_holds, found, wanted))
    return found == wanted


def size(stream):
    """How many bytes `stream()` gives; one pass."""
    return sum(map(len, stream()))


def shown(stream, total, what, progress):
    """The blocks of `stream()`, of `total` bytes, with a bar on a terminal and plain lines in a log."""
    from slm_np.data import corpus

    return corpus.shown(stream(), total, what, progress)
