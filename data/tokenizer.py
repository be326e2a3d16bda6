"""Between bytes and token ids. Every tokenizer encodes, decodes, streams and saves itself as a Hugging Face `tokenizer.json`."""
import codecs
import json
from pathlib import Path

import numpy as np

from slm_np.errors import UserError

TOKENIZERS = ("byte", "char")


class Tokenizer:
    """What all tokenizers share. A kind adds `vocab_size`, `encode_blocks(blocks)`, `decode(ids)` and `to_json()`."""
    end_of_text = None  # the id that ends a document, for the kinds that have one

    @property
    def dtype(self):
        """The type of ids: uint16 where the vocabulary fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, data):
        """The ids (n,) of the bytes `data`. UserError if the tokenizer cannot express them."""
        return np.concatenate([np.empty(0, self.dtype), *self.encode_blocks([data])])

    def stream(self):
        """A `Stream`: the text of ids that come one at a time."""
        return Stream(self)

    def save(self, path):
        """Write `tokenizer.json` at `path`; the `tokenizers` library alone reads it too."""
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _checked(self, ids):
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UserError(f"token id {wrong} is outside the tokenizer's vocabulary of {self.vocab_size}; use the one it was made with")
        return ids


class Stream:
    """Turns ids into text as they come, never showing half a UTF-8 character.

    A byte becomes U+FFFD only once no continuation can complete it, so that the pieces joined equal
    `tokenizer.decode(ids).decode("utf-8", "replace")` however the ids were split.
    """

    def __init__(self, tokenizer):
        self._tokenizer, self._decoder = tokenizer, codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id):
        """The text that `id` completes: possibly none, possibly several characters."""
        return self._decoder.decode(self._tokenizer.decode([id]))

    def flush(self):
        """What an unfinished character at the end becomes; afterwards the stream starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class ByteTokenizer(Tokenizer):
    """256 ids, each the value of a byte: any data, no unknowns."""
    vocab_size = 256

    def encode_blocks(self, blocks):
        for block in blocks:
            yield np.frombuffer(block, np.uint8).astype(self.dtype)

    def decode(self, ids):
        return self._checked(ids).astype(np.uint8).tobytes()

    def to_json(self):
        # Byte-pair encoding without a single merge leaves bytes, written in the alphabet of GPT-2.
        byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
        return _tokenizer_json(byte_level, byte_level, dict(
            type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
            byte_fallback=False, ignore_merges=False, vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[]))


class CharTokenizer(Tokenizer):
    """One id per character of `characters`, in their order; the corpus' own, sorted, when it comes from `learn`."""

    def __init__(self, characters):
        self.characters, self.vocab_size = characters, len(characters)
        self._codes = code_points(characters)
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)  # the last entry stands for all code points above
        self._ids[self._codes] = np.arange(self.vocab_size)

    @classmethod
    def learn(cls, *streams):
        """The tokenizer of all characters in `streams`, each an iterable of blocks of UTF-8; one block is in memory at a time."""
        seen = np.zeros(0x110000, bool)
        for blocks in streams:
            for text in decoded_blocks(blocks):
                seen[code_points(text)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def encode_blocks(self, blocks):
        for text in decoded_blocks(blocks):
            codes = code_points(text)
            ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
            if ids.size and ids.min() < 0:
                wrong = text[int(np.argmin(ids))]
                known = self.characters if self.vocab_size <= 80 else self.characters[:80] + "..."
                raise UserError(f"the character {wrong!r} (U+{ord(wrong):04X}) is not among the {self.vocab_size} that the tokenizer knows, "
                                f"{known!r}; leave it out, or train with --tokenizer byte")
            yield ids.astype(self.dtype)

    def decode(self, ids):
        return self._codes[self._checked(ids)].tobytes().decode("utf-32-le").encode()

    def to_json(self):
        split = dict(type="Split", pattern={"Regex": r"[\s\S]"}, behavior="Isolated", invert=False)
        # A word-level model must name an unknown piece; one that is not in the vocabulary makes an unknown character an error.
        return _tokenizer_json(split, dict(type="Fuse"), dict(
            type="WordLevel", vocab={character: id for id, character in enumerate(self.characters)}, unk_token="<unk>"))


def load_tokenizer(path):
    """The tokenizer in the file `path`, whichever kind it is. UserError if it is missing, broken, or of a kind that is not ours."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, vocab = found["model"]["type"], found["model"]["vocab"]
        tokenizer = None
        if kind == "BPE":
            tokenizer = ByteTokenizer()
        elif kind == "WordLevel":
            tokenizer = CharTokenizer("".join(sorted(vocab, key=vocab.get)))
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read ({error.strerror}); give one that `save` wrote") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} is not a tokenizer.json, or a damaged one; copy it again from where it was made") from None
    # Where all that we would write is there, both read alike, whatever fields a newer library has added.
    if tokenizer is None or len(vocab) != tokenizer.vocab_size or not _holds(found, tokenizer.to_json()):
        raise UserError(f"{path} holds a {kind} tokenizer of a kind that is not supported; supported are {' and '.join(TOKENIZERS)}")
    return tokenizer


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
        raise UserError(f"the text is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {position - pending + error.start}); "
                        "convert it, or use --tokenizer byte") from None


def _tokenizer_json(pre_tokenizer, decoder, model):
    return dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=pre_tokenizer,
                post_processor=None, decoder=decoder, model=model)


def _holds(found, wanted):
    """Whether `found` has every key of `wanted`, with its value, at every depth."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(key in found and _holds(found[key], value) for key, value in wanted.items())
    return found == wanted
