"""The optimizer of a run: one rate for the backbone, one for what is put around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt.symmetrize import Symmetrized


def build_optimizer(model: Symmetrized, train: Mapping[str, Any], frozen: bool) -> Any:
    """The optimizer over backbone and scorer with their own rates; None if nothing trains.

    Args:
        model: Its parameters, those that require gradients.
        train: The recipe's section ``train``.
        frozen: Leave the backbone out.
    """
    groups = [] if frozen else _backbone_groups(model.backbone, train)
    scorer = model.scorer or model.view_scorer
    learnt = [p for p in scorer.parameters() if p.requires_grad] if scorer is not None else []
    decay = train["scorer_weight_decay"]
    muon = train.get("scorer_optimizer", "same") == "muon"
    matrices = [p for p in learnt if muon and is_matrix(p)]
    rest = [p for p in learnt if not (muon and is_matrix(p))]
    if rest:
        groups.append({"params": rest, "lr": train["scorer_lr"], "weight_decay": decay})
    fused = next(model.parameters()).is_cuda
    parts: list[Any] = [_elementwise(groups, train, fused)] if groups else []
    if matrices:
        parts.append(MatrixMuon(matrices, train["scorer_lr"], decay))
    for part in parts:
        for group in part.param_groups:
            group["base_lr"] = group["lr"]
    return parts[0] if len(parts) == 1 else Together(parts) if parts else None


def is_matrix(parameter: Tensor) -> bool:
    """Whether a weight maps several inputs to several outputs; last layers of one do not."""
    return parameter.ndim >= 2 and len(parameter) > 1


def _backbone_groups(backbone: nn.Module, train: Mapping[str, Any]) -> list[dict[str, Any]]:
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in backbone.parameters():
        (plain if parameter.ndim < 2 else decay).append(parameter)
    return [
        {"params": decay, "lr": train["lr"], "weight_decay": train["weight_decay"]},
        {"params": plain, "lr": train["lr"], "weight_decay": 0.0},
    ]


def _elementwise(
    groups: list[dict[str, Any]], train: Mapping[str, Any], fused: bool
) -> torch.optim.Optimizer:
    if train["optimizer"] == "sgd":
        nesterov = bool(train.get("nesterov", True) and train["momentum"])  # of plain SGD none
        return torch.optim.SGD(groups, momentum=train["momentum"], nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(groups, fused=fused)


class MatrixMuon(torch.optim.Muon):
    """torch's Muon (Jordan 2024) for weights of any shape, taken as matrices by their first axis.

    Steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that rates and
    decay mean about the same for both.

    Args:
        weights: At least two axes each; updated in place.
        lr: Learning rate.
        weight_decay: Decoupled, as AdamW's.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        self.weights = list(weights)
        self.matrices = [nn.Parameter(w.detach().flatten(1).clone()) for w in self.weights]
        super().__init__(
            self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the weights, from their gradients."""
        pairs = list(zip(self.weights, self.matrices, strict=True))
        for weight, matrix in pairs:
            matrix.copy_(weight.flatten(1))
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step(closure)
        for weight, matrix in pairs:
            weight.copy_(matrix.view(weight.shape))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None


class Together:
    """Optimizers of different parameters as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """What is kept of each parameter, by parameter."""
        return {weight: kept for part in self.parts for weight, kept in part.state.items()}

    def step(self) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As a torch optimizer's, the parameters numbered through."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for part, start in zip(self.parts, self._starts(), strict=True):
            own = part.state_dict()
            state |= {start + index: values for index, values in own["state"].items()}
            groups += [_renumbered(group, start) for group in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        groups = list(state["param_groups"])
        for part, start in zip(self.parts, self._starts(), strict=True):
            count = sum(len(group["params"]) for group in part.param_groups)
            mine = {
                index - start: values
                for index, values in state["state"].items()
                if 0 <= index - start < count
            }
            own = [_renumbered(groups.pop(0), -start) for _ in part.param_groups]
            part.load_state_dict({"state": mine, "param_groups": own})

    def _starts(self) -> list[int]:
        counts = [sum(len(g["params"]) for g in part.param_groups) for part in self.parts]
        return [sum(counts[:number]) for number in range(len(counts))]


def _renumbered(group: Mapping[str, Any], start: int) -> dict[str, Any]:
    return {**group, "params": [start + index for index in group["params"]]}
