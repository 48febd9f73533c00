"""A claim about the canonicalizer's size, judged where a study has one network behind several.

Entries of ``backbones`` that differ in nothing but what their ``scorer`` is made of, and in their
other methods, are one network behind canonicalizers of several sizes, if these have one form; the
size is the number of trained parameters they add.
"""

from __future__ import annotations

import json
from typing import Any

from eqadapt.analysis.claim_rules import Check, Claim, Term, judge_check
from eqadapt.analysis.comparisons import Seeds, difference
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.labels import dataset_label, method_style
from eqadapt.analysis.results import Results
from eqadapt.study import merge_scorer


def judge_sizes(claim: Claim, results: Results, method: str) -> list[dict[str, Any]]:
    """The cells of ``claims.json``: one a network that stands behind several canonicalizers.

    Args:
        claim: The claim; its group and regimes say where to look.
        results: The study.
        method: The method whose upright accuracy is compared.
    """
    found = []
    for cells in _same_network(claim, results):
        runs = [(cell, results.at(cell).get(method, {})) for cell in cells]
        sized = sorted((_size(of), cell.backbone, cell, of) for cell, of in runs if of)
        if len({size for size, *_ in sized}) < 2:
            continue
        (small, _, smallest, few), (large, _, _, many) = sized[0], sized[-1]
        if not set(many) & set(few):  # no seed of both
            continue
        check = _check(method, (large, many), (small, few), claim.group)
        found.append(
            {
                **smallest._asdict(),
                "in_scope": True,
                "scope": f"one network on {dataset_label(smallest.dataset)} behind "
                f"{len(sized)} canonicalizers" + ("; reduced study" if results.reduced else ""),
                "verdict": "reproduced" if check["passed"] else "not reproduced",
                "reason": "",
                "checks": [check],
                "counted": True,
            }
        )
    return found


def _same_network(claim: Claim, results: Results) -> list[list[Cell]]:
    """Cells that differ in nothing but the canonicalizer before the network."""
    groups: dict[str, list[Cell]] = {}
    for cell in results.cells(group=claim.group):
        if cell.regime in claim.regimes:
            options = results.entry("backbones", cell.backbone)
            apart = ("scorer", "methods")
            network = {key: value for key, value in options.items() if key not in apart}
            network.setdefault("model", cell.backbone)
            # Networks of another form are no other size of the same.
            own = {"name": ""} | dict(results.config.get("scorer") or {})
            scorer = merge_scorer(own, options.get("scorer"))
            form = [scorer.get(key) for key in ("name", "form", "inner")]
            key = json.dumps([cell.dataset, cell.regime, network, form], sort_keys=True)
            groups.setdefault(key, []).append(cell)
    return [cells for cells in groups.values() if len(cells) > 1]


def _size(runs: Seeds) -> int:
    return int(next(iter(runs.values())).predictions.meta["params_added"])


def _check(
    method: str, large: tuple[int, Seeds], small: tuple[int, Seeds], group: str
) -> dict[str, Any]:
    check = Check(Term(method, "acc"), Term(method, "acc"), "ahead")
    found = difference(large[1], small[1], ("acc", "acc"))
    judged = judge_check(check, group, found, found.p, large[1])
    label = method_style(method).label
    sizes = f"with {large[0]:,} parameters above the same with {small[0]:,}"
    return judged | {"text": f"{label} upright, canonicalizer {sizes}"}
