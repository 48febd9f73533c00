"""The file of a comparison on product groups: read and checked before any work. No torch here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from eqadapt.errors import UserError
from eqadapt.groups.finite import FactoredGroup, parse_finite_group
from eqadapt.study import Study, load_study, merge, parse_override, read_yaml

SECTION = "products"
_PARTS = ("datasets", "backbones", "image", "device", "mirror")


@dataclass(frozen=True)
class ProductStudy:
    """What is compared.

    Attributes:
        settings: The section ``products`` with defaults.
        study: The rest, as a study of the frozen backbones alone.
    """

    settings: dict[str, Any]
    study: Study

    @property
    def groups(self) -> dict[str, FactoredGroup]:
        """The groups by name."""
        return {name: factored(name) for name in self.settings["groups"]}


def factored(name: str) -> FactoredGroup:
    """The group of that name, which must be a product.

    Raises:
        UserError: Unknown, or not made of factors.
    """
    group = parse_finite_group(name)
    if not isinstance(group, FactoredGroup):
        raise UserError(f"{name} is not a product of groups", fix="D4, C4xS3, C4xA3, ...")
    return group


@functools.cache
def _schema() -> dict[str, Any]:
    text = resources.files("eqadapt").joinpath("products.schema.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def load_products(path: str | Path, overrides: Sequence[str] = ()) -> ProductStudy:
    """Read and check a comparison.

    Args:
        path: A YAML file, e.g. ``config/products.yaml``.
        overrides: ``"datasets.cifar10.limit_test=100"``: dotted keys with values as in YAML.

    Raises:
        UserError: Not a file, not of the form, a group that is no product, or what a study refuses.
    """
    config = read_yaml(Path(path))
    for text in overrides:
        config = merge(config, parse_override(text))
    faults = [f"{key}: unknown section" for key in config if key not in (SECTION, *_PARTS)]
    faults += _faults(config.get(SECTION))
    if faults:
        raise UserError(
            "not a comparison on product groups: " + "; ".join(faults),
            where=str(path),
            fix="see config/products.yaml and src/eqadapt/products.schema.yaml",
        )
    settings = {key: part.get("default") for key, part in _schema()["properties"].items()}
    settings.update(config[SECTION])
    for name in settings["groups"]:
        try:
            factored(name)
        except UserError as error:
            raise UserError(error.what, where=f"{path}: products.groups", fix=error.fix) from error
    parts = {key: config[key] for key in _PARTS if key in config}
    frozen = {"groups": ["C4"], "methods": ["vanilla"], "regimes": ["frozen"], "seeds": [0]}
    return ProductStudy(settings, load_study({"study": settings["name"], **parts, **frozen}))


def _faults(section: Any) -> list[str]:
    from jsonschema import Draft202012Validator

    if section is None:
        return ["products: missing"]
    return sorted(
        f"products.{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(_schema()).iter_errors(section)
    )
