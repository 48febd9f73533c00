"""The methods there are. Their hyper-parameters' grids lie in one YAML file each."""

from __future__ import annotations

from typing import Any

from eqadapt.methods import get_method as get_trained_method
from eqadapt.test_time.methods import TestTimeMethod, register

_EQUITUNE, _EQUIZERO = "arXiv 2210.06475", "basu2023lambda"
_SCORES = "arXiv 2606.24178"
_OURS = "this project"

register(TestTimeMethod("vanilla", "The backbone on the input as it is.", "mondal2023", "identity"))
register(
    TestTimeMethod("oracle", "The true pose is undone first: the ceiling.", _OURS, "true_pose")
)
register(
    TestTimeMethod(
        name="oracle_classes",
        summary="The oracle with the canonicalizer's vote on the class: the ceiling of methods "
        "where it has one.",
        paper=_OURS,
        selection="true_pose",
        prior=True,
        votes=True,
        defaults={"class_weight": 1.0},
    )
)

# Averages with equal weights. Logits and log-probabilities give the same output.
for _name, _space in (
    ("equitune", "logits"),
    ("equitune_probabilities", "probabilities"),
    ("equitune_log_probabilities", "log_probabilities"),
):
    register(
        TestTimeMethod(
            name=_name,
            summary=f"The mean of the backbone's {_space.replace('_', '-')} over all views.",
            paper=_EQUITUNE,
            selection="mean",
            defaults={"space": _space},
        )
    )

register(
    TestTimeMethod(
        name="lambda_equitune",
        summary="A mean over views with weights that a small network reads off the features, "
        "trained by the task.",
        paper=_EQUIZERO,
        selection="mean",
        evidence="lambda",
        defaults={"space": "logits"},
    )
)
register(
    TestTimeMethod(
        name="boltzmann",
        summary="A mean over views weighted by exp(-energy / temperature): the view of least "
        "energy when cold, the plain mean when hot.",
        paper="arXiv 2602.08267",
        selection="mean",
        evidence="energy",
        defaults={"temperature": 1.0, "space": "probabilities"},
    )
)
register(
    TestTimeMethod(
        name="ac_max",
        summary="Each class takes its largest logit over the views.",
        paper="arXiv 2509.24886",
        selection="classwise_maximum",
    )
)


def _search(name: str, summary: str, paper: str, evidence: str, **defaults: Any) -> None:
    """A search for the best view, and the same behind a gate that leaves good inputs alone."""
    options = {f"evidence.{key}": value for key, value in defaults.items()}
    register(TestTimeMethod(name, summary, paper, "argmax", evidence, defaults=options))
    register(
        TestTimeMethod(
            name=f"{name}_gated",
            summary=f"{summary[:-1]}, unless the input's own score is as high as usual.",
            paper=paper,
            selection="argmax",
            evidence=evidence,
            gated=True,
            defaults={"quantile": 0.05, **options},
            inherits=name,
        )
    )


_search("equizero", "The view of which the backbone is most certain.", _EQUIZERO, "confidence")
_search("equizero_entropy", "The view of least entropy.", _EQUIZERO, "entropy")
_search("ood_energy", "The view of lowest free energy.", _SCORES, "energy", temperature=1.0)
_search(
    "ood_entropy",
    "The view of least entropy, logits tempered.",
    _SCORES,
    "entropy",
    temperature=1.0,
)
_search("ood_knn", "The view nearest to upright training features.", _SCORES, "knn")
_search(
    "ood_pcknn", "The view nearest to training features of its predicted class.", _SCORES, "pcknn"
)
_search("ood_mahalanobis", "The view nearest to a class mean, whitened.", _SCORES, "mahalanobis")
_search("ood_vim", "The view with the largest energy less feature residual.", _SCORES, "vim")
_search(
    "focal_self",
    "The view of lowest FoCal energy of its own logits.",
    "arXiv 2507.10375",
    "focal_self",
)
_search(
    "its_paper",
    "The sharpest peak of the smoothed energy, as published.",
    "arXiv 2405.03730",
    "its_paper",
)
_search(
    "its_circular",
    "The sharpest peak of the energy on the circle.",
    "arXiv 2405.03730",
    "its_circular",
)

# Learned canonicalizers, from their pose logits: one pass, m passes, all passes.
for _name in (
    "lc",
    "prlc",
    "prlc_rotated",
    "prlc_classwise",
    "distil_prior",
    "optc",
    "optc_noprior",
    "frozen_canonicalizer",
    "fixed_energy",
    "moment_frame",
    "pca_frame",
):
    _trained = get_trained_method(_name)
    register(
        TestTimeMethod(
            name=_name,
            summary=_trained.summary,
            paper=_trained.paper,
            selection="argmax",
            prior=True,
            canonicalizer=_name,
            closed_form=_name in ("fixed_energy", "moment_frame", "pca_frame"),
        )
    )
register(
    TestTimeMethod(
        name="lc_offset",
        summary="LC with every pose moved by one constant element fitted on training images.",
        paper="control after arXiv 2505.13289",
        selection="argmax",
        prior=True,
        canonicalizer="lc",
        defaults={"offset": 0},
        tuned_on="train",
    )
)
register(
    TestTimeMethod(
        name="prlc_mean",
        summary="The mean over all views, weighted by the canonicalizer.",
        paper="arXiv 2402.16077",
        selection="mean",
        prior=True,
        defaults={"prior_weight": 1.0, "space": "probabilities"},
    )
)
for _count in (2, 3):
    register(
        TestTimeMethod(
            name=f"top_{_count}",
            summary=f"The canonicalizer's {_count} best poses, weighted by it.",
            paper="this project, after arXiv 2402.16077",
            selection="mean",
            prior=True,
            defaults={"prior_weight": 1.0, "space": "probabilities", "views": _count},
        )
    )

# The posterior over poses: prior times evidence.
for _evidence, _stem, _what in (
    ("energy", "posterior", "the energy of the views"),
    ("features", "posterior_features", "a learned energy of the views"),
):
    _base: dict[str, Any] = {"prior_weight": 1.0, "evidence_weight": 1.0}
    _inherits = "features_prior" if _evidence == "features" else None
    register(
        TestTimeMethod(
            _stem,
            f"The view of largest posterior: the canonicalizer times {_what}.",
            _OURS,
            "argmax",
            _evidence,
            prior=True,
            defaults=_base,
            inherits=_inherits,
        )
    )
    register(
        TestTimeMethod(
            f"{_stem}_mean",
            f"The mean over views weighted by the canonicalizer times {_what}.",
            _OURS,
            "mean",
            _evidence,
            prior=True,
            defaults={**_base, "space": "probabilities"},
            inherits=_inherits,
        )
    )
    for _count in (2, 3):
        for _selection, _suffix in (("argmax", ""), ("mean", "_mean")):
            register(
                TestTimeMethod(
                    f"{_stem}_top_{_count}{_suffix}",
                    f"The {'mean over' if _suffix else 'best of'} the {_count} views that the "
                    f"canonicalizer likes best, weighted by it times {_what}.",
                    _OURS,
                    _selection,
                    _evidence,
                    prior=True,
                    defaults={
                        **_base,
                        "views": _count,
                        **({"space": "probabilities"} if _suffix else {}),
                    },
                    inherits=_inherits,
                )
            )

# The posterior over pairs of pose and class: the canonicalizer is a second classifier there.
for _suffix, _what, _options in (
    ("", "all views", {}),
    ("_top_2", "the canonicalizer's 2 best views", {"views": 2}),
):
    register(
        TestTimeMethod(
            name=f"posterior_classes{_suffix}",
            summary=f"The mean over {_what} by the posterior over pairs of pose and class: the "
            "canonicalizer's pairs times the backbone's classes times a learned energy.",
            paper=_OURS,
            selection="mean",
            evidence="features",
            prior=True,
            votes=True,
            defaults={
                "prior_weight": 1.0,
                "evidence_weight": 1.0,
                "class_weight": 1.0,
                **_options,
            },
            inherits="features_prior",
        )
    )

register(
    TestTimeMethod(
        name="features_prior",
        summary="The view that a small network on the backbone's outputs takes for upright.",
        paper=_OURS,
        selection="argmax",
        evidence="features",
        defaults={},
    )
)
register(
    TestTimeMethod(
        name="features_prior_mean",
        summary="The mean over views weighted by a small network on the backbone's outputs.",
        paper=_OURS,
        selection="mean",
        evidence="features",
        defaults={"evidence_weight": 1.0, "space": "probabilities"},
        inherits="features_prior",
    )
)
