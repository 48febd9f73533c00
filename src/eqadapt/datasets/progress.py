"""Progress of long work, on standard error."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int | None, what: str, unit: str, initial: int = 0) -> tqdm:
    """A progress bar; in a log file, one line every ten seconds instead of a moving bar."""
    moving = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        file=sys.stderr,
        mininterval=0.2 if moving else 10.0,
        ascii=not moving,
    )
