"""How methods, data sets and backbones are named, coloured and ordered. Nothing heavy here.

A method that is not listed gets a label, a colour and a marker made from its name, so that one
plugged in from outside appears in every table and figure without a change here.
"""

from __future__ import annotations

import colorsys
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from eqadapt.errors import UserError


@dataclass(frozen=True)
class MethodStyle:
    """How one method appears.

    Attributes:
        name: The key in configurations and files.
        label: The name for people.
        colour: Hex colour, the same in every figure.
        marker: A matplotlib marker; with ``dash`` it tells methods apart without colour.
        dash: A matplotlib line style.
        sentence: What the method does, in one sentence.
        reference: A ceiling rather than a competitor: it knows what a method has to find out, so
            it is never marked as the best of a column.
    """

    name: str
    label: str
    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]
    sentence: str
    reference: bool = False


_DASHES: dict[str, str | tuple[int, tuple[int, ...]]] = {
    "solid": "-",
    "dashed": (0, (5, 2)),
    "dotted": (0, (1, 1)),
    "dashdot": (0, (4, 1, 1, 1)),
}

# The first eight colours are Okabe and Ito's, the rest Paul Tol's "muted" and "bright" schemes:
# told apart by people with any common form of colour blindness, helped by markers and dashes.
_LISTED = (
    # name, label, colour, marker, dash, sentence
    (
        "vanilla",
        "Vanilla",
        "#3d3d3d",
        "o",
        "solid",
        "The network fine-tuned on upright images and used as it is.",
    ),
    (
        "rotation_augmentation",
        "Rotation augmentation",
        "#e69f00",
        "s",
        "solid",
        "The same network fine-tuned on images turned by random elements of the group.",
    ),
    (
        "fixed_energy",
        "Fixed energy",
        "#b3a08a",
        "x",
        "dotted",
        "Canonicalization without learning: the turned copy that agrees most with fixed noise "
        "is canonical, and the network is fine-tuned on canonical images.",
    ),
    (
        "moment_frame",
        "Moment frame",
        "#8c6d31",
        "<",
        "dotted",
        "The input is turned so that the first moment of its intensity points up.",
    ),
    (
        "pca_frame",
        "PCA frame",
        "#bd9e39",
        ">",
        "dotted",
        "The input is turned so that the principal axis of its intensity is upright, the third "
        "moment telling its ends apart.",
    ),
    (
        "frozen_canonicalizer",
        "Frozen canonicalizer",
        "#9ecae1",
        "^",
        "dotted",
        "LC whose equivariant network stays as it was drawn at random: the network learns to "
        "read whatever pose it picks.",
    ),
    (
        "optimised",
        "Optimised canonicalization",
        "#6baed6",
        "v",
        "dotted",
        "The turned copy of least energy is canonical; a plain network gives the energy and is "
        "trained by the task alone.",
    ),
    (
        "lc",
        "LC",
        "#56b4e9",
        "^",
        "solid",
        "Learned canonicalization: an equivariant network picks the pose of the input, the input "
        "is turned back by it, and only the task's loss teaches the choice.",
    ),
    (
        "prlc",
        "PRLC",
        "#0072b2",
        "D",
        "solid",
        "LC with the paper's prior: training images count as upright, so the chosen pose is pulled "
        "to the identity and the network sees images like those it was pretrained on.",
    ),
    (
        "prlc_rotated",
        "PRLC (rotated prior)",
        "#009e73",
        "v",
        "solid",
        "PRLC with the prior asked on randomly turned images, the turn applied being the answer, "
        "so that blur from resampling cannot stand in for the pose.",
    ),
    (
        "prlc_classwise",
        "PRLC (class-wise prior)",
        "#00735c",
        "v",
        "dashed",
        "PRLC whose equivariant network scores pairs of pose and class and is taught both on "
        "randomly turned images; what it says of the classes is summed out.",
    ),
    (
        "optc",
        "OptC",
        "#d55e00",
        "P",
        "solid",
        "A plain network embeds every turned copy of the input, and the copy closest to a fixed "
        "direction is the canonical one.",
    ),
    (
        "optc_artifact",
        "OptC (artifact loss)",
        "#e17c05",
        "d",
        "dotted",
        "OptC that is also taught to give a copy and the same turned to and fro one vector, so "
        "that resampling cannot tell copies apart.",
    ),
    (
        "optc_noprior",
        "OptC (no prior)",
        "#cc79a7",
        "X",
        "dashed",
        "OptC trained without the pull towards the identity on upright images.",
    ),
    (
        "optc_resnet",
        "OptC (ResNet)",
        "#e6550d",
        "P",
        "dashed",
        "OptC with a small ResNet as the network that embeds the turned copies.",
    ),
    (
        "optc_wrn",
        "OptC (wide ResNet)",
        "#a63603",
        "P",
        "dashdot",
        "OptC with a small wide ResNet as the network that embeds the turned copies.",
    ),
    (
        "equitune",
        "Equitune",
        "#332288",
        "h",
        "solid",
        "The mean of the network's outputs over all turned copies of the input.",
    ),
    (
        "lambda_equitune",
        "λ-equitune",
        "#aa4499",
        "p",
        "solid",
        "A weighted mean over the turned copies, the weights read from the network's features.",
    ),
    (
        "equizero",
        "Equizero",
        "#882255",
        "<",
        "solid",
        "The output for the turned copy on which the network is most certain.",
    ),
    (
        "self_canonicalizer",
        "Self-canonicalizer",
        "#cc2936",
        "*",
        "solid",
        "The network is its own canonicalizer: what it says of all turned copies is one "
        "distribution of pose and class, and it is trained as such; the poses are summed out.",
    ),
    (
        "lps",
        "LPS",
        "#999933",
        ">",
        "solid",
        "Probabilistic symmetrization: poses are drawn from a learned equivariant distribution and "
        "the outputs averaged.",
    ),
    (
        "equizero_entropy",
        "Equizero (entropy)",
        "#b0578d",
        "4",
        "dashed",
        "The output for the turned copy whose class probabilities have the least entropy.",
    ),
    (
        "equizero_ste",
        "Equizero (EquiSTE)",
        "#c994c7",
        "<",
        "dashed",
        "Equizero trained through the mean over all turned copies in place of the one it chose.",
    ),
    (
        "weighted_frame",
        "Weighted frame",
        "#117733",
        "8",
        "dashdot",
        "All turned copies, weighted by the scorer's pose probabilities.",
    ),
    (
        "top_2",
        "Top-2 poses",
        "#7a9a01",
        "d",
        "dashed",
        "The scorer's two best poses, weighted by their scores.",
    ),
    (
        "top_k",
        "Top-k poses",
        "#5f7f00",
        "d",
        "dashdot",
        "The scorer's k best poses, weighted by their scores.",
    ),
    (
        "boltzmann",
        "Boltzmann",
        "#44aa99",
        "*",
        "dashed",
        "A mean over turned copies weighted by exp(-energy / temperature): the copy of least "
        "energy when cold, the plain mean when hot.",
    ),
    (
        "ac_max",
        "Classwise maximum",
        "#ee6677",
        "8",
        "dashed",
        "Each class takes its largest score over the turned copies.",
    ),
    (
        "posterior",
        "Posterior",
        "#aa3377",
        "H",
        "dashdot",
        "The scorer's pose probabilities times the evidence of the network's own outputs.",
    ),
    (
        "posterior_features",
        "Posterior (features)",
        "#dd7799",
        "H",
        "solid",
        "The scorer's pose probabilities times those of the feature prior.",
    ),
    (
        "posterior_classes",
        "Posterior (poses and classes)",
        "#551144",
        "X",
        "solid",
        "The posterior over pairs of pose and class: a scorer that tells classes too is a second "
        "classifier beside the network.",
    ),
    (
        "distil_prior",
        "Distilled prior",
        "#6699cc",
        "1",
        "dashdot",
        "PRLC taught the pose on which the frozen network errs least, instead of the identity.",
    ),
    (
        "rotation_head",
        "Rotation head",
        "#31a354",
        "s",
        "dashed",
        "A plain head on the network's own features tells how the input is turned; the turn is "
        "undone and the network asked again.",
    ),
    (
        "lc_offset",
        "LC (offset)",
        "#88ccee",
        "2",
        "dashdot",
        "LC whose canonical pose is shifted afterwards to the one the network likes best.",
    ),
    (
        "features_prior",
        "Feature prior",
        "#ddaa33",
        "3",
        "dashdot",
        "A small network reads the frozen network's features and logits of every view, trained "
        "with the identity prior to tell the upright one.",
    ),
    (
        "oracle",
        "Oracle (true pose)",
        "#9a9a9a",
        "+",
        "dotted",
        "The true turn is undone before the vanilla network: the ceiling, and what resampling "
        "alone costs.",
    ),
    (
        "oracle_classes",
        "Oracle (poses and classes)",
        "#b9b9b9",
        "+",
        "dashed",
        "The true turn is undone before the vanilla network and the scorer's own classifier: the "
        "ceiling where both are multiplied.",
    ),
)
# Names that follow from others: a family in front, a variant behind.
_FAMILIES = {"its_": "ITS", "ood_": "OOD"}
_VARIANTS = {
    "_gated": "gated",
    "_log_probabilities": "log-probabilities",
    "_probabilities": "probabilities",
    "_top_2_mean": "top 2, mean",
    "_top_3_mean": "top 3, mean",
    "_mean": "mean",
    "_top_2": "top 2",
    "_top_3": "top 3",
    "_noprior": "no prior",
    "_mirrored": "mirrored",
}
_SPELT = {"knn": "kNN", "pcknn": "per-class kNN", "vim": "ViM", "mahalanobis": "Mahalanobis"}
_SPELT |= {"prlc": "PRLC", "lc": "LC", "focal": "FoCal", "optc": "OptC", "top": "Top"}
_MARKERS = "osD^v<>PXhpd*8H"
_CEILINGS = ("oracle", "oracle_classes")

METHODS: dict[str, MethodStyle] = {
    name: MethodStyle(name, label, colour, marker, _DASHES[dash], sentence, name in _CEILINGS)
    for name, label, colour, marker, dash, sentence in _LISTED
}
_ORDER = {name: position for position, name in enumerate(METHODS)}


def method_style(name: str) -> MethodStyle:
    """The style of a method; made from its name when it is not listed."""
    if name in METHODS:
        return METHODS[name]
    if name.endswith("_mirrored") and name.removesuffix("_mirrored") in METHODS:
        return _mirrored_style(name)
    digest = hashlib.sha256(name.encode()).digest()
    red, green, blue = colorsys.hls_to_rgb(digest[0] / 256, 0.42, 0.55)
    return MethodStyle(
        name=name,
        label=_made_label(name),
        colour=f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}",
        marker=_MARKERS[digest[1] % len(_MARKERS)],
        dash=list(_DASHES.values())[1 + digest[2] % 3],
        sentence=_made_sentence(name),
    )


def _mirrored_style(name: str) -> MethodStyle:
    """The method's own colour, darker (lighter where it is dark), its marker and a dotted line."""
    base = METHODS[name.removesuffix("_mirrored")]
    shades = [int(base.colour[at : at + 2], 16) for at in (1, 3, 5)]
    target = 0 if sum(shades) > 300 else 255
    return replace(
        base,
        name=name,
        label=_made_label(name),
        colour="#" + "".join(f"{round(0.6 * s + 0.4 * target):02x}" for s in shades),
        dash=_DASHES["dotted"],
        sentence=f"{base.sentence.rstrip('.')}; the mean over every image and its mirror image.",
    )


def method_styles(names: Iterable[str]) -> dict[str, MethodStyle]:
    """Styles of several methods, in display order, no two of them with the same marker and dash."""
    styles: dict[str, MethodStyle] = {}
    taken: set[tuple[str, object]] = set()
    for name in sorted(set(names), key=method_order):
        style = method_style(name)
        if name not in METHODS:
            marker = next((m for m in _MARKERS if (m, style.dash) not in taken), style.marker)
            if (style.marker, style.dash) in taken:
                style = replace(style, marker=marker)
        taken.add((style.marker, style.dash))
        styles[name] = style
    return styles


def method_order(name: str) -> tuple[int, int, str]:
    """Sort key: listed methods in their order, others by name, the ceilings last."""
    base = name.removesuffix("_mirrored")
    base = base if base in METHODS else name
    return (int(base in _CEILINGS), _ORDER.get(base, len(_ORDER)), name)


def _made_label(name: str) -> str:
    for suffix, words in _VARIANTS.items():
        if name.endswith(suffix) and name != suffix:
            base = method_style(name.removesuffix(suffix)).label
            return f"{base[:-1]}, {words})" if base.endswith(")") else f"{base} ({words})"
    for prefix, label in _FAMILIES.items():
        if name.startswith(prefix):
            return f"{label} {_words(name.removeprefix(prefix))}"
    if re.fullmatch(r"top_\d+", name):
        return f"Top-{name.removeprefix('top_')} poses"
    words = _words(name)
    return words[:1].upper() + words[1:] if words[:1] == name[:1] else words


def _words(name: str) -> str:
    return " ".join(_SPELT.get(word, word) for word in name.split("_"))


def _made_sentence(name: str) -> str:
    from eqadapt.methods import get_method
    from eqadapt.test_time import get_method as get_test_time_method

    for find in (get_method, get_test_time_method):
        try:
            return str(find(name).summary)
        except UserError:
            pass
    return f"The method registered as {name}."


_DATASETS = {
    "digits": "Digits",
    "mnist": "MNIST",
    "rotated_mnist": "Rotated MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "imagenet": "ImageNet",
    "imagenet1k": "ImageNet",
    "imagenet1k_sample256": "ImageNet sample",
    "imagenette": "Imagenette",
    "imagenet_v2": "ImageNet-V2",
}

# Our names come from timm, the published figures' from torchvision: the same network is one cell.
_SAME_BACKBONE = (
    (re.compile(r"resnet50(\..*)?"), "resnet50"),
    (re.compile(r"resnet101(\..*)?"), "resnet101"),
    (re.compile(r"(vit_b_16|vit_base_patch16(_224)?(\..*)?)"), "vit_b_16"),
    (re.compile(r"(vit_b_32|vit_base_patch32(_224)?(\..*)?)"), "vit_b_32"),
)
_BACKBONES = {
    "mnist_cnn": "CNN",
    "mnist_gcnn": "p4 CNN",
    "vit_b_16": "ViT-B/16",
    "vit_b_32": "ViT-B/32",
}


def dataset_label(name: str) -> str:
    """``"cifar10"`` to ``"CIFAR-10"``, ``"cifar10_n0500"`` to ``"CIFAR-10, n = 500"``.

    Of entries that name a part of a data set after it, the rest is put behind; any other unknown
    name stays as it is.
    """
    if name in _DATASETS:
        return _DATASETS[name]
    for known in sorted(_DATASETS, key=len, reverse=True):
        if name.startswith(f"{known}_"):
            rest = name.removeprefix(f"{known}_")
            count = re.fullmatch(r"n0*(\d+)", rest)
            said = f"n = {int(count[1]):,}" if count else rest.replace("_", " ")
            return f"{_DATASETS[known]}, {said}"
    return name


def backbone_key(name: str) -> str:
    """The published figures' name of a backbone, e.g. of timm's ``vit_base_patch16_224``."""
    for pattern, key in _SAME_BACKBONE:
        if pattern.fullmatch(name):
            return key
    return name


def backbone_label(name: str) -> str:
    """``"resnet50"`` to ``"ResNet-50"``, ``"vit_b_16"`` to ``"ViT-B/16"``; others nearly as is."""
    key = backbone_key(name)
    if key in _BACKBONES:
        return _BACKBONES[key]
    resnet = re.fullmatch(r"resnet(\d+)([a-z]*)(.*)", key)
    if resnet:
        return f"ResNet-{resnet[1]}{resnet[2]}{resnet[3].replace('_', ' ')}"
    vit = re.fullmatch(r"vit_([a-z])[a-z]*_patch(\d+)(_.*)?", key)
    if vit:
        return f"ViT-{'Ti' if vit[1] == 't' else vit[1].upper()}/{vit[2]}"
    cifar = re.fullmatch(r"cifar_resnet(\d+)", key)
    if cifar:
        return f"ResNet-{cifar[1]} (CIFAR)"
    if key.startswith("open_clip:"):
        return f"CLIP {key.removeprefix('open_clip:')}"
    mobile = re.fullmatch(r"mobilenetv(\d)_(\d\d\d)", key)
    if mobile:  # the width in hundredths
        wide = "" if mobile[2] == "100" else f" ({int(mobile[2]) / 100:g})"
        return f"MobileNetV{mobile[1]}{wide}"
    return re.sub(r"^resnet_", "ResNet ", re.sub(r"^vit_", "ViT ", key)).replace("_", " ")


def distinct_labels(names: Iterable[str], label: Callable[[str], str]) -> dict[str, str]:
    """A label for each name: the name as it is where two would have the same."""
    found = {name: label(name) for name in names}
    counts = Counter(found.values())
    return {name: said if counts[said] == 1 else name for name, said in found.items()}


def cell_label(dataset: str, backbone: str) -> str:
    """``"CIFAR-10, ResNet-50"``."""
    return f"{dataset_label(dataset)}, {backbone_label(backbone)}"


REGIMES = {
    "joint": "joint fine-tuning of network and canonicalizer",
    "frozen": "frozen network, the canonicalizer trained alone",
}
