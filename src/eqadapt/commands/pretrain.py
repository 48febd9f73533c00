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
    """Pretrain the one backbone on the one data set that the flags name."""
    if not (args.dataset and args.backbone):
        raise UserError("pretrain needs --dataset and --backbone")
    from eqadapt import distributed
    from eqadapt.study import load_study

    device = load_study(args.study, args.set).config["device"]
    with distributed.session(device):
        keep_memory_on_cpus(device)
        make_runner(args).pretrain(args.dataset, args.backbone)
