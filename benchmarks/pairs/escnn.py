"""The same group CNN as escnn would run it, unexported, and as this project runs it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ours import as_trained
from benchmarks.peers import load, settled
from benchmarks.registry import Context, Measured, largest_difference, measure
from eqadapt.groups import CyclicGroup
from eqadapt.law import smooth_images
from eqadapt.losses import prior_loss
from eqadapt.scorers import build_scorer
from eqadapt.scorers.bases import escnn_types
from eqadapt.scorers.layers import FieldNorm, RegularConv, pool_weights


@measure("escnn", "A group CNN unexported in escnn against ours, same weights")
def escnn(context: Context) -> Measured:
    """Rows for C4 and C8: forward in evaluation mode, and a training step."""
    side, batch = (33, 2) if context.quick else (65, 16)
    for order in context.pick((4, 8), (4,)):
        torch.manual_seed(0)
        x = smooth_images(batch, side).to(context.device)
        width = 4 if context.quick else 16
        scorer: Any = build_scorer("group_cnn", CyclicGroup(order), 3, width=width, input_size=side)
        settled(scorer, x)
        peer = EscnnScorer(scorer).to(context.device).eval()
        exported = as_trained(scorer)
        with torch.no_grad():
            difference = largest_difference(exported(x), peer(x), 1e-3, "logits of escnn")
            found = context.compare({"peer": partial(peer, x), "ours": partial(exported, x)})
        setting = f"C{order}, {side} px, batch {batch}"
        common = {
            "peer": f"escnn {load('importlib.metadata').version('escnn')}",
            "packages": ("escnn",),
            "outputs_max_difference": difference,
        }
        yield context.pair(
            "escnn",
            f"{setting}, forward",
            theirs=found["peer"],
            ours=found["ours"],
            note="ours exported: filters expanded, norms folded, last layer collapsed",
            **common,
        )
        found = context.compare({"peer": _step(peer, x), "ours": _step(scorer, x)})
        yield context.pair(
            "escnn",
            f"{setting}, training step",
            theirs=found["peer"],
            ours=found["ours"],
            note="outputs compared in evaluation mode",
            **common,
        )


def _step(module: nn.Module, x: Tensor):
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prior_loss(module(x), target).backward()
        optimizer.step()

    return step


class EscnnScorer(nn.Module):
    """A group CNN of this project in escnn's modules, with its weights.

    Args:
        scorer: Ours; its preparation of the image is shared.
    """

    def __init__(self, scorer: Any) -> None:
        super().__init__()
        modules = load("escnn.nn")
        layers: list[Any] = []
        for layer in scorer.body:
            if isinstance(layer, RegularConv):
                layers.append(_convolution(layer))
            elif isinstance(layer, FieldNorm):
                norm = modules.InnerBatchNorm(layers[-1].out_type, momentum=layer.momentum)
                inner = next(m for m in norm.modules() if isinstance(m, nn.BatchNorm3d))
                inner.load_state_dict(layer.state_dict())
                layers.append(norm)
            elif isinstance(layer, nn.ReLU):
                layers.append(modules.ReLU(layers[-1].out_type))
        layers.append(_convolution(scorer.head.conv))
        self.network = modules.SequentialModule(*layers)
        self.prepare, self.order = scorer.prepare, scorer.group.order
        self.logit_scale = nn.Parameter(scorer.logit_scale.detach().clone())
        self.pool: Tensor | None = None  # on its device once it was called

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, H) to pose logits (B, n)."""
        maps = self.network(self.network.in_type(self.prepare(x))).tensor
        maps = maps.unflatten(1, (-1, self.order)).mean(1)
        if self.pool is None:
            self.pool = pool_weights(maps.shape[-1], "disk").to(maps.device)
        scores = (maps * self.pool).sum((-2, -1))
        return (scores - scores.mean(1, keepdim=True)) * self.logit_scale


def _convolution(conv: RegularConv) -> nn.Module:
    in_type, out_type = escnn_types(conv.order, conv.in_fields, conv.out_fields, not conv.lifting)
    oracle = load("escnn.nn").R2Conv(
        in_type,
        out_type,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=conv.bias is not None,
        initialize=False,
    )
    oracle.weights.data = conv.weight.detach().flatten().clone()
    return oracle
