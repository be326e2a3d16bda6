"""Any `tokenizer.json`, run by Hugging Face's `tokenizers` library."""

import contextlib
import copy
import json
import re

import numpy as np

from slm_np.data.segments import ESCAPED, decoded, segments
from slm_np.data.tokenizer import SpecialToken, Tokenizer
from slm_np.data.tokenizer_json import END_OF_TEXT, byte_letters, end_of_text_token
from slm_np.data.word_patterns import parts_of
from slm_np.errors import UserError, imported
from slm_np.words import counted

BATCH = 64  # segments in memory at a time
BATCH_SIZE = 1 << 20  # characters of segments after which no other is added, so that Ctrl-C takes effect in between
WORDS_AT_ONCE = 1 << 13  # words per call of the library: its result takes far more memory than the ids
LARGEST_ID = (1 << 24) - 1  # a file with a larger one is damaged: no vocabulary is near it
HOLES = 1 << 16  # ids without a token: a file with more of them is damaged, too
CACHE = 1 << 24  # size of the cache of words. A word counts its characters and `WORD_COST`
WORD_COST = 64
ENDS = (END_OF_TEXT, "</s>", "<eos>")  # names of the end-of-text token, the most likely first
STARTS = ("<s>", "<bos>", "[CLS]", "<|startoftext|>", "<|begin_of_text|>")  # names of the token before a text


class LibraryTokenizer(Tokenizer):
    """The tokenizer with the `fields` of a tokenizer.json. Errors call it `name`.

    A text is cut into segments, and each is encoded on its own. A space that the tokenizer puts before a text
    comes before the first segment only. A byte that is not UTF-8 becomes the token of that byte. Special tokens never
    occur in the encoding of a text and decode to nothing. After the end-of-text token a new text starts.
    Truncation, padding, dropout and the tokens that a post-processor adds are ignored. Ids that the vocabulary leaves
    out get names that no text contains, and added tokens the ids that the library gives them.
    UserError for fields that the library does not accept, and if it fails later.
    """

    def __init__(self, fields, name="tokenizer.json"):
        self.name, self._json = name, dict(fields, truncation=None, padding=None, model={**fields["model"]})
        if self._json["model"].get("dropout"):
            self._json["model"]["dropout"] = None  # a text always has the same ids
        self._fill_holes()
        self._library = self._made(self._json)
        vocab = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocab.values(), default=-1)
        if not 0 < self.vocab_size <= 1 + LARGEST_ID:
            raise self._damaged(f"its vocabulary has {self.vocab_size} ids")
        self.end_of_text, self._end = _end_of_text(self._json, vocab)
        added = self._json["added_tokens"] = [
            dict(token, id=vocab[token["content"]])
            for token in self._json.get("added_tokens") or []
            if token["content"] in vocab
        ]
        known = next((token for token in added if token["id"] == self.end_of_text), None)
        if self.end_of_text is not None and not (
            known and known["special"]
        ):  # else the library would find it in a text
            added.append(dict(end_of_text_token(self.end_of_text), content=self._end))
            self._json["added_tokens"] = [token for token in added if token is not known]
            self._library = self._made(self._json)
        self._special_tokens = {
            token["content"]: SpecialToken(token["id"], bool(token["lstrip"]), bool(token["rstrip"]))
            for token in self._json["added_tokens"]
            if token["special"] and token["content"]
        }
        self._special = {token["id"] for token in added if token["special"]} | {self.end_of_text}

        pre, decoder = steps_of(self._json.get("pre_tokenizer")), steps_of(self._json.get("decoder"))
        kinds = {step["type"] for step in decoder or pre}
        self._letters = {letter: byte for byte, letter in enumerate(byte_letters())} if "ByteLevel" in kinds else None
        self._byte_fallback = bool(self._json["model"].get("byte_fallback")) and self._letters is None
        names = byte_letters() if self._letters else [f"<0x{byte:02X}>" for byte in range(256)]
        has_bytes = self._letters or self._byte_fallback
        self._byte_ids = [vocab.get(token) if has_bytes else None for token in names]
        # The ids of a part between such cuts do not depend on its neighbors, unless an added token crosses them.
        whole = type(self._library.model).__name__ == "BPE" and not any(map(_crosses_words, added))
        self._parts = parts_of(pre, steps_of(self._json.get("normalizer"))) if whole else None
        self.lossless = self._parts is not None and not self._json.get("normalizer") and self._spells_words()
        unknown = self._json["model"].get("unk_token")
        self.unknown = self._json["model"].get("unk_id") if unknown is None else vocab.get(unknown)
        first = next((vocab[name] for name in STARTS if name in vocab), 0)
        self.start_of_text = first if self.end_of_text is None else self.end_of_text
        later = _without_prefix(self._json)
        self._later = self._library if later == self._json else self._made(later)  # encodes all but the first segment
        # A prefix is put before each stretch of text between special tokens, unless it is for the first one only.
        schemes = {step.get("prepend_scheme") for step in pre}
        self.begins_after_special = self._later is not self._library and "first" not in schemes
        self._words, self._words_size = {}, 0  # {word: its ids as bytes}, and its size as `CACHE` counts it
        self._token_bytes = {}  # {(id, begins): bytes} as `_bytes_of` found them
        # A token to decode others beside: an ordinary word, the first in the vocabulary.
        self._neighbor = min((token for token in vocab if re.fullmatch("[a-z]+", token)), key=vocab.get, default="")

    def _made(self, fields):
        """The library's tokenizer. UserError if the library does not accept the fields."""
        library = tokenizers_library(f"the tokenizer {self.name}")
        with _failures(self._damaged):
            made = library.Tokenizer.from_str(json.dumps(dict(fields, post_processor=None)))
            made.encode_special_tokens = True
            return made

    def _damaged(self, reason):
        """The UserError for fields that no tokenizer has."""
        unread = any(text in str(reason) for text in ("untagged enum", "unknown variant"))
        newer = " it may need a newer release of the package tokenizers (pip install -U tokenizers), or" * unread
        return UserError(
            f"{self.name} is not a tokenizer.json, or it is damaged ({reason});{newer} copy it again from its source"
        )

    def _fill_holes(self):
        """Give a name to each id that the model's vocabulary leaves out.

        The library gives an added token the number of tokens as its id, which is another token's if there are holes.
        """
        model = self._json["model"]
        if not isinstance(model.get("vocab"), dict):
            return
        used = {id for id in model["vocab"].values() if type(id) is int and id >= 0}
        largest = max(used, default=-1)
        if largest > LARGEST_ID or largest - len(used) > HOLES:
            raise self._damaged(f"its vocabulary has {counted(len(used), 'token')} and the id {largest}")
        if len(used) <= largest:
            unused = {_unused(id): id for id in range(largest) if id not in used}
            model["vocab"] = {**model["vocab"], **unused}

    def _spells_words(self):
        """Whether byte-pair encoding splits each word into tokens that spell it, none of them special."""
        model = self._json["model"]
        vocab, merges = model["vocab"], model["merges"]
        special = {token["content"] for token in self._json["added_tokens"]} & vocab.keys()
        merged = {merge.replace(" ", "") if isinstance(merge, str) else "".join(merge) for merge in merges}
        return (
            None not in self._byte_ids
            and len(set(vocab.values())) == len(vocab)
            and not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
            and not (special & (merged | self._letters.keys()) or special and model.get("ignore_merges"))
        )

    @property
    def special_tokens(self):
        return self._special_tokens

    def with_end(self):
        added = [*self._json["added_tokens"], end_of_text_token(self.vocab_size)]
        return LibraryTokenizer(dict(self._json, added_tokens=added), self.name)

    def to_json(self):
        return self._json

    def encode_blocks(self, blocks, begins=True):
        for batch in _batches(segments(decoded(blocks)), BATCH):
            if self._parts:
                yield self._encode_words([word for segment in batch for word in self._parts.findall(segment)])
            else:
                yield np.array([id for ids in self._encode(batch, begins) for id in ids], self.dtype)
            begins = False

    def _encode_words(self, words):
        """The ids (N,) of words. Each word is encoded once and then cached."""
        if self._words_size > CACHE:
            self._words, self._words_size = {}, 0
        for some in _batches(set(words).difference(self._words), WORDS_AT_ONCE):
            for word, ids in zip(some, self._encode(some)):
                self._words[word] = np.array(ids, self.dtype).tobytes()
                self._words_size += WORD_COST + len(word)
        return np.frombuffer(b"".join(map(self._words.__getitem__, words)), self.dtype)

    def _encode(self, strings, begins=False):
        """A list of ids for each string. begins: whether a text starts with the first string."""
        parts = [[part for part in ESCAPED.split(string) if part] for string in strings]
        whole = [part for of_string in parts for part in of_string if not ESCAPED.match(part)]
        first = begins and parts and not ESCAPED.match(parts[0][0])
        ids = iter(
            (self._encode_whole(whole[:1], self._library) if first else [])
            + self._encode_whole(whole[1 if first else 0 :], self._later)
        )
        return [
            [id for part in of_string for id in (self._byte(part) if ESCAPED.match(part) else next(ids))]
            for of_string in parts
        ]

    def _encode_whole(self, strings, library):
        """A list of ids for each string. All of its characters are UTF-8."""
        model = self._json["model"]
        if self._letters and None in self._byte_ids and not model.get("unk_token") and not self._json.get("normalizer"):
            self._check_letters(strings)  # the library would silently drop characters without a token
        with _failures(lambda error: UserError(f"{self.name} cannot encode the text ({error}); use another tokenizer")):
            found = [one.ids for one in library.encode_batch_fast(strings, add_special_tokens=False)] if strings else []
        for i, ids in enumerate(found):
            if not self._special.isdisjoint(ids):
                parts = self._cut_special(strings[i], ids)
                if len(parts) > 1:
                    found[i] = [
                        id
                        for j, part in enumerate(parts)
                        for id in self._encode_whole([part], self._later if j else library)[0]
                    ]
        return found

    def _cut_special(self, string, ids):
        """The parts of a string, cut within the special tokens that its `ids` contain.

        Models that look up whole words find a special token by its name. Cut in two, the name is not found. If a
        normalizer makes the name from other characters, the string is cut in the middle, until it is not found.
        """
        found = {name: token.id for name, token in self._special_tokens.items() if token.id in ids and len(name) > 1}
        names = [name for name in found if name in string]
        if names:
            return re.split("|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names), string)
        if len(string) > 1 and set(found.values()) - {self.unknown}:
            return [string[: len(string) // 2], string[len(string) // 2 :]]
        return [string]

    def _check_letters(self, strings):
        known = bytes(byte for byte, id in enumerate(self._byte_ids) if id is not None)
        for string in strings:
            missing = string.encode().translate(None, known)
            if missing:
                wrong = next(letter for letter in string if letter.encode().translate(None, known))
                raise UserError(
                    f"the character {wrong!r} (U+{ord(wrong):04X}) is not in the vocabulary of {self.name}; "
                    "remove it, or use another tokenizer"
                )

    def _byte(self, escaped):
        byte = ord(escaped) - 0xDC00
        if self._byte_ids[byte] is None:
            raise UserError(
                f"the text is not UTF-8 (byte 0x{byte:02x}), and {self.name} has no token for that byte; "
                "convert the text, or use --tokenizer byte"
            )
        return [self._byte_ids[byte]]

    def decode(self, ids):
        parts, begins = [], True
        for id in self._checked(ids).tolist():
            part = self._token_bytes.get((id, begins))
            if part is None:
                with _failures(lambda error: self._damaged(f"{error} when it decodes the token {id}")):
                    part = self._token_bytes[id, begins] = self._bytes_of(id, begins)
            parts.append(part)
            begins = id == self.end_of_text or (begins and id in self._special)
        return b"".join(parts)

    def _bytes_of(self, id, begins):
        """The bytes of one token, at the start of a text (`begins`) or after other tokens."""
        name = self._library.id_to_token(id)
        if id in self._special or name is None or name == _unused(id):
            return b""
        if self._letters:
            known = all(letter in self._letters for letter in name)
            return bytes(map(self._letters.get, name)) if known else name.encode()
        if self._byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes([int(name[3:5], 16)])
        # The decoder may treat the first and the last token differently, so others stand around this one where they
        # would in a text, and their text is cut off.
        decode = self._library.decoder.decode if self._library.decoder else " ".join
        neighbors = [self._neighbor] if self._neighbor else []
        before, after = [] if begins else neighbors, neighbors
        text, head = decode([*before, name, *after]), decode(before) if before else ""
        tail = decode([*neighbors, *after])[len(decode(neighbors)) :] if neighbors else ""
        return text[len(head) : len(text) - len(tail)].encode()


@contextlib.contextmanager
def _failures(error_of):
    """Turn a failure of the library into `error_of(exception)`: it has no exception class of its own.

    A panic of its Rust code is a BaseException, whose class cannot be imported.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise error_of(error) from None
        raise


def _batches(strings, n):
    """Yield lists of up to `n` strings, fewer if they have `BATCH_SIZE` characters."""
    batch, size = [], 0
    for string in strings:
        batch.append(string)
        size += len(string)
        if len(batch) == n or size >= BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenizers_library(what):
    """The module `tokenizers`, which is an extra. UserError if it is missing. what: what needs it."""
    return imported("tokenizers", what, "slm_np[bpe]")


def _end_of_text(fields, vocab):
    """(id, name) of the end-of-text token, or (None, "").

    It has a name in `ENDS`, or else it is the special token with "end" or "eos" in its name, or the only special
    token.
    """
    name = next((name for name in ENDS if name in vocab), None)
    if name is None:
        unknown = fields["model"].get("unk_token")
        added = fields.get("added_tokens") or []
        special = [token["content"] for token in added if token["special"] and token["content"] in vocab]
        special = [content for content in special if content != unknown]
        name = next(
            (name for name in special if re.search("end|eos", name, re.IGNORECASE)),
            special[0] if len(special) == 1 else None,
        )
    return (None, "") if name is None else (vocab[name], name)


def _unused(id):
    """The name of an id that the vocabulary leaves out."""
    return f"\0unused {id}\0"


def _crosses_words(token):
    """Whether an entry of added_tokens may be found in a text across white space."""
    return not token["special"] and (token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"]))


def steps_of(part):
    """The steps of a normalizer, a pre-tokenizer or a decoder: the members of a sequence, or the part alone."""
    if not part:
        return []
    inner = next((part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part), None)
    return [part] if inner is None else [step for one in inner for step in steps_of(one)]


def _without_prefix(fields):
    """The fields of the same tokenizer for text that continues: nothing is put before it."""
    changed = dict(fields, **{part: copy.deepcopy(fields.get(part)) for part in ("normalizer", "pre_tokenizer")})
    without = dict(add_prefix_space=False, prepend_scheme="never")
    for step in steps_of(changed["normalizer"]) + steps_of(changed["pre_tokenizer"]):
        if step["type"] == "Prepend":
            step["prepend"] = ""
        step.update({key: value for key, value in without.items() if key in step})
    return changed
