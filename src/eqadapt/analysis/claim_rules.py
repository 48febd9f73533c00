"""How a claim is put and judged: checks on differences between accuracies, one cell at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from eqadapt.analysis.comparisons import Comparison, Seeds, difference
from eqadapt.analysis.labels import dataset_label, method_style
from eqadapt.analysis.published import Figure, Published
from eqadapt.analysis.statistics import Estimate, holm, written_p

Verdict = Literal["reproduced", "not reproduced", "not run"]
SIGNIFICANCE = 0.05
# Why other seeds could turn a check; a third cause is that nothing differs between seeds or images.
WITHIN_NOISE = "within noise"
ONE_TRAINING = "one training"


class Term(NamedTuple):
    """One side of a check: a method's ``acc`` (upright) or ``cn_avg`` (mean over the orbit).

    ``group`` names another group than the claim's, for what is said across groups.
    """

    method: str
    metric: str
    group: str = ""

    @property
    def key(self) -> str:
        """The method, with its group where that is another one."""
        return f"{self.method}@{self.group}" if self.group else self.method

    def label(self, group: str) -> str:
        """``"PRLC C8-Avg"``."""
        metric = "upright" if self.metric == "acc" else f"{self.group or group}-Avg"
        name = method_style(self.method).label
        return f"{name} ({self.group}) {metric}" if self.group else f"{name} {metric}"


@dataclass(frozen=True)
class Check:
    """A condition on ``first - second``, in points.

    Attributes:
        first: Left term.
        second: Right term.
        rule: ``"ahead"``: the difference is positive in every seed, its paired test significant at
            5% after Holm's correction over the claim's tests; ``"at_least"`` / ``"at_most"``: its
            mean over seeds is at least / at most ``points``; ``"invariant"``: in every seed all
            predictions of ``first``'s method agree over each image's orbit, and so do the two
            accuracies.
        points: The bound.
    """

    first: Term
    second: Term
    rule: Literal["ahead", "at_least", "at_most", "invariant"]
    points: float = 0.0

    def describe(self, group: str) -> str:
        """The condition in words."""
        left, right = self.first.label(group), self.second.label(group)
        if self.rule == "ahead":
            return f"{left} above {right}"
        if self.rule == "invariant":
            return f"{method_style(self.first.method).label}: same prediction in all {group} poses"
        sign = "at least" if self.rule == "at_least" else "at most"
        unit = "point" if self.points == 1 else "points"
        return f"{left} minus {right} {sign} {self.points:g} {unit}"

    def holds(self, value: float) -> bool:
        """Whether a bare difference in points satisfies it (no test)."""
        value = round(value, 9)  # the mean of seeds' fractions is not exact
        bounds = {
            "ahead": value > 0,
            "at_least": value >= self.points,
            "at_most": value <= self.points,
            "invariant": value == 0,
        }
        return bounds[self.rule]

    def substituted(self, old: str, new: str) -> Check:
        """The same check about another method."""
        first, second = (
            t._replace(method=new) if t.method == old else t for t in (self.first, self.second)
        )
        return replace(self, first=first, second=second)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, and what it takes to call it reproduced.

    Attributes:
        id: ``"K1"``.
        text: The statement, in our words.
        source: Key of the paper in ``config/published.yaml``.
        checks: All must pass in a cell.
        group: The group it is about, or with ``every_group`` that of the published figures.
        every_group: It is judged at every group that a study has.
        datasets: Those the paper claims it for; empty when it is not about particular data.
            Cells on other data are judged too and marked, and count only when there is no cell on
            the claim's own.
        zero_shot: It is about networks that know the classes by their names alone; cells with
            others are judged and marked as those on other data.
        regimes: Training regimes it is about.
        nearer: Pairs of a method in the checks and one that is nearer to the paper's, which stands
            for it in studies that have it.
        variants: Methods of ours that the same rule is also applied to in place of ``prlc``;
            they are reported and never count towards the verdict.
        by_size: Judged by the sizes of the canonicalizers before one network instead of by checks.
        transfer: Judged from ``transfer.csv`` instead of by checks: points of pose accuracy that
            training on another data set costs at least.
        not_run: Why it cannot be judged from a classification study; empty when it can.
    """

    id: str
    text: str
    source: str
    checks: tuple[Check, ...] = ()
    group: str = "C8"
    every_group: bool = False
    datasets: tuple[str, ...] = ()
    zero_shot: bool = False
    regimes: tuple[str, ...] = ("joint",)
    nearer: tuple[tuple[str, str], ...] = ()
    variants: tuple[str, ...] = ()
    by_size: bool = False
    transfer: float | None = None
    not_run: str = ""

    @property
    def terms(self) -> list[Term]:
        """What its checks compare."""
        return list(dict.fromkeys(t for c in self.checks for t in (c.first, c.second)))

    @property
    def methods(self) -> list[str]:
        """The methods its checks speak of, by the keys of their terms."""
        return list(dict.fromkeys(term.key for term in self.terms))

    def for_variant(self, variant: str) -> Claim:
        """The claim about ``variant`` in place of ``prlc``."""
        return self._about("prlc", variant)

    def nearest(self, methods: Collection[str]) -> Claim:
        """The claim about the nearest of these methods to the paper's."""
        claim = self
        for method, nearer in self.nearer:
            if nearer in methods:
                claim = claim._about(method, nearer)
        return claim

    def _about(self, old: str, new: str) -> Claim:
        checks = tuple(check.substituted(old, new) for check in self.checks)
        return replace(self, checks=checks)

    def covers(self, dataset: str, zero_shot: bool = False) -> bool:
        """Whether the paper claims it for such a cell.

        Args:
            dataset: The cell's, by its source.
            zero_shot: Whether the cell's network knows the classes by their names alone.
        """
        return (not self.datasets or dataset in self.datasets) and zero_shot >= self.zero_shot

    def scope(self, dataset: str, reduced: bool, zero_shot: bool = False) -> str:
        """``covers`` in words."""
        if not self.datasets:
            words = "a claim about any data set"
        elif dataset in self.datasets:
            words = "the paper's data set"
        else:
            paper = " and ".join(dataset_label(name) for name in self.datasets)
            words = f"another data set than the paper's ({paper})"
        if self.zero_shot and not zero_shot:
            words += (
                "; a network that has seen labelled images of these classes, not a zero-shot one"
            )
        return f"{words}; reduced study" if reduced else words


def judge_cell(
    claim: Claim, group: str, methods: Mapping[str, Seeds], trained_before: bool = False
) -> dict[str, Any]:
    """Verdict of a claim in one cell, with the numbers behind it.

    Args:
        claim: The claim.
        group: The cell's group.
        methods: The cell's runs: method, then seed.
        trained_before: Whether the cell's frozen network is one that the study trained itself.

    Returns:
        ``verdict``, ``reason`` (when not run) and ``checks``. A check ``agrees`` when its mean
        difference is as claimed, and ``passed`` when that is also significant where it must be;
        it is ``clear`` when its whole interval lies on one side of the bound and can tell what
        another training would do; why it is not, other than by its interval, is ``unclear``.
    """
    missing = [name for name in claim.methods if name not in methods]
    if missing:
        return {"verdict": "not run", "reason": f"no runs of {', '.join(missing)}", "checks": []}
    found = [_measure(check, methods) for check in claim.checks]
    lacking = [c for c, d in zip(claim.checks, found, strict=True) if not d.estimate.n]
    if lacking:
        pair = f"{lacking[0].first.key} and {lacking[0].second.key}"
        return {"verdict": "not run", "reason": f"no seed common to {pair}", "checks": []}
    tested = [d.p if c.rule == "ahead" else math.nan for c, d in zip(claim.checks, found)]
    adjusted = holm(tested)
    checks = [
        judge_check(check, group, comparison, p, methods[check.first.key], trained_before)
        for check, comparison, p in zip(claim.checks, found, adjusted, strict=True)
    ]
    verdict: Verdict = "reproduced" if all(c["passed"] for c in checks) else "not reproduced"
    return {"verdict": verdict, "reason": "", "checks": checks}


def _measure(check: Check, methods: Mapping[str, Seeds]) -> Comparison:
    first, second = check.first, check.second
    return difference(methods[first.key], methods[second.key], (first.metric, second.metric))


def judge_check(
    check: Check,
    group: str,
    found: Comparison,
    p_holm: float,
    first: Seeds,
    trained_before: bool = False,
) -> dict[str, Any]:
    """The entry of a check in ``claims.json``.

    Args:
        check: The check.
        group: The cell's group.
        found: The difference it is about.
        p_holm: Corrected p of the difference, for ``ahead``.
        first: The runs of its first term, for ``invariant``.
        trained_before: Whether the frozen network behind both is one that the study trained itself.
    """
    points = found.estimate.scaled(100)
    passed = agrees = check.holds(points.mean)
    judged: dict[str, Any] = {
        "text": check.describe(group),
        "rule": check.rule,
        "bound_points": check.points,
        "first": check.first._asdict(),
        "second": check.second._asdict(),
        "difference_points": _number(points.mean),
        "low_points": _number(points.low),
        "high_points": _number(points.high),
        "interval": points.kind,
        "n_seeds": points.n,
        "seeds_first_ahead": found.seeds_ahead,
        "p_sign_flip": _number(written_p(found.p)),
        "p_holm": None,
        "p_mcnemar": _number(written_p(found.p_mcnemar)),
    }
    if check.rule == "ahead":
        # The test is over images, for these networks; all seeds must say so too.
        passed = passed and p_holm < SIGNIFICANCE and found.seeds_ahead == points.n
        judged["p_holm"] = _number(written_p(p_holm))
    if check.rule == "invariant":
        judged["orbit_agreement"] = _orbit_agreement(first)
        passed = agrees = passed and judged["orbit_agreement"] == 1.0
    judged["agrees"] = bool(agrees)
    judged["passed"] = bool(passed)
    # Seeds that are all the same differ in nothing that was trained: there is the network alone.
    network_once = trained_before and points.kind == "images"
    return judged | clearness(check, points, found.trained_once or network_once)


def clearness(check: Check, found: Estimate, trained_once: bool) -> dict[str, Any]:
    """``clear``, and with it ``unclear`` where something else than the interval is the cause.

    Args:
        check: The check.
        found: The difference it is about, in points.
        trained_once: Whether it is of one training.
    """
    doubt = _doubt(check, found, trained_once)
    cause = {"unclear": doubt} if doubt not in ("", WITHIN_NOISE) else {}
    return {"clear": not doubt} | cause


def _doubt(check: Check, found: Estimate, trained_once: bool) -> str:
    """Why other seeds could turn the check; empty where its interval is clear of the bound.

    An interval over images does not know what another seed would have learnt. Images that all
    differ alike leave a bootstrap no spread, two seeds that differ alike leave Student's t none;
    neither is a certainty, save for two seeds without any difference, as invariance leaves them.
    """
    if check.rule == "invariant":
        return ""
    if trained_once:
        return ONE_TRAINING
    bound = 0.0 if check.rule == "ahead" else check.points
    low, high = round(found.low, 9), round(found.high, 9)  # equal differences may differ by less
    no_spread = f"no spread between {found.kind}" if low == high else ""
    if no_spread and (found.kind == "images" or (found.n == 2 and low != 0)):
        return no_spread
    return "" if low > bound or high < bound else no_spread or WITHIN_NOISE


def doubt_words(check: Mapping[str, Any]) -> str:
    """Why a judged check that is not ``clear`` is not."""
    return str(check.get("unclear", WITHIN_NOISE))


def holds_words(check: Mapping[str, Any]) -> str:
    """How a judged check came out: ``"yes"``, ``"no (within noise)"``, ``"not significant"``."""
    if not check["passed"] and check["agrees"] and check["rule"] == "ahead":
        ahead = check["p_holm"] is not None and check["p_holm"] < SIGNIFICANCE
        return "not in every seed" if ahead else "not significant"
    words = "yes" if check["passed"] else "no"
    return words if check["clear"] else f"{words} ({doubt_words(check)})"


def _orbit_agreement(runs: Seeds) -> float:
    shares = [(e.predicted == e.predicted[:, :1]).all(axis=1).mean() for e in runs.values()]
    return float(min(shares))


def published_checks(claim: Claim, published: Published) -> list[dict[str, Any]]:
    """The claim's own rule applied to the published figures, where all of them were found.

    No test can be made on them, so that an ``ahead`` check only asks for the sign.
    """
    rows = []
    cells = [(r, *pair) for r in claim.regimes for pair in published.cells(claim.group, r)]
    for regime, dataset, backbone in cells if claim.checks else ():
        found = {
            term: _published(term, regime, dataset, backbone, claim, published)
            for term in claim.terms
        }
        values = [_published_difference(check, found) for check in claim.checks]
        if any(value is None for value in values):
            continue
        checks = [
            {"text": c.describe(claim.group), "difference_points": v, "passed": c.holds(v)}
            for c, v in zip(claim.checks, values, strict=True)
            if v is not None
        ]
        rows.append(
            {
                "dataset": dataset,
                "backbone": backbone,
                "group": claim.group,
                "in_scope": not claim.datasets or dataset in claim.datasets,
                "passed": all(check["passed"] for check in checks),
                "checks": checks,
                "figures": [_published_figure(t, figure) for t, figure in found.items() if figure],
            }
        )
    return rows


def _published(
    term: Term, regime: str, dataset: str, backbone: str, claim: Claim, published: Published
) -> Figure | None:
    group = term.group or claim.group
    return published.find(dataset, backbone, group, term.method, term.metric, regime)


def _published_difference(check: Check, found: Mapping[Term, Figure | None]) -> float | None:
    first, second = found[check.first], found[check.second]
    if first is None or second is None:
        return None
    return round(first.value - second.value, 6)


def _published_figure(term: Term, figure: Figure) -> dict[str, Any]:
    return {
        **term._asdict(),
        "percent": figure.value,
        "grade": figure.grade,
        "paper": figure.paper,
        "source": figure.source,
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)
