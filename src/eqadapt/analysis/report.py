"""``report.html``: one self-contained page with all tables, figures, claims and provenance."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import eqadapt
from eqadapt.analysis import formatting as f
from eqadapt.analysis import narrative, outputs
from eqadapt.analysis.captions import CAPTIONS, SOURCES, TITLES
from eqadapt.analysis.claim_rules import holds_words
from eqadapt.analysis.formatting import Grid, column_groups
from eqadapt.analysis.labels import (
    cell_label,
    dataset_label,
    method_order,
    method_style,
)
from eqadapt.analysis.published import GRADES, Published
from eqadapt.analysis.results import Results
from eqadapt.analysis.tables import TABLES
from eqadapt.errors import UserError
from eqadapt.files import sha256_file, write_text

TABLE_TITLES = {
    "main": "Accuracy",
    "diagnostics": "Diagnostics: what the averages hide",
    "paired_tests": "Paired tests",
    "methods": "Methods side by side",
}


@dataclass(frozen=True)
class Picture:
    """One figure on the page.

    Attributes:
        title: Heading.
        caption: What to see.
        uri: The image itself, as a data URI.
        source: Files it was drawn from and the module that drew it.
        width: Narrowest width in rem at which its text can be read; 0: as narrow as need be.
    """

    title: str
    caption: str
    uri: str
    source: str
    width: int


def write_report(
    results: Results, published: Published, command: str, path: Path | None = None
) -> Path:
    """Write the page; tables are computed anew, figures and claims are those on disk.

    Args:
        results: The study.
        published: Published figures.
        command: What a reader types to make all of it again.
        path: Default: ``report.html`` in the results folder.

    Raises:
        UserError: Metrics, a figure or the claims are not there yet.
    """
    path = path or results.folder / outputs.REPORT
    environment = Environment(
        loader=PackageLoader("eqadapt", "analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    base = Path(os.path.relpath(results.folder, path.parent)).as_posix()
    environment.globals |= {
        "column_groups": column_groups,
        "table_formats": outputs.TABLE_FORMATS,
        "base": "" if base == "." else f"{base}/",
    }
    template = environment.get_template("report.html.j2")
    write_text(path, template.render(page(results, published, command)))
    return path


def page(results: Results, published: Published, command: str) -> dict[str, Any]:
    """All that the template shows."""
    claims = load_claims(results.folder / outputs.CLAIMS, results.folder)
    layout = results.layout
    tables = {
        name: [
            {
                "title": f"{group}, {regime}",
                "file": outputs.table_stem(name, regime, group),
                "grids": g,
            }
            for regime in layout["regimes"]
            for group in reversed(layout["groups"])
            if (g := _shown(TABLES[name](results, published, regime, group).grids))
        ]
        for name in outputs.tables(results.config)
    }
    tested = {c["source"] for c in claims["claims"] if c["verdict"] != "not run"}
    methods = sorted({e.method for e in results.evaluations}, key=method_order)
    return {
        "version": eqadapt.__version__,
        "study": results.name,
        "reduced": results.reduced,
        "reduced_note": results.words("reduced_note"),
        "incomplete": results.missing_words,
        "title": listed_title(results),
        "scope": narrative.scope_sentences(results, published, claims),
        "methodology": narrative.method_sentences(results),
        "findings": narrative.result_sentences(results, published, claims),
        "claims": [claim_view(claim, results) for claim in claims["claims"]],
        "counts": claims["counts"],
        "thresholds": claims["thresholds"],
        "tables": tables,
        "table_titles": TABLE_TITLES,
        "grades": GRADES,
        "figures": figure_sections(results),
        "methods": [method_style(name) for name in methods],
        "provenance": provenance_rows(results),
        "command": command,
        "folder": results.folder.name,
        "papers": published.papers,
        "sources": [paper for paper in published.papers if paper in tested],
    }


def listed_title(results: Results) -> str:
    """The study's own title, or ``"Digits: ResNet-10 and ViT-Ti/16"``."""
    layout, title = results.layout, results.words("title")
    if title:
        return title
    datasets = narrative.listed([dataset_label(name) for name in layout["datasets"]])
    return (
        f"{datasets}: {narrative.listed([results.backbone_label(b) for b in layout['backbones']])}"
    )


def load_claims(path: Path, folder: Path) -> dict[str, Any]:
    """``claims.json``.

    Raises:
        UserError: Not there, or not readable.
    """
    remake = f"run `eqadapt claims --results {folder}`"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError("no claims yet", where=str(path), fix=remake) from error
    except ValueError as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), fix=remake) from error


def _shown(grids: Sequence[Grid]) -> list[Grid]:
    return [grid for grid in grids if grid.rows]


def claim_view(claim: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """One claim with its checks as rows: ours beside the published figures."""
    published = claim["published"]
    rows = [row for cell in claim["cells"] for row in _check_rows(results, cell, published)]
    variants = [
        {
            "label": variant["label"],
            "verdict": variant["verdict"],
            "rows": [row for cell in variant["cells"] for row in _check_rows(results, cell, ())],
        }
        for variant in claim.get("variants", [])
    ]
    scopes = list(dict.fromkeys(cell["scope"] for cell in claim["cells"]))
    return {
        **{key: claim[key] for key in ("id", "text", "verdict", "reason", "source_title", "rule")},
        "slug": claim["verdict"].replace(" ", "-"),
        "tally": f"{claim['cells_reproduced']} of {claim['cells_counted']}",
        "cells": claim["cells_counted"],
        "scope": "; ".join(scopes),
        "rows": rows,
        "variants": variants,
        "published": [_published_view(entry) for entry in claim["published"]],
    }


def _check_rows(
    results: Results, cell: Mapping[str, Any], published: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    own = results.published_as(cell["dataset"], cell["backbone"])
    label = results.cell_label(cell["dataset"], cell["backbone"])
    published = [entry for entry in published if entry["group"] == cell["group"]]
    same = [entry for entry in published if (entry["dataset"], entry["backbone"]) == own]
    beside = same or [entry for entry in published if entry["in_scope"]]
    rows = []
    for number, check in enumerate(cell["checks"]):
        value = f.signed(check["difference_points"])
        if check["low_points"] is not None:
            value += f" [{f.signed(check['low_points'])}, {f.signed(check['high_points'])}]"
        if "orbit_agreement" in check:
            value = f"{f.share(check['orbit_agreement'], 2)}% of orbits agree"
        p = check["p_holm"] if check["p_holm"] is not None else check["p_sign_flip"]
        rows.append(
            {
                "cell": f"{label}, {cell['regime']}",
                "text": check["text"],
                "value": value,
                "p": f.p_value(p) if check["rule"] == "ahead" else f.DASH,
                "passed": check["passed"],
                "holds": f"{'✓' if check['passed'] else '✗'} {holds_words(check)}",
                "published": [
                    f"{f.signed(entry['checks'][number]['difference_points'], 2)} "
                    f"({cell_label(entry['dataset'], entry['backbone'])})"
                    for entry in beside
                ],
            }
        )
    return rows


def _published_view(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cell": cell_label(entry["dataset"], entry["backbone"]),
        "passed": entry["passed"],
        "in_scope": entry["in_scope"],
        "figures": ", ".join(
            f"{method_style(x['method']).label} "
            f"{'upright' if x['metric'] == 'acc' else entry['group'] + '-Avg'} "
            f"{x['percent']:.2f} ({x['grade']})"
            for x in entry["figures"]
        ),
    }


def figure_sections(results: Results) -> list[dict[str, Any]]:
    """Figures by data set, regime and group, the finest group first."""
    layout = results.layout
    commit = next(iter(narrative.known(results.metrics["commit"])), "")
    sections = _training_size_sections(results, commit)
    for dataset in layout["datasets"]:
        for regime in layout["regimes"]:
            for group in reversed(layout["groups"]):
                if not any(c.dataset == dataset for c in results.cells(regime, group)):
                    continue
                stems = [
                    (name, "", outputs.figure_stem(name, dataset, regime, group))
                    for name in outputs.figures(results.config)
                ]
                stems += [
                    (outputs.GALLERY, b, outputs.gallery_stem(dataset, b, regime, group))
                    for b in ([] if results.test_time else layout["backbones"])
                ]
                pictures = [
                    _picture(results, name, backbone, stem, group, commit)
                    for name, backbone, stem in stems
                ]
                title = f"{dataset_label(dataset)}, {group}, {regime}"
                sections.append({"title": title, "pictures": pictures})
    return sections


def _training_size_sections(results: Results, commit: str) -> list[dict[str, Any]]:
    layout, sections = results.layout, []
    for source in outputs.training_sizes(results.config):
        for regime in layout["regimes"]:
            for group in reversed(layout["groups"]):
                stem = outputs.figure_stem(outputs.TRAINING_SIZE, source, regime, group)
                picture = _picture(results, outputs.TRAINING_SIZE, "", stem, group, commit)
                title = f"{dataset_label(source)}, all sizes, {group}, {regime}"
                sections.append({"title": title, "pictures": [picture]})
    return sections


def _picture(
    results: Results, name: str, backbone: str, stem: str, group: str, commit: str
) -> Picture:
    # A gallery is all pixels: PNG; everything else is sharp at any size as SVG.
    form, kind, endings = (
        ("png", "image/png", ".png")
        if name == outputs.GALLERY
        else ("svg", "image/svg+xml", ".svg, .png")
    )
    path = results.folder / f"{stem}.{form}"
    if not path.exists():
        raise UserError(
            "a figure is missing",
            where=str(path),
            fix=f"run `eqadapt figures --results {results.folder}`",
        )
    data, module = SOURCES[name]
    at = f" at commit {short_commit(commit)}" if commit else ""
    return Picture(
        title=f"{TITLES[name]}: {results.backbone_label(backbone)}" if backbone else TITLES[name],
        caption=CAPTIONS[name].format(group=group),
        uri=f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}",
        source=f"{stem}{endings}; from {data} by {module}{at}",
        width=_readable_width(path) if form == "svg" else 0,
    )


def short_commit(commit: str) -> str:
    """Ten digits of a hash; what follows a hyphen ("-dirty") is kept."""
    digits, mark, rest = commit.partition("-")
    return digits[:10] + mark + rest


def _readable_width(path: Path) -> int:
    """In rem, from the width in points that an SVG file states."""
    stated = re.search(rb'<svg[^>]*\swidth="([\d.]+)pt"', path.read_bytes()[:2000])
    return min(60, round(float(stated[1]) / 20)) if stated else 36


def provenance_rows(results: Results) -> list[tuple[str, list[str]]]:
    """Where the numbers come from: label and the distinct values found in the runs."""
    metrics = results.metrics
    rows = [
        ("Commit", narrative.known(metrics["commit"])),
        ("Device", narrative.known(metrics["device"])),
        ("PyTorch", narrative.known(metrics["torch"])),
        ("Environment lock (SHA-256)", narrative.known(metrics["lock_sha256"])),
        ("Configuration of the runs", _counted(narrative.known(metrics["config_hash"]))),
    ]
    study = results.folder / "study.yaml"
    if study.exists():
        rows.append(("study.yaml (SHA-256)", [sha256_file(study)]))
    for dataset, part in metrics.groupby("dataset", sort=False):
        for column, split in (("data_sha256", "training"), ("test_sha256", "test")):
            values = narrative.known(part[column])
            if values:
                label = f"{dataset_label(str(dataset))}, {split} data (SHA-256)"
                rows.append((label, values))
    rows.append(("Corner mask", narrative.known(metrics["mask"])))
    rows.append(("metrics.csv (SHA-256)", [sha256_file(results.folder / outputs.METRICS)]))
    return [(label, values) for label, values in rows if values]


def _counted(values: list[str]) -> list[str]:
    if len(values) <= 4:
        return values
    return [f"{len(values)} hashes, one a recipe; in metrics.csv"]
