"""What a dotted name stands for, read from source files: nothing is imported, so torch classes cost milliseconds.

Whatever cannot be read with certainty (C extensions, names made at run time, decorated classes) is UNKNOWN and left to
the check that runs when the job has imported everything.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from hpcexp.targets.annotations import dotted_name, plain_type
from hpcexp.targets.lightning_names import canonical
from hpcexp.targets.nodes import no_module, no_name, not_callable

PACKAGE = __name__.partition(".")[0]
_DEFINITION = re.compile(r"^(?P<kind>class|def) (?P<name>\w+).*\n(?:[ \t#)\]}].*\n|\s*\n)*", re.MULTILINE)
"""A definition at the margin, up to the next line that begins there."""


@dataclass(frozen=True)
class Parameters:
    """What a callable takes by name."""

    types: dict[str, Any]
    """Name → int, float, bool, str, list, a union of them, or Any where the annotation says something else."""
    required: frozenset[str]
    takes_any: bool
    """It has `**kwargs`."""


@dataclass(frozen=True)
class Missing:
    """The name leads nowhere."""

    reason: str


class Unknown:
    """Only importing it could tell."""


UNKNOWN = Unknown()
Found = Parameters | Missing | Unknown


@dataclass(frozen=True)
class Module:
    """A module's name, file, and whether it is a package."""

    name: str
    file: Path
    is_package: bool

    def statements(self, name: str = "") -> Iterator[ast.stmt]:
        """What runs on import; of classes and functions only the one called `name` has its body."""
        return _module_level(_parse(self.file, name).body)


def parameters(target: str) -> Found:
    """What the callable `target` takes."""
    try:
        definition = locate(target)
        if isinstance(definition, Missing | Unknown):
            return definition
        module, node = definition
        return _of_class(module, node, 0) if isinstance(node, ast.ClassDef) else _of_function(node, skip_first=False)
    except SyntaxError as e:
        return Missing(f"{e.filename}, line {e.lineno}: {e.msg}")


def methods(target: str) -> set[str]:
    """The methods in the body of a class; empty where only importing it could tell."""
    try:
        definition = locate(target)
    except SyntaxError:
        return set()
    if isinstance(definition, Missing | Unknown):
        return set()
    return {node.name for node in definition[1].body if isinstance(node, ast.FunctionDef)}


def defining_file(target: str) -> Path | None:
    """The source file that defines `target`, or else that of its module; None where that has no source."""
    try:
        definition = locate(target)
    except SyntaxError:
        definition = UNKNOWN
    if isinstance(definition, tuple):
        return definition[0].file
    found = _split(target)
    origin = found[0].origin if isinstance(found, tuple) else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def is_packaged(target: str) -> bool:
    """Whether a dotted name is of code of hpcexp's own, defined in it at the top of a module; else it is a user's.

    Not by its first word: `hpcexp.job.os.system` is no code of hpcexp's.
    """
    try:
        definition = locate(target)
    except SyntaxError:
        return False
    return isinstance(definition, tuple) and definition[0].name.partition(".")[0] == PACKAGE


def imported_roots(file: Path) -> set[str]:
    """Top-level packages that a source file imports when it is imported itself."""
    roots: set[str] = set()
    try:
        _parse(file, "")
    except (SyntaxError, UnicodeDecodeError):
        return roots
    for node in Module(file.stem, file, is_package=False).statements():
        if isinstance(node, ast.Import):
            roots.update(a.name.partition(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


def locate(target: str) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | Missing | Unknown:
    """The definition behind a dotted name, followed through re-exports."""
    if not all(part.isidentifier() for part in target.split(".")):
        return Missing(f"'{target}' is not a dotted name")
    found = _split(target)
    if isinstance(found, Missing | Unknown):
        return found
    spec, names = found
    if not names:
        return Missing(not_callable(target, "module"))
    if spec.origin is None or not spec.origin.endswith(".py"):
        return UNKNOWN
    module = _module(spec)
    definition = lookup(module, names[0])
    for owner, name in pairwise(names):
        if isinstance(definition, tuple):
            definition = _member(definition[0], definition[1], owner, name)
    return definition


def _member(
    module: Module, cls: ast.ClassDef | ast.FunctionDef, owner: str, name: str
) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | Missing | Unknown:
    """A class or a method in a class."""
    if not isinstance(cls, ast.ClassDef):
        return UNKNOWN
    names: set[str] = set()
    for node in _module_level(cls.body):
        names |= _bound(node)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.FunctionDef) and node.name == name:
            kinds = [dotted_name(decorator) for decorator in node.decorator_list]
            if kinds not in (["classmethod"], ["staticmethod"]):
                return UNKNOWN
            return module, node if kinds == ["staticmethod"] else _without_first(node)
    is_all = not cls.bases and not cls.keywords and not cls.decorator_list and name not in names
    return Missing(no_name(name, owner, names)) if is_all else UNKNOWN


def _without_first(method: ast.FunctionDef) -> ast.FunctionDef:
    """A class method as it is called: Python passes the class."""
    called = copy.copy(method)
    called.args = copy.copy(method.args)
    if called.args.posonlyargs:
        called.args.posonlyargs = called.args.posonlyargs[1:]
    else:
        called.args.args = called.args.args[1:]
    return called


def _split(target: str) -> tuple[ModuleSpec, list[str]] | Missing | Unknown:
    """The innermost module of a dotted name, and what remains."""
    first, *rest = canonical(target).split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return UNKNOWN
    if spec is None:
        return Missing(no_module(first))
    for i, part in enumerate(rest):
        places = spec.submodule_search_locations
        inner = PathFinder.find_spec(f"{spec.name}.{part}", places) if places else None
        if inner is None:
            return spec, rest[i:]
        spec = inner
    return spec, []


def _module(spec: ModuleSpec) -> Module:
    assert spec.origin is not None
    return Module(spec.name, Path(spec.origin), spec.submodule_search_locations is not None)


def _parse(file: Path, name: str) -> ast.Module:
    stat = file.stat()
    return _parsed(file, name, (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@cache
def _parsed(file: Path, name: str, _version: tuple[int, int, int]) -> ast.Module:
    """The tree of a file that has not changed: a command may plan for days, while somebody edits."""
    source = file.read_text(encoding="utf-8")
    try:
        return ast.parse(outline(source, name))
    except SyntaxError:
        return ast.parse(source, file)


def outline(source: str, name: str) -> str:
    """The source with the bodies of all classes and functions but `name` left out: a tenth of the time to parse."""

    def shortened(definition: re.Match[str]) -> str:
        kind, own = definition["kind"], definition["name"]
        return definition[0] if own == name else f"{kind} {own}{'()' if kind == 'def' else ''}: ...\n"

    return _DEFINITION.sub(shortened, source)


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import, also inside `if` and `try`."""
    for node in body:
        if isinstance(node, ast.If):
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                yield from _module_level(node.body)
            yield from _module_level(node.orelse)
        elif isinstance(node, ast.Try):
            for block in (node.body, *(h.body for h in node.handlers), node.orelse, node.finalbody):
                yield from _module_level(block)
        else:
            yield node


def lookup(
    module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()
) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | Missing | Unknown:
    """The definition behind a name in a module, followed through imports."""
    if (module.name, name) in seen:
        return UNKNOWN
    seen |= {(module.name, name)}
    for node in module.statements(name):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if name in _bound(node):
            if alias := _assigned(node):
                return lookup(module, alias, seen) if "." not in alias else _dotted(module, alias, seen)
            origin = _imported_as(module, node, name)
            return _reexported(origin, seen) if origin else UNKNOWN
    return _in_stars(module, name, seen)


def _assigned(node: ast.stmt) -> str:
    """The name that `short = long.name` gives a second one; empty for any other statement."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return dotted_name(node.value)
    return ""


def _dotted(module: Module, name: str, seen: frozenset[tuple[str, str]]) -> Any:
    absolute = absolute_name(module, name)
    return UNKNOWN if absolute is None else _reexported(absolute, seen)


def _imported_as(module: Module, node: ast.stmt, name: str) -> str | None:
    """The full name that a `from … import` gives the short one; None for any other statement."""
    if not isinstance(node, ast.ImportFrom):
        return None
    original = next(a.name for a in node.names if (a.asname or a.name) == name)
    return f"{_absolute(module, node)}.{original}"


def _in_stars(
    module: Module, name: str, seen: frozenset[tuple[str, str]]
) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | Missing | Unknown:
    """A name that the module itself does not bind: from its star imports, or missing."""
    names: set[str] = set()
    for node in module.statements(name):
        names |= _bound(node)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            star = _absolute(module, node)
            found = _reexported(f"{star}.{name}", seen)
            if not isinstance(found, Missing):
                return cast(tuple[Module, ast.ClassDef | ast.FunctionDef] | Unknown, found)
            names |= names_in(star)
    if "__getattr__" in names:
        return UNKNOWN
    return Missing(no_name(name, module.name, names))


def _reexported(target: str, seen: frozenset[tuple[str, str]]) -> Any:
    found = _split(target)
    if isinstance(found, Missing | Unknown):
        return found
    spec, names = found
    if len(names) != 1 or spec.origin is None or not spec.origin.endswith(".py"):
        return UNKNOWN
    return lookup(_module(spec), names[0], seen)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
    return ".".join([*base, *([node.module] if node.module else [])])


def names_in(module: str) -> set[str]:
    """Names that a module binds, as far as its source tells."""
    found = _split(module)
    if isinstance(found, Missing | Unknown) or found[1] or not str(found[0].origin).endswith(".py"):
        return set()
    return set().union(*map(_bound, _module(found[0]).statements()))


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement gives a value."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Import):
        return {(a.asname or a.name.partition(".")[0]) for a in node.names}
    if isinstance(node, ast.ImportFrom):
        return {a.asname or a.name for a in node.names} - {"*"}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _of_class(module: Module, node: ast.ClassDef, depth: int) -> Parameters | Unknown:
    decorators = {dotted_name(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
    is_dataclass = decorators and decorators <= {"dataclass", "dataclasses.dataclass"}
    if depth > 8 or (decorators and not is_dataclass) or any(k.arg == "metaclass" for k in node.keywords):
        return UNKNOWN
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__new__"):
            return _of_function(item, skip_first=True)
    if is_dataclass:
        return UNKNOWN if node.bases else _of_dataclass(node)
    for base in node.bases:
        found = _base(module, base)
        if not isinstance(found, tuple) or not isinstance(found[1], ast.ClassDef):
            return UNKNOWN
        inherited = _of_class(found[0], found[1], depth + 1)
        if isinstance(inherited, Unknown) or inherited.types or inherited.takes_any:
            return inherited
    return Parameters({}, frozenset(), takes_any=False)


def _base(module: Module, base: ast.expr) -> Any:
    name = dotted_name(base)
    if "." not in name:
        return lookup(module, name) if name not in ("ABC", "object", "Protocol") else locate("abc.ABC")
    return _dotted(module, name, frozenset())


def absolute_name(module: Module, name: str) -> str | None:
    """The full name of `alias` or `alias.rest` as a module's imports say; None where they do not."""
    head, dot, rest = name.partition(".")
    for node in module.statements():
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            if isinstance(node, ast.Import) and alias.asname is None and alias.name.partition(".")[0] == head:
                return name
            if (alias.asname or alias.name) == head:
                origin = f"{_absolute(module, node)}." if isinstance(node, ast.ImportFrom) else ""
                return f"{origin}{alias.name}{dot}{rest}"
    return None


def _of_dataclass(node: ast.ClassDef) -> Parameters:
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    types = {n.target.id: plain_type(n.annotation) for n in fields if isinstance(n.target, ast.Name)}
    required = {n.target.id for n in fields if n.value is None and isinstance(n.target, ast.Name)}
    return Parameters(types, frozenset(required), takes_any=False)


def _of_function(node: ast.FunctionDef, *, skip_first: bool) -> Parameters:
    a = node.args
    positional = [*a.posonlyargs, *a.args][1 if skip_first else 0 :]
    needed = positional[: len(positional) - len(a.defaults)] if a.defaults else positional
    needed_by_name = [k for k, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d is None]
    types = {p.arg: plain_type(p.annotation) for p in [*positional, *a.kwonlyargs]}
    return Parameters(types, frozenset(p.arg for p in [*needed, *needed_by_name]), a.kwarg is not None)
