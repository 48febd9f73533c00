"""Equivariance to several groups at the price of their sum (Baltaji, Basu and Varshney 2023).

arXiv 2310.09675. Averaging over a product of groups takes the product of their orders in passes.
With one input, ``MultiGroup`` takes the sum: for each factor the others are removed by a canonical
form that costs nothing, and only the factor's own orbit is averaged. With an input for each group,
``MultiInput`` fuses the inputs by maps that are invariant to one group and symmetric under another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eqadapt.errors import UserError
from eqadapt.groups.exact_images import ExactAction
from eqadapt.groups.finite import FactoredGroup, FiniteGroup


def mean_over_views(outputs: Tensor, dim: int = 1) -> Tensor:
    """The mean over a dimension, summed in the order of the values.

    Permuting the views then changes no bit of it.
    """
    return outputs.sort(dim=dim).values.mean(dim=dim)


class FibreAction:
    """The action of a group on the values of a function on it: ``new[.., g h] = old[.., h]``.

    Args:
        group: The group, of order K.
    """

    def __init__(self, group: FiniteGroup) -> None:
        self.group = group

    def turn(self, y: Tensor, element: int) -> Tensor:
        """``element . y`` of values (B, ..., K)."""
        back = self.group.inverse(element)
        return y[..., [self.group.compose(back, k) for k in range(self.group.order)]]

    def act(self, y: Tensor, g: Tensor) -> Tensor:
        """``g . y``: values (B, ..., K), each row moved by its own element (B,)."""
        return torch.stack([self.turn(row, int(own)) for row, own in zip(y, g)])


Action = ExactAction | FibreAction


class GroupAverage(nn.Module):
    """Equitune (Basu et al. 2023): ``mean over g of rho(g) . M(g^-1 . x)``; one pass an element.

    Args:
        model: Any network; its first argument is acted on.
        action: The group's action on inputs (B, C, H, W).
        outputs: Its action on outputs; None where they are to be invariant.
    """

    def __init__(self, model: nn.Module, action: ExactAction, outputs: Action | None = None):
        super().__init__()
        self.model, self.action, self.outputs = model, action, outputs

    def forward(self, x: Tensor) -> Tensor:
        """Equivariant outputs of inputs (B, C, H, W)."""
        elements = range(self.action.group.order)
        return _average(self.model, self.action, x, elements, self.outputs)


def _average(
    model: nn.Module,
    action: ExactAction,
    x: Tensor,
    elements: Sequence[int],
    outputs: Action | None,
) -> Tensor:
    """The mean over a subgroup's elements of ``rho(g) . M(g^-1 . x)``, in one batch."""
    inverses = [action.group.inverse(g) for g in elements]
    views = torch.stack([action.turn(x, back) for back in inverses], dim=1)
    found = model(views.flatten(0, 1)).unflatten(0, (len(x), len(elements)))
    if outputs is not None:
        turned = [outputs.turn(found[:, place], g) for place, g in enumerate(elements)]
        found = torch.stack(turned, dim=1)
    return mean_over_views(found)


class FixedEnergy(nn.Module):
    """``<W, x>`` with W drawn once: what a canonical form maximises where nothing is learned.

    W holds signs, as many plus as minus, so that a constant added to the image changes nothing. It
    is then summed over the orbit of a subgroup, which makes the energy invariant to that. Sums of
    whole multiples of pixels in float64 are exact for images of bytes up to 200 pixels a side, so
    that a moved copy has the same energies to the last bit.

    Args:
        action: The action on images.
        shape: (C, H, W) of the images.
        invariant_to: Elements of a subgroup.
        seed: Of W.
    """

    weight: Tensor

    def __init__(
        self,
        action: ExactAction,
        shape: Sequence[int],
        invariant_to: Sequence[int] = (0,),
        seed: int = 0,
    ) -> None:
        super().__init__()
        size = int(torch.Size(shape).numel())
        signs = torch.zeros(size, dtype=torch.float64)
        signs[: size // 2], signs[size // 2 : size // 2 * 2] = 1.0, -1.0
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        drawn = signs[order].view(1, *shape)
        orbit = torch.cat([action.turn(drawn, element) for element in invariant_to])
        self.register_buffer("weight", orbit.sum(dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Energies (B,) float64 of images (B, C, H, W)."""
        if x.shape[1:] != self.weight.shape:
            raise UserError(
                f"images of {tuple(x.shape[1:])}, but the energy is of {tuple(self.weight.shape)}"
            )
        return (x.double() * self.weight).flatten(1).sum(dim=1)


def fixed_pose(
    energy: FixedEnergy,
    action: ExactAction,
    x: Tensor,
    elements: Sequence[int],
    averaged: Sequence[int] = (0,),
) -> Tensor:
    """The element b of a subgroup with the largest energy of ``b^-1 . x``; (B,) int64.

    Images of few grey levels often have several: the one whose view comes first in the order of
    bytes is taken, so that the choice moves with the input.

    Args:
        energy: Of the images, invariant to ``averaged``.
        action: The group's action on them.
        x: (B, C, H, W).
        elements: Of the subgroup.
        averaged: Elements over which the view is averaged afterwards: what comes first is then
            the first of its copies under these.
    """
    backs = [action.group.inverse(b) for b in elements]
    energies = torch.stack([energy(action.turn(x, back)) for back in backs], dim=1)
    best = energies.argmax(dim=1)
    tied = energies == energies.max(dim=1, keepdim=True).values
    for row in (tied.sum(dim=1) > 1).nonzero().flatten().tolist():
        copies = {
            place: [action.group.compose(a, backs[place]) for a in averaged]
            for place in tied[row].nonzero().flatten().tolist()
        }
        best[row] = min(copies, key=lambda place: _first_copy(action, x[row], copies[place]))
    return torch.tensor(list(elements), device=x.device)[best]


def _first_copy(action: ExactAction, image: Tensor, elements: Sequence[int]) -> bytes:
    """Of an image (C, H, W) moved by each element, the bytes that come first."""
    return min(view_bytes(action.turn(image[None], g)[0]) for g in elements)


def view_bytes(view: Tensor) -> bytes:
    """What orders views: their bytes."""
    return view.double().cpu().numpy().tobytes()


class FixedCanonical(nn.Module):
    """One pass, on the pose of largest fixed energy: canonicalization with nothing learned.

    Args:
        model: Any network.
        action: The group's action on images.
        shape: (C, H, W) of the images.
        seed: Of the energy.
    """

    def __init__(
        self, model: nn.Module, action: ExactAction, shape: Sequence[int], seed: int = 0
    ) -> None:
        super().__init__()
        self.model, self.action = model, action
        self.energy = FixedEnergy(action, shape, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """Invariant outputs of inputs (B, C, H, W)."""
        pose = fixed_pose(self.energy, self.action, x, range(self.action.group.order))
        return self.model(self.action.undo(x, pose))


class MultiGroup(nn.Module):
    """One input, a product of groups: as many passes as the factors have elements together.

    For each factor A, with B the product of the others, the input is brought to the pose
    ``b^-1 . x`` of largest energy, its outputs are averaged over A, and b is put back where outputs
    are to be equivariant. The mean over the factors is the output.

    The energy must be invariant to A. Then ``b(a x) = b(x)`` in a direct product, so that the
    canonical form of ``a x`` lies on the orbit of that of x under A and the average cannot tell
    them apart. In a semidirect product it is ``b(a x) = b(x)`` or ``a b(x) a^-1``, according to
    which of the two is normal, and the same follows.

    Args:
        model: Any network.
        action: The action of a group with factors: a dihedral group or a direct product.
        shape: (C, H, W) of the images.
        outputs: The group's action on outputs; None where they are to be invariant.
        seed: Of the energies.

    Raises:
        UserError: The group is not made of factors.
    """

    def __init__(
        self,
        model: nn.Module,
        action: ExactAction,
        shape: Sequence[int],
        outputs: Action | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        group = action.group
        if not isinstance(group, FactoredGroup):
            raise UserError(f"{group.name} is not a product", fix="D4, C4xS3, ...")
        self.model, self.action, self.outputs = model, action, outputs
        self.factors = group.factors
        self.others = tuple(group.complement(place) for place in range(len(self.factors)))
        self.energies = nn.ModuleList(
            FixedEnergy(action, shape, factor, seed) for factor in self.factors
        )

    def others_pose(self, x: Tensor, factor: int) -> Tensor:
        """The pose (B,) of images in the factors other than this one."""
        energy = self.energies[factor]
        assert isinstance(energy, FixedEnergy)
        return fixed_pose(energy, self.action, x, self.others[factor], self.factors[factor])

    def forward(self, x: Tensor) -> Tensor:
        """Equivariant outputs of inputs (B, C, H, W)."""
        means = []
        for factor, elements in enumerate(self.factors):
            pose = self.others_pose(x, factor)
            canonical = self.action.undo(x, pose)
            mean = _average(self.model, self.action, canonical, elements, self.outputs)
            means.append(mean if self.outputs is None else self.outputs.act(mean, pose))
        return torch.stack(means).mean(dim=0)


class InvariantSymmetric(nn.Module):
    """A map from an input of one group to outputs of another: the fusion layer of the paper.

    ``mean over g, h of rho(h) . M(g . x)`` is invariant to the source's group and symmetric under
    the target's: ``L(g . x) = L(x)`` and ``rho(h) . L(x) = L(x)``. It takes a pass an element of
    the source's group; the outer mean is over outputs.

    Args:
        model: Any network.
        source: The action on inputs.
        target: The action of the other group on outputs; None where it is trivial.
    """

    def __init__(self, model: nn.Module, source: ExactAction, target: Action | None = None) -> None:
        super().__init__()
        self.average, self.target = GroupAverage(model, source), target

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of inputs (B, C, H, W)."""
        y = self.average(x)
        target = self.target
        if target is None:
            return y
        orbit = [target.turn(y, element) for element in range(target.group.order)]
        return mean_over_views(torch.stack(orbit, dim=1))


class MultiInput(nn.Module):
    """An input and an output for each of N groups, fused.

    ``y_i = Eq_i(x_i) + sum over j of c_ij IS_ij(x_j)``: equitune of a network on the own input, and
    invariant-symmetric maps of the others. Output i is equivariant to group i acting on input i and
    invariant to the other groups acting on theirs. With coefficients of 0 the inputs are apart.

    Args:
        models: A network for each input.
        crossings: Networks ``(i, j)`` from input j to output i; pairs left out do not meet.
        actions: The group's action on each input.
        outputs: Its action on each output; None where trivial.
        coefficient: What the learnable fusion coefficients start with.

    Raises:
        UserError: Not one of each for every input, or a crossing of an input with itself.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        crossings: Mapping[tuple[int, int], nn.Module],
        actions: Sequence[ExactAction],
        outputs: Sequence[Action | None],
        coefficient: float = 0.1,
    ) -> None:
        super().__init__()
        count = len(models)
        if not count == len(actions) == len(outputs):
            raise UserError(
                f"{count} networks, {len(actions)} input and {len(outputs)} output actions",
                fix="one of each for every input",
            )
        self.pairs = tuple(sorted(crossings))
        if any(i == j or not (0 <= i < count and 0 <= j < count) for i, j in self.pairs):
            raise UserError(f"crossings {self.pairs} of {count} inputs", fix="(i, j), i not j")
        self.own = nn.ModuleList(map(GroupAverage, models, actions, outputs))
        self.crossings = nn.ModuleList(
            InvariantSymmetric(crossings[i, j], actions[j], outputs[i]) for i, j in self.pairs
        )
        self.coefficients = nn.Parameter(torch.full((len(self.pairs),), float(coefficient)))

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of inputs (B, C_i, H_i, W_i), one each."""
        found = [own(x) for own, x in zip(self.own, inputs, strict=True)]
        for place, ((i, j), crossing) in enumerate(zip(self.pairs, self.crossings)):
            found[i] = found[i] + self.coefficients[place].to(found[i].dtype) * crossing(inputs[j])
        return found
