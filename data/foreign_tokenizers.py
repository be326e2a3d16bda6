"""Vocabulary files of other programs that are not a tokenizer.json: recognize them, and say how to get one."""

import base64
import binascii
import json

TRANSFORMERS = 'run in Python transformers.AutoTokenizer.from_pretrained("FOLDER").save_pretrained("NEW")'
BERT = 'run in Python tokenizers.BertWordPieceTokenizer("vocab.txt").save("tokenizer.json")'
GPT2 = 'run in Python tokenizers.ByteLevelBPETokenizer("vocab.json", "merges.txt").save("tokenizer.json")'
ARCHIVES = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, zip, bzip2, xz, zstandard


def described(data):
    """(what the bytes of a file are, how to get a tokenizer.json from it), or None if they are nothing known."""
    if data.startswith(ARCHIVES):
        return "is compressed", "unpack it, and name the tokenizer.json"
    if data.startswith(b"\n") and b"<unk>" in data[:64]:  # the first field, a token, of SentencePiece's ModelProto
        return "is a model of SentencePiece", TRANSFORMERS
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return _json(text) or _lines(text.splitlines())


def _json(text):
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "model" in found:
        return None
    if isinstance(found.get("vocab"), list) and "config" in found:
        return "is a tekken file", TRANSFORMERS
    if "tokenizer_class" in found or "added_tokens_decoder" in found:
        return "is the configuration of a tokenizer", "name the tokenizer.json beside it"
    if len(found) > 1 and all(type(id) is int for id in found.values()):
        return "is a vocabulary without merges", GPT2
    return None


def _lines(lines):
    if not lines:
        return None
    if lines[0].startswith("#version") or (len(lines) > 1 and all(line.count(" ") == 1 for line in lines[:50])):
        if _ranked(lines[:50]):
            return "is a vocabulary of tiktoken", TRANSFORMERS
        return "is a list of merges", GPT2
    if "[UNK]" in lines:
        return "is a WordPiece vocabulary", BERT
    return None


def _ranked(lines):
    """Whether lines are those of a .tiktoken file: a token in base64 and its rank."""
    try:
        for line in lines:
            token, rank = line.split(" ")
            base64.b64decode(token, validate=True)
            int(rank)
    except (ValueError, binascii.Error):
        return False
    return True
