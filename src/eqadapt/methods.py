"""The registry of methods: each one is a scorer, a selection and its losses. No torch here.

A method of a new paper is one ``register(Method(...))``; a package outside this one does the same
from a module named in the environment variable ``EQADAPT_PLUGINS`` (comma-separated).
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass, replace

from eqadapt.errors import UserError


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: The key in configurations and files.
        summary: One sentence for people.
        paper: Key of the paper in ``config/published.yaml`` or a citation.
        scorer: Who scores the poses: ``None`` (nobody), ``"image"`` (a network that looks at the
            input, built from the study's ``scorer`` section), ``"features"`` (a head on the
            backbone's features of the input), ``"true_pose"`` (the oracle), or a key of
            ``eqadapt.view_scorers.VIEW_SCORERS`` (by the backbone's outputs on the views).
        selection: How scores become weights: a name of ``eqadapt.symmetrize.SELECTIONS``, or
            ``"top_<k>"``.
        prior: ``None``, ``"identity"`` (the paper's: cross-entropy to the identity on inputs as
            they are), ``"rotated"`` (on randomly turned inputs, the applied element as target) or
            ``"distilled"`` (on randomly turned inputs, as target the poses on which the backbone
            errs least, see ``eqadapt.distillation``) or ``"classwise"`` (on randomly turned inputs,
            the applied element and the image's class as target of a network that scores pairs,
            or, under the selection ``"mixture"``, of the weighted views' classes).
        network: The scorer's network, where the method is bound to one; else the study's.
        learns: Whether the scorer is trained; else it stays as it was drawn.
        contrast: The embeddings of the views are pushed apart (OptC).
        artifact: They are held where resampling would move them (OptC's second loss).
        samples: Poses drawn in evaluation, for the selection ``"sample"``.
        rotates_input: Training inputs are turned by random elements of the group.
        uses_group: Whether the method is trained for a group; else its runs carry ``C1``.
        mirrored: What its networks say of an image and of its mirror image is averaged, in
            evaluation.
        train_as: Evaluated with the checkpoint of this other method; None trains its own.
        regimes: Where it makes sense: ``"joint"`` and/or ``"frozen"`` (backbone untouched).
    """

    name: str
    summary: str
    paper: str
    scorer: str | None = None
    selection: str = "uniform"
    prior: str | None = None
    network: str | None = None
    learns: bool = True
    contrast: bool = False
    artifact: bool = False
    samples: int = 1
    rotates_input: bool = False
    uses_group: bool = True
    mirrored: bool = False
    train_as: str | None = None
    regimes: tuple[str, ...] = ("joint", "frozen")

    @property
    def trains(self) -> bool:
        """Whether it has a checkpoint of its own."""
        return self.train_as is None

    @property
    def trains_beside_the_network(self) -> bool:
        """Whether something of it is trained while the network is frozen."""
        fixed = (None, "true_pose", "confidence", "entropy", "energy")
        return self.trains and self.learns and self.scorer not in fixed

    @property
    def turns_inputs(self) -> bool:
        """Whether it is trained on randomly turned images."""
        return self.rotates_input or self.prior in ("rotated", "distilled", "classwise")

    @property
    def finds_a_pose(self) -> bool:
        """Whether a network looks at the input and picks one pose."""
        return self.scorer == "image" and self.selection == "argmax"

    @property
    def distils(self) -> bool:
        """Whether it learns from what the backbone, as training starts, says of the classes."""
        return self.prior == "distilled"

    @property
    def least_order(self) -> int:
        """Order of the smallest group that it can be asked for."""
        top = re.fullmatch(r"top_(\d+)", self.selection)
        return int(top[1]) if top else 1

    @property
    def departures(self) -> tuple[str, ...]:
        """Where it departs from the equation with weights that turn with the input.

        ``plain_scorer``: the scorer is no equivariant one, so that its poses turn with the input
        only as far as it learnt that. ``sampling``: the equation holds for the mean over draws and
        not for each of them. ``true_pose``: it is told the pose.
        """
        found = {
            "plain_scorer": self.scorer == "features",
            "sampling": self.selection == "sample",
            "true_pose": self.scorer == "true_pose",
        }
        return tuple(name for name, present in found.items() if present)


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method; a second one of the same name is an error."""
    if METHODS.get(method.name, method) != method:
        raise UserError(f"two methods are named {method.name!r}", fix="rename one of them")
    METHODS[method.name] = method
    return method


def load_plugins() -> None:
    """Import the modules named in ``EQADAPT_PLUGINS``, which register methods of their own."""
    for module in filter(None, os.environ.get("EQADAPT_PLUGINS", "").split(",")):
        try:
            importlib.import_module(module.strip())
        except Exception as error:  # whatever stands in it
            raise UserError(
                f"cannot import plugin {module!r}: {type(error).__name__}: {error}",
                where="EQADAPT_PLUGINS",
                fix="put the folder it lies in on PYTHONPATH; what it imports must be installed",
            ) from error


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: No such method; the message lists those there are.
    """
    if name not in METHODS:
        load_plugins()
    if name not in METHODS:
        raise UserError(
            f"unknown method {name!r}",
            fix=f"name its module in EQADAPT_PLUGINS, or one of: {', '.join(sorted(METHODS))}",
        )
    return METHODS[name]


register(
    Method(
        name="vanilla",
        summary="The backbone as it is: all weight on the identity.",
        paper="mondal2023",
        uses_group=False,
    )
)
register(
    Method(
        name="rotation_augmentation",
        summary="The backbone fine-tuned on randomly turned images; nothing is added to it.",
        paper="mondal2023",
        selection="identity",
        rotates_input=True,
        regimes=("joint",),
    )
)
register(
    Method(
        name="lc",
        summary="Learned canonicalization: an equivariant network picks the pose, trained by the "
        "task alone through a straight-through choice.",
        paper="kaba2023",
        scorer="image",
        selection="argmax",
    )
)
register(
    Method(
        name="prlc",
        summary="LC with the paper's prior: on upright training images the chosen pose should be "
        "the identity.",
        paper="mondal2023",
        scorer="image",
        selection="argmax",
        prior="identity",
    )
)
register(
    Method(
        name="prlc_rotated",
        summary="LC with the prior on randomly turned training images: the chosen pose should be "
        "the applied one.",
        paper="this project",
        scorer="image",
        selection="argmax",
        prior="rotated",
    )
)
register(
    Method(
        name="prlc_classwise",
        summary="PRLC whose network scores pairs of pose and class, taught both on randomly turned "
        "images; a pose's score is the log-sum-exp over its classes.",
        paper="this project",
        scorer="image",
        selection="argmax",
        prior="classwise",
    )
)
register(
    Method(
        name="oracle",
        summary="The true pose is undone before vanilla's backbone: the ceiling, and the cost of "
        "resampling alone.",
        paper="this project",
        scorer="true_pose",
        selection="argmax",
        uses_group=False,
        train_as="vanilla",
    )
)
register(
    Method(
        name="optc",
        summary="OptC: any plain network embeds every view; the pose whose vector is closest to a "
        "fixed one wins. With the prior; without its paper's artifact loss, which is zero for C4.",
        paper="panigrahi2024",
        scorer="image",
        network="plain_cnn",
        selection="argmax",
        prior="identity",
        contrast=True,
    )
)
register(
    replace(
        METHODS["optc"],
        name="optc_artifact",
        summary="OptC with its paper's artifact loss too: a view and the same turned to and fro "
        "should have one vector.",
        artifact=True,
    )
)
register(
    Method(
        name="optc_noprior",
        summary="OptC without the prior: the contrast alone makes the winner unique.",
        paper="panigrahi2024",
        scorer="image",
        network="plain_cnn",
        selection="argmax",
        contrast=True,
    )
)
for _network, _words in (("resnet", "a small ResNet"), ("wrn", "a small wide ResNet")):
    for _name in ("optc", "optc_noprior"):
        register(
            replace(
                METHODS[_name],
                name=_name.replace("optc", f"optc_{_network}"),
                summary=f"{METHODS[_name].summary} The network is {_words}.",
                network=f"plain_{_network}",
            )
        )
register(
    Method(
        name="optimised",
        summary="Canonicalization by optimisation: the view of least energy, a plain network's, "
        "trained by the task alone.",
        paper="kaba2023",
        scorer="image",
        network="plain_cnn",
        selection="argmax",
    )
)
register(
    Method(
        name="frozen_canonicalizer",
        summary="LC with the equivariant network as it was drawn: only the backbone is trained.",
        paper="kaba2023",
        scorer="image",
        selection="argmax",
        learns=False,
    )
)
register(
    Method(
        name="fixed_energy",
        summary="The view with the largest inner product with fixed noise; learns nothing.",
        paper="Baltaji et al. 2023, arXiv 2310.09675",
        scorer="image",
        network="fixed_energy",
        selection="argmax",
        learns=False,
    )
)
register(
    Method(
        name="moment_frame",
        summary="The pose is the direction of the intensity's first moment; learns nothing.",
        paper="arXiv 2602.20930",
        scorer="image",
        network="moment_frame",
        selection="argmax",
        learns=False,
    )
)
register(
    Method(
        name="pca_frame",
        summary="The pose is the principal axis of the intensity, its ends told apart by the third "
        "moment; learns nothing.",
        paper="Puny et al. 2022, arXiv 2110.03336",
        scorer="image",
        network="pca_frame",
        selection="argmax",
        learns=False,
    )
)
register(
    Method(
        name="distil_prior",
        summary="PRLC taught the pose on which the backbone errs least, in place of the identity, "
        "on randomly turned images.",
        paper="Schmidt, thesis under review (error-oracle distillation); formula of this project",
        scorer="image",
        selection="argmax",
        prior="distilled",
    )
)
register(
    Method(
        name="rotation_head",
        summary="Artificial mental rotation: a plain head on the backbone's own features tells the "
        "turn, which is undone; not exactly invariant.",
        paper="Tuggener et al. 2023, arXiv 2311.08525",
        scorer="features",
        selection="argmax",
        prior="rotated",
    )
)
register(
    Method(
        name="equitune",
        summary="The mean of the backbone's outputs over all views.",
        paper="Basu et al. 2023 (Equi-Tuning), arXiv 2210.06475",
        selection="uniform",
    )
)
register(
    Method(
        name="lambda_equitune",
        summary="A mean over all views with weights that a small network reads off the backbone's "
        "features; both are trained together, where the paper trains the weights first.",
        paper="basu2023lambda",
        scorer="lambda",
        selection="softmax",
    )
)
register(
    Method(
        name="equizero",
        summary="The view of which the backbone is surest; fine-tuned through that view, where the "
        "paper's has the gradient of the mean (equizero_ste).",
        paper="basu2023lambda",
        scorer="confidence",
        selection="argmax",
    )
)
register(
    Method(
        name="equizero_entropy",
        summary="The view with the least entropy of the backbone's class probabilities.",
        paper="basu2023lambda",
        scorer="entropy",
        selection="argmax",
    )
)
register(
    Method(
        name="equizero_ste",
        summary="Equizero, fine-tuned with the gradient of the mean over all views (EquiSTE), as "
        "in its paper.",
        paper="basu2023lambda",
        scorer="confidence",
        selection="argmax_equiste",
    )
)
register(
    Method(
        name="self_canonicalizer",
        summary="The backbone is its own canonicalizer: its logits for all views are one "
        "distribution of pose and class, taught both on randomly turned images; the class is what "
        "remains when the poses are summed out.",
        paper="this project; joint labels of turn and class: Lee et al. 2020, arXiv 1910.05872",
        scorer="energy",
        selection="mixture",
        prior="classwise",
        regimes=("joint",),
    )
)
register(
    Method(
        name="lps",
        summary="Probabilistic symmetrization: poses are drawn from the scorer's distribution, and "
        "the outputs averaged over ten draws; trained on one.",
        paper="kim2023lps",
        scorer="image",
        selection="sample",
        samples=10,
    )
)
register(
    Method(
        name="weighted_frame",
        summary="PRLC's network with all views weighted by their scores, trained end to end.",
        paper="arXiv 2402.16077",
        scorer="image",
        selection="softmax",
        prior="identity",
    )
)
for _stem, _base, _title in (
    ("top", METHODS["prlc"], "PRLC"),
    ("prlc_classwise_top", METHODS["prlc_classwise"], "PRLC with the class-wise prior"),
):
    for _count, _words in ((2, "two"), (3, "three"), (4, "four")):
        register(
            replace(
                _base,
                name=f"{_stem}_{_count}",
                summary=f"{_title}, the {_words} best views weighted by their scores.",
                paper="this project, after arXiv 2402.16077; not continuous for k < |G|",
                selection=f"top_{_count}",
                train_as=_base.name,
            )
        )
for _name in (
    "vanilla",
    "rotation_augmentation",
    "lc",
    "prlc",
    "prlc_classwise",
    "equitune",
    "self_canonicalizer",
    "oracle",
):
    _base = METHODS[_name]
    register(
        replace(
            _base,
            name=f"{_name}_mirrored",
            summary=f"{_base.summary} All its networks see the mirror image too, and the mean "
            "counts.",
            mirrored=True,
            train_as=_base.train_as or _name,
        )
    )
