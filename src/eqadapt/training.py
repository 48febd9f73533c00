"""Training one run, resumable at every validated epoch, on a CPU with the same result to the bit.

All randomness of an epoch follows from the run's seed and the epoch's number, so a run that was
killed and resumed equals one that was not (on a GPU up to the order of its sums). The data set sits
on the device as bytes; nothing in a step waits for the device.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt import checkpoint, distributed
from eqadapt.adaptation import ImageScorer
from eqadapt.distillation import moved_targets, pose_targets
from eqadapt.errors import NotFinite, UserError
from eqadapt.evaluation import orbit_accuracy
from eqadapt.image_store import HostImages, on_device, strided
from eqadapt.losses import classwise_prior_loss, prior_loss
from eqadapt.memory import room_for
from eqadapt.methods import Method
from eqadapt.optimizers import build_optimizer
from eqadapt.precision import lower_precision
from eqadapt.scorers.base import PoseScorer
from eqadapt.scorers.plain_cnn import artifact, contrast
from eqadapt.symmetrize import Output, Symmetrized
from eqadapt.tasks.classification import ImagePipeline, task_loss

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "task_loss",
    "prior_loss",
    "train_acc",
    "val_acc",
    "val_cn_avg",
    "val_identity_rate",
    "lr",
    "seconds",
)
Row = dict[str, float | int | None]

CURVE_IMAGES = 512  # for curves alone; all validation images where they choose the epoch


@dataclass(frozen=True)
class Scored:
    """What one pass of the scorer says of a batch, as far as the losses need it.

    Attributes:
        poses: Pose logits (B, K).
        pairs: Logits (B, K, classes) of a class-wise scorer, or a mixture's log-probabilities of
            the poses that were passed.
        vectors: (B, K, dim) of a scorer that is trained with a contrast.
        returned: (B, K, dim) of the views turned to and fro, of one trained with their artifacts.
    """

    poses: Tensor | None = None
    pairs: Tensor | None = None
    vectors: Tensor | None = None
    returned: Tensor | None = None


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, C, h, h) uint8 and labels (N,) int64, both for one device."""

    images: Tensor | HostImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> LabelledImages:
        """The same for ``device``, which holds the images where it has room for them."""
        assert isinstance(self.images, Tensor)
        return LabelledImages(on_device(self.images, device), self.labels.to(device))

    def announce(self, batches: Tensor) -> None:
        """Say which rows ``batch`` will be asked for: (S, B) int64 on the host."""
        if isinstance(self.images, HostImages):
            self.images.expect(batches)

    def batch(self, rows: Tensor) -> Tensor:
        """The images of the next batch that was announced, whose rows these are."""
        return self.images.take() if isinstance(self.images, HostImages) else self.images[rows]

    def sample(self, count: int) -> LabelledImages:
        """At most ``count`` of them, always the same ones."""
        if len(self) <= count:
            return self
        rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]
        return LabelledImages(self.images[rows], self.labels[rows])


@dataclass
class TrainingResult:
    """What a finished run leaves in memory; the model holds the final weights."""

    history: list[Row]
    seconds: float
    best_epoch: int


def learning_rate_factor(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Factor on the base rates at ``step`` of ``steps``.

    Args:
        step: 0-based.
        steps: Total.
        schedule: ``"cosine"`` to zero, ``"step"`` (times 0.1 at 1/6, 1/3 and 1/2, as the
            reference) or ``"constant"``.
        warmup: Share of the steps with a linear start.
    """
    warm = warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 0.1 ** sum(step >= steps * share for share in (1 / 6, 1 / 3, 1 / 2))
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def prior_factor(share: float, schedule: str) -> float:
    """Factor on the prior's weight after ``share`` of the steps: 1, from 0 to 1, or from 1 to 0."""
    return {"constant": 1.0, "rising": share, "falling": 1.0 - share}[schedule]


@contextlib.contextmanager
def _norms_need_two(setting: str) -> Iterator[None]:
    """Turn batch norm's complaint of a single image into an error that names the setting."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch norm has no statistics of a single image",
            where=setting,
            fix="2 or more images for each process, and as many training images",
        ) from error


def _train_scorer_in(dtype: torch.dtype | None, model: Symmetrized) -> None:
    """Let a scorer of images compute in ``dtype`` while it is trained; None: float32."""
    if isinstance(model.scorer, ImageScorer) and isinstance(model.scorer.network, PoseScorer):
        model.scorer.network.training_dtype = dtype


class Trainer:
    """One run: model, data and recipe.

    Args:
        model: The model; trained in place.
        method: Its registry entry.
        recipe: The run's recipe (sections ``image`` and ``train``).
        data: Training images.
        validation: Held-out images for the curves and, with ``patience``, the choice of epoch.
        seed: Seed of the run.
        frozen: The backbone stays as it is; methods with a prior train by the prior alone.
        state_path: Where progress is kept; None keeps none.
        digest: Identity of recipe and data; a state of another digest is not resumed.
        report: Called with the row of each epoch that is validated.
        say: Where messages go.
        section: Of the study, where the recipe's ``train`` is from; messages name it.
    """

    def __init__(
        self,
        model: Symmetrized,
        method: Method,
        recipe: Mapping[str, Any],
        data: LabelledImages,
        validation: LabelledImages,
        *,
        seed: int,
        frozen: bool = False,
        state_path: Path | None = None,
        digest: str = "",
        report: Callable[[Row], None] | None = None,
        say: Callable[[str], None] = print,
        section: str = "train",
    ) -> None:
        self.model, self.method, self.recipe = model, method, recipe
        self.train_options = recipe["train"]
        self.device = next(model.parameters()).device
        if self.train_options["patience"] is None:
            validation = validation.sample(CURVE_IMAGES)
        self.data, self.validation = data.to(self.device), validation.to(self.device)
        self.pipeline = ImagePipeline.from_recipe(recipe)
        self.seed, self.frozen = seed, frozen
        self.state_path, self.digest, self.report = state_path, digest, report
        self.section, self.say = section, say
        self.history: list[Row] = []
        self.seconds = 0.0
        self.best_epoch, self.best_score = -1, -math.inf
        self.best: dict[str, Tensor] | None = None
        self.prior_only = frozen and method.prior is not None
        self.targets: Tensor | None = None  # of a distilled prior, (N, K)
        self.teacher: nn.Module | None = None
        if frozen:
            model.backbone.requires_grad_(False)
        self.lower = lower_precision(self.train_options["amp"], self.device)
        _train_scorer_in(
            lower_precision(self.train_options.get("scorer_amp", "none"), self.device), model
        )
        if self.train_options["channels_last"]:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.train_options.get("teacher_weight", 0.0):
            self.teacher = copy.deepcopy(model.backbone).eval().requires_grad_(False)
        if self.train_options.get("sync_batch_norm", False):
            distributed.synchronised(model, section)
        self.optimizer = build_optimizer(model, self.train_options, frozen)
        self.network: Callable[..., Any] = model
        if self.train_options["compile"]:
            self.network = torch.compile(model)
        self.averaged: distributed.Objective | None = None
        if self.optimizer is not None and distributed.size() > 1:
            self.averaged = distributed.averaged(self._loss, model)
        self.number = 0  # of the step in its epoch
        self.share = 0.0  # of all steps that are behind

    def run(self) -> TrainingResult:
        """Train to the end, from the saved state if there is one.

        Raises:
            UserError: The loss is not finite, or the device's memory does not suffice.
        """
        epochs = self.train_options["epochs"] if self.optimizer is not None else 0
        patience = self.train_options["patience"]
        if self.method.distils and epochs:
            self.targets = self._pose_targets()  # of the backbone as it starts, resumed or not
        self._resume()
        distributed.agree(len(self.history), "the epochs they resume from")
        while len(self.history) < epochs and not self._patience_spent(patience):
            start = time.perf_counter()
            with room_for(self.train_options["batch_size"], f"{self.section}.batch_size"):
                row = self._epoch(len(self.history), epochs)
            elapsed = time.perf_counter() - start
            row["seconds"] = elapsed
            self.seconds += elapsed
            self.history.append(row)
            self._remember_best(row)
            if self._is_due(row["epoch"], epochs):
                self._save()
                if self.report:
                    self.report(row)
        if patience is not None and self.best is not None:
            self.model.load_state_dict(self.best)
        last = self.best_epoch if patience is not None else len(self.history) - 1
        return TrainingResult(self.history, self.seconds, last)

    def _is_due(self, epoch: Any, epochs: float) -> bool:
        """Whether an epoch, 0-based, is validated and its state kept."""
        every = self.train_options.get("validate_every", 1)
        return (epoch + 1) % every == 0 or epoch + 1 == epochs

    def _patience_spent(self, patience: int | None) -> bool:
        """Whether no epoch of the last ones was better; known where one is validated."""
        if patience is None or not self._is_due(len(self.history) - 1, math.inf):
            return False
        return len(self.history) - 1 - self.best_epoch >= patience > 0

    def _remember_best(self, row: Row) -> None:
        score = row.get("val_cn_avg" if self.method.uses_group else "val_acc")
        if score is not None and score > self.best_score:
            self.best_score, self.best_epoch = float(score), len(self.history) - 1
            if self.train_options["patience"] is not None:
                state = self.model.state_dict()
                self.best = {key: value.detach().clone() for key, value in state.items()}

    def _epoch(self, epoch: int, epochs: int) -> Row:
        options = self.train_options
        torch.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        self.model.train()
        if self.frozen:
            self.model.backbone.eval()
        batch = min(options["batch_size"], len(self.data))
        order = torch.randperm(len(self.data))
        batches = order[: len(order) // batch * batch].view(-1, batch)
        self.data.announce(batches[:, distributed.part(batch, self.section)])
        batches = batches.to(self.device)
        totals = torch.zeros(4, device=self.device)
        for number, rows in enumerate(batches):
            self.number = number
            step = epoch * len(batches) + number
            self.share = step / (epochs * len(batches))
            factor = learning_rate_factor(
                step, epochs * len(batches), options["schedule"], options["warmup"]
            )
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            totals += self._step(rows)
        loss, task, prior, correct = distributed.mean(totals / len(batches)).tolist()
        if not math.isfinite(loss):
            raise NotFinite(
                f"the loss is not finite in epoch {epoch}; {self._kept()}",
                where=str(self.state_path or ""),
                fix=f"a smaller {self.section}.lr or {self.section}.scorer_lr, or "
                f"{self.section}.grad_clip",
            )
        has_prior = self.method.prior is not None
        row: Row = {
            "epoch": epoch,
            "train_loss": loss,
            "task_loss": None if self.prior_only else task,
            "prior_loss": prior if has_prior else None,
            "train_acc": None if self.prior_only else correct * distributed.size() / batch,
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        return row | (self._validate() if self._is_due(epoch, epochs) else {})

    def _step(self, rows: Tensor) -> Tensor:
        # Not kept where there is one process: a trainer that holds its own method is freed late.
        with _norms_need_two(f"{self.section}.batch_size"):
            loss, parts = (self.averaged or self._loss)(rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.train_options["grad_clip"]:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.train_options["grad_clip"])
        self.optimizer.step()
        return torch.stack([loss.detach(), *parts]).float()

    def _kept(self) -> str:
        """What there is to go on from."""
        kept = [row["epoch"] for row in self.history if self._is_due(row["epoch"], math.inf)]
        if not kept or self.state_path is None:
            return "no state is kept"
        return f"the state of epoch {kept[-1]} is kept"

    def _pose_targets(self) -> Tensor:
        batch_size = self.recipe["evaluate"]["batch_size"]
        with room_for(batch_size, "evaluate.batch_size"):
            return pose_targets(
                self.model.backbone,
                self.model.action,
                self.data.images,
                self.data.labels,
                self.pipeline.to_act_size,
                self.train_options["distil_temperature"],
                batch_size,
            )

    def _loss(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss on this process's part of a batch, its parts, and how many are right."""
        method, action = self.method, self.model.action
        part = distributed.part(len(rows), self.section)
        labels = self.data.labels[rows[part]]
        x, mirrored = self.pipeline.augmented(self.data.batch(rows[part]), part, len(rows))
        x = action.masked(x)
        classes = self._taught(x, labels)
        pose = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if method.turns_inputs:
            pose = torch.randint(0, action.group.order, (len(rows),), device=x.device)[part]
            x = action.act(x, pose)
        target = pose
        if self.targets is not None:
            target = moved_targets(self.targets[rows[part]], mirrored, pose, action.group)
        others = self._other_views(len(rows), part)
        with distributed.own_chance(self.number):
            return self._loss_of(x, labels, target, classes, others)

    @torch.no_grad()
    def _taught(self, upright: Tensor, labels: Tensor) -> Tensor:
        """What teaches the classes: labels, or probabilities in which a teacher has a share."""
        if self.teacher is None:
            return labels
        weight, temperature = (
            self.train_options[f"teacher_{key}"] for key in ("weight", "temperature")
        )
        with self._autocast():
            logits = self.teacher(upright)
        softened = (logits.float() / temperature).softmax(dim=1)
        return torch.lerp(F.one_hot(labels, softened.shape[1]).float(), softened, weight)

    def _loss_of(
        self,
        x: Tensor,
        labels: Tensor,
        target: Tensor,
        classes: Tensor,
        others: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The same of images in their poses.

        Args:
            x: (B, C, H, H), turned.
            labels: (B,) int64 classes.
            target: (B,) int64 elements or (B, K) probabilities: what the prior is taught.
            classes: ``labels``, or (B, classes) probabilities: what teaches the classes.
            others: (B, P - 1) int64, of ``_other_views``.
        """
        options, zero = self.train_options, x.new_zeros(())
        scored = self._scored(x)
        if self.prior_only:
            prior = self._prior_loss(scored, classes, target)
            loss = self._prior_weight() * prior + self._of_vectors(scored)
            return loss, [zero, prior.detach(), zero]
        with self._autocast():
            output, target = self._passed(x, scored, target, others)
        task = task_loss(output.logits, classes, options["label_smoothing"])
        loss = options["task_weight"] * task
        prior = zero
        if self.method.prior is not None:
            pairs = scored.pairs if output.pairs is None else output.pairs
            scored = replace(scored, poses=output.pose_logits, pairs=pairs)
            prior = self._prior_loss(scored, classes, target)
            loss = loss + self._prior_weight() * prior
        correct = (output.logits.argmax(dim=1) == labels).sum()
        return loss + self._of_vectors(scored), [task.detach(), prior.detach(), correct]

    def _other_views(self, batch: int, part: slice) -> Tensor | None:
        """Which views are passed beside the one in the input's own pose; None: all there are.

        Args:
            batch: Images of the whole batch; chance is drawn for all of it.
            part: Those of this process.

        Returns:
            (B, P - 1) int64 steps of the group from that pose, without repeats.
        """
        count, order = self.train_options.get("views_a_step"), self.model.action.group.order
        unmixed = not self.model.selection.mixes
        if count is None or count >= order or unmixed or self.model.view_scorer is None:
            return None
        drawn = torch.rand(batch, order - 1, device=self.device)[part]
        # As torch.multinomial, but with equal weights the draws of runs from before there were any.
        waits = -torch.log1p(-drawn) / self._view_weights
        return waits.argsort(dim=1)[:, : count - 1] + 1

    @cached_property
    def _view_weights(self) -> Tensor:
        """(K - 1,) weights by which the steps from an input's own pose are drawn.

        Views a quarter or half a turn away are as crisp as the right one, and most of what is
        mistaken for it: they may have more than their share, of the draws and so of the loss.
        """
        group, share = self.model.action.group, self.train_options.get("quarter_views")
        crisp = torch.zeros(group.order)
        crisp[list(group.exact_elements)] = 1.0
        crisp, count = crisp[1:], int(crisp[1:].sum())
        if share is None or count in (0, len(crisp)):
            return torch.ones_like(crisp).to(self.device)
        rest = (1.0 - share) / (len(crisp) - count)
        return torch.where(crisp > 0, share / count, rest).to(self.device)

    def _passed(
        self, x: Tensor, scored: Scored, target: Tensor, others: Tensor | None
    ) -> tuple[Output, Tensor]:
        """The model's output, and the place of the target among the poses that it passed."""
        if others is None:
            return self.network(x, scored.poses), target
        steps = torch.cat([torch.zeros_like(others[:, :1]), others], dim=1)
        drawn = (target[:, None] + steps) % self.model.action.group.order
        return self.network(x, drawn=drawn), torch.zeros_like(target)

    def _scored(self, x: Tensor) -> Scored:
        """One pass of the scorer, where the losses need more of it than the model returns."""
        scorer = self.model.scorer
        if self.model.view_scorer is not None:
            return Scored()  # the model's own pass tells
        if self.method.prior == "classwise":
            assert isinstance(scorer, ImageScorer)
            pairs = scorer.pairs(x)
            return Scored(pairs.logsumexp(dim=-1), pairs=pairs)
        if self.method.contrast or self.method.artifact:
            assert isinstance(scorer, ImageScorer)
            vectors = scorer.embed(x)
            returned = scorer.embed_returned(x) if self._artifacts_matter() else None
            return Scored(scorer.logits(vectors), vectors=vectors, returned=returned)
        if self.prior_only:
            assert scorer is not None
            return Scored(scorer(x))
        return Scored()

    def _prior_loss(self, scored: Scored, classes: Tensor, target: Tensor) -> Tensor:
        if scored.pairs is not None:
            return classwise_prior_loss(scored.pairs, target, classes)
        assert scored.poses is not None
        return prior_loss(scored.poses, target)

    def _prior_weight(self) -> float:
        schedule = self.train_options.get("prior_schedule", "constant")
        return float(self.train_options["prior_weight"]) * prior_factor(self.share, schedule)

    def _of_vectors(self, scored: Scored) -> Tensor | float:
        """The weighted losses of the views' vectors (OptC), for methods that have them."""
        loss: Tensor | float = 0.0
        if self.method.contrast and scored.vectors is not None:
            loss = self.train_options["contrast_weight"] * contrast(scored.vectors)
        if scored.vectors is not None and scored.returned is not None:
            moved = artifact(scored.vectors, scored.returned)
            loss = loss + self.train_options["artifact_weight"] * moved
        return loss

    def _artifacts_matter(self) -> bool:
        """Whether a loss asks what turning to and fro does to a view; by quarters, nothing."""
        group = self.model.action.group
        return self.method.artifact and len(group.exact_elements) < group.order

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.lower is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.lower)

    def _validate(self) -> Row:
        distributed.share_buffers(self.model)
        rank, size = distributed.rank(), distributed.size()
        images, labels = (
            strided(self.validation.images, rank, size),
            self.validation.labels[rank::size],
        )
        batch_size = self.recipe["evaluate"]["batch_size"]
        with room_for(batch_size, "evaluate.batch_size"):
            rates = orbit_accuracy(self.model, images, labels, self.pipeline, batch_size)
        return distributed.weighted(rates, len(labels))

    def _save(self) -> None:
        if self.state_path is None or not distributed.is_first():
            return
        meta = {
            "digest": self.digest,
            "history": self.history,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
        }
        extra = checkpoint.with_prefix("best", self.best) if self.best is not None else {}
        checkpoint.save_training_state(self.state_path, self.model, self.optimizer, meta, extra)

    def _resume(self) -> None:
        if self.state_path is None or not self.state_path.is_file():
            return
        try:
            tensors, meta = checkpoint.load(self.state_path)
        except UserError:
            return  # a broken state is no state: start over
        if meta.get("digest") != self.digest:
            self.say(
                f"starts anew: {self.state_path} has {len(meta.get('history', []))} epochs of "
                "another recipe, code, processor or number of processes, or on other data"
            )
            return
        self.model.load_state_dict(checkpoint.without_prefix("model", tensors))
        checkpoint.unpack_optimizer(
            self.optimizer, checkpoint.without_prefix("optimizer", tensors), meta["optimizer"]
        )
        self.history, self.seconds = meta["history"], meta["seconds"]
        self.best_epoch, self.best_score = meta["best_epoch"], meta["best_score"]
        self.best = checkpoint.without_prefix("best", tensors) or None
