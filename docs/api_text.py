"""The whole API as one text file for assistants: what docs/api.md names, with signatures and docstrings."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

INTRODUCTION = """\
# ltpa: the whole API

Attention CNNs of "Learn To Pay Attention" (Jetley et al., ICLR 2018) in PyTorch: models, training, attention maps and
measures. Signatures and docstrings are those of version {version}. Install it with

    pip install "ltpa[notebooks] @ {address}/archive/refs/tags/v{version}.zip"
"""
_DIRECTIVE = re.compile(r"\.\. auto(?:function|class|exception|method|(module)):: (\S+)((?:\n +:[\w-]+:)*)")


def api_text(page: str, address: str, version: str) -> str:
    """Return the text of docs/api.md with every directive replaced by what it documents."""
    described: set[int] = set()

    def blocks(match: re.Match[str]) -> str:
        return "\n".join(_blocks(match[1], described))

    body = re.sub(r"```\{eval-rst\}\n(.*?)```\n", blocks, page.partition("\n")[2], flags=re.DOTALL)
    return INTRODUCTION.format(address=address, version=version) + body


def _blocks(directives: str, described: set[int]) -> Iterator[str]:
    """Describe what directives name, each thing once."""
    for module, name, options in _DIRECTIVE.findall(directives):
        thing = _find(name)
        named = {f"{name}.{part}": getattr(thing, part) for part in thing.__all__} if module else {name: thing}
        for full_name, one in named.items():
            if id(one) not in described:
                described.add(id(one))
                yield from _described(full_name, one, members=bool(module) or ":members:" in options)


def _find(name: str) -> Any:
    """Return a module, or what lies in one, from its dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise ValueError(f"docs/api.md names {name!r}, which does not exist")


def _described(name: str, thing: Any, members: bool) -> Iterator[str]:
    if not callable(thing):
        yield f"### {name}\n\n    {thing!r}\n"
        return
    yield f"### {name}\n\n{textwrap.indent(_signature(thing), '    ')}\n\n{inspect.getdoc(thing) or ''}\n"
    if members and inspect.isclass(thing):
        for member, value in vars(thing).items():
            is_property = isinstance(value, property)
            function = value.fget if is_property else getattr(value, "__func__", value)
            if not member.startswith("_") and inspect.isfunction(function) and function.__doc__:
                yield from _described(f"{name}.{member}{' (property)' if is_property else ''}", function, members=False)


def _signature(thing: Any) -> str:
    """Return a signature with its types as the source has them; the fields of a class, if it has any."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    if isinstance(node, ast.FunctionDef):
        returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{node.name}({ast.unparse(node.args)}){returned}"
    assert isinstance(node, ast.ClassDef)
    for call in ast.walk(node):
        if isinstance(call, ast.Call):  # descriptions of fields are in the docstring, too
            call.keywords = [keyword for keyword in call.keywords if keyword.arg != "description"]
    fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
    fields = [field for field in fields if "ClassVar" not in field]
    starts = [_signature(vars(thing)["__init__"])] if not fields and "__init__" in vars(thing) else []
    return "\n".join([f"class {node.name}", *(f"    {line}" for line in fields + starts)])
