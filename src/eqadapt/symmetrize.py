"""The equation: a backbone made equivariant by weighing its outputs over the poses.

    f(x) = sum over g of  w(g | x) * p(g^-1 . x)        with  w(hg | h.x) = w(g | x)

A *selection* turns pose scores (B, K) into weights. One-hot selections by the input alone need one
pass of the backbone, on the canonical image; the others one pass a view with weight, and as many
passes as there are draws or, where the backbone's own outputs are scored, views. p stands for the
backbone's outputs or, under the selection ``"mixture"``, for its class probabilities.

Outputs are taken to be the same in every frame, as logits are. Maps of a network on the canonical
image are in the frame of that image, until ``Symmetrized.restore`` turns them; they cannot be
averaged over poses.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqadapt.errors import UserError
from eqadapt.groups import RotationAction

Scorer = Callable[[Tensor], Tensor]


class Output(NamedTuple):
    """What a symmetrized model returns.

    Attributes:
        logits: (B, C) outputs. Where the backbone is passed the canonical image alone, whatever it
            returns for that image, in the frame of that image.
        pose_logits: (B, K) scores, or None where nobody scores.
        chosen: (B,) int64 element taken as the input's pose, or None where none is chosen.
        pairs: (B, K, C) log-probabilities of pose and class together, of a mixture.
    """

    logits: Tensor
    pose_logits: Tensor | None = None
    chosen: Tensor | None = None
    pairs: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """How scores become weights.

    Attributes:
        name: Its key.
        one_hot: All weight on one pose, the best or one drawn.
        weights: Scores (B, K) to weights (B, K) that sum to 1; unused when ``one_hot`` or
            ``mixes``.
        needs_scores: Whether it reads the scores at all.
        needs_views: Whether it makes sense only where every view is passed: for view scorers.
        views: How many views have weight, where that is known before the backbone; None: all.
        mixes: Class probabilities are averaged in place of outputs; logits are then their logs.
    """

    name: str
    one_hot: bool = False
    weights: Callable[[Tensor], Tensor] | None = None
    needs_scores: bool = True
    needs_views: bool = False
    views: int | None = None
    mixes: bool = False


def _uniform(scores: Tensor) -> Tensor:
    return torch.full_like(scores, 1.0 / scores.shape[1])


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=1)


def top_k_weights(scores: Tensor, k: int) -> Tensor:
    """Softmax over the ``k`` best scores, zero elsewhere; (B, K) to (B, K).

    Raises:
        UserError: ``k`` is larger than the group.
    """
    if k > scores.shape[1]:
        raise UserError(f"top-{k} of a group with {scores.shape[1]} elements", fix="a smaller k")
    best = scores.topk(k, dim=1)
    weights = torch.zeros_like(scores)
    return weights.scatter(1, best.indices, best.values.softmax(dim=1))


SELECTIONS = {
    selection.name: selection
    for selection in (
        Selection("identity", one_hot=True, needs_scores=False),
        Selection("argmax", one_hot=True),
        Selection("argmax_equiste", one_hot=True, needs_views=True),
        Selection("sample", one_hot=True),
        Selection("uniform", weights=_uniform, needs_scores=False),
        Selection("softmax", weights=_softmax),
        Selection("mixture", weights=_softmax, mixes=True),
    )
}
_TOP = re.compile(r"top_([1-9]\d*)")


def get_selection(name: str, order: int) -> Selection:
    """The selection of that name, among them ``top_<k>`` for every k.

    Args:
        name: A key of ``SELECTIONS``, or ``top_<k>``: a softmax over the k best poses.
        order: Of the group it is to select from.

    Raises:
        UserError: Unknown, or more poses than the group has.
    """
    top = _TOP.fullmatch(name)
    if top is None and name not in SELECTIONS:
        known = f"{', '.join(SELECTIONS)} or top_<k>"
        raise UserError(f"unknown selection {name!r}", fix=f"one of: {known}")
    if top is None:
        return SELECTIONS[name]
    if int(top[1]) > order:
        raise UserError(
            f"selection {name!r} of a group with {order} elements", fix=f"top_{order} at most"
        )
    count = int(top[1])
    return Selection(name, weights=functools.partial(top_k_weights, k=count), views=count)


def straight_through(views: Tensor, scores: Tensor) -> Tensor:
    """The best view forward, the gradient of the softmax mixture of views backward.

    The forward value is that view to the last bit. The gradient reaches the scores through the
    mixture of transformed images, not through the angle, which carries no task signal.

    Args:
        views: (B, K, C, H, W).
        scores: (B, K).

    Returns:
        (B, C, H, W).
    """
    best = scores.argmax(dim=1)
    chosen = views[torch.arange(len(views), device=views.device), best]
    soft = scores.softmax(dim=1)
    surplus = (soft - soft.detach()).to(views.dtype)  # exactly zero, with the gradient of soft
    return chosen + torch.einsum("bk,bkchw->bchw", surplus, views)


def pair_log_probabilities(scores: Tensor, logits: Tensor) -> Tensor:
    """log p(g, y | x) = log p(g | x) + log p(y | g^-1 . x), in float32 or more.

    Args:
        scores: (B, K) of the poses.
        logits: (B, K, C) of the classes in each view.

    Returns:
        (B, K, C); their exponentials sum to 1 over both.
    """
    poses = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=1)
    return poses.unsqueeze(-1) + logits.float().log_softmax(dim=-1)


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """``value`` to the last bit forward, the gradient of ``other`` backward."""
    return value.detach() + (other - other.detach())


def gumbel_noise(scores: Tensor) -> Tensor:
    """Independent standard Gumbel noise of the shape of ``scores``."""
    uniform = torch.rand_like(scores).clamp_min(torch.finfo(scores.dtype).tiny)
    return -(-uniform.log()).clamp_min(torch.finfo(scores.dtype).tiny).log()


def _first_smallest_turn(image: Tensor, turns: tuple[int, ...]) -> int:
    """Index of the turned copy of ``image`` (C, H, H) that is first in lexicographic order."""
    copies = torch.stack([torch.rot90(image, q, (-2, -1)).flatten() for q in turns])
    alive = torch.arange(len(turns), device=image.device)
    while len(alive) > 1:
        differs = (copies[alive] != copies[alive[0]]).any(dim=0).nonzero()
        if not len(differs):
            break  # a symmetric image: the copies are the same
        values = copies[alive, differs[0, 0]]
        alive = alive[values == values.min()]
    return int(alive[0])


def choose(
    scorer: Scorer, x: Tensor, scores: Tensor, action: RotationAction, margin: float = 1e-3
) -> Tensor:
    """The best pose of each image, the same to the last bit for every quarter turn of it.

    Rounding makes the scores of a turned copy differ in the last digits, so near-ties could be
    broken differently. Images whose two best scores are closer than ``margin`` (far above
    rounding, rare) are therefore scored again in a pose fixed by their bytes alone: the first of
    their quarter turns in lexicographic order.

    Args:
        scorer: The network whose scores these are.
        x: (B, C, H, H) inputs.
        scores: (B, K) its scores of ``x``.
        action: The group action.
        margin: Difference of scores under which an image counts as a near-tie.

    Returns:
        (B,) int64 elements.
    """
    best = scores.argmax(dim=1)
    group = action.group
    if group.order == 1 or len(group.exact_elements) == 1:
        return best
    top = scores.topk(2, dim=1).values
    near_ties = ((top[:, 0] - top[:, 1]) < margin).nonzero().flatten().tolist()
    turns = tuple(group.decompose(k)[0] for k in group.exact_elements)
    for row in near_ties:
        turn = _first_smallest_turn(x[row], turns)
        anchored = torch.rot90(x[row : row + 1], turns[turn], (-2, -1)).contiguous()
        pose = int(scorer(anchored).argmax(dim=1))
        best[row] = group.compose(pose, group.inverse(group.exact_elements[turn]))
    return best


def check_logits(outputs: object) -> None:
    """Refuse outputs that cannot be averaged over views because they have places.

    Raises:
        UserError: They are not a tensor (B, classes).
    """
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
    if len(shape) != 2:
        given = f"shape {shape}" if shape else f"type {type(outputs).__name__}"
        raise UserError(
            f"outputs of {given} cannot be averaged or compared over views: each view's are in a "
            "frame of its own",
            fix='logits (B, classes); for maps the selection "argmax" with a scorer of the input, '
            "and Symmetrized.restore",
        )


def read_side(backbone: nn.Module) -> int | None:
    """Side of the images that a backbone reads; None where it does not tell."""
    size = getattr(backbone, "size", None)
    return size if isinstance(size, int) else None


class Symmetrized(nn.Module):
    """A backbone under the equation.

    Scores come from a scorer that looks at the input, or from a view scorer that looks at what the
    backbone says of each view (then every view is passed, whatever the selection, unless few were
    drawn).

    Args:
        backbone: Maps images (B, C, H, H) to logits (B, classes); with ``with_features=True`` also
            to features, where the view scorer needs them. One that is passed the canonical image
            alone may return anything, such as maps (B, C, H, H): see ``restore``.
        action: The group action on images.
        selection: Name of a selection: see ``get_selection``.
        scorer: Maps images to pose scores (B, K).
        view_scorer: Maps features and logits of the views to pose scores (B, K).
        samples: With the selection ``"sample"``: poses drawn an input in evaluation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        action: RotationAction,
        selection: str,
        scorer: nn.Module | None = None,
        view_scorer: nn.Module | None = None,
        samples: int = 1,
    ) -> None:
        super().__init__()
        self.selection = get_selection(selection, action.group.order)
        if self.selection.needs_scores and scorer is None and view_scorer is None:
            raise UserError(f"selection {selection!r} needs a scorer")
        if self.selection.needs_views and view_scorer is None:
            raise UserError(f"selection {selection!r} needs a view scorer", fix="argmax")
        self.backbone = backbone
        self.scorer = scorer
        self.view_scorer = view_scorer
        self.action = action
        self.samples = samples

    @property
    def canonicalizes(self) -> bool:
        """Whether it picks one pose by the input alone, before the backbone."""
        return self.selection.name == "argmax" and self.scorer is not None

    def forward(
        self, x: Tensor, scores: Tensor | None = None, drawn: Tensor | None = None
    ) -> Output:
        """Logits for images (B, C, H, H) at the size the group acts on.

        Args:
            x: The images.
            scores: (B, K) what the scorer says of them, where that is known already.
            drawn: (B, P) the poses to pass, where these are not all: see ``at_poses``.

        Returns:
            The outputs; those for one canonical image in its frame, not in that of the input.

        Raises:
            UserError: Outputs of several views are to be combined and are not (B, classes).
        """
        if drawn is not None:
            return self.at_poses(x, drawn)
        if self.view_scorer is not None:
            return self._weigh(x, None)
        if scores is None and self.scorer is not None:
            scores = self.scorer(x)
        if not self.selection.one_hot:
            return self._weigh(x, scores)
        if scores is None:
            return Output(self.backbone(x))
        if self.selection.name == "sample":
            return self._sample(x, scores)
        if self.training and scores.requires_grad:
            canonical = straight_through(self.action.orbit(x, self.reads), scores)
            return Output(self.backbone(canonical), scores, scores.argmax(dim=1))
        chosen = self.pick(x, scores)
        return Output(self.backbone(self.action.undo(x, chosen, self.reads)), scores, chosen)

    def pick(self, x: Tensor, scores: Tensor) -> Tensor:
        """The chosen pose of each image (B,), stable under quarter turns in evaluation."""
        scorer = self.scorer
        if self.training or scorer is None or not getattr(scorer, "equivariant", True):
            return scores.argmax(dim=1)
        return choose(scorer, x, scores, self.action)

    @property
    def reads(self) -> int | None:
        """Side of the images that the backbone reads, where it tells: no other pixels are made."""
        return read_side(self.backbone)

    def at_poses(self, x: Tensor, poses: Tensor) -> Output:
        """What a mixture says where few of the views are passed: for training.

        Args:
            x: (B, C, H, H).
            poses: (B, P) elements, P of 2 or more: the input's own first, then different others
                that were drawn at random. Each of these stands for an equal share of all others: if
                all were equally likely, the sum over all views is estimated without bias, and the
                more likely ones weigh more in it if not.

        Returns:
            ``pose_logits`` (B, P) and ``pairs`` (B, P, C), in the order of ``poses``.

        Raises:
            UserError: It is no mixture that looks at the backbone's outputs, or P is below 2.
        """
        batch, count = poses.shape
        if not self.selection.mixes or self.view_scorer is None or count < 2:
            raise UserError(
                f"{count} drawn poses of the selection {self.selection.name!r}",
                fix="2 or more, of a mixture with a view scorer",
            )
        copies = x.repeat_interleave(count, dim=0)
        views = self.action.undo(copies, poses.flatten(), self.reads)
        features, outputs = self._passed(views, (batch, count))
        scores = self.view_scorer(features, outputs)
        others = math.log((self.action.group.order - 1) / (count - 1))
        scores = torch.cat([scores[:, :1], scores[:, 1:] + others], dim=1)
        pairs = pair_log_probabilities(scores, outputs)
        return Output(pairs.logsumexp(dim=1), scores, pairs=pairs)

    @torch.no_grad()
    def canonicalize(self, x: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Canonical images and the chosen poses (B,); without gradients.

        Where the backbone's own outputs are scored, every view is passed for it. A model that
        chooses no pose leaves its inputs as they are.

        Args:
            x: (B, C, H, H).
            size: Side of the network that reads them; see ``RotationAction.act``.

        Returns:
            Images (B, C, H, H) or (B, C, size, size), and the poses.
        """
        if self.scorer is not None:
            chosen: Tensor | None = self.pick(x, self.scorer(x))
        else:
            chosen = None if self.view_scorer is None else self._weigh(x, None).chosen
        if chosen is None:
            chosen = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.action.undo(x, chosen, size), chosen

    def restore(self, maps: Tensor, chosen: Tensor | None) -> Tensor:
        """Maps of canonical images turned back into the frame of the inputs: ``g . maps``.

        Resampled, padded and, where the action has a mask, masked as images are; quarter turns only
        move pixels.

        Args:
            maps: (B, C, h, h) float, of any side: logits of each class, soft masks, features.
            chosen: (B,) the poses that ``forward`` or ``canonicalize`` found; None, of a model that
                chooses none: all the identity.

        Returns:
            (B, C, h, h).

        Raises:
            UserError: The maps are integers, which are labels and have no means, or not square, or
                there is not one pose for each.
        """
        if not maps.is_floating_point():
            raise UserError(
                f"maps of type {maps.dtype} cannot be resampled: labels have no mean",
                fix="restore the logits and take the argmax afterwards, or one-hot the labels, as "
                "floats (B, classes, h, h)",
            )
        if chosen is None:
            chosen = torch.zeros(len(maps), dtype=torch.long, device=maps.device)
        return self.action.act(maps, chosen)

    def _sample(self, x: Tensor, scores: Tensor) -> Output:
        """Poses drawn from softmax(scores) by the Gumbel trick; the outputs' mean (LPS)."""
        if self.training:
            noisy = scores + gumbel_noise(scores)
            canonical = straight_through(self.action.orbit(x, self.reads), noisy)
            return Output(self.backbone(canonical), scores, noisy.argmax(dim=1))
        draws = [(scores + gumbel_noise(scores)).argmax(dim=1) for _ in range(self.samples)]
        outputs = [self.backbone(self.action.undo(x, draw, self.reads)) for draw in draws]
        check_logits(outputs[0])
        return Output(torch.stack(outputs).mean(dim=0), scores, scores.argmax(dim=1))

    def _views(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Features (B, K, D), where the view scorer needs them, and logits (B, K, C)."""
        views = self.action.orbit(x, self.reads).flatten(0, 1)
        return self._passed(views, (len(x), self.action.group.order))

    def _passed(self, views: Tensor, shape: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """The same of given views (B * P, C, H, H), in that shape (B, P)."""
        if getattr(self.view_scorer, "needs_features", False):
            features, logits = self.backbone(views, with_features=True)
            check_logits(logits)
            return features.unflatten(0, shape), logits.unflatten(0, shape)
        logits = self.backbone(views)
        check_logits(logits)
        return None, logits.unflatten(0, shape)

    def _weigh(self, x: Tensor, scores: Tensor | None) -> Output:
        if self.action.group.order == 1:
            return Output(self.backbone(x), scores)
        if scores is not None and self.selection.views is not None:
            return self._weigh_best(x, scores, self.selection.views)
        features, outputs = self._views(x)
        if self.view_scorer is not None:
            scores = self.view_scorer(features, outputs)
        given = outputs.new_zeros(outputs.shape[:2]) if scores is None else scores
        chosen = None if scores is None else scores.argmax(dim=1)
        if self.selection.one_hot:
            assert chosen is not None
            picked = outputs[torch.arange(len(x), device=x.device), chosen]
            if self.selection.name == "argmax_equiste":
                picked = with_gradient_of(picked, outputs.mean(dim=1))
            return Output(picked, scores, chosen)
        if self.selection.mixes:
            pairs = pair_log_probabilities(given, outputs)
            return Output(pairs.logsumexp(dim=1), scores, chosen, pairs)
        assert self.selection.weights is not None
        weights = self.selection.weights(given)
        logits = torch.einsum("bk,bkc->bc", weights.to(outputs.dtype), outputs)
        return Output(logits, scores, chosen)

    def _weigh_best(self, x: Tensor, scores: Tensor, count: int) -> Output:
        """The mean over the best views: the others have no weight and are not passed."""
        best = scores.topk(count, dim=1)
        copies = x.repeat_interleave(count, dim=0)
        outputs = self.backbone(self.action.undo(copies, best.indices.flatten(), self.reads))
        check_logits(outputs)
        outputs = outputs.unflatten(0, (len(x), count))
        weights = best.values.softmax(dim=1).to(outputs.dtype)
        logits = torch.einsum("bk,bkc->bc", weights, outputs)
        return Output(logits, scores, scores.argmax(dim=1))
