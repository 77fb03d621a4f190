"""Sphinx extension: a page a room, from the docstrings of its public names.

A page `book/api/<room>` has a title and a few sentences; the rest is put after them here: each
module in import order with what it is for, and its public names as autodoc writes them. Fields of
a dataclass and constants are explained by the comments beside them in the source.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lensml.paths import PACKAGE

ROOM = "book/api/"
LONGEST = 90  # characters of a constant that are shown


def public_names(room: str) -> dict[str, list[str]]:
    """Public names of a room by module, both as its `__init__` lists them."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    (listed,) = (call for call in calls if getattr(call.func, "id", "") == "exports")
    return {k.arg: ast.literal_eval(k.value).split() for k in listed.keywords}


def room_text(room: str) -> str:
    """All modules of a room that have public names, in Markdown."""
    parts = []
    for name, public in public_names(room).items():
        if public:
            module = import_module(f"lensml.{room}.{name}")
            rst = "\n".join(line for n in public for line in entry(room, module, n))
            parts.append(f"## {name}\n\n```{{eval-rst}}\n{inspect.getdoc(module)}\n\n{rst}\n```")
    return "\n\n".join(parts)


def entry(room: str, module: ModuleType, name: str) -> Iterator[str]:
    """Lines of reStructuredText for one public name, called as users import it."""
    thing, path = getattr(module, name), f"lensml.{room}.{name}"
    if inspect.isclass(thing):
        yield from (f".. autoclass:: {path}", "   :members:", "")
    elif callable(thing) and str(getattr(thing, "__module__", "")).startswith("lensml"):
        yield from (f".. autofunction:: {path}", "")
    else:
        source = Path(module.__file__).read_text()
        value, comment = assignments(source).get(name, ("", "As in the room it comes from."))
        value = value if len(value) <= LONGEST else value[: LONGEST - 4] + " ..."
        yield from (f".. py:data:: {path}", *[f"   :value: {value}"] * bool(value), "")
        yield from (f"   {comment}", "")


def assignments(source: str, inside: str = "") -> dict[str, tuple[str, str]]:
    """Value, or type of a field, and comment of each name assigned in a module or its class.

    The comment is the first one beside the assignment, else that on the line before.
    """
    lines, body = source.splitlines(), ast.parse(source).body
    if inside:
        (body,) = (n.body for n in body if isinstance(n, ast.ClassDef) and n.name == inside)
    found = {}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            alone = isinstance(node, ast.AnnAssign)
            target, value = (
                (node.target, node.annotation) if alone else (node.targets[0], node.value)
            )
            beside = [comment_of(line) for line in lines[node.lineno - 1 : node.end_lineno]]
            above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
            beside.append(above[1:].strip() if above.startswith("#") else "")
            comment = next(filter(None, beside), "")
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]
            found |= {ast.unparse(name): (ast.unparse(v), comment) for name, v in pairs}
    return found


def comment_of(line: str) -> str:
    """What stands behind the code of a line; two blanks and a sign begin it."""
    return line.partition("  # ")[2].strip()


def with_fields(app, what: str, name: str, thing: Any, options, lines: list[str]) -> None:
    """Add the fields of a dataclass, with type and comment, to its docstring."""
    if what == "class" and is_dataclass(thing) and ":ivar" not in " ".join(lines):
        source = Path(inspect.getfile(thing)).read_text()
        for field, (kind, comment) in assignments(source, thing.__name__).items():
            if comment and not field.startswith("_"):
                lines += [f":ivar {field}: {comment}", f":vartype {field}: {kind}"]
        lines.append("")


def read(app, docname: str, source: list[str]) -> None:
    """Put a room's modules after the sentences of its page."""
    if docname.startswith(ROOM) and app.builder.format == "latex":
        source[0] += "\n\nThe names are listed in the pages of the book, not in print.\n"
    elif docname.startswith(ROOM):
        room = docname.removeprefix(ROOM)
        source[0] += "\n\n" + room_text(room)
        for path in [*(PACKAGE / room).glob("*.py"), Path(__file__)]:
            app.env.note_dependency(str(path))  # sphinx reads the page again when it changes


def settings(app, config) -> None:
    """How docstrings are read: arguments as Google writes them, `names` as code."""
    config.default_role = "literal"
    config.autodoc_typehints_format = "short"
    config.autodoc_member_order = "bysource"
    config.autodoc_class_signature = "mixed"
    config.napoleon_numpy_docstring = False
    config.napoleon_use_ivar = True
    config.python_maximum_signature_line_length = 80
    config.html_domain_indices = False
    # Types of other libraries: their pages are not here, and a build asks no network.
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:.*", ".*")]


def setup(app) -> dict:
    """Called by sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("config-inited", settings, priority=900)
    app.connect("autodoc-process-docstring", with_fields, priority=900)
    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
