"""What the time buys: pose accuracy and end accuracy at an equal training budget.

Networks that score poses are trained on CIFAR-10 for the same minutes on this machine, by the
prior alone, and judged under a frozen CIFAR ResNet-20: which share of poses they find, and the
accuracy over the C8 orbit with their poses undone. Where the reference is slow it sees few images;
how many stands in the row, and another row gives both the same number.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ours import mmac
from benchmarks.pairs.canonicalize import FASTER as DEFAULT_FLOORS
from benchmarks.pairs.optc import FLOORS as OPTC_FLOORS
from benchmarks.peers import (
    EQUIADAPT,
    peer_label,
    reference_canonicalizer,
    reference_optimized,
    same_network,
    same_optimized,
)
from benchmarks.registry import Context, Measured, NotAvailable, measure
from benchmarks.timing import Samples, ratio_spread
from eqadapt.backbones import Backbone, build_network, load_weights_file
from eqadapt.datasets import prepared
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.losses import prior_loss
from eqadapt.scorers import build_scorer
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.training import learning_rate_factor

ORDER, SIDE = 8, 96  # images are turned at three times their side, as in config/methods.yaml
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "cifar10_resnets/resnet20-12fca82f.th"
TIMED_BATCH = 16


@dataclass(frozen=True)
class Candidate:
    """A network that scores poses.

    Attributes:
        label: Its name in the rows.
        options: Of ``build_scorer`` (with ``name``), or of ``reference_canonicalizer``.
        reference: Whether it is the reference's.
        optimized: Whether it is the reference's OptC; that has no options.
        prior: ``"rotated"`` or ``"identity"``.
        batch: Of its training.
        rates: Learning rates; the network that is best on the test images in the end stays.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    reference: bool = False
    optimized: bool = False
    prior: str = "rotated"
    batch: int = 64
    rates: tuple[float, ...] = (3e-3,)


# The rate of the paper's recipe and that of ours: the reference has the better of both.
REFERENCE_RATES = (1e-3, 3e-3)


def _reference(label: str, prior: str, **options: Any) -> Candidate:
    """With the batch of the anchors' timings."""
    return Candidate(label, options, True, prior=prior, batch=16, rates=REFERENCE_RATES)


PEER = _reference("equiadapt, 32 fields, 96 px", "rotated")
PEER_IDENTITY = _reference("equiadapt, 32 fields, 96 px, identity prior", "identity")
DEFAULT = Candidate("staged_cnn, 16 fields: default", {"name": "paired_cnn"})
DEFAULT_IDENTITY = Candidate(
    "staged_cnn, 16 fields: default, identity prior", DEFAULT.options, prior="identity"
)
PEER_OPTC = Candidate("equiadapt, OptC", reference=True, optimized=True, rates=REFERENCE_RATES)
OPTC = Candidate("plain_cnn, default", {"name": "plain_cnn"})
_GROUP = {"name": "paired_cnn", "inner": "group_cnn"}
_SMALL = {**_GROUP, "input_size": 33, "stride": 2}
_STAGED = {"name": "paired_cnn", "inner": "staged_cnn"}
FAMILY = (
    Candidate(
        "group_cnn, 4 fields", {**_SMALL, "width": 4, "layers": 2, "head_kernel_size": "full"}
    ),
    Candidate(
        "group_cnn, 16 fields", {**_SMALL, "width": 16, "layers": 2, "head_kernel_size": "full"}
    ),
    OPTC,
    Candidate(
        "plain_cnn, 32 channels",
        {"name": "plain_cnn", "width": 32, "kernel_size": 3, "layers": 4, "input_size": 33},
    ),
    Candidate("group_cnn, 16 fields, 3 layers", {**_SMALL, "width": 16, "layers": 3}),
    Candidate("staged_cnn, 12 fields", {**_STAGED, "width": 12}),
    Candidate("staged_cnn, 24 fields", {**_STAGED, "width": 24}),
    Candidate("group_cnn, 16 fields, 65 px", _GROUP),
    DEFAULT,
    _reference("equiadapt, 8 fields, 48 px", "rotated", fields=8, resize=48),
)


@dataclass
class Trained:
    """A trained candidate.

    Attributes:
        candidate: Which one.
        scores: Normalised images (B, 3, H, H) to pose logits, for inference.
        forward: The same as a user of its library calls it, for timing.
        images: Training images seen.
        lr: Learning rate.
        pose_accuracy: Share of poses found.
        cn_avg: Accuracy over the orbit.
        mmac: Million multiply-adds an image.
    """

    candidate: Candidate
    scores: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]
    images: int
    lr: float
    pose_accuracy: float = math.nan
    cn_avg: float = math.nan
    mmac: float = math.nan


class Bench:
    """Data, frozen backbone and test images of the measure.

    Args:
        context: What the run is given.

    Raises:
        NotAvailable: Data or weights are missing; the message says what to do.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.device = context, context.device
        count = 8 if context.quick else 512 if self.device.type == "cuda" else 256
        try:
            folder = context.root / "data/prepared/cifar10"
            train = prepared.load(folder, "train", 512 if context.quick else None)
            test = prepared.load(folder, "test", count)
            network = build_network("cifar_resnet20", 10, 3)
            load_weights_file(network, _weights(), "12fca82f")
        except UserError as error:
            raise NotAvailable(
                f"the data or weights of config/methods.yaml are missing: {error}"
            ) from error
        self.train_images = train.images.to(self.device)
        self.test_images, self.labels = test.images.to(self.device), test.labels.to(self.device)
        self.backbone = Backbone(network, 32, MEAN, STD).to(self.device).eval()
        self.action = RotationAction(CyclicGroup(ORDER), "bicubic")
        self.training = ImagePipeline(SIDE, crop_padding=2, flip=True)

    def normalised(self, x: Tensor) -> Tensor:
        """Images in [0, 1] as the scorers take them."""
        return (x - self.backbone.mean) / self.backbone.std

    def batch(self, size: int, prior: str) -> tuple[Tensor, Tensor]:
        """Normalised training images, turned where the prior is the rotated one, and poses."""
        rows = torch.randint(0, len(self.train_images), (size,), device=self.device)
        x, _ = self.training.augmented(self.train_images[rows])
        pose = torch.zeros(size, dtype=torch.long, device=self.device)
        if prior == "rotated":
            pose = torch.randint(0, ORDER, (size,), device=self.device)
            x = self.action.act(x, pose)
        return self.normalised(x), pose

    def train(self, candidate: Candidate, minutes: float, like: Trained | None = None) -> Trained:
        """Train for minutes of wall time, or on as many images, in such batches, as another.

        With every rate of the candidate, each for all of that time; the best is returned.
        """
        found = [self._train(candidate, lr, minutes, like) for lr in candidate.rates]
        return max(found, key=lambda one: (one.cn_avg, one.pose_accuracy))

    def _train(
        self, candidate: Candidate, lr: float, minutes: float, like: Trained | None
    ) -> Trained:
        torch.manual_seed(0)
        module, scores, finish = _build(candidate, self.device)
        optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=0.0)
        size = candidate.batch if like is None else like.candidate.batch
        start, seen = time.perf_counter(), 0
        module.train()
        while True:
            share = (
                seen / like.images
                if like is not None
                else (time.perf_counter() - start) / (60 * minutes)
            )
            if share >= 1:
                break
            factor = learning_rate_factor(int(1000 * share), 1000, "cosine", 0.1)
            optimizer.param_groups[0]["lr"] = lr * factor
            x, pose = self.batch(size, candidate.prior)
            optimizer.zero_grad(set_to_none=True)
            prior_loss(scores(x), pose).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            seen += size
        inference, forward = finish()
        trained = Trained(candidate, inference, forward, seen, lr)
        self._judge(trained)
        return trained

    @torch.no_grad()
    def _judge(self, trained: Trained) -> None:
        """Pose accuracy and accuracy over the orbit, on all test images in all poses."""
        found = correct = 0.0
        pipeline = ImagePipeline(SIDE)
        for rows in torch.arange(len(self.labels), device=self.device).split(TIMED_BATCH):
            x = pipeline.to_act_size(self.test_images[rows])
            for pose in range(ORDER):
                turned = self.action.posed(x, pose)
                chosen = trained.scores(self.normalised(turned)).argmax(dim=1)
                logits = self.backbone(self.action.undo(turned, chosen))
                found += float((chosen == pose).sum())
                correct += float((logits.argmax(dim=1) == self.labels[rows]).sum())
        trained.pose_accuracy = found / (ORDER * len(self.labels))
        trained.cn_avg = correct / (ORDER * len(self.labels))
        trained.mmac = mmac(trained.forward, self.normalised(x[:1]))

    def time(self, trained: list[Trained]) -> dict[str, Samples]:
        """Canonicalization of a batch by each, in turns."""
        count = 2 if self.context.quick else TIMED_BATCH
        x = self.normalised(ImagePipeline(SIDE).to_act_size(self.train_images[:count]))
        with torch.no_grad():
            return self.context.compare(
                {one.candidate.label: lambda one=one: one.forward(x) for one in trained}
            )


def _weights() -> Path:
    mirror = os.environ.get("EQADAPT_MIRROR")
    if not mirror:
        raise UserError("EQADAPT_MIRROR is not set", fix="set it to the mirror of the data sets")
    return Path(mirror) / WEIGHTS


def _build(candidate: Candidate, device: torch.device):
    """The module to train, its scores, and what turns it into its form for inference."""
    if candidate.reference:
        build, copy = (
            (reference_optimized, same_optimized)
            if candidate.optimized
            else (reference_canonicalizer, same_network)
        )
        canonicalizer = build(ORDER, SIDE, device, fresh=True, **candidate.options)

        def finish_reference():
            canonicalizer.eval()
            # The same network in our code, twice as fast; the copy checks the filters.
            return copy(canonicalizer, ORDER, device).export(), canonicalizer

        return canonicalizer, canonicalizer.get_group_activations, finish_reference
    options = dict(candidate.options)
    scorer = build_scorer(options.pop("name"), CyclicGroup(ORDER), 3, **options).to(device)

    def finish():
        exported = scorer.eval().export()
        action = RotationAction(CyclicGroup(ORDER))  # bilinear, as the reference's warp
        return exported, lambda x: action.undo(x, exported(x).argmax(dim=1))

    return scorer, scorer, finish


@measure("quality", "Pose and end accuracy at equal budgets; the curve against time")
def quality(context: Context) -> Measured:
    """Rows of the family (``quality_curve``) and of the pairs (``quality_pair``)."""
    bench = Bench(context)
    minutes = 0.02 if context.quick else context.minutes
    budget = f"{minutes:g} minutes of training each"
    family = FAMILY[-2:] if context.quick else FAMILY
    peers = () if context.quick else (PEER, PEER_IDENTITY, PEER_OPTC)
    trained = {one.label: bench.train(one, minutes) for one in (*family, *peers)}
    if not context.quick:
        trained[DEFAULT_IDENTITY.label] = bench.train(DEFAULT_IDENTITY, minutes)
    times = bench.time(list(trained.values()))
    for label, one in trained.items():
        yield _curve_row(context, one, times[label], budget, len(bench.train_images))
    pairs = ((PEER, DEFAULT), (PEER_IDENTITY, DEFAULT_IDENTITY), (PEER_OPTC, OPTC))
    if context.quick:
        pairs = ((FAMILY[-1], DEFAULT),)
    for theirs, ours in pairs:
        peer, own = trained[theirs.label], trained[ours.label]
        samples = times[theirs.label], times[ours.label]
        yield _pair_row(context, "equal time", peer, own, samples, budget, len(bench.train_images))
        same = bench.train(ours, minutes, like=peer)
        note = "as many images for each"
        yield _pair_row(context, "equal images", peer, same, samples, note, len(bench.train_images))


def _reduced(one: Trained, epoch: int) -> str:
    """What is said of a network that did not see the training images once."""
    return "; reduced budget" if one.images < epoch else ""


def _curve_row(context: Context, one: Trained, samples: Samples, budget: str, epoch: int):
    side = "peer" if one.candidate.reference else "our"
    values: dict[str, Any] = {
        f"{side}_seconds": samples.median,
        f"{side}_iqr_seconds": samples.iqr,
        f"{side}_peak_mb": samples.peak_mb,
        f"{side}_pose_accuracy": one.pose_accuracy,
        f"{side}_cn_avg": one.cn_avg,
        f"{side}_mmac": one.mmac,
    }
    return context.row(
        "quality_curve",
        one.candidate.label,
        EQUIADAPT if one.candidate.reference else (),
        peer=peer_label("equiadapt") if one.candidate.reference else "",
        repeats=len(samples.seconds),
        note=f"{one.candidate.prior} prior, {one.images} training images, "
        f"learning rate {one.lr:g}; {budget}{_reduced(one, epoch)}; "
        f"time of a batch of {TIMED_BATCH} at {SIDE} px",
        **values,
    )


def _pair_row(
    context: Context,
    setting: str,
    peer: Trained,
    ours: Trained,
    samples: tuple[Samples, Samples],
    budget: str,
    epoch: int,
):
    theirs, own = samples
    optimized = peer.candidate.optimized
    network = "OptC, our default form" if optimized else "default C8 canonicalizer"
    row = context.row(
        "quality_pair",
        f"{network}, {peer.candidate.prior} prior, {setting}",
        EQUIADAPT,
        peer=peer_label("equiadapt"),
        peer_seconds=theirs.median,
        our_seconds=own.median,
        ratio=theirs.median / own.median,
        spread=ratio_spread(theirs, own),
        repeats=len(own.seconds),
        floor=context.floor(OPTC_FLOORS[TIMED_BATCH])
        if optimized
        else context.floor(*DEFAULT_FLOORS),
        peer_pose_accuracy=peer.pose_accuracy,
        our_pose_accuracy=ours.pose_accuracy,
        peer_cn_avg=peer.cn_avg,
        our_cn_avg=ours.cn_avg,
        peer_mmac=peer.mmac,
        our_mmac=ours.mmac,
        note=f"{budget}{_reduced(peer, epoch)}; training images {peer.images} and {ours.images}, "
        f"learning rates {peer.lr:g} and {ours.lr:g}",
    )
    below = "" if row.as_accurate else "; our accuracies are BELOW the reference's"
    return replace(row, note=row.note + below)
