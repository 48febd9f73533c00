"""``eqadapt pretrain``."""

from __future__ import annotations

import argparse

from eqadapt.commands._study import add_study_arguments, keep_memory_on_cpus, make_runner
from eqadapt.errors import UserError

HELP = "train a backbone upright from scratch, for machines without pretrained weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_study_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Pretrain each backbone that is to be, on each data set; flags say which."""
    from eqadapt import distributed
    from eqadapt.runs import select_runs
    from eqadapt.study import load_study

    study = load_study(args.study, args.set)
    device, backbones = study.config["device"], study.config["backbones"]
    runs = select_runs(study.runs(), dataset=args.dataset, backbone=args.backbone)
    pairs = dict.fromkeys(
        (run.dataset, run.backbone)
        for run in runs
        if backbones[run.backbone]["weights"] == "pretrain"
    )
    if not pairs:
        raise UserError(
            "no backbone of these is pretrained by the study", fix="weights: pretrain, for one"
        )
    with distributed.session(device):
        keep_memory_on_cpus(device)
        runner = make_runner(args)
        for dataset, backbone in pairs:
            runner.pretrain(dataset, backbone)
