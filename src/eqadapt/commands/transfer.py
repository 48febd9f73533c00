"""``eqadapt transfer``."""

from __future__ import annotations

import argparse

from eqadapt.commands._study import (
    add_run_arguments,
    add_study_arguments,
    keep_memory_on_cpus,
    make_runner,
    run_filters,
)

HELP = "evaluate trained canonicalizers on other data sets of their study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_study_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument(
        "--to", action="append", metavar="NAME", help="only on this data set; may be repeated [all]"
    )


def run(args: argparse.Namespace) -> None:
    """Write ``transfer.csv``: every canonicalizer on every data set, its own among them.

    With filters, rows that they leave out stay as they are.
    """
    from eqadapt.errors import UserError
    from eqadapt.study import load_study

    there = list(load_study(args.study, args.set).config["datasets"])
    unknown = [name for name in args.to or () if name not in there]
    if unknown:
        raise UserError(
            f"the study has no data set {unknown[0]!r}", where="--to", fix=", ".join(there)
        )
    from eqadapt.analysis import outputs
    from eqadapt.runs import select_runs
    from eqadapt.transfer import (
        canonicalizers,
        read_transfers,
        transfers,
        with_rows,
        write_transfers,
    )

    runner = make_runner(args)
    keep_memory_on_cpus(runner.study.config["device"])
    runs = canonicalizers(select_runs(runner.study.trained_runs(), **run_filters(args)))
    if not runs:
        raise UserError("none of these runs trains a canonicalizer", fix="e.g. --method prlc")
    path, found = runner.files.results / outputs.TRANSFER, []
    filtered = args.to is not None or any(v is not None for v in run_filters(args).values())
    before = read_transfers(path) if filtered else []
    for row in transfers(runner, runs, args.to or there):
        runner.say(
            f"{row.method} {row.group} seed {row.seed}: {row.trained_on} -> {row.tested_on}  "
            f"pose accuracy {100 * row.pose_acc:.2f}"
        )
        found.append(row)
    write_transfers(path, with_rows(before, found))
    print(path)
