"""Who scores poses by looking at what the backbone says of each view.

A view scorer maps features (B, K, D) and logits (B, K, C) of the K views to scores (B, K). The same
function for every view makes the scores equivariant by construction.
"""

from __future__ import annotations

from torch import Tensor, nn

from eqadapt.errors import UserError


class Confidence(nn.Module):
    """Log of the largest class probability: equizero's proxy (Basu et al. 2023).

    Taken as ``-log1p(odds of the others)`` in float64: of views that a backbone is nearly certain
    of, as zero-shot classifiers are, the surest is still told apart.
    """

    def forward(self, features: Tensor | None, logits: Tensor) -> Tensor:
        """Scores (B, K)."""
        ordered = logits.double().sort(dim=-1).values
        others = (ordered[..., :-1] - ordered[..., -1:]).exp().sum(dim=-1)
        return -others.log1p()


class NegativeEntropy(nn.Module):
    """Minus the entropy of the class probabilities: equizero's other proxy."""

    def forward(self, features: Tensor | None, logits: Tensor) -> Tensor:
        """Scores (B, K)."""
        log_p = logits.float().log_softmax(dim=-1)
        return (log_p.exp() * log_p).sum(dim=-1)


class NegativeEnergy(nn.Module):
    """Log-sum-exp of the logits: minus the free energy (Liu et al. 2020, arXiv 2010.03759).

    With it as a view's score, softmax over the views times softmax over a view's classes is one
    softmax over all pairs of view and class.
    """

    def forward(self, features: Tensor | None, logits: Tensor) -> Tensor:
        """Scores (B, K)."""
        return logits.float().logsumexp(dim=-1)


class LambdaNetwork(nn.Module):
    """lambda-equitune's weights: a small network on the backbone's features (Basu et al. 2023).

    The scores are logs of positive weights; a softmax over the views normalises them. The features
    enter without gradient, so that the backbone is trained by the task through its outputs. The
    norm of the features, the second ReLU and the equal weights it starts from are ours.

    Args:
        features: Their dimension.
        hidden: Width of the two hidden layers; the reference has 100.
    """

    needs_features = True

    def __init__(self, features: int, hidden: int = 100) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)  # equal weights: it starts as equitune
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            last,
        )

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Scores (B, K)."""
        return self.layers(self.norm(features.detach().float())).squeeze(-1)


VIEW_SCORERS: dict[str, type[nn.Module]] = {
    "confidence": Confidence,
    "entropy": NegativeEntropy,
    "energy": NegativeEnergy,
    "lambda": LambdaNetwork,
}


def build_view_scorer(name: str, features: int) -> nn.Module:
    """The view scorer of that name for a backbone with that many features.

    Raises:
        UserError: Unknown name.
    """
    if name not in VIEW_SCORERS:
        raise UserError(f"unknown view scorer {name!r}", fix=f"one of: {', '.join(VIEW_SCORERS)}")
    scorer = VIEW_SCORERS[name]
    return scorer(features) if getattr(scorer, "needs_features", False) else scorer()
