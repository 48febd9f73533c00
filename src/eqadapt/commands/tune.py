"""``eqadapt tune``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from eqadapt.commands._study import add_study_arguments, keep_memory_on_cpus

HELP = "search each method's recipe on the validation split, with the same number of trials"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_study_arguments(parser)
    parser.add_argument(
        "--space", type=Path, metavar="YAML", help="what is searched [config/tuning/<study>.yaml]"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="in place of the file's number")
    parser.add_argument("--method", action="append", help="only this method; may be repeated")
    parser.add_argument("--regime", help="judge by runs of this regime only")
    parser.add_argument("--group", help="judge methods with a group by this group only")


def run(args: argparse.Namespace) -> None:
    """Write ``tuning/<method>.csv`` and ``tuning/choice.yaml`` in the study's results."""
    from eqadapt.errors import UserError
    from eqadapt.study import load_study
    from eqadapt.tuning import load_search, untuned

    if args.trials is not None and args.trials < 1:
        raise UserError(f"{args.trials} trials", where="--trials", fix="1 or more")
    given = load_study(args.study, args.set)
    study = untuned(given)
    path = args.space or Path("config/tuning") / f"{study.name}.yaml"
    search = load_search(path, study, args.trials)
    trained = study.trained_runs()
    for name in args.method or ():
        if name not in {run.method for run in trained}:
            raise UserError(f"the study does not train {name!r}", where="--method")
    judged = [
        run
        for run in dict.fromkeys(replace(run, seed=search.seed) for run in trained)
        if args.dataset in (None, run.dataset)
        and args.regime in (None, run.regime)
        and (args.group is None or run.group in (args.group, "C1"))
    ]
    runs = [
        run
        for run in judged
        if args.backbone in (None, run.backbone) and (not args.method or run.method in args.method)
    ]
    if not runs:
        raise UserError("no trained run of the study matches the flags")
    from eqadapt.runs import StudyFiles
    from eqadapt.tuning_runner import Tuner

    files = StudyFiles(
        args.results or Path("results") / study.name,
        args.scratch or Path("scratch") / study.name,
        args.data,
    )
    keep_memory_on_cpus(study.config["device"])
    others = [run for run in judged if run not in runs]
    replaces = any(section.get("recipes") for section in given.config["backbones"].values())
    print(Tuner(study, search, files, runs, others, replaces=replaces).tune())
