"""The papers' claims, each with its rule, and their verdicts in a study: ``claims.json``.

A claim of another study is one more ``register(Claim(...))``. Thresholds are fixed here, before
any result: "within 1 point" is the papers' own words for a gap that is closed, and "tens of points"
is taken to mean at least 20. For poor transfer, of which 12 to 18 points are reported, it is 10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eqadapt.analysis.claim_rules import (
    ONE_TRAINING,
    WITHIN_NOISE,
    Check,
    Claim,
    Term,
    doubt_words,
    holds_words,
    judge_cell,
    published_checks,
)
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.labels import method_style
from eqadapt.analysis.published import Published
from eqadapt.analysis.results import Results
from eqadapt.analysis.size_claim import judge_sizes
from eqadapt.analysis.transfer_claim import judge_transfers
from eqadapt.errors import UserError
from eqadapt.study_rules import OPEN_CLIP

CLOSED = 1.0
COLLAPSE = 20.0
TRANSFER = 10.0
CLAIMS: dict[str, Claim] = {}
_MEANS = {
    WITHIN_NOISE: ": an interval reaches past its bound",
    ONE_TRAINING: ": says nothing about another",
}


def register(claim: Claim) -> Claim:
    """Add a claim; one of the same id that says "not run" is replaced."""
    known = CLAIMS.get(claim.id)
    if known is not None and not known.not_run and known != claim:
        raise UserError(f"two claims are named {claim.id!r}", fix="rename one of them")
    CLAIMS[claim.id] = claim
    return claim


def _acc(method: str) -> Term:
    return Term(method, "acc")


def _avg(method: str) -> Term:
    return Term(method, "cn_avg")


register(
    Claim(
        id="K1",
        text="A pretrained network fine-tuned on upright images loses tens of points when the test "
        "images are turned through C8.",
        source="mondal2023",
        checks=(Check(_acc("vanilla"), _avg("vanilla"), "at_least", COLLAPSE),),
        datasets=("cifar10", "cifar100"),
    )
)
register(
    Claim(
        id="K2",
        text="Rotation augmentation costs upright accuracy and still leaves a gap of more than a "
        "point between its upright accuracy and its C8 average.",
        source="mondal2023",
        checks=(
            Check(_acc("vanilla"), _acc("rotation_augmentation"), "ahead"),
            Check(_acc("rotation_augmentation"), _avg("rotation_augmentation"), "at_least", CLOSED),
        ),
        datasets=("cifar10", "cifar100"),
    )
)
register(
    Claim(
        id="K3",
        text="Learned canonicalization closes that gap, and costs upright accuracy.",
        source="mondal2023",
        checks=(
            Check(_acc("lc"), _avg("lc"), "at_most", CLOSED),
            Check(_acc("vanilla"), _acc("lc"), "ahead"),
        ),
        datasets=("cifar10",),
    )
)
register(
    Claim(
        id="K4",
        text="With the prior, upright accuracy stays within a point of the vanilla network's, and "
        "the C8 average within a point of the upright accuracy.",
        source="mondal2023",
        checks=(
            Check(_acc("vanilla"), _acc("prlc"), "at_most", CLOSED),
            Check(_acc("prlc"), _avg("prlc"), "at_most", CLOSED),
        ),
        datasets=("cifar10",),
        variants=("prlc_rotated", "prlc_classwise"),
    )
)
register(
    Claim(
        id="K5",
        text="On the C8 average PRLC is above LC and above rotation augmentation, which is above "
        "vanilla; upright, vanilla is above PRLC, which is above LC.",
        source="mondal2023",
        checks=(
            Check(_avg("prlc"), _avg("lc"), "ahead"),
            Check(_avg("prlc"), _avg("rotation_augmentation"), "ahead"),
            Check(_avg("rotation_augmentation"), _avg("vanilla"), "ahead"),
            Check(_acc("vanilla"), _acc("prlc"), "ahead"),
            Check(_acc("prlc"), _acc("lc"), "ahead"),
        ),
        datasets=("cifar10", "cifar100"),
        variants=("prlc_rotated", "prlc_classwise"),
    )
)
register(
    Claim(
        id="K6",
        text="With C4 the adapted network is exactly invariant: its C4 average is its upright "
        "accuracy, image by image.",
        source="mondal2023",
        checks=(
            Check(_acc("lc"), _avg("lc"), "invariant"),
            Check(_acc("prlc"), _avg("prlc"), "invariant"),
        ),
        group="C4",
        regimes=("joint", "frozen"),
        variants=("prlc_rotated", "prlc_classwise"),
    )
)

# The averaging methods' papers work with quarter turns, so their claims are about C4.
register(
    Claim(
        id="K9",
        text="A canonicalizer that is not equivariant by construction (OptC) matches or beats the "
        "equivariant one. (That it is up to twice as fast is a matter of the benchmarks.)",
        source="panigrahi2024",
        checks=(Check(_avg("optc"), _avg("prlc"), "at_least", -CLOSED),),
        every_group=True,
        datasets=("cifar10", "cifar100", "stl10"),
        regimes=("joint", "frozen"),
        nearer=(("optc", "optc_artifact"),),
        variants=("prlc_rotated", "prlc_classwise"),
    )
)
register(
    Claim(
        id="K10",
        text="Zero-shot under quarter turns: equizero above equitune above the unadapted network.",
        source="basu2023lambda",
        checks=(
            Check(_avg("equizero"), _avg("equitune"), "ahead"),
            Check(_avg("equitune"), _avg("vanilla"), "ahead"),
        ),
        group="C4",
        datasets=("cifar100", "imagenet_v2"),
        zero_shot=True,
        regimes=("frozen",),
    )
)
register(
    Claim(
        id="K11",
        text="After fine-tuning, λ-equitune is above equitune, and not below equizero.",
        source="basu2023lambda",
        checks=(
            Check(_avg("lambda_equitune"), _avg("equitune"), "ahead"),
            Check(_avg("lambda_equitune"), _avg("equizero"), "at_least", 0.0),
        ),
        group="C4",
        datasets=("cifar100", "imagenet_v2"),
        regimes=("joint",),
        nearer=(("equizero", "equizero_ste"),),
    )
)
register(
    Claim(
        id="K12",
        text="A distribution over group elements beats one learned canonical element.",
        source="kim2023lps",
        checks=(Check(_avg("lps"), _avg("lc"), "ahead"),),
        group="C4",
        datasets=("nbody", "exp_classify"),
        regimes=("joint", "frozen"),
    )
)
register(
    Claim(
        id="K13",
        text="Learned canonicalization beats frozen, PCA and optimised ones on rotated MNIST, and "
        "finer groups help.",
        source="kaba2023",
        checks=(
            Check(_acc("lc"), _acc("frozen_canonicalizer"), "ahead"),
            Check(_acc("lc"), _acc("pca_frame"), "ahead"),
            Check(_acc("lc"), _acc("optimised"), "ahead"),
            Check(_acc("lc"), Term("lc", "acc", "C4"), "ahead"),
        ),
        group="C16",
        datasets=("rotated_mnist",),
    )
)

register(
    Claim(
        id="K8",
        text="A canonicalizer that is too small costs upright performance. (The figures are "
        "those of instance segmentation.)",
        source="mondal2023",
        regimes=("joint", "frozen"),
        variants=("prlc_rotated", "prlc_classwise"),
        by_size=True,
    )
)
register(
    Claim(
        id="K15",
        text="A canonicalizer trained on one data set transfers poorly to another: it finds at "
        f"least {TRANSFER:g} points fewer of the poses there than one trained there.",
        source="Later work",
        group="C4",
        regimes=("joint", "frozen"),
        transfer=TRANSFER,
    )
)

_LATER = (
    (
        "K7",
        "The prior alone, the predictor frozen, is enough: MaskRCNN's and SAM's C4 average mAP "
        "rises to their upright mAP.",
        "mondal2023",
        "needs an instance segmentation study",
    ),
    (
        "K14",
        "On turned point clouds a canonicalized PointNet or DGCNN keeps its aligned accuracy where "
        "the plain one collapses.",
        "mondal2023",
        "needs the point cloud task",
    ),
)
for _id, _text, _source, _reason in _LATER:
    register(Claim(id=_id, text=_text, source=_source, not_run=_reason))


def judge(claim: Claim, results: Results, published: Published) -> dict[str, Any]:
    """One claim's entry of ``claims.json``."""
    figures = published_checks(claim, published)
    claim = claim.nearest(results.layout["methods"])
    groups = results.groups if claim.every_group else [claim.group]
    entry: dict[str, Any] = {
        "id": claim.id,
        "text": claim.text,
        "source": claim.source,
        "source_title": published.citation(claim.source),
        "group": claim.group,
        "rule": [check.describe(group) for group in groups for check in claim.checks],
        "published": figures,
    }
    if claim.not_run:
        return entry | _not_run(claim.not_run)
    if claim.by_size:
        return entry | _judge_sizes(claim, results)
    if claim.transfer is not None:
        return entry | _judge_transfer(claim, results)
    cells = _judge_cells(claim, results)
    variants = [
        {"method": name, "label": method_style(name).label}
        | _overall(_judge_cells(claim.for_variant(name), results))
        for name in claim.variants
        if name in results.layout["methods"]
    ]
    return entry | _overall(cells, _lacking(claim, results)) | {"variants": variants}


def _lacking(claim: Claim, results: Results) -> str:
    """Why a study has no cell for a claim."""
    if any(cell.group == claim.group for cell in results.cells()):
        regimes = " or ".join(claim.regimes)
        return f"the study has no {claim.group} runs of the regime {regimes}"
    return f"the study has no {claim.group} runs"


def _judge_sizes(claim: Claim, results: Results) -> dict[str, Any]:
    """A claim about the size of the canonicalizer before one network."""
    rule = [f"{method_style('prlc').label} upright: the largest canonicalizer above the smallest"]
    cells = judge_sizes(claim, results, "prlc")
    if not cells:
        reason = "needs one network behind canonicalizers of several sizes"
        return {"rule": rule} | _not_run(reason)
    variants = [
        {"method": name, "label": method_style(name).label}
        | _overall(judge_sizes(claim, results, name))
        for name in claim.variants
        if name in results.layout["methods"]
    ]
    return {"rule": rule} | _overall(cells) | {"variants": variants}


def _judge_transfer(claim: Claim, results: Results) -> dict[str, Any]:
    """A claim about other data than a canonicalizer was trained on."""
    entry: dict[str, Any] = {
        "rule": [f"pose accuracy trained there minus trained elsewhere: {claim.transfer:g} or more"]
    }
    if results.transfers is None:
        return entry | _not_run("needs a study of several data sets with `transfer: true`")
    if "prlc" not in set(results.transfers["method"]):
        return entry | _not_run("no runs of prlc")

    def source(name: str) -> str:
        return results.behind("datasets", name)

    cells = judge_transfers(claim, results.transfers, results.reduced, "prlc", source)
    own = f"no canonicalizers for {claim.group} that were tested on another data set as well"
    return entry | _overall(cells, own) | {"variants": []}


def _judge_cells(claim: Claim, results: Results) -> list[dict[str, Any]]:
    cells = results.cells(group=None if claim.every_group else claim.group)
    judged: list[dict[str, Any]] = []
    for cell in cells:
        if cell.regime not in claim.regimes:
            continue
        dataset = results.behind("datasets", cell.dataset)
        zero_shot = _is_zero_shot(results, cell.backbone)
        scope = {
            "in_scope": claim.covers(dataset, zero_shot),
            "scope": claim.scope(dataset, results.reduced, zero_shot),
        }
        found = _found(claim, cell, results)
        judged.append({**cell._asdict(), **scope, **found})
    own = any(entry["in_scope"] and entry["verdict"] != "not run" for entry in judged)
    for entry in judged:
        entry["counted"] = entry["verdict"] != "not run" and (entry["in_scope"] or not own)
    return judged


def _found(claim: Claim, cell: Cell, results: Results) -> dict[str, Any]:
    """The verdict of a cell, where its predictions can speak of the claim."""
    if results.test_time and any(check.rule == "invariant" for check in claim.checks):
        # Test-time methods see each image once: its turned copies are its views in another order.
        reason = "outputs for turned images are those for upright ones, put in another order"
        return {"verdict": "not run", "reason": reason, "checks": []}
    trained = results.trained_before(cell)
    return judge_cell(claim, cell.group, _methods(claim, cell, results), trained)


def _is_zero_shot(results: Results, backbone: str) -> bool:
    """Whether a network knows classes by words alone; class means are of labelled images."""
    return results.behind("backbones", backbone).startswith(OPEN_CLIP)


def _methods(claim: Claim, cell: Cell, results: Results) -> dict[str, Any]:
    """The runs a claim speaks of in a cell, those at another group under ``method@group``."""
    found: dict[str, Any] = dict(results.at(cell))
    for term in claim.terms:
        elsewhere = results.at(cell._replace(group=term.group)) if term.group else {}
        if term.method in elsewhere:
            found[term.key] = elsewhere[term.method]
    return found


def _overall(cells: list[dict[str, Any]], lacking: str = "") -> dict[str, Any]:
    counted = [cell for cell in cells if cell["counted"]]
    if not counted:
        reasons = dict.fromkeys(cell["reason"] for cell in cells)
        return _not_run("; ".join(reasons) or lacking, cells)
    passed = sum(cell["verdict"] == "reproduced" for cell in counted)
    verdict = "reproduced" if passed == len(counted) else "not reproduced"
    return {
        "verdict": verdict,
        "reason": _remark(counted, passed),
        "cells_reproduced": passed,
        "cells_counted": len(counted),
        "in_scope": all(cell["in_scope"] for cell in counted),
        "cells": cells,
    }


def _remark(counted: list[dict[str, Any]], passed: int) -> str:
    """What a verdict is to be read with, where something is."""
    if passed == len(counted):
        return "; ".join(
            cause
            + ("" if cells == len(counted) else f" in {cells} of {len(counted)} cells")
            + _MEANS.get(cause, "")
            for cause, cells in doubts(counted).items()
        )
    if not all(check["agrees"] for cell in counted for check in cell["checks"]):
        return ""
    failed = {holds_words(c) for cell in counted for c in cell["checks"] if not c["passed"]}
    return f"every difference is as claimed, but some are {' or '.join(sorted(failed))}"


def doubts(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Why other seeds could turn cells that count: each cause with the number of its cells.

    They could turn the reproduced ones with a check that is not clear, and the others without a
    failed check that is.
    """
    return dict(Counter(cause for cell in cells if cell["counted"] for cause in _causes(cell)))


def _causes(cell: Mapping[str, Any]) -> dict[str, None]:
    """The causes of one cell, each once."""
    checks = cell["checks"]
    if cell["verdict"] != "reproduced":
        checks = [check for check in checks if not check["passed"]]
        if any(check["clear"] for check in checks):
            return {}
    return dict.fromkeys(doubt_words(check) for check in checks if not check["clear"])


def _not_run(reason: str, cells: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "verdict": "not run",
        "reason": reason,
        "cells_reproduced": 0,
        "cells_counted": 0,
        "in_scope": False,
        "cells": cells or [],
        "variants": [],
    }


def claims_document(results: Results, published: Published) -> dict[str, Any]:
    """The content of ``claims.json``: every claim with its verdict and numbers, and a count."""
    ordered = sorted(CLAIMS.values(), key=lambda claim: (len(claim.id), claim.id))  # K2, K10
    entries = [judge(claim, results, published) for claim in ordered]
    counts = dict.fromkeys(("reproduced", "not reproduced", "not run"), 0)
    for entry in entries:
        counts[entry["verdict"]] += 1
    return {
        "study": results.name,
        "reduced": results.reduced,
        "counts": counts,
        "thresholds": {"closed_points": CLOSED, "collapse_points": COLLAPSE, "significance": 0.05},
        "claims": entries,
    }
