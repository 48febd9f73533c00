"""Test-time methods of a study: a folder with ``settings.yaml`` and one file a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from eqadapt.errors import UserError
from eqadapt.evidence import EVIDENCE, build_evidence
from eqadapt.study import UniqueKeys
from eqadapt.test_time.methods import (
    METHODS,
    TestTimeMethod,
    check_range,
    evidence_parameters,
    get_method,
)

SETTINGS_FILE = "settings.yaml"


@dataclass(frozen=True)
class Entry:
    """A method as a study runs it.

    Attributes:
        method: The method.
        paper: Where it is from, for people.
        grid: What may be searched, by hyper-parameter; empty for nothing.
        note: What differs from the paper.
    """

    method: TestTimeMethod
    paper: str
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """What a study's test-time methods share, and the methods.

    Attributes:
        values: The validated ``settings.yaml`` with defaults.
        entries: The methods, those that others inherit from first.
        files: The files they were read from.
    """

    values: dict[str, Any]
    entries: tuple[Entry, ...]
    files: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


@functools.cache
def _schema() -> dict[str, Any]:
    text = resources.files("eqadapt").joinpath("test_time.schema.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def load_settings(folder: str | Path) -> Settings:
    """Read and check a folder of settings.

    Raises:
        UserError: No such folder, a file of the wrong form, an unknown method or hyper-parameter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            "no folder of test-time methods", where=str(folder), fix="test_time.folder of the study"
        )
    path = folder / SETTINGS_FILE
    values = _validated(_read(path) if path.is_file() else {}, "settings", path)
    entries = [_entry(file) for file in sorted(folder.glob("*.yaml")) if file.name != SETTINGS_FILE]
    wanted = values["methods"]
    if wanted is not None:
        known = {entry.method.name for entry in entries}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise UserError(
                f"no file for method {', '.join(missing)}",
                where=str(path),
                fix=f"add {folder / (missing[0] + '.yaml')}, or one of: {', '.join(sorted(known))}",
            )
        entries = [entry for entry in entries if entry.method.name in wanted]
    if not entries:
        raise UserError("no test-time method", where=str(folder), fix="one YAML file a method")
    files = [folder / f"{entry.method.name}.yaml" for entry in entries]
    files += [path] if path.is_file() else []
    return Settings(values, tuple(_parents_first(entries)), tuple(map(str, files)))


def _entry(path: Path) -> Entry:
    content = _validated(_read(path), "method", path)
    if content["method"] != path.stem:
        raise UserError(
            f"the file of method {content['method']!r} has another name",
            where=str(path),
            fix=f"{content['method']}.yaml",
        )
    grid = content.get("grid", {})
    try:
        method = get_method(content["method"])
        for key, values in grid.items():
            _check_values(method, key, values)
    except UserError as error:
        raise UserError(error.what, where=str(path), fix=error.fix) from error
    return Entry(method, content["paper"], grid, content.get("note", ""))


def _check_values(method: TestTimeMethod, key: str, values: list[Any]) -> None:
    """Stop at a hyper-parameter that is none, or at values of it of another kind than its default:
    they would be met after the backbone's passes over the orbit."""
    default = method.parameters({key: values[0]} if key not in method.defaults else {})[key]
    own = evidence_parameters({key: default})
    if own and method.evidence is None:
        raise UserError(f"grid.{key}: {method.name!r} reads no evidence", fix="leave it out")
    for name in own:
        default = inspect.signature(EVIDENCE[str(method.evidence)].build).parameters.get(name)
        default = values[0] if default is None else default.default
    for value in values:
        if not _is_of_kind(value, default):
            raise UserError(
                f"grid.{key}: {value!r} is no {_kind(default)}",
                fix="YAML reads 1.0e-3 as a number, but 1e-3 as text",
            )
        try:
            check_range(key, value)
            for name in own:
                build_evidence(str(method.evidence), **{name: value})
        except UserError as error:
            raise UserError(f"grid.{key}: {error.what}", fix=error.fix) from error


def _is_of_kind(value: Any, default: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return _kind(value) == _kind(default) or (whole and _kind(default) == "number")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, int):
        return "whole number"
    return "number" if isinstance(value, float) else "text"


def _parents_first(entries: list[Entry]) -> list[Entry]:
    """By the catalogue's order, a method after the one whose hyper-parameters it takes over."""
    place = {name: position for position, name in enumerate(METHODS)}

    def key(entry: Entry) -> tuple[bool, int]:
        return entry.method.inherits is not None, place[entry.method.name]

    return sorted(entries, key=key)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not readable as YAML: {error}", where=str(path)) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError("not a mapping of keys to values", where=str(path))
    return content


def _validated(content: dict[str, Any], kind: str, path: Path) -> dict[str, Any]:
    from jsonschema import Draft202012Validator

    schema = _schema()["$defs"][kind]
    faults = [
        f"{'.'.join(map(str, error.absolute_path)) or kind}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(content)
    ]
    if faults:
        raise UserError(
            "not valid: " + "; ".join(sorted(faults)),
            where=str(path),
            fix="every key is described in src/eqadapt/test_time.schema.yaml",
        )
    return _filled(content, schema)


def _filled(content: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(content)
    for key, part in schema.get("properties", {}).items():
        if key not in filled and "default" in part:
            filled[key] = part["default"]
        if isinstance(filled.get(key), Mapping) and "properties" in part:
            filled[key] = _filled(filled[key], part)
    return filled
