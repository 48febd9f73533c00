"""A claim about canonicalizers on other data than they were trained on, judged from transfer.csv.

For every data set A and every other one B of the study: the pose accuracy on A of canonicalizers
trained on A, minus that of those trained on B, seed by seed. Entries that are parts of one data set
are not other ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from eqadapt.analysis.claim_rules import Check, Claim, Term, clearness
from eqadapt.analysis.labels import dataset_label, method_style
from eqadapt.analysis.statistics import t_interval

_CELL = ["tested_on", "backbone", "regime", "group"]


def transfer_text(method: str, trained_on: str, tested_on: str, points: float) -> str:
    """The condition in words."""
    there, here = dataset_label(trained_on), dataset_label(tested_on)
    return (
        f"{method_style(method).label}, poses of {here}: trained there minus trained on {there} "
        f"at least {points:g} points"
    )


def judge_transfers(
    claim: Claim,
    frame: pd.DataFrame,
    reduced: bool,
    method: str,
    source: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """The cells of ``claims.json``: one a tested data set, backbone, regime and group.

    Args:
        claim: A claim with ``transfer`` set.
        frame: ``transfer.csv``.
        reduced: Whether the study calls itself reduced.
        method: The one it is judged on; those that learn no pose from data would say nothing.
        source: The data set that an entry is of.
    """
    assert claim.transfer is not None
    pose = Term(method, "pose_acc")
    check = Check(pose, pose, "at_least", claim.transfer)
    cells = []
    for key, part in frame[frame["method"] == method].groupby(_CELL, sort=True):
        dataset, backbone, regime, group = map(str, key)
        by_source = {
            str(name): rows.set_index("seed")["pose_acc"]
            for name, rows in part.groupby("trained_on")
        }
        own = by_source.pop(dataset, None)
        if own is None or group != claim.group:
            continue
        checks = [
            _check(check, own, other, transfer_text(method, name, dataset, claim.transfer))
            for name, other in sorted(by_source.items())
            if source(name) != source(dataset)
            if len(own.index.intersection(other.index))  # seeds of both
        ]
        if not checks:
            continue
        passed = all(judged["passed"] for judged in checks)
        cells.append(
            {
                "dataset": dataset,
                "backbone": backbone,
                "regime": regime,
                "group": group,
                "in_scope": True,
                "scope": claim.scope(dataset, reduced),
                "verdict": "reproduced" if passed else "not reproduced",
                "reason": "",
                "checks": checks,
                "counted": True,
            }
        )
    return cells


def _check(check: Check, own: pd.Series, other: pd.Series, text: str) -> dict[str, Any]:
    found = t_interval((100 * (own - other)).dropna())
    known = found.kind == "seeds"
    passed = check.holds(found.mean)
    return {
        "text": text,
        "rule": check.rule,
        "bound_points": check.points,
        "difference_points": found.mean,
        "low_points": found.low if known else None,
        "high_points": found.high if known else None,
        "interval": found.kind,
        "n_seeds": found.n,
        "p_sign_flip": None,
        "p_holm": None,
        "agrees": passed,
        "passed": passed,
        **clearness(check, found, trained_once=not known),
    }
