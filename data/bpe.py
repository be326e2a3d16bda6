"""Tokenizers of learnt pieces, through the `tokenizers` library: byte-pair encoding learnt from a corpus, GPT-2's, any tokenizer.json."""

import codecs
import copy
import json
import re
from itertools import chain, islice

import numpy as np

from slm_np.data.tokenizer import (
    END,
    Tokenizer,
    bpe_model,
    byte_letters,
    byte_level,
    end_piece,
    shown,
    size,
    tokenizer_json,
)
from slm_np.errors import UserError

SEGMENT = 1 << 14  # characters, about: the length of what is encoded at once
LIMIT = 1 << 20  # characters after which a text is cut even where there is no border
BATCH = 64  # segments in memory at a time
SAMPLE = (
    1 << 27
)  # bytes of a corpus that a vocabulary is learnt from, so that the distinct words of a large one fit into memory
ENDS = (END, "</s>", "<eos>")  # names of the piece that ends a text, the likeliest first

# Before a space that follows something else, no common pre-tokenizer goes on; nor after a single line end that a word follows.
BORDER = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\w)")
# Words with the white space before them, by Unicode's property White_Space, as both regular expressions of the libraries have it.
SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WORD = re.compile(f"[{SPACES}]*[^{SPACES}]+|[{SPACES}]+")
BROKEN = re.compile("([\udc80-\udcff])")  # bytes that are not UTF-8, as "surrogateescape" shows them
KNOWN = 1 << 24  # characters of words whose ids are remembered, each word counted 64 longer than it is


class PieceTokenizer(Tokenizer):
    """Any tokenizer.json, by its `fields`; `name` is what errors call it.

    A text is cut into segments that depend on its characters alone (see `segments`), and each is encoded on its own; a space that
    the tokenizer puts in front of texts comes in front of the first only. A byte that is not UTF-8 becomes the piece of that byte.
    Special pieces are never found in a text, and decode to nothing. After end-of-text a new text begins.
    """

    def __init__(self, fields, name="tokenizer.json"):
        self.name, self._json = name, dict(fields, truncation=None, padding=None, model={**fields["model"]})
        if self._json["model"].get("dropout"):
            self._json["model"]["dropout"] = None  # one text, one sequence of ids
        self._library = self._made(self._json)
        vocab = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocab.values(), default=-1)
        self.end_of_text, self._end = _end_of_text(self._json, vocab)
        added = self._json["added_tokens"] = [dict(token) for token in self._json.get("added_tokens") or []]
        known = next((token for token in added if token["id"] == self.end_of_text), None)
        if self.end_of_text is not None and not (known and known["special"]):  # else it would be found in a text
            added.append(dict(end_piece(self.end_of_text), content=self._end))
            self._json["added_tokens"] = [token for token in added if token is not known]
            self._library = self._made(self._json)
        self._special = {token["id"] for token in added if token["special"]} | {self.end_of_text}

        pre, decoder = _steps(self._json.get("pre_tokenizer")), _steps(self._json.get("decoder"))
        kinds = {step["type"] for step in decoder or pre}
        self._letters = {letter: byte for byte, letter in enumerate(byte_letters())} if "ByteLevel" in kinds else None
        self._byte_pieces = bool(self._json["model"].get("byte_fallback")) and self._letters is None
        names = byte_letters() if self._letters else [f"<0x{byte:02X}>" for byte in range(256)]
        self._bytes = [vocab.get(piece) if self._letters or self._byte_pieces else None for piece in names]
        # GPT-2's own pre-tokenization goes word by word, so that a word's ids do not depend on what stands around it.
        self._by_words = (
            type(self._library.model).__name__ == "BPE"
            and not self._json.get("normalizer")
            and [step["type"] for step in pre] == ["ByteLevel"]
            and pre[0].get("use_regex", True)
            and not pre[0]["add_prefix_space"]
            and all(token["special"] for token in added)
        )
        later = _without_prefix(self._json)
        self._later = self._library if later == self._json else self._made(later)
        self._known, self._weight = {}, 0  # of words: their ids as bytes, and how much that is
        self._pieces, self._context = (
            {},
            min((piece for piece in vocab if re.fullmatch("[a-z]+", piece)), key=vocab.get, default=""),
        )

    def _made(self, fields):
        library = imported("tokenizers", "this tokenizer", "tokenizers")
        try:
            made = library.Tokenizer.from_str(json.dumps(fields))
        except Exception as error:  # the library has no class of its own for it
            raise UserError(
                f"{self.name} is not a tokenizer.json, or a damaged one ({error}); copy it again from where it was made"
            ) from None
        made.encode_special_tokens = True
        return made

    def with_end(self):
        return PieceTokenizer(
            dict(self._json, added_tokens=[*self._json["added_tokens"], end_piece(self.vocab_size)]), self.name
        )

    def to_json(self):
        return self._json

    def encode_blocks(self, blocks, begins=True):
        parts = segments(decoded(blocks))
        while batch := list(islice(parts, BATCH)):
            if self._by_words:
                yield self._encode_words([word for segment in batch for word in WORD.findall(segment)])
            else:
                yield np.array([id for ids in self._encode(batch, begins) for id in ids], self.dtype)
            begins = False

    def _encode_words(self, words):
        """The ids (n,) of words, each encoded once and then remembered."""
        if self._weight > KNOWN:
            self._known, self._weight = {}, 0
        new = iter(set(words).difference(self._known))
        while some := list(islice(new, 1 << 13)):  # the library's answer takes far more memory than the ids
            for word, ids in zip(some, self._encode(some)):
                self._known[word] = np.array(ids, self.dtype).tobytes()
                self._weight += 64 + len(word)
        return np.frombuffer(b"".join(map(self._known.__getitem__, words)), self.dtype)

    def _encode(self, texts, first=False):
        """A list of ids for each text. first: whether a text begins with the first of them, rather than goes on."""
        parts = [[part for part in BROKEN.split(text) if part] for text in texts]
        whole = [part for of_text in parts for part in of_text if not BROKEN.match(part)]
        begins = first and parts and not BROKEN.match(parts[0][0])
        ids = iter(
            (self._encode_whole(whole[:1], self._library) if begins else [])
            + self._encode_whole(whole[1 if begins else 0 :], self._later)
        )
        return [
            [id for part in of_text for id in (self._byte(part) if BROKEN.match(part) else next(ids))]
            for of_text in parts
        ]

    def _encode_whole(self, texts, library):
        if (
            self._letters
            and None in self._bytes
            and not self._json["model"].get("unk_token")
            and not self._json.get("normalizer")
        ):
            self._check_letters(texts)  # the library would leave out what it has no piece for
        try:
            found = [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)] if texts else []
        except Exception as error:
            raise UserError(f"{self.name} cannot express the text ({error}); use another tokenizer") from None
        for i, ids in enumerate(found):
            # Models that look up whole words find the piece by its name; cut inside, the name is none.
            if self.end_of_text in ids and len(self._end) > 1:
                halves = re.split(f"(?<={re.escape(self._end[0])})(?={re.escape(self._end[1:])})", texts[i])
                if len(halves) > 1:
                    found[i] = [
                        id
                        for j, half in enumerate(halves)
                        for id in self._encode_whole([half], self._later if j else library)[0]
                    ]
        return found

    def _check_letters(self, texts):
        known = bytes(byte for byte, id in enumerate(self._bytes) if id is not None)
        for text in texts:
            missing = text.encode().translate(None, known)
            if missing:
                wrong = next(letter for letter in text if letter.encode().translate(None, known))
                raise UserError(
                    f"the character {wrong!r} (U+{ord(wrong):04X}) is not among those that the tokenizer {self.name} knows; "
                    "leave it out, or use another tokenizer"
                )

    def _byte(self, escaped):
        byte = ord(escaped) - 0xDC00
        if self._bytes[byte] is None:
            raise UserError(
                f"the text is not UTF-8 (byte 0x{byte:02x}), and {self.name} has no piece for that byte; convert the text, or use --tokenizer byte"
            )
        return [self._bytes[byte]]

    def decode(self, ids):
        parts, begins = [], True
        for id in self._checked(ids).tolist():
            part = self._pieces.get((id, begins))
            if part is None:
                part = self._pieces[id, begins] = self._piece(id, begins)
            parts.append(part)
            begins = id == self.end_of_text or (begins and id in self._special)
        return b"".join(parts)

    def _piece(self, id, begins):
        """The bytes of one piece, where a text begins or behind others."""
        name = self._library.id_to_token(id)
        if id in self._special or name is None:
            return b""
        if self._letters:
            return (
                bytes(map(self._letters.get, name))
                if all(letter in self._letters for letter in name)
                else name.encode()
            )
        if self._byte_pieces and re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes([int(name[3:5], 16)])
        decode, context = (
            self._library.decoder.decode if self._library.decoder else " ".join,
            [self._context] if self._context else [],
        )
        before, after = ([], context) if begins else (context, context)
        text, head = decode([*before, name, *after]), decode(before) if before else ""
        tail = decode([*context, *after])[len(decode(context)) :] if context else ""
        return text[len(head) : len(text) - len(tail)].encode()


def train(n_pieces, streams, progress=True):
    """The tokenizer of `n_pieces` that byte-pair encoding (Sennrich et al. 2016) over bytes, within GPT-2's words, learns from `streams`.

    They are functions, each returning a fresh iterable of blocks of bytes. Ids: the 256 bytes in the order of their letters, the merges,
    end-of-text. A text with fewer pairs to merge gives fewer pieces. Of a corpus above `SAMPLE` bytes, segments all over it are taken.
    """
    library = imported("tokenizers", f"--tokenizer bpe:{n_pieces}", "tokenizers")
    total = sum(map(size, streams))

    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = chain.from_iterable(decoded(shown(stream, total, "learning pieces", progress)) for stream in streams)
    made.train_from_iterator(
        sample(parts, total),
        library.trainers.BpeTrainer(vocab_size=n_pieces - 1, show_progress=False, initial_alphabet=byte_letters()),
    )
    model = json.loads(made.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return _gpt2_style(dict(sorted(model["vocab"].items(), key=lambda item: item[1])), merges, f"bpe:{n_pieces}")


def sample(texts, total):
    """What of one text of `total` bytes, given in parts, to learn from: all of it, or segments all over it up to `SAMPLE` bytes in all."""
    seen = taken = 0
    for text in segments(texts):
        if total <= SAMPLE or taken * total <= seen * SAMPLE:
            taken += len(text)
            yield from (part for part in BROKEN.split(text) if part and not BROKEN.match(part))
        seen += len(text)


def gpt2():
    """GPT-2's tokenizer of 50,257 pieces (Radford et al. 2019), its vocabulary through tiktoken; UserError where that cannot be had."""
    tiktoken = imported("tiktoken", "--tokenizer gpt2", "slm_np[gpt2]")
    try:
        encoding = tiktoken.get_encoding("gpt2")
        ranks = {piece: encoding.encode_single_token(piece) for piece in encoding.token_byte_values()}
    except Exception as error:  # of the network, of the disk, of a damaged download
        raise UserError(
            f"--tokenizer gpt2 needs GPT-2's vocabulary, which is not in tiktoken's cache and could not be downloaded ({type(error).__name__}); "
            "run it once with a network, or set TIKTOKEN_CACHE_DIR to a folder that such a run has filled"
        ) from None
    letters = byte_letters()
    name = lambda piece: "".join(letters[byte] for byte in piece)
    pieces = sorted(ranks, key=ranks.get)
    merges = [" ".join(map(name, _last_pair(piece, ranks))) for piece in pieces if len(piece) > 1]
    return _gpt2_style({name(piece): ranks[piece] for piece in pieces}, merges, "gpt2")


def _last_pair(piece, ranks):
    """The two pieces whose merge made `piece`: what merging its bytes, the lowest rank first, leaves in the end."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _gpt2_style(vocab, merges, name):
    return PieceTokenizer(
        tokenizer_json(byte_level(use_regex=True), byte_level(use_regex=True), bpe_model(vocab, merges), len(vocab)),
        name,
    )


def imported(module, what, install):
    """The module of that name, when it is needed. UserError if it is not installed."""
    try:
        return __import__(module)
    except ImportError:
        raise UserError(
            f'{what} needs the package {module}, which is not installed; run pip install "{install}"'
        ) from None


def decoded(blocks):
    """Blocks of bytes as text; bytes that are not UTF-8 become U+DC80 to U+DCFF ("surrogateescape"), which no UTF-8 gives."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def segments(texts):
    """One text, given in parts, in segments that do not depend on the parts: each ends at the first border (`BORDER`) at or after `SEGMENT`
    characters, or after `LIMIT` characters where there is none. So at most `LIMIT` characters are held, and a part."""
    held = ""
    for text in chain(texts, [None]):
        held, at = held + (text or ""), 0
        while len(held) - at > (SEGMENT if text is None else LIMIT):
            found = BORDER.search(held, at + SEGMENT, at + LIMIT + 1)
            end = found.start() if found else at + LIMIT
            yield held[at:end]
            at = end
        held = held[at:]
    if held:
        yield held


def _end_of_text(fields, vocab):
    """(id, name) of the piece that ends a text: a known name, else what is marked special and sounds like it, or alone is special."""
    name = next((name for name in ENDS if name in vocab), None)
    if name is None:
        unknown = fields["model"].get("unk_token")
        special = [
            token["content"]
            for token in fields.get("added_tokens") or []
            if token["special"] and token["content"] != unknown
        ]
        name = next(
            (name for name in special if re.search("end|eos", name, re.IGNORECASE)),
            special[0] if len(special) == 1 else None,
        )
    return (None, "") if name is None else (vocab[name], name)


def _steps(part):
    """The steps of a normalizer, a pre-tokenizer or a decoder: what a sequence of them holds, or itself alone."""
    if not part:
        return []
    inner = next((part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part), None)
    return [part] if inner is None else [step for one in inner for step in _steps(one)]


def _without_prefix(fields):
    """The fields of the same tokenizer for text that goes on: nothing is put in front of it."""
    changed = dict(fields, **{part: copy.deepcopy(fields.get(part)) for part in ("normalizer", "pre_tokenizer")})
    for step in _steps(changed["normalizer"]) + _steps(changed["pre_tokenizer"]):
        if step["type"] == "Prepend":
            step["prepend"] = ""
        step.update(
            {key: value for key, value in dict(add_prefix_space=False, prepend_scheme="never").items() if key in step}
        )
    return changed
