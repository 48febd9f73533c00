"""Short training runs in one process: ``python -m benchmarks.worker RUNS DEVICE``."""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F

from benchmarks.ours import adapted, timm_backbone
from eqadapt.groups import CyclicGroup
from eqadapt.scorers import build_scorer

STEPS, BATCH, SIDE = 10, 64, 32


def run(seed: int, device: torch.device) -> None:
    """Ten joint steps of a small network under C8."""
    torch.manual_seed(seed)
    backbone = timm_backbone("resnet_small", SIDE, device, classes=10)
    scorer = build_scorer(
        "paired_cnn", CyclicGroup(8), 3, inner="group_cnn", width=8, input_size=33
    ).to(device)
    model = adapted(scorer, backbone, exported=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        x = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
        labels = torch.randint(0, 10, (BATCH,), device=device)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x).logits, labels).backward()
        optimizer.step()


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        run(number, torch.device(sys.argv[2]))
