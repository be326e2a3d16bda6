"""The chat template of another program's model: a program in Jinja that writes a conversation as text.

Its special tokens become their ids. The same characters in a message stay text: before a template sees the messages,
each place where a special token would start is hidden behind a character that does not occur elsewhere, and shown again
when the text is encoded.
"""

import functools
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from slm_np.data.chat_template import check_messages, ends_with
from slm_np.data.jinja_limits import TemplateLimit, TemplateRefusal
from slm_np.data.jinja_sandbox import environment_class
from slm_np.errors import UserError, imported

FILE = "chat_template.jinja"
PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))  # characters without a meaning in Unicode
# What `strftime_now` says in training: the tokens of a text do not depend on the day.
TRAINING_DAY = datetime(2025, 1, 1)
PROBE = ("Name it.", "It is called probe.", "Why is it?")  # messages that show how a template writes a conversation


@dataclass(frozen=True)
class JinjaTemplate:
    """A chat template in Jinja. It has the methods of `chat_template.Template`.

    source  the program
    tokens  {"bos_token": "...", "eos_token": "..."}: the names of special tokens that a template may write
    name    what errors call it
    """

    source: str
    tokens: dict = field(default_factory=dict)
    name: str = field(default=FILE, compare=False)

    def spans(self, messages, tokenizer):
        """[(bytes or int, target), ...]: the conversation as text and ids of special tokens.

        target: True for what the loss counts. A reply counts from where the prompt for it ends, to the special token
        that ends it; without such a token, to its last character. Templates that write earlier replies differently
        from the last one, as those of thinking models, are followed: what is trained on is what a model reads later.
        UserError if `messages` is not a conversation that ends with the assistant, or if the template fails.
        """
        check_messages(messages, "the conversation")
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"the conversation {ends_with(messages)}, which leaves nothing to train on; add the assistant's reply"
            )
        hidden = Hidden(self, messages, tokenizer)
        text = self._rendered(hidden.messages, False, TRAINING_DAY)
        ranges = self._replies(hidden, text)
        if not ranges:
            raise UserError(f"{self.name} does not write the assistant's replies; use another template")
        borders = [0, *chain(*ranges), len(text)]
        parts = [(hidden.shown(text[a:b]), bool(i % 2)) for i, (a, b) in enumerate(zip(borders, borders[1:]))]
        return [(part, target) for found, target in parts for part in found]

    def prompt(self, messages, tokenizer):
        """[bytes or int, ...]: a conversation up to where the assistant replies, as text and ids of special tokens.

        UserError if `messages` is not a conversation that ends with a message of the user, or if the template fails.
        """
        check_messages(messages, "the conversation")
        if messages[-1]["role"] != "user":
            raise UserError(f"the conversation {ends_with(messages)}; add a message of the user")
        hidden = Hidden(self, messages, tokenizer)
        return hidden.shown(self._rendered(hidden.messages, True))

    def stops(self, tokenizer):
        """[str]: the strings that end a reply: what the template writes between a reply and the next message.

        None if a special token ends it.
        """
        after = self._after_reply(tokenizer)
        if any(isinstance(part, int) for part in after):
            return []
        text = b"".join(after).decode("utf-8", "replace")
        return [text.rstrip(" ") if text.strip() else "\n"]

    def ends(self, tokenizer):
        """[int]: the id of the special token that the template writes after a reply, if it does."""
        return [part for part in self._after_reply(tokenizer) if isinstance(part, int)][:1]

    def _after_reply(self, tokenizer):
        """[bytes or int, ...]: what the template writes between a reply and the next message."""
        roles = ("user", "assistant", "user")
        hidden = Hidden(self, [dict(role=role, content=text) for role, text in zip(roles, PROBE)], tokenizer)
        text = self._rendered(hidden.messages, True, TRAINING_DAY)
        start = text.find(PROBE[1]) + len(PROBE[1])
        return hidden.shown(text[start : text.find(PROBE[2], start)])

    def to_bytes(self):
        """The content of chat_template.json, from which a run restores it."""
        fields = dict(source=self.source, tokens=self.tokens)
        return (json.dumps(fields, indent=2) + "\n").encode("ascii")

    def to_jinja(self):
        """The content of chat_template.jinja, for other programs."""
        return self.source.encode("utf-8", "replace")

    def identity(self):
        """What the tokens of a conversation depend on, as JSON can hold it. See `templates.restored`."""
        return dict(source=self.source, tokens=self.tokens, day=TRAINING_DAY.isoformat())

    def _replies(self, hidden, text):
        """[(start, stop), ...] of the targets in a rendered conversation, in order."""
        marked = self._rendered(hidden.marked, False, TRAINING_DAY)
        contents = hidden.contents(marked, text)
        prompts = [
            self._prompt_before(hidden.messages[:i])
            for i, message in enumerate(hidden.messages)
            if message["role"] == "assistant"
        ]
        starts = []
        for prompt, content in zip(prompts, contents):
            found = [len(prompt)] if prompt is not None and text.startswith(prompt) else []
            found += content[:1] if content else []
            starts.append(min(found, default=None))
        ranges = []
        for start, content, following in zip(starts, contents, [*starts[1:], len(text)]):
            if start is None or ranges and start < ranges[-1][1]:
                continue
            read = content[1] if content else start  # up to where it is the reply
            end = hidden.special.search(text, read, following or len(text)) if hidden.special else None
            rest = text[read:following] if content else ""
            ranges.append((start, end.end() if end else read + len(rest) - len(rest.lstrip())))
        return ranges

    def _prompt_before(self, messages):
        """The text after which the assistant replies to `messages`. None if the template refuses them."""
        try:
            return self._rendered(messages, True, TRAINING_DAY)
        except UserError:
            return None

    def _rendered(self, messages, add_generation_prompt, day=None):
        """The text of a conversation. UserError, which names the line, if the template fails."""
        template = _compiled(self.source, self.name)
        values = dict(messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt)
        try:
            text = template.environment.rendered(template, values | self.tokens, day)
            text.encode("utf-8", "surrogateescape")  # fails for half of a surrogate pair in the template
            return text
        except TemplateRefusal as refusal:
            raise UserError(f"{self.name} refuses the conversation: {refusal}; change the messages") from None
        except Exception as error:
            reason = str(error) if isinstance(error, TemplateLimit) else f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.name}{_line_of(error, template)} cannot write the conversation ({reason}); correct the "
                "template, or use another one"
            ) from None


class Hidden:
    """The messages of a conversation, without white space around them, in which no special token occurs as text.

    messages  for a template
    marked    the same with marks around each reply of the assistant
    special   the regular expression of the tokenizer's special tokens, None if it has none
    """

    def __init__(self, template, messages, tokenizer):
        self.tokens = tokenizer.special_tokens
        self.special, self.heads, self.tails, self.longest = _parts_of(tuple(self.tokens))
        contents = [message["content"].strip() for message in messages]
        unused = _unused("".join([template.source, *map(str, template.tokens.values()), *self.tokens, *contents]))
        self.start, self.stop, self.nothing = (next(unused) for _ in range(3))
        self.substitutes = {letter: next(unused) for letter in sorted({name[0] for name in self.tokens})}
        self.messages = [dict(message, content=self._hidden(content)) for message, content in zip(messages, contents)]
        self.marked = [
            dict(message, content=f"{self.start}{message['content']}{self.stop}")
            if message["role"] == "assistant"
            else message
            for message in self.messages
        ]
        self._shown = {ord(other): letter for letter, other in self.substitutes.items()} | {ord(self.nothing): None}

    def _hidden(self, content):
        """A content with another character in place of the first one of each special token.

        A part of a special token at its end, at its start or as the whole content is hidden, too, since the template
        might complete it.
        """
        if not self.special:
            return content
        starts = {match.start() for match in re.finditer(f"(?={self.special.pattern})", content)}
        lengths = range(1, min(self.longest, len(content) + 1))
        starts |= {len(content) - n for n in lengths if content[-n:] in self.heads}
        completes = any(content[:n] in self.tails for n in lengths) or any(content in name for name in self.tokens)
        letters = [self.substitutes[letter] if i in starts else letter for i, letter in enumerate(content)]
        return self.nothing * completes + "".join(letters)

    def contents(self, marked, text):
        """[(start, stop) or None, ...] of each reply in the rendered `text`, as the marks in `marked` show it.

        None for all if the marks change the text, since the template reads the messages.
        """
        starts, stops = ([m.start() for m in re.finditer(mark, marked)] for mark in (self.start, self.stop))
        n = sum(message["role"] == "assistant" for message in self.messages)
        whole = marked.replace(self.start, "").replace(self.stop, "") == text and len(starts) == len(stops) == n
        found = [(start - 2 * i, stop - 2 * i - 1) for i, (start, stop) in enumerate(zip(starts, stops))]
        return found if whole and all(start <= stop for start, stop in found) else [None] * n

    def shown(self, text):
        """[bytes or int, ...]: a text with its special tokens as ids, and the messages as they were."""
        parts, at, strip = [], 0, False

        def add(piece):
            piece = piece.translate(self._shown)
            if piece:
                parts.append(piece.encode("utf-8", "surrogateescape"))

        for match in self.special.finditer(text) if self.special else ():
            token, piece = self.tokens[match[0]], text[at : match.start()]
            piece = piece.lstrip() if strip else piece
            add(piece.rstrip() if token.lstrip else piece)
            parts.append(token.id)
            at, strip = match.end(), token.rstrip
        add(text[at:].lstrip() if strip else text[at:])
        return parts


@functools.lru_cache(16)
def _parts_of(names):
    """(regular expression of the names or None, their beginnings, their ends, the length of the longest)."""
    longest_first = sorted(names, key=len, reverse=True)
    heads = {name[:n] for name in names for n in range(1, len(name))}
    tails = {name[n:] for name in names for n in range(1, len(name))}
    pattern = re.compile("|".join(map(re.escape, longest_first))) if names else None
    return pattern, heads, tails, max(map(len, names), default=0)


@functools.lru_cache(16)
def _compiled(source, name):
    """The compiled template, for `rendered` of its environment. UserError, which starts with `name`, for bad syntax."""
    jinja2 = imported("jinja2", f"the chat template {name}", "slm_np[chat]")
    try:
        return environment_class()().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name}, line {error.lineno}, is not a Jinja template ({error.message}); correct it") from None
    except (RecursionError, MemoryError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(f"{name} is not a Jinja template ({type(error).__name__}); copy it again") from None


def _unused(text):
    """The private characters that do not occur in a text. UserError if there are not enough."""
    known = set(text)
    for code in PRIVATE:
        if chr(code) not in known:
            yield chr(code)
    raise UserError("the conversation contains every private character of Unicode; remove some")


def _line_of(error, template):
    """', line N' of the template where an exception comes from, "" if it is unknown."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return "" if line is None else f", line {line},"
