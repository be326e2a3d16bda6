"""A tokenizer as the metadata of a GGUF file, and back: as fields of tokenizer.json.

llama.cpp runs two of the kinds of tokenizer.json:
    gpt2     byte-pair encoding over GPT-2's byte letters, within the words of a pre-tokenizer that has a name
    llama    byte-pair encoding over characters, with tokens for bytes; see sentencepiece.py
A tokenizer of bytes is of the first kind, with a merge that never fires, since llama.cpp wants at least one: that of
two bytes 0xFF, which no UTF-8 contains. llama.cpp normalizes no text, so what is not in Unicode's form NFC may have
other tokens there, if the tokenizer brings text into that form.
"""

from slm_np.arguments import shown
from slm_np.data.library_tokenizer import steps_of
from slm_np.data.tokenizer_factory import tokenizer_from
from slm_np.data.tokenizer_json import (
    bpe_model,
    byte_letters,
    byte_level,
    end_of_text_token,
    joined_merges,
    leading_token,
)
from slm_np.errors import UserError
from slm_np.formats.gguf import sentencepiece
from slm_np.formats.gguf.words import BY_NAME, NAMES, pre_tokenizer, words_of
from slm_np.progress import say
from slm_np.words import counted

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of tokens
ADDED = (CONTROL, USER_DEFINED, UNKNOWN)
STARTED = ("llama-bpe", "llama3", "llama-v3")  # pre-tokenizers of models whose prompts start with a token
# Tokens that end a text in llama.cpp, and that no text contains, whatever their type is.
ENDS = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
NEVER = byte_letters()[0xFF]  # the letter of a byte that no UTF-8 contains
NEVER_MERGED = f"{NEVER} {NEVER}"
PADDING = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")


# To metadata


def to_metadata(tokenizer, vocab_size, named, ends):
    """{key without "tokenizer.ggml.": value} of a tokenizer, or of None: llama.cpp then takes and gives ids only.

    vocab_size  of the model. Ids above those of the tokenizer become unused tokens
    named       {"bos_token", "eos_token": name} of a chat template, as far as it has them
    ends        ids that end a reply
    UserError if llama.cpp has no such tokenizer, or it has more tokens than the model.
    """
    if tokenizer is None:
        return dict(model="none")
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer has {counted(tokenizer.vocab_size, 'token')}, and the model only {vocab_size:,}; "
            "give the tokenizer that the model was trained with"
        )
    fields = tokenizer.to_json()
    model, added = fields["model"], fields.get("added_tokens") or []
    check_kind(model["type"])
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    tokens, kinds = _tokens(ids, added, model, vocab_size)
    if model.get("byte_fallback"):
        found = sentencepiece.to_metadata(fields, tokens, kinds)
    else:
        found = dict(model="gpt2", pre=_name_of_words(fields), tokens=tokens, token_type=kinds)
        found["merges"] = joined_merges(model) or [NEVER_MERGED]
    return found | _special(tokenizer, fields, ids, named, ends)


def check_kind(kind):
    """UserError unless llama.cpp has tokenizers of the type `kind` of tokenizer.json."""
    if kind != "BPE":
        words = {"WordLevel": "characters or words", "Unigram": "Unigram", "WordPiece": "WordPiece tokens"}
        raise UserError(
            f"llama.cpp cannot run a tokenizer of {words.get(kind, kind)}, so the model cannot become a GGUF file; "
            "train one with --tokenizer byte, stories or bpe:N, or convert to a Hugging Face directory"
        )


def _tokens(ids, added, model, vocab_size):
    """(names, types) of all ids of the model."""
    tokens = [unused_name(id) for id in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for name, id in ids.items():
        if name.startswith("\0"):  # of an id that the vocabulary leaves out
            continue
        tokens[id], kinds[id] = name, NORMAL
    for token in added:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if model.get("unk_token") in ids and model.get("byte_fallback"):
        kinds[ids[model["unk_token"]]] = UNKNOWN
    if len(set(tokens)) < len(tokens):
        raise UserError("the tokenizer has two tokens of one name, which llama.cpp refuses; give another tokenizer")
    return tokens, kinds


def _name_of_words(fields):
    """The name of a pre-tokenizer. UserError if llama.cpp has no equal one."""
    model, found = fields["model"], steps_of(fields.get("pre_tokenizer"))
    normalizer = [step["type"] for step in steps_of(fields.get("normalizer"))]
    words = words_of(found) if normalizer in ([], ["NFC"]) else None
    if not model["merges"] and words is not None:  # bytes, wherever words end
        return "gpt-2"
    names = NAMES.get((words, bool(model.get("ignore_merges"))))
    odd = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if names is None or odd:
        kinds = ", ".join([*normalizer, *(step["type"] for step in found), *odd]) or "none"
        raise UserError(
            f"llama.cpp has no pre-tokenizer like the tokenizer's ({kinds}), so the model cannot become a GGUF file; "
            "convert it to a Hugging Face directory"
        )
    return names[0]


def _special(tokenizer, fields, ids, named, ends):
    """The ids of special tokens, and whether a text starts with one.

    llama.cpp takes id 11 for what is not named. Where no token ends a text, that of the byte 0xFF does: no text has it.
    """
    end = ids.get(named.get("eos_token"), tokenizer.end_of_text)
    starts = prompt_start(tokenizer, fields)
    begin = starts[0] if starts else ids.get(named.get("bos_token"), tokenizer.end_of_text)
    never = ids.get(NEVER, ids.get("<0xFF>", 0))
    found = dict(
        bos_token_id=never if begin is None else begin,
        eos_token_id=never if end is None else end,
        add_bos_token=bool(starts),
        add_eos_token=False,
    )
    others = [id for id in (*ends, *tokenizer.more_ends) if id != end]
    found |= dict(eot_token_id=others[0]) if others else {}
    padding = next((ids[name] for name in PADDING if name in ids), None)
    return found if padding is None else found | dict(padding_token_id=padding)


def prompt_start(tokenizer, fields):
    """The ids that a prompt starts with, at most one.

    A model of another program has them in its tokenizer's `prompt_start`, or in its post-processor. Ours starts after
    the end of another text.
    """
    if tokenizer.prompt_start is not None:
        return list(tokenizer.prompt_start)[:1]
    first = leading_token(fields)
    if first is not None:
        return [token["id"] for token in fields["added_tokens"] if token["content"] == first]
    return [tokenizer.end_of_text] if tokenizer.end_of_text is not None and tokenizer.trained_ends else []


def unused_name(id):
    """The token of an id that the tokenizer lacks and the model has, as llama.cpp's converters write it."""
    return f"[PAD{id}]"


# From metadata


def from_metadata(header, vocab_size):
    """The tokenizer of a file, or None.

    UserError if it is of a kind that is not supported, damaged, or has not `vocab_size` tokens.
    """
    get = _Metadata(header)
    kind = get.value("model", str, "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{header.path} has a tokenizer of the kind {shown(kind)}, and only gpt2 and llama are supported; "
            "choose another model"
        )
    tokens = get.strings("tokens")
    if len(tokens) != vocab_size:
        raise UserError(
            f"{header.path} has {counted(len(tokens), 'token')}, but the model {vocab_size}; copy or download it again"
        )
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        raise get.damaged("two of its tokens have one name")
    kinds = get.array("token_type", int, vocab_size, [NORMAL] * vocab_size)
    kinds = [CONTROL if token in ENDS else kind for token, kind in zip(tokens, kinds)]
    begin, end, turn = (token_id(header, name) for name in ("bos", "eos", "eot"))
    # Names that only pad the vocabulary are dropped: the model never writes them.
    named = {one for one in (begin, end, turn) if one is not None}
    while kinds[-1] == UNUSED and tokens[-1] == unused_name(len(tokens) - 1) and len(tokens) - 1 not in named:
        del tokens[-1], kinds[-1]
    starts = begin is not None and get.value("add_bos_token", bool, kind == "llama" or get.pre in STARTED)
    # For other programs. Texts of ours start after the end of another one, which no tokenizer.json says.
    first = _starting_with(tokens[begin], begin) if starts and begin != end else None
    made = tokenizer_from(_fields(get, kind, tokens, kinds, first), header.path)
    made.prompt_start = (begin,) if starts else ()
    ends = [id for id in (end, turn) if id not in (None, made.end_of_text) and kinds[id] in ADDED]
    made.more_ends = tuple(dict.fromkeys(ends))
    made.begins_after_special = kind == "llama"
    return made


def _fields(get, kind, tokens, kinds, post_processor):
    """The fields of tokenizer.json."""
    n = len(tokens)  # the last tokens, if they are special, get their ids as added tokens
    while n and kinds[n - 1] in ADDED:
        n -= 1
    vocab = dict(zip(tokens, range(n)))
    added = [
        dict(end_of_text_token(id), content=token, special=kinds[id] != USER_DEFINED)
        for id, token in enumerate(tokens)
        if kinds[id] in ADDED
    ]
    found = _byte_pairs(get, vocab) if kind == "gpt2" else sentencepiece.from_metadata(get, vocab, kinds)
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=added,
        normalizer=found.get("normalizer"),
        pre_tokenizer=found.get("pre_tokenizer"),
        post_processor=post_processor,
        decoder=found["decoder"],
        model=found["model"],
    )


def names_of(header, *kinds):
    """{"bos_token": name, ...} of the special tokens bos, eos and so on that a file has."""
    ids = {kind: token_id(header, kind) for kind in kinds}
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return {f"{kind}_token": tokens[id] for kind, id in ids.items() if id is not None}


def token_id(header, name):
    """The id of the special token `name`: bos, eos, eot or the like. None if the file has none, or no such id."""
    found, tokens = (header.metadata.get(f"tokenizer.ggml.{key}") for key in (f"{name}_token_id", "tokens"))
    return found if type(found) is int and isinstance(tokens, list) and 0 <= found < len(tokens) else None


def _byte_pairs(get, vocab):
    """The fields of tokenizer.json of kind gpt2. vocab: {token: id}"""
    name = get.pre
    if not name:
        say(f"{get.path} does not name its pre-tokenizer; using the default of llama.cpp, so tokens may differ")
        name = "default"
    if name not in BY_NAME:
        known = ", ".join(names[0] for names in NAMES.values())
        raise UserError(f"{get.path} has the pre-tokenizer {shown(name)}; supported are {known} and their like")
    merges = []
    for merge in get.strings("merges"):
        left, space, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise get.damaged(f"{shown(merge)} is not a merge")
        if left in vocab and right in vocab and left + right in vocab:  # others never fire
            merges.append(merge)
    words, whole = BY_NAME[name]
    model = bpe_model(vocab, merges)
    model["ignore_merges"] = whole
    return dict(
        pre_tokenizer=pre_tokenizer(words) if merges else byte_level(False),
        decoder=byte_level(bool(merges)),
        model=model,
    )


def _starting_with(name, id):
    """The post-processor that puts a token before a text, as Hugging Face's libraries run it."""
    token, text = {"SpecialToken": dict(id=name, type_id=0)}, {"Sequence": dict(id="A", type_id=0)}
    later = {"Sequence": dict(id="B", type_id=1)}
    return dict(
        type="TemplateProcessing",
        single=[token, text],
        pair=[token, text, later],
        special_tokens={name: dict(id=name, ids=[id], tokens=[name])},
    )


class _Metadata:
    """The metadata of a tokenizer, by their names without "tokenizer.ggml.". UserError if one has another type."""

    def __init__(self, header):
        self.path, self._found = header.path, header.metadata
        self.pre = self.value("pre", str, "")

    def damaged(self, reason):
        return UserError(f"{self.path} has a damaged tokenizer: {reason}; copy or download it again")

    def value(self, name, kind, default):
        found = self._found.get(f"tokenizer.ggml.{name}", default)
        if type(found) is not kind:
            raise self.damaged(f"{name} is {shown(found)}, not of type {kind.__name__}")
        return found

    def strings(self, name):
        found = self._found.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.damaged(f"{name} is {shown(found)}, not a list of strings")
        return found

    def array(self, name, kind, n, default):
        """A list of at least n numbers."""
        found = self._found.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(found, list) or len(found) < n or not all(type(one) is kind for one in found):
            raise self.damaged(f"{name} is not a list of {counted(n, 'number')}")
        return found
