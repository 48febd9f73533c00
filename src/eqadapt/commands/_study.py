"""Flags shared by the verbs that work on the runs of a study."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqadapt.runs import StudyRunner


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """The study and its folders."""
    parser.add_argument(
        "--study", required=True, metavar="YAML", help="the study, e.g. config/digits.yaml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. train.epochs=2",
    )
    parser.add_argument("--results", type=Path, help="folder of the results [results/<study>]")
    parser.add_argument("--scratch", type=Path, help="folder for progress [scratch/<study>]")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"), help="prepared data")
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--backbone", help="only this backbone")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The filters that pick runs."""
    parser.add_argument("--regime", help="only this regime: joint or frozen")
    parser.add_argument("--method", help="only this method")
    parser.add_argument("--group", help="only this group, e.g. C8 (C1: methods without a group)")
    parser.add_argument("--seed", type=int, help="only this seed")


def make_runner(args: argparse.Namespace) -> StudyRunner:
    """The runner of the study that the flags name; its folders can be written to."""
    from eqadapt.files import probe_folder
    from eqadapt.study import load_study

    study = load_study(args.study, args.set)
    from eqadapt.runs import StudyFiles, StudyRunner

    files = StudyFiles(
        args.results or Path("results") / study.name,
        args.scratch or Path("scratch") / study.name,
        args.data,
    )
    for folder in (files.results, files.scratch):
        probe_folder(folder)
    return StudyRunner(study, files)


def run_filters(args: argparse.Namespace) -> dict[str, Any]:
    """The filters as keyword arguments of ``select_runs``."""
    return {
        key: getattr(args, key)
        for key in ("dataset", "backbone", "regime", "method", "group", "seed")
    }


def keep_memory_on_cpus(device: str) -> None:
    """For verbs that pass images: the process keeps what it frees, where that device is a CPU."""
    from eqadapt.adaptation import choose_device
    from eqadapt.allocator import keep_freed_memory

    if choose_device(device).type == "cpu":
        keep_freed_memory()
