"""``python -m benchmarks``: run the comparisons and write figures of speed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from eqadapt.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    new = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    new.add_argument("--list", action="store_true", help="names of the measures, and stop")
    new.add_argument("--only", action="append", metavar="NAME", help="this measure; repeatable")
    new.add_argument(
        "--quick", action="store_true", help="shows that it runs; figures mean nothing"
    )
    new.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    new.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    new.add_argument(
        "--minutes", type=float, default=0.75, help="training time of each network in `quality`"
    )
    new.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    new.add_argument(
        "--resume", action="store_true", help="leave out measures that are done on this device"
    )
    new.add_argument("--draw", action="store_true", help="only tables and figures, from speed.csv")
    new.add_argument("--rows-only", action="store_true", help="neither tables nor figures")
    return new


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 1 if a measure could not be taken, 2 on a user's error."""
    args = parser().parse_args(arguments)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from benchmarks import measures

    names = args.only or list(measures.ORDER)
    unknown = sorted(set(names) - set(measures.ORDER))
    if unknown:
        raise UserError(
            f"unknown measure {unknown[0]!r}", fix=f"one of: {', '.join(measures.ORDER)}"
        )
    if args.list:
        for name in measures.ORDER:
            print(f"{name:14} {measures.MEASURES[name].summary}")
        return 0
    failed = 0
    if not args.draw:
        failed = _measure(args, names) if len(names) == 1 else _measure_apart(args, names)
    if not args.rows_only:
        _draw(args.out)
    return 1 if failed else 0


def _measure_apart(args: argparse.Namespace, names: list[str]) -> int:
    """Each measure in a process of its own; how many failed.

    What a process did before decides how the allocator serves it, and with it the times of large
    batches by up to a half; and a measure that ends badly takes no other one with it.
    """
    given = [f"--{key}={getattr(args, key)}" for key in ("device", "threads", "minutes", "out")]
    given += [f"--{key}" for key in ("quick", "resume") if getattr(args, key)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--rows-only", *given]
    return sum(subprocess.run([*command, "--only", name]).returncode != 0 for name in names)


def _measure(args: argparse.Namespace, names: list[str]) -> int:
    import torch

    from benchmarks import measures
    from benchmarks.registry import Context, NotComparable
    from eqadapt.adaptation import choose_device

    threads = args.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    # float32 on both sides, as the proofs of equality ask
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    context = Context(choose_device(args.device), threads, args.quick, args.minutes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that a measure starts
    failed = 0
    for name in names:
        if not (args.resume and _done(args.out / "speed.csv", name, context.device_label)):
            print(f"{name}: {measures.MEASURES[name].summary}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            try:
                _rows_of(name, context, args.out / "speed.csv")
            except NotComparable as error:
                failed += 1
                print(f"  left out: {error}", file=sys.stderr, flush=True)
            print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return failed


def _done(table: Path, name: str, device: str) -> bool:
    from benchmarks import rows

    if f"{name} on {device}" in rows.unfinished(table):
        return False
    return any(row.device == device and rows.belongs(row, name) for row in rows.read(table))


def _rows_of(name: str, context, table: Path) -> None:
    """Take a measure; each row is in the file as soon as it is there."""
    from benchmarks import measures, rows

    device, fresh = context.device_label, []
    for row in measures.MEASURES[name].run(context):
        if not fresh:
            rows.set_unfinished(table, name, device, True)
        fresh.append(row)
        rows.replace(table, name, device, fresh, measures.ORDER, whole=False)
        print(f"  {_line(row)}", file=sys.stderr, flush=True)
    if fresh:
        rows.replace(table, name, device, fresh, measures.ORDER)
        rows.set_unfinished(table, name, device, False)


def _line(row) -> str:
    from benchmarks.table import seconds

    parts = [row.measure, row.setting]
    if row.peer_seconds is not None:
        parts.append(f"{row.peer} {seconds(row.peer_seconds)}")
    if row.our_seconds is not None:
        parts.append(f"ours {seconds(row.our_seconds)}")
    if row.ratio is not None:
        parts.append(f"{row.ratio:.2f}x")
    if row.met is not None:
        parts.append(f"floor {row.floor:.3g} {'reached' if row.met else 'NOT reached'}")
    return " | ".join([*parts, row.note] if row.note else parts)


def _draw(out: Path) -> None:
    from benchmarks import figures, rows, table

    found = rows.read(out / "speed.csv")
    if not found:
        raise UserError("no rows to draw", where=str(out / "speed.csv"), fix="measure first")
    table.write(found, out)
    figures.write(found, out)


if __name__ == "__main__":
    raise SystemExit(main())
