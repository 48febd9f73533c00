"""Canonicalizers on data they were not trained on: pose accuracy there, against one trained there.

Within one study of several data sets: what a run's scorer chooses on the turned test images of each
of them. The backbone plays no part, so classes may differ; channels may not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import get_type_hints

import torch

from eqadapt.adaptation import ImageScorer
from eqadapt.errors import UserError
from eqadapt.evaluation import batches
from eqadapt.files import write_text
from eqadapt.image_store import on_device
from eqadapt.methods import get_method
from eqadapt.runs import StudyRunner
from eqadapt.study import Run
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import ImagePipeline


@dataclass(frozen=True, order=True)
class Transfer:
    """One canonicalizer on one data set; rates as fractions.

    Attributes:
        trained_on: The data set of its run.
        tested_on: The data set whose test images it sees.
        pose_acc: Share of the images, in all poses of the group, whose chosen pose is the true one.
        pose_acc_exact: The same over the poses that are multiples of 90 degrees.
        identity_rate: Share of upright images whose chosen pose is the identity.
        n_test: Images.
    """

    trained_on: str
    tested_on: str
    backbone: str
    regime: str
    method: str
    group: str
    seed: int
    pose_acc: float
    pose_acc_exact: float
    identity_rate: float
    n_test: int


COLUMNS = tuple(field.name for field in fields(Transfer))
_IDENTITY = COLUMNS.index("pose_acc")  # columns before it name the row


def canonicalizers(runs: Iterable[Run]) -> list[Run]:
    """Those runs that train a network which looks at the input and picks one pose."""
    return [run for run in runs if get_method(run.method).finds_a_pose]


def transfers(
    runner: StudyRunner, runs: Iterable[Run], targets: Iterable[str]
) -> Iterator[Transfer]:
    """Every run on the test images of every target, its own data set among them or not.

    Raises:
        UserError: A target has another number of channels, or there is no checkpoint.
    """
    targets = list(targets)
    for run in runs:
        model = runner.load(run)
        for target in targets:
            yield measure(runner, run, model, target)


@torch.no_grad()
def measure(runner: StudyRunner, run: Run, model: Symmetrized, target: str) -> Transfer:
    """One trained canonicalizer on the test images of one data set."""
    own, other = runner.data(run.dataset).kind, runner.data(target).kind
    if own.channels != other.channels:
        raise UserError(
            f"{run.dataset} has {own.channels} channel(s), {target} {other.channels}",
            where=run.stem,
            fix="transfer between data sets with the same channels",
        )
    assert isinstance(model.scorer, ImageScorer)
    recipe, test, action = runner.study.recipe(run), runner.data(target).test, model.action
    pipeline = ImagePipeline.from_recipe(recipe)
    images = on_device(test.images, runner.device)
    order = action.group.order
    right = torch.zeros(order, dtype=torch.long, device=runner.device)
    for _, x in batches(images, pipeline, action, recipe["evaluate"]["batch_size"]):
        for pose in range(order):
            turned = action.posed(x, pose)
            right[pose] += (model.pick(turned, model.scorer(turned)) == pose).sum()
    shares = (right.double() / len(images)).tolist()
    exact = [shares[pose] for pose in action.group.exact_elements]
    return Transfer(
        trained_on=run.dataset,
        tested_on=target,
        backbone=run.backbone,
        regime=run.regime,
        method=run.method,
        group=run.group,
        seed=run.seed,
        pose_acc=sum(shares) / order,
        pose_acc_exact=sum(exact) / len(exact),
        identity_rate=shares[0],
        n_test=len(images),
    )


def read_transfers(path: Path) -> list[Transfer]:
    """The rows of ``transfer.csv``; none where there is no such file.

    Raises:
        UserError: It is of another form.
    """
    if not path.is_file():
        return []
    kinds = get_type_hints(Transfer)
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return [
                Transfer(**{name: kinds[name](value) for name, value in row.items()})
                for row in csv.DictReader(file, strict=True)
            ]
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"not the table that `eqadapt transfer` writes: {error}",
                where=str(path),
                fix="delete it and run `eqadapt transfer` without filters",
            ) from error


def with_rows(before: Iterable[Transfer], found: Iterable[Transfer]) -> list[Transfer]:
    """Those found, and those of before that are of other runs or data sets."""
    rows = {astuple(row)[:_IDENTITY]: row for row in [*before, *found]}
    return list(rows.values())


def write_transfers(path: Path, found: Iterable[Transfer]) -> None:
    """``transfer.csv``, twelve significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(found):
        values = asdict(row).values()
        writer.writerow([f"{v:.12g}" if isinstance(v, float) else v for v in values])
    write_text(path, text.getvalue())
