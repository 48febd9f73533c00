"""A digest of the code a step runs: an edit then redoes the steps it touches and no others."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import io
import os
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "eqadapt"
ROOT = Path(__file__).parent
# What these give a step is tracked by its value (recipes, names of prepared data, whose bytes are
# inputs), or describes a result without being it.
NOT_FOLLOWED = frozenset(
    {
        "eqadapt.study",
        "eqadapt.study_rules",
        "eqadapt.provenance",
        "eqadapt.datasets.variants",
    }
)


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module of this package; None if it is not one.

    Args:
        name: Dotted, e.g. ``"eqadapt.groups.images"``.
        root: The package's folder.
    """
    parts = name.split(".")
    if parts[0] != PACKAGE or not all(part.isidentifier() for part in parts):
        return None
    base = root.joinpath(*parts[1:])
    candidates = (base / "__init__.py", base.parent / f"{base.name}.py")
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def imported_names(path: Path, module: str) -> set[str]:
    """Dotted names that a file imports from this package, wherever in it the import stands.

    Args:
        path: The source file.
        module: Its dotted name, from which relative imports are resolved.

    Returns:
        Names of modules, of what is imported from them (which may be modules too), and of modules
        spelt out in strings, which is how registries load them late. A file that lists a package's
        modules gets all of them.
    """
    found: set[str] = set()
    lists_modules = False
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr == "iter_modules":
            lists_modules = True
    found = {name for name in found if name.startswith(f"{PACKAGE}.")}
    return found | {
        sub for name in found if lists_modules for sub in submodules(name, path, module)
    }


def submodules(name: str, path: Path, module: str) -> Iterator[str]:
    """Names of the modules directly in a package; none if it is no package.

    Args:
        name: The package.
        path: The file of some module ...
        module: ... and that module's name, from which the root follows.
    """
    depth = len(module.split(".")) - (path.name != "__init__.py")
    folder = path.parents[depth - 1].joinpath(*name.split(".")[1:])
    if (folder / "__init__.py").is_file():
        yield from (f"{name}.{file.stem}" for file in folder.glob("*.py"))


def modules_of(*entries: str, root: Path = ROOT) -> dict[str, Path]:
    """The entry modules, all they import inside this package, and the packages they lie in."""
    found: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        path = module_file(name, root)
        if path is None or name in found or name in NOT_FOLLOWED:
            continue
        found[name] = path
        waiting += imported_names(path, name)
        waiting.append(name.rpartition(".")[0])
    return found


def plugin_files() -> dict[str, Path]:
    """Python files of the modules that ``EQADAPT_PLUGINS`` names, of packages all.

    Modules that are not found are left out: whoever loads them says so.
    """
    files: dict[str, Path] = {}
    for name in filter(None, map(str.strip, os.environ.get("EQADAPT_PLUGINS", "").split(","))):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            files.update({f"{name}/{p.relative_to(folder)}": p for p in Path(folder).rglob("*.py")})
        if spec and spec.origin and spec.origin.endswith(".py"):
            files.setdefault(name, Path(spec.origin))
    return files


@functools.cache
def without_prose(source: bytes) -> str:
    """Python source without comments, docstrings and empty lines: what is left decides results."""
    text = source.decode("utf-8")
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines[first.lineno - 1 : first.end_lineno] = [""] * (
                (first.end_lineno or first.lineno) - first.lineno + 1
            )
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.cache
def code_id(*entries: str, root: Path = ROOT) -> str:
    """Sixteen hex digits of SHA-256 over the code that ``entries`` run, comments left out.

    The plugins that ``EQADAPT_PLUGINS`` names count as run by every entry.

    Args:
        *entries: Modules, e.g. ``"eqadapt.commands.train"``; imports inside this package are
            followed, also those inside functions. Data files of the package are not code.
        root: The package's folder.

    Raises:
        ModuleNotFoundError: An entry is no module of this package.
    """
    modules = modules_of(*entries, root=root)
    missing = sorted(set(entries) - set(modules))
    if missing:
        raise ModuleNotFoundError(f"no module {', '.join(missing)}")
    digest = hashlib.sha256()
    for name, path in sorted({**modules, **plugin_files()}.items()):
        digest.update(f"{name}\n{without_prose(path.read_bytes())}\n\n".encode())
    return digest.hexdigest()[:16]


def data_id(*names: str, root: Path = ROOT) -> str:
    """Sixteen hex digits of SHA-256 over data files of the package.

    Args:
        *names: Their paths in the package, e.g. ``"analysis/report.html.j2"``.
        root: The package's folder.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
