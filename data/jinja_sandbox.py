"""The Jinja environment of chat templates: what transformers offers them, within limits of time and size.

A template is a program that comes with a downloaded model. It can neither read files nor reach Python's internals
(Jinja's sandbox), and every loop, call and operator checks that it is not out of time and that its values stay small.
"""

import functools
import json
import re
import time
from collections.abc import Collection, Mapping
from datetime import datetime

from slm_np.errors import UserError, imported

SECONDS = 10.0  # of one rendering
LARGEST = 10_000_000  # characters of a value
ELEMENT = 10  # characters that a number or an element of a list counts as
MULTIPLYING = ("translate", "join", "indent", "expandtabs", "tojson")  # whose results have that many pieces
WIDTHS = re.compile(r"\d{5}|\*|\{[^{}]*\{")  # in a format string: a width that is large or comes from a value
CHAT_EXTRA = "slm_np[chat]"


class TemplateLimit(Exception):
    """A template takes too long, or makes something too large."""


class TemplateRefusal(Exception):
    """A template called `raise_exception` with this message."""


def size(value):
    """The number of characters in a value and the values inside it, about. `TemplateLimit` above `LARGEST`."""
    total, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if hasattr(value, "_Namespace__attrs"):  # of Jinja's `namespace`, which is printed with its values
            value = value._Namespace__attrs
        is_text, is_collection = isinstance(value, (str, bytes)), isinstance(value, Collection)
        total += len(value) if is_text else ELEMENT
        check(total)
        if is_collection and not is_text:
            waiting.extend([*value, *value.values()] if isinstance(value, Mapping) else value)
    return total


def check(n):
    """`TemplateLimit` if n characters are too many."""
    if not n <= LARGEST:
        raise TemplateLimit(f"it makes more than {LARGEST:,} characters")


def check_result(name, value, others):
    """`TemplateLimit` if the filter or the method of a string called `name` may make too much of a value.

    others: its other arguments. A number is a width.
    """
    n = size(value)
    if name == "replace" and len(others) > 1:
        old, new, *_ = map(size, others)
        check(n + (n // max(1, old) + 1) * new)
        return
    for other in others:
        if isinstance(other, int):
            n = n * max(1, abs(other)) if name in MULTIPLYING else n + abs(other)
        elif name in MULTIPLYING:
            n *= max(1, size(other))
        check(n)


def check_format(text):
    """`TemplateLimit` if a format string asks for a large width, or for one that it takes from a value."""
    if isinstance(text, str) and WIDTHS.search(text):
        raise TemplateLimit("it formats with a large width")


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as transformers writes it: without Jinja's escapes of HTML, in the order of the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compiled(source, name):
    """The compiled template, for `rendered` of its environment. UserError, which starts with `name`, for bad syntax."""
    jinja2 = imported("jinja2", f"the chat template {name}", CHAT_EXTRA)
    try:
        return environment_class()().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name}, line {error.lineno}, is not a Jinja template ({error.message}); correct it") from None
    except (RecursionError, MemoryError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(f"{name} is not a Jinja template ({type(error).__name__}); copy it again") from None


@functools.cache
def environment_class():
    """The class of environments. It is made here, since jinja2 is imported only if there is a template."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks a reply for transformers. Here it is the text inside it (see jinja_template.py)."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Code(CodeGenerator):
        """Code that checks the limits in loops and where texts are joined."""

        def visit_For(self, node, frame):
            if node.recursive:
                self.fail("recursive loops are not supported", node.lineno)
            stepped = nodes.EnvironmentAttribute("stepped", lineno=node.lineno)
            node.iter = nodes.Call(stepped, [node.iter], [], None, None, lineno=node.lineno)
            super().visit_For(node, frame)

        def visit_Concat(self, node, frame):
            self.write("environment.joined((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class ChatEnvironment(ImmutableSandboxedEnvironment):
        code_generator_class = Code
        intercepted_binops = frozenset(["+", "*", "%", "**"])
        deadline = 0.0

        def __init__(self):
            super().__init__(
                trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=self.finalized
            )
            self.day = None
            filters = dict(self.filters, tojson=tojson)
            self.filters = {name: self.limited(name, function) for name, function in filters.items()}
            del self.globals["lipsum"]
            self.globals |= dict(raise_exception=self.refuse, strftime_now=self.strftime_now)

        def refuse(self, message):
            raise TemplateRefusal(str(message))

        def strftime_now(self, format):
            return (self.day or datetime.now()).strftime(format)

        def check_time(self):
            if time.monotonic() > self.deadline:
                raise TemplateLimit(f"it takes more than {SECONDS:g} seconds")

        def finalized(self, value):
            """What {{ value }} prints."""
            if not isinstance(value, str):
                size(value)
            return value

        def stepped(self, values):
            """The iterator over `values`, which checks the time at each step."""
            for value in values:
                self.check_time()
                yield value

        def joined(self, parts):
            """The text of `parts ~ ...`"""
            size(parts)
            return "".join(map(str, parts))

        def limited(self, name, filter):
            """A filter that checks before it runs whether its result may be too large."""

            @functools.wraps(filter)
            def run(*arguments, **options):
                self.check_time()
                value, *others = arguments[hasattr(filter, "jinja_pass_arg") :]
                check_result(name, value, [*others, *options.values()])
                if name == "format":
                    check_format(value)
                return filter(*arguments, **options)

            return run

        def call(self, context, function, *arguments, **options):
            self.check_time()
            owner = getattr(function, "__self__", None)
            if isinstance(owner, str):
                check_result(function.__name__, owner, [*arguments, *options.values()])
            return super().call(context, function, *arguments, **options)

        def wrap_str_format(self, value):
            """The sandbox's version of a string's method `format`; None for anything else."""
            found = super().wrap_str_format(value)
            if found is not None:
                check_format(value.__self__)
            return found

        def call_binop(self, context, operator, left, right):
            self.check_time()
            if operator == "+":
                size((left, right))
            elif operator == "%" and isinstance(left, str):
                check_format(left)
                size(right)
            elif operator in ("*", "**") and not isinstance(left, float) and not isinstance(right, float):
                factors = [left] * min(right, 1000) if operator == "**" and isinstance(right, int) else [left, right]
                n = 1
                for factor in factors:
                    n *= max(1, abs(factor) if isinstance(factor, int) else size(factor))
                    check(n)
            return super().call_binop(context, operator, left, right)

        def rendered(self, template, values, day=None):
            """The text of a template with these variables. day: the datetime of `strftime_now`, None for now."""
            self.deadline, self.day = time.monotonic() + SECONDS, day
            parts, n = [], 0
            for part in template.root_render_func(template.new_context(values)):
                self.check_time()
                parts.append(part)
                n += len(part)
                check(n)
            return "".join(parts)

    return ChatEnvironment
