"""Modules of this package as flat files that import each other relatively: the code of an export.

transformers copies the Python files that a model's file imports as `from .x import y`, and those that these import,
found by a regular expression. So each module becomes one file beside the others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import hyena_blt_savanna

PACKAGE = "hyena_blt_savanna"
ENTRIES = f"{PACKAGE}.conversion.huggingface"
"""Modules of this room keep their names."""
_ROOT = Path(hyena_blt_savanna.__file__).parent


class FlatSources(NamedTuple):
    """Code of some modules and all that they import of this package.

    Attributes:
        files: text by file name.
        requirements: modules of other packages that are imported, sorted.
    """

    files: dict[str, str]
    requirements: list[str]


def flatten(modules: Iterable[str]) -> FlatSources:
    """Code of modules of this package and of the ones that they import.

    Imports for type checkers alone are left out.

    Args:
        modules: dotted names.
    """
    files: dict[str, str] = {}
    requirements: set[str] = set()
    found, waiting = set(modules), list(modules)
    while waiting:
        module = waiting.pop()
        flat = _flatten(module)
        files[flat_name(module) + ".py"] = flat.text
        requirements |= flat.requirements
        waiting += sorted(flat.imports - found)
        found |= flat.imports
    return FlatSources(dict(sorted(files.items())), sorted(requirements))


def flat_name(module: str) -> str:
    """Name of a module among flat files."""
    return module.removeprefix(ENTRIES + ".").replace(".", "_")


class _Flat(NamedTuple):
    text: str
    imports: set[str]
    requirements: set[str]


def _flatten(module: str) -> _Flat:
    text = _path(module).read_text()
    lines = text.splitlines()
    imports: set[str] = set()
    requirements: set[str] = set()
    # From the last to the first, so that the numbers of the lines before it stay.
    for node, runs in reversed(list(_imports(ast.parse(text)))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        tops = {name.split(".")[0] for name in names}
        if PACKAGE not in tops:
            requirements |= tops - set(sys.stdlib_module_names) if runs else set()
            continue
        assert isinstance(node, ast.ImportFrom), f"{module}: write `import {names[0]}` as `from ... import ...`"
        indent = " " * node.col_offset
        new, of_line = _rewrite(node) if runs else (["pass  # imported for type checkers"], set())
        imports |= of_line
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in new]
    header = f"# {module} of {PACKAGE} {hyena_blt_savanna.__version__}, copied by its export to transformers.\n"
    return _Flat(header + "\n".join(lines) + "\n", imports, requirements)


def _imports(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Imports in the order of their lines, and whether they are executed."""
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for outer in node.body
        for inner in ast.walk(outer)
    }
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(found, key=lambda node: node.lineno):
        yield node, id(node) not in for_checkers


def _rewrite(node: ast.ImportFrom) -> tuple[list[str], set[str]]:
    """The lines that take the place of an import, and the modules that they name."""
    assert node.module is not None
    assert node.level == 0
    lines, modules, names = [], set(), []
    for alias in node.names:
        module = f"{node.module}.{alias.name}"
        if _path(module).is_file():
            modules.add(module)
            flat = flat_name(module)
            # The second line is for transformers, which sees files in lines of this form only.
            lines.append(f"from . import {flat} as {alias.asname or alias.name}")
            lines.append(f"from .{flat} import __name__ as _")
        else:
            names.append(alias.name + (f" as {alias.asname}" if alias.asname else ""))
    if names:
        modules.add(node.module)
        lines.append(f"from .{flat_name(node.module)} import {', '.join(names)}")
    return lines, modules


def _path(module: str) -> Path:
    """File of a module; of a package, a file that is not there."""
    return _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
