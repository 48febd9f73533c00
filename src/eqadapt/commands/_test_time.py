"""Flags and set-up shared by the verbs of test-time methods."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eqadapt.commands._study import add_study_arguments, make_runner

if TYPE_CHECKING:
    from eqadapt.test_time.study import TestTimeRunner


def add_test_time_arguments(parser: argparse.ArgumentParser) -> None:
    """The study and its caches."""
    add_study_arguments(parser)
    parser.add_argument("--group", help="only this group, e.g. C8")
    parser.add_argument("--orbits", type=Path, help="folder of the caches [data/orbits/<study>]")


def make_test_time_runner(args: argparse.Namespace) -> TestTimeRunner:
    """The runner that the flags name; settings are checked before anything heavy is imported."""
    from eqadapt.study import load_study
    from eqadapt.test_time.plan import load_plan

    plan = load_plan(load_study(args.study, args.set))
    from eqadapt.test_time.study import TestTimeRunner

    folder = args.orbits or Path("data/orbits") / plan.study.name
    return TestTimeRunner(make_runner(args), plan, folder)
