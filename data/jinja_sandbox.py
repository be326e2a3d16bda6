"""The Jinja environment of chat templates: what transformers offers them, within limits of time and size.

A template can neither read files nor reach Python's internals (Jinja's sandbox), and every loop, call and operator
checks that it is not out of time and that its values stay small.
"""

import functools
import json
import time
from datetime import datetime

from slm_np.data import jinja_limits
from slm_np.data.jinja_limits import TemplateLimit, TemplateRefusal, check, check_format, check_result, size


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as transformers writes it: without Jinja's escapes of HTML, in the order of the keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Limited:
    """What `environment_class` puts before Jinja's sandboxed environment: limits, and what templates may call."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])
    deadline = 0.0

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=self.chat_extensions, finalize=self.finalized)
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
            raise TemplateLimit(f"it takes more than {jinja_limits.SECONDS:g} seconds")

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
        self.deadline, self.day = time.monotonic() + jinja_limits.SECONDS, day
        parts, n = [], 0
        for part in template.root_render_func(template.new_context(values)):
            self.check_time()
            parts.append(part)
            n += len(part)
            check(n)
        return "".join(parts)


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

    class ChatEnvironment(Limited, ImmutableSandboxedEnvironment):
        code_generator_class, chat_extensions = Code, (Generation, loopcontrols)

    return ChatEnvironment
