"""Methods that adapt a frozen backbone at test time: each is evidence, a prior and a selection.

Log-weights of the views are

    log w(g | x) = a * log p_scorer(g | x) + b * score(g^-1 . x) + constant

with a canonicalizer's distribution (the prior) and the backbone's own outputs on the views (the
evidence). Without a prior it is a search or a Boltzmann average, without evidence a learned
canonicalization, with both the posterior over poses. A class-wise canonicalizer may have a vote on
the class as well: each view's class probabilities are then multiplied by its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence import EVIDENCE
from eqadapt.evidence.base import log_softmax
from eqadapt.test_time.rules import (
    SPACES,
    Decision,
    best_view,
    classwise_maximum,
    mean_of_products,
    mean_of_views,
    one_view,
    top_views,
)
from eqadapt.test_time.views import Views

SELECTIONS = ("identity", "true_pose", "argmax", "mean", "classwise_maximum")
_RULE_PARAMETERS = (
    "temperature",
    "prior_weight",
    "evidence_weight",
    "class_weight",
    "space",
    "views",
    "quantile",
    "offset",
)
_EVIDENCE_PREFIX = "evidence."
_NOT_NEGATIVE = (lambda value: value >= 0, "0 or above")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: value >= 0, "0 (the best view alone) or above"),
    "prior_weight": _NOT_NEGATIVE,
    "evidence_weight": _NOT_NEGATIVE,
    "class_weight": _NOT_NEGATIVE,
    "space": (lambda value: value in SPACES, " or ".join(SPACES)),
    "views": (lambda value: value >= 1 and value == int(value), "a whole number, 1 or more"),
    "quantile": (lambda value: 0 <= value <= 1, "0 to 1"),
    "offset": (lambda value: value == int(value), "a whole number"),
}


@dataclass(frozen=True)
class TestTimeMethod:
    """One row of the comparison.

    Attributes:
        name: The key in configurations and files.
        summary: One sentence for people.
        paper: Key of ``config/published.yaml`` or a citation.
        selection: ``identity``, ``true_pose``, ``argmax`` (one view), ``mean`` (all candidates,
            weighted) or ``classwise_maximum``.
        evidence: Name in ``eqadapt.evidence.EVIDENCE``, or None.
        prior: A canonicalizer's pose logits are read.
        canonicalizer: The trained method whose pose logits these are; None takes the settings'.
        votes: The canonicalizer, a class-wise one, has a vote on the class.
        closed_form: The canonicalizer is the same whatever the seed.
        gated: The input is kept as it is where the evidence of its own view is high enough.
        defaults: Values of its hyper-parameters where nothing is searched.
        inherits: Another method whose selected evidence hyper-parameters it takes over.
        tuned_on: The split on which its hyper-parameters are chosen. On ``train`` they are a part
            of what is fitted, and each seed has its own.
    """

    __test__ = False  # the name is not a test's

    name: str
    summary: str
    paper: str
    selection: str
    evidence: str | None = None
    prior: bool = False
    votes: bool = False
    canonicalizer: str | None = None
    closed_form: bool = False
    gated: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    inherits: str | None = None
    tuned_on: str = "validation"

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise UserError(
                f"unknown selection {self.selection!r} of {self.name!r}", fix=", ".join(SELECTIONS)
            )
        if self.evidence is not None and self.evidence not in EVIDENCE:
            raise UserError(
                f"unknown score {self.evidence!r} of {self.name!r}",
                fix=f"one of: {', '.join(sorted(EVIDENCE))}",
            )
        if self.gated and self.evidence is None:
            raise UserError(f"{self.name!r} is gated but has no evidence to gate by")
        if self.votes and not (self.prior and self.selection in ("mean", "true_pose")):
            raise UserError(
                f"the canonicalizer of {self.name!r} has a vote on the class, but the method has "
                "none, or takes no mean",
                fix="prior and selection: mean, or true_pose",
            )

    @property
    def learned(self) -> bool:
        """Whether something with a seed is drawn or trained for it."""
        own_prior = self.prior and not self.closed_form
        return own_prior or (self.evidence is not None and EVIDENCE[self.evidence].learned)

    def departures(self, parameters: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """Where it departs from the equation with one weight a view that turns with the input.

        ``class_axis``: each class has weights of its own. ``gate``: the weights depend on which
        view came in, so the output is not invariant. ``view_order``: as published, the score
        depends on the order of the views. ``output_space``: what is averaged is not the
        backbone's output but a function of it. ``true_pose``: it is told the pose.
        ``second_classifier``: the output is not the backbone's alone.
        """
        space = (parameters or self.defaults).get("space", self.defaults.get("space", "logits"))
        averages = self.selection == "mean"
        found = {
            "class_axis": self.selection == "classwise_maximum",
            "gate": self.gated,
            "view_order": self.evidence == "its_paper",
            "output_space": averages and (space != "logits" or self.votes),
            "true_pose": self.selection == "true_pose",
            "second_classifier": self.votes,
        }
        return tuple(name for name, present in found.items() if present)

    @property
    def invariant(self) -> bool:
        """Whether its outputs are the same for every permutation of views.

        To the last bit, or up to rounding of float64 where a trained network weighs the views.
        Provided that a canonicalizer's best poses have scores of their own: between equal ones the
        first is taken, for nothing has been read yet that could tell them apart.
        """
        other = {"gate", "view_order", "true_pose"}
        return self.selection != "identity" and not other & set(self.departures())

    def parameters(self, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The defaults with ``chosen`` in their place.

        Raises:
            UserError: A hyper-parameter it does not have.
        """
        merged = {**self.defaults, **(chosen or {})}
        unknown = [
            key
            for key in merged
            if key not in _RULE_PARAMETERS and not key.startswith(_EVIDENCE_PREFIX)
        ]
        if unknown:
            raise UserError(
                f"method {self.name!r} has no hyper-parameter {', '.join(unknown)}",
                fix=f"{', '.join(_RULE_PARAMETERS)} or {_EVIDENCE_PREFIX}<name>",
            )
        return merged


def check_range(key: str, value: Any) -> None:
    """Stop at a value of a rule's hyper-parameter that no view could be weighed by.

    Args:
        key: Its name; those of evidence, which checks its own, are let through.
        value: Of the kind of its default.

    Raises:
        UserError: The value is out of its range.
    """
    if key in _RANGES and not _RANGES[key][0](value):
        raise UserError(f"{key} is {value!r}", fix=_RANGES[key][1])


METHODS: dict[str, TestTimeMethod] = {}


def register(method: TestTimeMethod) -> TestTimeMethod:
    """Add a method; a second one of the same name is an error."""
    if METHODS.get(method.name, method) != method:
        raise UserError(f"two methods are named {method.name!r}", fix="rename one of them")
    METHODS[method.name] = method
    return method


def get_method(name: str) -> TestTimeMethod:
    """The method of that name.

    Raises:
        UserError: No such method; the message lists those there are.
    """
    if name not in METHODS:
        raise UserError(
            f"unknown test-time method {name!r}", fix=f"one of: {', '.join(sorted(METHODS))}"
        )
    return METHODS[name]


def evidence_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those hyper-parameters that belong to the evidence, without their prefix."""
    return {
        key.removeprefix(_EVIDENCE_PREFIX): value
        for key, value in parameters.items()
        if key.startswith(_EVIDENCE_PREFIX)
    }


def decide(
    method: TestTimeMethod,
    views: Views,
    parameters: Mapping[str, Any] | None = None,
    *,
    threshold: float | None = None,
    pose: int | None = None,
) -> Decision:
    """Run a method on the views of N inputs.

    Args:
        method: The method.
        views: What it reads; the views it reads are counted there.
        parameters: Hyper-parameters in place of its defaults: ``temperature`` (of the evidence,
            the same as one over ``evidence_weight``), ``prior_weight``, ``evidence_weight``,
            ``class_weight`` (of the canonicalizer's vote on the class), ``space``, ``views`` (how
            many poses the prior lets through) and ``offset`` (an element
            that every pose of the canonicalizer is moved by).
        threshold: Of the gate, for gated methods.
        pose: The true pose, for the oracle alone.

    Raises:
        UserError: A hyper-parameter out of its range, or something the method needs is missing.
    """
    values = method.parameters(parameters)
    if method.selection == "identity":
        return _fixed_view(views, 0, chooses=False)
    if method.selection == "true_pose":
        found = _fixed_view(views, pose, chooses=True)
        return found if not method.votes else _with_vote(found, views, values)
    prior = _prior(method, views, values)
    candidates = np.ones((views.count, views.order), bool)
    if values.get("views") is not None:
        candidates = top_views(prior, int(values["views"]))
    kept = np.zeros(views.count, bool)
    if method.gated:
        kept = _gate(views, threshold)
        candidates &= ~kept[:, None]
        candidates[kept, 0] = True
    if method.selection == "argmax" and method.evidence is None:
        candidates = _only(candidates, prior)
    if method.evidence is not None and not views.per_view and not (candidates | views.seen).all():
        raise UserError(
            f"{method.name!r} reads some views only, but its evidence of a view takes all of them",
            fix="evidence that scores each view alone",
        )
    views.read(candidates)
    return _select(method, views, values, prior, candidates)


def _fixed_view(views: Views, element: int | None, *, chooses: bool) -> Decision:
    if element is None:
        raise UserError("the oracle needs the true pose")
    taken = np.full(views.count, element)
    views.read(np.arange(views.order) == taken[:, None])
    chosen = taken if chooses else np.full(views.count, -1)
    return Decision(one_view(views.logits, taken), chosen, views.passes)


def _with_vote(found: Decision, views: Views, values: Mapping[str, Any]) -> Decision:
    """One view's output, multiplied by the canonicalizer's classes in that pose."""
    votes = _votes(views, values)[np.arange(views.count), found.chosen]
    return replace(found, log_probabilities=log_softmax(found.log_probabilities + votes))


def _votes(views: Views, values: Mapping[str, Any]) -> NDArray[np.float64]:
    """(N, K, C) what is added to the log-probabilities of the views."""
    return float(values.get("class_weight", 1.0)) * views.votes


def _prior(method: TestTimeMethod, views: Views, values: Mapping[str, Any]) -> NDArray[np.float64]:
    """Log-probabilities (N, K) of the poses: the canonicalizer's, or all the same."""
    if not method.prior:
        missing = [key for key in ("views", "offset") if values.get(key) is not None]
        if missing:
            raise UserError(f"{missing[0]!r} of {method.name!r}, which has no canonicalizer")
        return np.zeros((views.count, views.order))
    logits = np.roll(views.pose_logits, int(values.get("offset", 0)), axis=1)
    return log_softmax(logits)


def _gate(views: Views, threshold: float | None) -> NDArray[np.bool_]:
    if threshold is None:
        raise UserError("a gated method needs the threshold of its gate")
    own = np.arange(views.order) == 0
    views.read(np.broadcast_to(own | (not views.per_view), (views.count, views.order)))
    return views.scores[:, 0] >= threshold


def _only(candidates: NDArray[np.bool_], prior: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The prior's best candidate alone: nothing else need be passed through the backbone."""
    best = np.where(candidates, prior, -np.inf).argmax(axis=1)
    return np.arange(prior.shape[1]) == best[:, None]


def _log_weights(
    method: TestTimeMethod, views: Views, values: Mapping[str, Any], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    weights = float(values.get("prior_weight", 1.0)) * prior
    if method.evidence is not None:
        temperature = float(values.get("temperature", 1.0))
        check_range("temperature", temperature)
        scores = views.scores
        if temperature == 0:  # the limit: all weight on the best view
            return scores
        with np.errstate(invalid="ignore"):
            weights = weights + float(values.get("evidence_weight", 1.0)) / temperature * scores
    return weights


def _select(
    method: TestTimeMethod,
    views: Views,
    values: Mapping[str, Any],
    prior: NDArray[np.float64],
    candidates: NDArray[np.bool_],
) -> Decision:
    logits, passes = views.logits, views.passes
    if method.selection == "classwise_maximum":
        outputs, chosen = classwise_maximum(logits)
        return Decision(outputs, chosen, passes)
    weights = np.where(candidates, _log_weights(method, views, values, prior), -np.inf)
    if method.selection == "argmax":
        chosen = best_view(weights, logits)
        return Decision(one_view(logits, chosen), chosen, passes)
    none = np.full(views.count, -1)
    if values.get("temperature") == 0:
        return Decision(one_view(logits, best_view(weights, logits)), none, passes)
    if method.votes:
        return Decision(mean_of_products(weights, logits, _votes(views, values)), none, passes)
    space = str(values.get("space", SPACES[0]))
    return Decision(mean_of_views(weights, logits, space), none, passes)
