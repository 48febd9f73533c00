"""One cell of the comparison: a backbone's cached orbits, and every method run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence import EVIDENCE, Evidence, TrainingViews, build_evidence
from eqadapt.groups.cyclic import CyclicGroup
from eqadapt.orbit_cache import Orbits, views_of_pose
from eqadapt.test_time.methods import TestTimeMethod, decide, evidence_parameters
from eqadapt.test_time.rules import Decision
from eqadapt.test_time.views import Views

PoseLogits = Callable[[str, str, int], NDArray[np.float32]]
"""Canonicalizer's method, split and seed to its pose logits of the cached inputs: (N, J, K), or,
of a class-wise one, those of pairs of pose and class (N, J, K, C)."""


def training_views(orbits: Orbits, count: int | None = None) -> TrainingViews:
    """The views of training inputs of every coset, so that what is learned sees all of them."""
    part = orbits if count is None else orbits.thinned(count)
    cosets = len(part.cosets)

    def joined(values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([values[:, coset] for coset in range(cosets)])

    return TrainingViews(
        joined(part.logits),
        joined(part.features),
        np.tile(part.label, cosets),
        np.repeat(np.asarray(part.cosets, np.int64), len(part)),
    )


def no_canonicalizer(canonicalizer: str, split: str, seed: int) -> NDArray[np.float32]:
    """Where none is trained.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f"no pose logits of {canonicalizer} (seed {seed}) on the {split} split",
        fix="train it first (`eqadapt train`), or leave the methods out that need it",
    )


@dataclass
class Bench:
    """The orbits of one backbone and group, and the evidence fitted on them.

    Attributes:
        orbits: By split: ``train``, ``validation`` and ``test``.
        pose_logits: Where pose logits come from.
        canonicalizer: The trained method that methods with a prior use, unless they name one.
        bank: Training images that distances are measured to; None for all.
    """

    orbits: Mapping[str, Orbits]
    pose_logits: PoseLogits = no_canonicalizer
    canonicalizer: str = "prlc_rotated"
    bank: int | None = None
    _fitted: dict[Any, Evidence] = field(default_factory=dict, repr=False)
    _tables: dict[Any, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @property
    def group(self) -> CyclicGroup:
        """The group of the orbits."""
        return next(iter(self.orbits.values())).group

    def evidence(
        self, method: TestTimeMethod, parameters: Mapping[str, Any], seed: int
    ) -> Evidence | None:
        """The fitted evidence of a method; fitted once for each choice of hyper-parameters."""
        if method.evidence is None:
            return None
        entry = EVIDENCE[method.evidence]
        options = evidence_parameters(method.parameters(parameters))
        if entry.learned:
            options["seed"] = seed
        key = (entry.name, tuple(sorted(options.items())))
        if key not in self._fitted:
            found = build_evidence(entry.name, **options)
            if entry.fitted:
                count = None if entry.learned else self.bank
                found = found.fit(training_views(self.orbits["train"], count))
            self._fitted[key] = found
        return self._fitted[key]

    def _scores(
        self, evidence: Evidence | None, split: str, pose: int
    ) -> NDArray[np.float64] | None:
        """Evidence (N, K) of inputs in a pose; a view's own is computed once and moved with it."""
        if evidence is None:
            return None
        orbits = self.orbits[split]
        if not evidence.per_view:
            return evidence.score(
                views_of_pose(orbits.logits, self.group, pose),
                views_of_pose(orbits.features, self.group, pose),
            )
        key = (id(evidence), split)
        if key not in self._tables:
            inputs, views = orbits.logits.shape[:2], orbits.logits.shape[2]
            flat = np.prod(inputs)
            self._tables[key] = evidence.score(
                orbits.logits.reshape(flat, views, -1), orbits.features.reshape(flat, views, -1)
            ).reshape(*inputs, views)
        return views_of_pose(self._tables[key], self.group, pose)

    def views(
        self,
        method: TestTimeMethod,
        parameters: Mapping[str, Any],
        split: str,
        seed: int,
        pose: int,
    ) -> Views:
        """The views of all inputs of a split in one pose, nothing of them read yet."""
        evidence = self.evidence(method, parameters, seed)
        poses = None
        if method.prior:
            found = self.pose_logits(method.canonicalizer or self.canonicalizer, split, seed)
            poses = views_of_pose(found, self.group, pose)
        return Views(
            views_of_pose(self.orbits[split].logits, self.group, pose),
            self._scores(evidence, split, pose),
            poses,
            per_view=evidence is None or evidence.per_view,
        )

    def threshold(
        self, method: TestTimeMethod, parameters: Mapping[str, Any], seed: int
    ) -> float | None:
        """The gate: that quantile of the scores of upright validation inputs' own views."""
        if not method.gated:
            return None
        scores = self._scores(self.evidence(method, parameters, seed), "validation", 0)
        assert scores is not None
        return float(np.quantile(scores[:, 0], method.parameters(parameters)["quantile"]))

    def decide(
        self,
        method: TestTimeMethod,
        parameters: Mapping[str, Any],
        split: str,
        seed: int = 0,
        poses: Iterable[int] | None = None,
    ) -> list[Decision]:
        """Run a method on a split in the given poses; all of the group's by default."""
        threshold = self.threshold(method, parameters, seed)
        return [
            decide(
                method,
                self.views(method, parameters, split, seed, pose),
                parameters,
                threshold=threshold,
                pose=pose,
            )
            for pose in (range(self.group.order) if poses is None else poses)
        ]

    def accuracy(
        self, method: TestTimeMethod, parameters: Mapping[str, Any], split: str, seed: int = 0
    ) -> float:
        """Mean accuracy over the group's poses.

        Quarter turns are left out where the method is invariant to them: they change nothing.
        """
        orbits = self.orbits[split]
        poses: Sequence[int] = orbits.cosets if method.invariant else range(self.group.order)
        decisions = self.decide(method, parameters, split, seed, poses)
        return float(np.mean([found.prediction == orbits.label for found in decisions]))
