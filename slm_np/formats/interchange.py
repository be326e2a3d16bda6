"""What other programs read of a model beside its weights and tokenizer.json, in the files of Hugging Face.

config.json              the architecture, if a class of transformers computes it
tokenizer_config.json    the special tokens and the context length
chat_template.jinja      how a conversation becomes text
"""

from slm_np.data.library_tokenizer import STARTS
from slm_np.formats.files import to_json
from slm_np.formats.layouts import layout_of

TEMPLATE = "chat_template.jinja"


def interchange_files(run, tokenizer, template):
    """{name: bytes} of these files for a run.

    run: RunConfig.   tokenizer: None without text.   template: of its conversations, or None
    """
    found = layout_of(run).described(run, **token_ids(tokenizer))
    if tokenizer is not None:
        fields = tokenizer_config(tokenizer, template, run.full_context)
        found["tokenizer_config.json"] = to_json(fields, indent=2) + b"\n"
    if template is not None:
        found[TEMPLATE] = template.to_jinja()
    return found


def token_ids(tokenizer):
    """The ids of special tokens as config.json and generation_config.json name them; None for those that it lacks.

    Several ids that end a text are a list. Sequences of different lengths are padded with the end-of-text token.
    """
    tokens = {} if tokenizer is None else special_tokens(tokenizer)
    start, end = (tokens.get(name, (None,))[0] for name in ("bos_token", "eos_token"))
    others = [] if tokenizer is None else [id for id in tokenizer.more_ends if id != end]
    ends = [id for id in (end, *others) if id is not None]
    return dict(bos_token_id=start, eos_token_id=ends if len(ends) > 1 else next(iter(ends), None), pad_token_id=end)


def tokenizer_config(tokenizer, template, context):
    """The fields of tokenizer_config.json.

    template: its names of special tokens are kept.   context: the longest sequence of the model, in tokens.
    """
    tokens = {name: token for name, (_, token) in special_tokens(tokenizer).items()}
    padding = dict(pad_token=tokens["eos_token"]) if "eos_token" in tokens else {}
    return dict(
        tokenizer_class="PreTrainedTokenizerFast",
        **(tokens | padding | getattr(template, "tokens", {})),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def special_tokens(tokenizer):
    """{bos_token, eos_token, unk_token: (id, token)}, as far as the tokenizer has them.

    A text starts with the token of that kind or, without one, with the end-of-text token.
    """
    names = _token_names(tokenizer.to_json())
    ids = dict(
        bos_token=next((id for id, name in names.items() if name in STARTS), tokenizer.end_of_text),
        eos_token=tokenizer.end_of_text,
        unk_token=tokenizer.unknown,
    )
    return {kind: (id, names[id]) for kind, id in ids.items() if id is not None}


def _token_names(fields):
    """{id: token} of the fields of a tokenizer.json."""
    vocab = fields["model"]["vocab"]
    names = {id: name for name, id in vocab.items()} if isinstance(vocab, dict) else dict(enumerate(next(zip(*vocab))))
    return names | {token["id"]: token["content"] for token in fields["added_tokens"]}
