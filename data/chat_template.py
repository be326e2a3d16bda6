"""The chat template: how a conversation is written down as one text, and which part of it the model learns to write.

The default writes
    Q: What is a fish?
    A: An animal.
with end-of-text after the last answer. Only answers are learnt, from their first space to their line's end.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from slm_np.errors import UserError, near

FILE = "chat_template.json"
ROLES = ("system", "user", "assistant")
EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


@dataclass(frozen=True)
class Template:
    """The strings before and after what each role says.

    A space at the end of `before_assistant` is written with the answer: in most vocabularies a word's piece begins with its space, so
    that a prompt has to end before it.
    """

    before_system: str = ""
    after_system: str = "\n"
    before_user: str = "Q: "
    after_user: str = "\n"
    before_assistant: str = "A: "
    after_assistant: str = "\n"

    def pieces(self, messages):
        """[(bytes, learn), ...]: the conversation's text in order, neighbours of the same kind joined. `learn` is True for what the
        assistant says and what ends it; end-of-text, which follows the last answer, is for the caller to put. UserError if `messages`
        is no conversation that ends with an answer."""
        check_messages(messages, "the conversation")
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"the conversation ends with the {messages[-1]['role']}'s words, so there is no answer to learn; add the assistant's"
            )
        return self._pieces(messages)

    def prompt(self, messages):
        """The bytes of a conversation up to where the assistant answers. UserError if it is none, or the assistant spoke last."""
        check_messages(messages, "the conversation")
        if messages[-1]["role"] != "user":
            raise UserError(f"the conversation ends with the {messages[-1]['role']}'s words; add what the user asks")
        return b"".join(piece for piece, _ in self._pieces(messages)) + self.before_assistant.rstrip(" ").encode()

    def _pieces(self, messages):
        found = []
        for message in messages:
            role = message["role"]
            before, after = (getattr(self, f"{side}_{role}") for side in ("before", "after"))
            marker = before.rstrip(" ") if role == "assistant" else before
            said = before[len(marker) :] + message["content"].strip() + after
            for text, learn in ((marker, False), (said, role == "assistant")):
                if found and found[-1][1] == learn:
                    found[-1][0] += text
                else:
                    found.append([text, learn])
        return [(text.encode("utf-8", "surrogateescape"), learn) for text, learn in found if text]

    def stops(self, end_of_text):
        """The strings at which an answer is over. With an `end_of_text` id (not None), which ends answers by itself, an answer may have
        several lines and is over where the next question begins; else it is over at what follows every answer."""
        return [self.after_assistant + self.before_user] if end_of_text is not None else [self.after_assistant]

    def save(self, run_dir):
        """Write `chat_template.json` into a run."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        part = Path(run_dir) / f"{FILE}.{os.getpid()}"
        part.write_text(text, encoding="utf-8")
        os.replace(part, Path(run_dir) / FILE)


DEFAULT = Template()
pieces, prompt = DEFAULT.pieces, DEFAULT.prompt


def load(run_dir):
    """The `Template` of a run, None if it has none. UserError for a damaged file."""
    path = Path(run_dir) / FILE
    names = [field.name for field in dataclasses.fields(Template)]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give yourself the right to read it") from None
    except ValueError:
        found = None
    if (
        not isinstance(found, dict)
        or sorted(found) != sorted(names)
        or not all(isinstance(text, str) for text in found.values())
    ):
        raise UserError(
            f"{path} is not a chat template, an object of the strings {', '.join(names)}; copy it again, or remove it to chat without one"
        )
    if not found["after_assistant"] or not found["before_assistant"].strip():
        raise UserError(
            f"{path} leaves before_assistant or after_assistant empty, so that answers have no beginning or no end; copy it again"
        )
    return Template(**found)


def check_messages(messages, where):
    """UserError, which says `where`, unless `messages` is a list of {"role", "content"}: perhaps the system, then user and assistant in turn."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where} has "messages" that is no list with a message in it; write {EXAMPLE}')
    before = None
    for n, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise UserError(f"{where}, message {n}, is no object; write {EXAMPLE}")
        role = message.get("role")
        if role not in ROLES:
            raise UserError(f"{where}, message {n}, has the role {role!r}; {near(str(role), ROLES)}")
        check_text(message, "content", f"{where}, message {n},")
        if role == "system" and n > 1:
            raise UserError(f"{where}, message {n}, is the system's; put it first, and only once")
        if role != "system" and role != ("assistant" if before == "user" else "user"):
            raise UserError(
                f"{where}, message {n}, is the {role}'s where the {'assistant' if before == 'user' else 'user'}'s is due; "
                "let user and assistant take turns, the user first"
            )
        before = role


def check_text(row, field, where):
    """UserError, which says `where`, unless `row[field]` is text that can be written."""
    if not isinstance(row.get(field), str):
        raise UserError(f'{where} has no text "{field}"; add it, as a string')
    if not row[field].strip():
        raise UserError(f'{where} has an empty "{field}"; write something there or remove the row')
    try:
        row[field].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UserError(
            f'{where} has {ascii(row[field][error.start])} in its "{field}", half of a character; write the whole one'
        ) from None


def parse_row(line, file, number):
    """What one line of a JSONL file holds: a list of messages (of a `messages` or a `prompt` and `completion` row), or a str (`text`).

    line: str or UTF-8 bytes.   number: of the line, from 1.   UserError naming file, line and mend for anything else, and for a
    conversation that does not end with an answer.
    """
    where = f"{file}, line {number},"
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8; save the file in that encoding") from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is nested too deep")
        raise UserError(
            f"{where} is not JSON ({reason}{f' at column {error.colno}' if hasattr(error, 'colno') else ''}); write one object per line"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object; write {EXAMPLE}")
    if "messages" in row:
        messages = row["messages"]
        check_messages(messages, where.rstrip(","))
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"{where} ends with the {messages[-1]['role']}'s words, so there is no answer to learn; add the assistant's or remove the row"
            )
        return messages
    if "prompt" in row or "completion" in row:
        for field in ("prompt", "completion"):
            check_text(row, field, where)
        return [dict(role="user", content=row["prompt"]), dict(role="assistant", content=row["completion"])]
    if "text" in row:
        check_text(row, "text", where)
        return row["text"]
    shown = ", ".join(sorted(map(repr, row))[:5]) or "nothing"
    raise UserError(
        f'{where} has neither "messages" nor "prompt" and "completion" nor "text" but {shown}; write {EXAMPLE}'
    )
