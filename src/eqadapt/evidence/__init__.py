"""What a frozen backbone's outputs on the views of an input say of the input's pose.

Evidence turns logits (N, K, C) and penultimate features (N, K, D) of the K views into scores
(N, K), larger = the view is more likely upright. Scores of the same name are oriented so that
``exp(score)`` is a weight: for an energy E they are minus E.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eqadapt.errors import UserError
from eqadapt.evidence.base import Evidence, TrainingViews, log_softmax, logsumexp
from eqadapt.evidence.features import Knn, Mahalanobis, PerClassKnn, Vim
from eqadapt.evidence.learned import FeaturesPrior
from eqadapt.evidence.outputs import Confidence, Energy, Entropy, FocalSelf
from eqadapt.evidence.search import ItsCircular, ItsPaper
from eqadapt.evidence.weights import LambdaWeights

__all__ = [
    "EVIDENCE",
    "Evidence",
    "EvidenceEntry",
    "TrainingViews",
    "build_evidence",
    "log_softmax",
    "logsumexp",
    "register_evidence",
]


@dataclass(frozen=True)
class EvidenceEntry:
    """One kind of evidence.

    Attributes:
        name: The key in configurations.
        paper: Where it is from.
        build: Makes it from its hyper-parameters.
        fitted: It needs training views.
        learned: It has trained parameters and a seed.
    """

    name: str
    paper: str
    build: Callable[..., Evidence]
    fitted: bool = False
    learned: bool = False


EVIDENCE: dict[str, EvidenceEntry] = {}


def register_evidence(entry: EvidenceEntry) -> EvidenceEntry:
    """Add a kind of evidence; a second one of the same name is an error."""
    if EVIDENCE.get(entry.name, entry) != entry:
        raise UserError(f"two kinds of evidence are named {entry.name!r}", fix="rename one of them")
    EVIDENCE[entry.name] = entry
    return entry


def build_evidence(name: str, **parameters: Any) -> Evidence:
    """The evidence of that name, not fitted yet.

    Raises:
        UserError: No such evidence, or it has no such hyper-parameter.
    """
    if name not in EVIDENCE:
        raise UserError(
            f"unknown score {name!r} of views", fix=f"one of: {', '.join(sorted(EVIDENCE))}"
        )
    try:
        return EVIDENCE[name].build(**parameters)
    except TypeError as error:
        raise UserError(f"evidence {name!r} has no such hyper-parameter: {error}") from error


for _entry in (
    EvidenceEntry("confidence", "basu2023lambda", Confidence),
    EvidenceEntry("entropy", "basu2023lambda", Entropy),
    EvidenceEntry("energy", "arXiv 2010.03759", Energy),
    EvidenceEntry("focal_self", "arXiv 2507.10375", FocalSelf),
    EvidenceEntry("knn", "arXiv 2204.06507", Knn, fitted=True),
    EvidenceEntry("pcknn", "arXiv 2606.24178", PerClassKnn, fitted=True),
    EvidenceEntry("mahalanobis", "arXiv 1807.03888", Mahalanobis, fitted=True),
    EvidenceEntry("vim", "arXiv 2203.10807", Vim, fitted=True),
    EvidenceEntry("its_paper", "arXiv 2405.03730", ItsPaper),
    EvidenceEntry("its_circular", "arXiv 2405.03730", ItsCircular),
    EvidenceEntry("features", "this project", FeaturesPrior, fitted=True, learned=True),
    EvidenceEntry("lambda", "basu2023lambda", LambdaWeights, fitted=True, learned=True),
):
    register_evidence(_entry)
