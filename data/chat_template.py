"""The chat template: how a conversation is written as text, and which bytes of it the loss counts.

The default template writes
    Q: What is a fish?
    A: An animal.
and the end-of-text token follows the last reply. The loss is masked to the assistant's messages: each counts from the
space before it to the end of its line.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from slm_np.errors import UserError, near

FILE = "chat_template.json"
ROLES = ("system", "user", "assistant")
ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
# Keys of rows, as widespread datasets have them.
PAIRS = (
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("input", "output"),
)
CONTEXTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
KEYS = {"messages", "conversations", "prompt", "completion", "text", "content", *sum(PAIRS, ()), *CONTEXTS, *SYSTEMS}
EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


@dataclass(frozen=True)
class Template:
    """The strings before and after each message, by role.

    Spaces at the end of `before_assistant` count as part of the reply. In most vocabularies a token of a word starts
    with the space before it, so a prompt has to end before that space.
    """

    before_system: str = ""
    after_system: str = "\n"
    before_user: str = "Q: "
    after_user: str = "\n"
    before_assistant: str = "A: "
    after_assistant: str = "\n"

    def spans(self, messages, tokenizer=None):
        """[(bytes, target), ...]: the conversation as text, in alternating spans of targets and of context.

        messages: [{"role", "content"}, ...] (see `check_messages`).   target: True for what the loss counts: the
        assistant's messages and the strings after them. The caller appends the end-of-text token.
        Other templates also have ids of special tokens among the spans (see jinja_template.py), which depend on the
        tokenizer.
        UserError if `messages` is not a conversation that ends with a message of the assistant.
        """
        check_messages(messages, "the conversation")
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"the conversation {ends_with(messages)}, which leaves nothing to train on; add the assistant's reply"
            )
        return self._spans(messages)

    def prompt(self, messages, tokenizer=None):
        """[bytes]: a conversation up to where the assistant replies. Other templates also have ids in this list.

        UserError if `messages` is not a conversation that ends with a message of the user.
        """
        check_messages(messages, "the conversation")
        if messages[-1]["role"] != "user":
            raise UserError(f"the conversation {ends_with(messages)}; add a message of the user")
        return [b"".join(span for span, _ in self._spans(messages)) + self.before_assistant.rstrip(" ").encode()]

    def _spans(self, messages):
        found = []
        for message in messages:
            role = message["role"]
            before, after = (getattr(self, f"{side}_{role}") for side in ("before", "after"))
            marker = before.rstrip(" ") if role == "assistant" else before
            content = before[len(marker) :] + message["content"].strip() + after
            for text, target in ((marker, False), (content, role == "assistant")):
                if found and found[-1][1] == target:
                    found[-1][0] += text
                else:
                    found.append([text, target])
        return [(text.encode("utf-8", "surrogateescape"), target) for text, target in found if text]

    def stops(self, tokenizer):
        """[str]: the strings that end a reply.

        If the tokenizer has an end-of-text token, which ends a reply by itself, a reply may have several lines: it ends
        where the next question starts. Otherwise a reply ends at the string after every reply.
        """
        several = tokenizer.end_of_text is not None
        return [self.after_assistant + self.before_user] if several else [self.after_assistant]

    def ends(self, tokenizer):
        """The ids of special tokens that the template writes after a reply: none."""
        return []

    def to_bytes(self):
        """The content of chat_template.json."""
        return (json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n").encode("utf-8")

    def to_jinja(self):
        """The same template for other programs, in Jinja: the content of chat_template.jinja.

        It writes `prompt` if add_generation_prompt is true, else the bytes of `spans` and the end-of-text token.
        """
        parts = []
        for role in ROLES:
            before, after = (_literal(getattr(self, f"{side}_{role}")) for side in ("before", "after"))
            parts.append(
                f"{'el' * bool(parts)}if message['role'] == '{role}' %}}{{{{ {before} + (message['content'] | trim) + "
                f"{after} }}}}{{% "
            )
        reply = _literal(self.before_assistant.rstrip(" "))
        source = (
            f"{{% for message in messages %}}{{% {''.join(parts)}endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {reply} }}}}"
            "{% elif messages[-1]['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        )
        return source.encode("utf-8", "backslashreplace")

    def identity(self):
        """What the tokens of a conversation depend on, as JSON can hold it. See `templates.restored`."""
        return dataclasses.asdict(self)


def _literal(text):
    """A string of Jinja."""
    return json.dumps(text, ensure_ascii=False)


DEFAULT = Template()


def load(run_dir):
    """The `Template` in the directory of a run, None if it has none. UserError if the file is damaged or unreadable."""
    path = Path(run_dir) / FILE
    names = [field.name for field in dataclasses.fields(Template)]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, dict)
        or sorted(found) != sorted(names)
        or not all(isinstance(text, str) for text in found.values())
    ):
        raise UserError(
            f"{path} is not a chat template, which is an object of the strings {', '.join(names)}; "
            "copy it again, or remove it to chat without a template"
        )
    if not found["after_assistant"] or not found["before_assistant"].strip():
        raise UserError(
            f"{path} has an empty before_assistant or after_assistant, so replies have no start or no end; "
            "copy it again"
        )
    return Template(**found)


def check_messages(messages, where):
    """Raise UserError, starting with `where`, unless `messages` is a conversation.

    A conversation is a list of {"role", "content"}: at most one system message, which comes first, then messages of
    user and assistant in turn.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where} needs a list of at least one message in "messages"; write {EXAMPLE}')
    before = None
    for n, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise UserError(f"{where}, message {n}, is not an object; write {EXAMPLE}")
        role = message.get("role")
        if role not in ROLES:
            raise UserError(f"{where}, message {n}, has the role {role!r}; {near(str(role), ROLES)}")
        check_text(message, "content", f"{where}, message {n},")
        if role == "system" and n > 1:
            raise UserError(f"{where}, message {n}, has the role system; only the first message may have it")
        expected = "assistant" if before == "user" else "user"
        if role not in ("system", expected):
            raise UserError(
                f"{where}, message {n}, has the role {role}, but {expected} is expected; "
                "user and assistant must alternate, and the user starts"
            )
        before = role


def check_text(row, field, where):
    """Raise UserError, starting with `where`, unless `row[field]` is a non-blank string that can be encoded."""
    if not isinstance(row.get(field), str):
        raise UserError(f'{where} has no string "{field}"; add it')
    if not row[field].strip():
        raise UserError(f'{where} has an empty "{field}"; fill it in, or remove the row')
    try:
        row[field].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(
            f'{where} has {ascii(row[field][error.start])} in its "{field}", half of a surrogate pair; '
            "write the whole character"
        ) from None


def parse_row(line, file, number, unit="line"):
    """The content of a row of JSON: a str for a text, a list of messages, or None if it has nothing to learn.

    A row is a string, or an object with one of
        messages, conversations    a list of {"role", "content"}, or of {"from", "value"} as ShareGPT writes it
        a pair of `PAIRS`          question and answer, with `CONTEXTS` appended to a question and `SYSTEMS` before it
        text, content              a string
    A row has nothing to learn if the text or a message is empty or null.
    line: str or UTF-8 bytes; a comma at its end does not count.   number: of the line or other `unit`, from 1.
    UserError with file, number and remedy for any other row, and for a conversation that does not end with the
    assistant.
    """
    where = f"{file}, {unit} {number},"
    row = _object(line, where)
    if "messages" in row:
        return _conversation(row["messages"], where)
    if ("prompt" in row or "completion" in row) and not ("prompt" in row and "response" in row):
        return _pair(row, "prompt", "completion", where)
    if "text" in row:
        return _text(row, "text", where)
    if "conversations" in row:
        return _conversation(row["conversations"], where, _system(row))
    pairs = [pair for pair in PAIRS if all(key in row for key in pair)]
    if len(pairs) > 1 and "input" in pairs[-1]:  # the input belongs to an instruction or question
        pairs.pop()
    if len(pairs) == 1:
        contexts = [key for key in CONTEXTS if key in row and key not in pairs[0]]
        return _pair(row, *pairs[0], where, contexts, _system(row))
    if "content" in row and not pairs:
        return _text(row, "content", where)
    keys = ", ".join(sorted(map(repr, row))[:5]) or "no keys"
    raise UserError(
        f'{where} has {keys}, but needs "messages", or "prompt" and "completion", or "text"; write {EXAMPLE}'
    )


def _object(line, where):
    """The object in a row of JSON. UserError, which starts with `where`, if it is something else."""
    line = line.strip()
    try:
        row = json.loads(line[:-1] if line[-1:] in (",", b",") else line)
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8; save the file in that encoding") from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is nested too deeply")
        column = f" at column {error.colno}" if hasattr(error, "colno") else ""
        raise UserError(f"{where} is not JSON ({reason}{column}); write one object per line") from None
    if row is None or isinstance(row, str):
        return dict(text=row)
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object; write {EXAMPLE}")
    return row


def _text(row, key, where):
    if _is_empty(row[key]):
        return None
    check_text(row, key, where)
    return row[key]


def _pair(row, question, answer, where, contexts=(), system=""):
    """The conversation of a row with a question and an answer, or None if one of them is empty."""
    for key in (question, answer):
        if key in row and _is_empty(row[key]):
            return None
    for key in (question, answer):
        check_text(row, key, where)
    added = [key for key in contexts if not _is_empty(row[key])]
    for key in added:
        check_text(row, key, where)
    asked = "\n".join(row[key] for key in (question, *added))
    start = [dict(role="system", content=system)] * bool(system)
    return [*start, dict(role="user", content=asked), dict(role="assistant", content=row[answer])]


def _conversation(messages, where, system=""):
    """The messages of a row, or None if one of them is empty."""
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        messages = [_message(message) for message in messages]
        if any("content" in message and _is_empty(message["content"]) for message in messages):
            return None
        if system and messages and messages[0].get("role") != "system":
            messages.insert(0, dict(role="system", content=system))
    check_messages(messages, where.rstrip(","))
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where} {ends_with(messages)}, which leaves nothing to train on; "
            "add the assistant's reply, or remove the row"
        )
    return messages


def _message(message):
    """A message with role and content, from one with the keys or the roles of ShareGPT, or with parts of text."""
    if "role" not in message and "content" not in message and {"from", "value"} <= message.keys():
        message = dict(role=message["from"], content=message["value"])
    role, content = message.get("role"), message.get("content")
    if isinstance(role, str) and role in ROLE_NAMES:
        message = dict(message, role=ROLE_NAMES[role])
    if (
        isinstance(content, list)
        and content
        and all(isinstance(p, dict) and set(p) == {"type", "text"} for p in content)
    ):
        if all(part["type"] == "text" and isinstance(part["text"], str) for part in content):
            message = dict(message, content="".join(part["text"] for part in content))
    return message


def _system(row):
    """The system message that a row has beside its question, or ""."""
    found = next((row[key] for key in SYSTEMS if isinstance(row.get(key), str)), "")
    return "" if _is_empty(found) else found


def _is_empty(value):
    return value is None or isinstance(value, str) and not value.strip()


def ends_with(messages):
    return f"ends with a message of the {messages[-1]['role']}"
