"""Byte tokenizers with special tokens."""

from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.tokenizer_json import end_of_text_token


def special(id, content, **changes):
    """An entry of `added_tokens` in a tokenizer.json."""
    return dict(end_of_text_token(id), content=content, **changes)


def bytes_and(*names, **changes):
    """A tokenizer with the 256 bytes and these special tokens, which have the ids from 256 on."""
    added = [special(256 + i, name, **changes) for i, name in enumerate(names)]
    return LibraryTokenizer(dict(ByteTokenizer().to_json(), added_tokens=added))
