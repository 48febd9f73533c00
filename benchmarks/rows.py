"""The rows of ``speed.csv`` and the file itself, replaced as a whole after every measure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from eqadapt.files import write_text


@dataclass(frozen=True)
class Row:
    """One comparison, or one figure of ours where ``peer`` is empty.

    Attributes:
        measure: Name of the measure it belongs to.
        setting: What was run: group, image side, batch, form.
        device: Name of the GPU, or of the processor with the number of threads.
        peer: What it is compared with.
        peer_seconds: Median seconds of the peer.
        our_seconds: Median seconds of ours.
        ratio: ``peer_seconds / our_seconds``.
        spread: Interquartile range of the ratios of neighbouring samples over their median.
        outputs_max_difference: Largest absolute difference of the outputs, where the pair claims
            the same computation.
        versions: Of everything that ran.
        floor: The smallest ratio that counts as reached; empty where none is set. Where both
            accuracies are given, ours must not be lower, too.
        repeats: Samples a side.
        peer_iqr_seconds: Interquartile range of the peer's samples.
        our_iqr_seconds: The same of ours.
        peer_peak_mb: Memory above what was in use before, in MiB, at the peak of one call.
        our_peak_mb: The same of ours.
        peer_pose_accuracy: Share of poses found, of the peer.
        our_pose_accuracy: The same of ours.
        peer_cn_avg: End accuracy, the mean over the group's poses, of the peer.
        our_cn_avg: The same of ours.
        peer_mmac: Million multiply-adds an image, of the peer.
        our_mmac: The same of ours.
        note: What else must be known.
        commit: The code that was measured.
    """

    measure: str
    setting: str
    device: str
    peer: str = ""
    peer_seconds: float | None = None
    our_seconds: float | None = None
    ratio: float | None = None
    spread: float | None = None
    outputs_max_difference: float | None = None
    versions: str = ""
    floor: float | None = None
    repeats: int | None = None
    peer_iqr_seconds: float | None = None
    our_iqr_seconds: float | None = None
    peer_peak_mb: float | None = None
    our_peak_mb: float | None = None
    peer_pose_accuracy: float | None = None
    our_pose_accuracy: float | None = None
    peer_cn_avg: float | None = None
    our_cn_avg: float | None = None
    peer_mmac: float | None = None
    our_mmac: float | None = None
    note: str = ""
    commit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the floor is reached; None where there is none."""
        if self.floor is None or self.ratio is None:
            return None
        return self.ratio >= self.floor and self.as_accurate is not False

    @property
    def as_accurate(self) -> bool | None:
        """Whether our accuracies are not below the peer's; None where they are not compared."""
        pairs = (
            (self.our_pose_accuracy, self.peer_pose_accuracy),
            (self.our_cn_avg, self.peer_cn_avg),
        )
        given = [(ours, theirs) for ours, theirs in pairs if None not in (ours, theirs)]
        return all(ours >= theirs for ours, theirs in given) if given else None  # type: ignore[operator]


TEXT = {"measure", "setting", "device", "peer", "versions", "note", "commit"}
COLUMNS = tuple(field.name for field in fields(Row))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> object:
    if name in TEXT:
        return text
    if not text:
        return None
    return int(text) if name == "repeats" else float(text)


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file. Unknown columns are left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            Row(**{name: _value(name, line[name]) for name in COLUMNS if name in line})  # type: ignore[arg-type]
            for line in csv.DictReader(stream)
        ]


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows to a file, whole or not at all."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
    write_text(path, stream.getvalue())


def belongs(row: Row, measure: str) -> bool:
    """Whether a measure of the command line wrote the row: same name, or one that extends it."""
    return row.measure == measure or row.measure.startswith(f"{measure}_")


def replace(
    path: Path,
    measure: str,
    device: str,
    fresh: Sequence[Row],
    order: Sequence[str],
    whole: bool = True,
) -> None:
    """Put the fresh rows of a measure on a device in the place of the old ones.

    Args:
        path: The file.
        measure: Whose rows these are.
        device: On which they were taken; rows of other devices stay.
        fresh: The new rows.
        order: Names of all measures, in the order of the file.
        whole: Whether the measure is done. If not, old rows stay where no fresh one has the same
            name and setting.
    """
    settings = {(row.measure, row.setting) for row in fresh}

    def stays(row: Row) -> bool:
        if row.device != device or not belongs(row, measure):
            return True
        return not whole and (row.measure, row.setting) not in settings

    def place(row: Row) -> tuple[str, int]:
        places = [number for number, name in enumerate(order) if belongs(row, name)]
        return row.device, places[0] if places else len(order)

    kept = [row for row in read(path) if stays(row)]
    write(path, sorted([*kept, *fresh], key=place))  # stable: a measure's rows stay in turn


def unfinished(path: Path) -> set[str]:
    """The measures, each with its device, that were begun and did not come to their end."""
    note = _note(path)
    return set(note.read_text(encoding="utf-8").splitlines()) if note.is_file() else set()


def set_unfinished(path: Path, measure: str, device: str, value: bool) -> None:
    """Write beside the file ``path`` that a measure was begun, or that it came to its end."""
    found, entry = unfinished(path), f"{measure} on {device}"
    found = found | {entry} if value else found - {entry}
    if found:
        write_text(_note(path), "".join(f"{line}\n" for line in sorted(found)))
    else:
        _note(path).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_name("unfinished.txt")
