"""Tokenizers in the metadata of GGUF files: what is written, what is refused, and damaged metadata."""

from pathlib import Path

import pytest

from slm_np.data import bpe
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.library_tokenizer import LibraryTokenizer
from slm_np.data.plain_bpe import PlainBPE
from slm_np.data.tokenizer_json import bpe_model, byte_letters, byte_level, end_of_text_token, tokenizer_json
from slm_np.errors import UserError
from slm_np.formats.gguf import sentencepiece as gguf_sentencepiece
from slm_np.formats.gguf.header import Header
from slm_np.formats.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, from_metadata, to_metadata

pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")


def written(tokenizer, vocab_size=None, named=None, ends=()):
    """`to_metadata`, by default for a model with the vocabulary of the tokenizer."""
    return to_metadata(tokenizer, vocab_size or tokenizer.vocab_size, named or {}, ends)


def header_of(metadata):
    """The header of a GGUF file with the metadata of a tokenizer."""
    return Header(Path("model.gguf"), {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}, {})


def byte_pairs(merges=("a b", "ab c"), **changes):
    """The fields of a tokenizer of bytes with some merges."""
    merged = [merge.replace(" ", "") for merge in merges]
    vocab = {token: id for id, token in enumerate([*byte_letters(), *merged])}
    fields = tokenizer_json(byte_level(True), byte_level(True), bpe_model(vocab, list(merges)), len(vocab))
    return {**fields, **changes}


def sentencepiece(merges=("a b", "ab c"), tokens=("<unk>", "<s>"), **changes):
    """The fields of a tokenizer like SentencePiece's, of characters and bytes, with some merges."""
    characters = sorted(set("".join(merges)) - {" "} | {"\u2581"})
    merged = dict.fromkeys(merge.replace(" ", "") for merge in merges)
    names = [*tokens, *gguf_sentencepiece.BYTES, *characters, *merged]
    model = bpe_model({token: id for id, token in enumerate(names)}, list(merges))
    replaced = dict(type="Replace", pattern={"String": " "}, content="\u2581")
    decoder = dict(type="Sequence", decoders=[dict(type="ByteFallback"), dict(type="Fuse")])
    fields = tokenizer_json(None, decoder, {**model, "byte_fallback": True, "unk_token": "<unk>", **changes})
    special = [dict(end_of_text_token(id), content=token) for id, token in enumerate(tokens)]
    normalizer = dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="\u2581"), replaced])
    return fields | dict(added_tokens=special, normalizer=normalizer)


# What is written


def test_bytes_have_a_merge_that_never_fires():
    found = written(ByteTokenizer(end=True))
    assert (found["model"], found["pre"], found["merges"]) == ("gpt2", "gpt-2", ["\u00ff \u00ff"])
    assert found["token_type"] == [NORMAL] * 256 + [CONTROL]
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (256, 256, True)
    assert "\u00ff\u00ff" not in found["tokens"]


def test_without_end_of_text_no_token_of_a_text_ends_it():
    """Without the key, llama.cpp takes id 11 for end-of-text."""
    found = written(ByteTokenizer())
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (255, 255, False)
    assert from_metadata(header_of(found), 256).more_ends == ()


def test_plain_byte_pairs_come_back_as_they_were():
    tokenizer = PlainBPE(["a b", "whole", "ab c"])
    found = written(tokenizer, vocab_size=300)
    assert (found["model"], found["pre"], found["merges"]) == ("gpt2", "llama-bpe", ["a b", "ab c"])
    again = from_metadata(header_of(found), 300)
    assert type(again) is PlainBPE and again.to_json() == tokenizer.to_json()


def test_a_prompt_starts_like_ours():
    tokenizer = bpe.train(300, [lambda: [b"some text of a few words, some text"]], False)
    tokenizer.trained_ends = False
    assert not written(tokenizer)["add_bos_token"]
    tokenizer.prompt_start = (7,)
    found = written(tokenizer)
    assert found["add_bos_token"] and found["bos_token_id"] == 7
    back = from_metadata(header_of(found), tokenizer.vocab_size)
    assert back.prompt_start == (7,)
    assert back.to_json()["post_processor"]["single"][0] == {"SpecialToken": dict(id=found["tokens"][7], type_id=0)}
    back.prompt_start = None  # as after saving and loading
    assert written(back)["bos_token_id"] == back.vocab_size - 1


def test_ids_of_the_model_without_a_token_are_unused():
    fields = byte_pairs()
    fields["added_tokens"].append(dict(end_of_text_token(300), content="<user>", special=False))
    tokenizer = LibraryTokenizer(fields)
    found = written(tokenizer, 264)
    assert found["tokens"][-5:] == ["<user>", *(f"[PAD{id}]" for id in range(260, 264))]
    assert found["token_type"][-6:] == [CONTROL, USER_DEFINED, *[UNUSED] * 4]
    back = from_metadata(header_of(found), 264)
    assert back.vocab_size == 260 and back.encode("abc<user>").tolist() == tokenizer.encode("abc<user>").tolist()


def test_special_tokens_have_their_keys():
    fields = byte_pairs()
    for name in ("<|im_end|>", "<pad>", "<|turn|>"):
        fields["added_tokens"].append(dict(end_of_text_token(0), content=name))
    tokenizer = LibraryTokenizer(fields)
    ids = tokenizer.to_json()["added_tokens"]
    end, pad, turn = (
        next(token["id"] for token in ids if token["content"] == n) for n in ("<|im_end|>", "<pad>", "<|turn|>")
    )
    found = written(tokenizer, named=dict(eos_token="<|im_end|>"), ends=[turn])
    assert (found["eos_token_id"], found["padding_token_id"], found["eot_token_id"]) == (end, pad, turn)
    back = from_metadata(header_of(found), tokenizer.vocab_size)
    assert back.end_of_text == tokenizer.end_of_text and back.more_ends == (end, turn)


def test_scores_of_characters_and_bytes():
    found = written(LibraryTokenizer(sentencepiece()))
    assert (found["model"], found["add_space_prefix"]) == ("llama", True)
    scores = dict(zip(found["tokens"], found["scores"]))
    assert scores["ab"] > scores["abc"] > scores["a"] and scores["<0x41>"] == 0
    back = from_metadata(header_of(found), len(found["tokens"]))
    assert back.encode("abc ab\u00e9").tolist() == LibraryTokenizer(sentencepiece()).encode("abc ab\u00e9").tolist()
    assert back.begins_after_special


# What is refused


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(byte_pairs(), pre_tokenizer=byte_level(False)), r"no pre-tokenizer like the tokenizer's \(ByteLevel\)"),
        (dict(byte_pairs(), normalizer=dict(type="Lowercase")), r"\(Lowercase, ByteLevel\)"),
        (dict(byte_pairs(), pre_tokenizer=dict(byte_level(True), add_prefix_space=True)), "no pre-tokenizer like"),
        (
            dict(
                byte_pairs(),
                pre_tokenizer=dict(
                    type="Sequence", pretokenizers=[dict(type="Punctuation", behavior="Isolated"), byte_level(True)]
                ),
            ),
            r"\(Punctuation, ByteLevel\)",
        ),
        (
            sentencepiece(["a b", "b c", "a bc", "ab c", "a b"]),
            "not in the order of their tokens",
        ),
        (
            sentencepiece(["b c", "ab c"], tokens=("<unk>", "<s>", "ab")),
            "its token 'ab' would be merged from other parts",
        ),
        (dict(sentencepiece(), normalizer=dict(type="Prepend", prepend=" ")), "which stands for a space there"),
        (dict(sentencepiece(), normalizer=dict(type="NFKC")), "it has the step NFKC"),
    ],
)
def test_tokenizers_that_llama_cpp_lacks(fields, said):
    with pytest.raises(UserError, match=said):
        written(LibraryTokenizer(fields))


def test_kinds_of_models_that_llama_cpp_lacks():
    decoder, words = dict(type="WordPiece", prefix="##", cleanup=True), dict(type="Whitespace")
    vocab = {token: id for id, token in enumerate(["[UNK]", "a", "##b"])}
    model = dict(
        type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=9, vocab=vocab
    )
    with pytest.raises(UserError, match="cannot run a tokenizer of WordPiece tokens"):
        written(LibraryTokenizer(tokenizer_json(words, decoder, model)))
    unigram = dict(type="Unigram", unk_id=0, vocab=[["<unk>", 0.0], ["a", -1.0]], byte_fallback=False)
    with pytest.raises(UserError, match="cannot run a tokenizer of Unigram"):
        written(LibraryTokenizer(tokenizer_json(None, None, unigram)))


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(scores=[0.0]), "scores is not a list of"),
        (dict(scores=[float("nan")] * 500), "scores are not finite"),
        (dict(tokens=[f"t{id}" for id in range(263)]), "lacks tokens of bytes"),
        (dict(add_space_prefix=1), "add_space_prefix is 1, not of type bool"),
        (dict(add_bos_token="yes"), "add_bos_token is 'yes', not of type bool"),
    ],
)
def test_damaged_scores_and_tokens(changes, said):
    found = written(LibraryTokenizer(sentencepiece())) | changes
    with pytest.raises(UserError, match="model.gguf has a damaged tokenizer: .*" + said):
        from_metadata(header_of(found), len(found["tokens"]))


def test_a_file_without_a_pre_tokenizer_says_so(capsys):
    found = written(bpe.train(300, [lambda: [b"some text of a few words, some text"]], False))
    del found["pre"]
    from_metadata(header_of(found), len(found["tokens"]))
    assert "model.gguf does not name its pre-tokenizer; using the default of llama.cpp" in capsys.readouterr().err
