"""The command line: ``eqadapt <verb> --flags``, one module of ``eqadapt.commands`` a verb."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from eqadapt import __version__, commands
from eqadapt.errors import UserError


def verbs() -> list[str]:
    """Names of all verbs: the public modules of ``eqadapt.commands``."""
    found = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser; with ``only``, that verb's flags alone are imported (fast start)."""
    parser = argparse.ArgumentParser(prog="eqadapt", description="Equivariant adaptation.")
    parser.add_argument("--version", action="version", version=f"eqadapt {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for verb in [only] if only else verbs():
        module = importlib.import_module(f"eqadapt.commands.{verb}")
        subparser = subparsers.add_parser(verb, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; a ``UserError`` is one clear message and exit status 2."""
    if argv is None:
        signal.signal(signal.SIGTERM, _stop)
    argv = list(sys.argv[1:] if argv is None else argv)
    only = argv[0] if argv and argv[0] in verbs() else None
    args = build_parser(only).parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        which = f" (process {os.environ.get('RANK', '?')})" if several else ""
        print(f"eqadapt {args.verb}{which}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    """End as Python ends, so that half-written files are removed: a cluster's time limit."""
    raise SystemExit(128 + number)
