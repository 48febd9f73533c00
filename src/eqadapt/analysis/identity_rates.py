"""How often runs keep the pose of upright images, and what they cost them, over all studies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from eqadapt.analysis import outputs
from eqadapt.analysis.formatting import Column, Grid, Text, points, signed
from eqadapt.analysis.labels import dataset_label, method_style
from eqadapt.analysis.metrics import RATES
from eqadapt.analysis.results import Results, read_csv
from eqadapt.errors import UserError
from eqadapt.methods import get_method

STEM = "identity_rate"
# Families by what teaches the choice of the pose; the last: methods of plugins not at hand.
FAMILIES = (
    "Nothing: fixed or random",
    "No prior (LC, LPS, OptC without it)",
    "Prior on upright images (PRLC, OptC)",
    "Prior on turned images",
    "Network's own outputs (equizero, λ-equitune)",
    "Self-canonicalizer",
    "Other",
)
# Data whose images come turned: none is upright, and vanilla is trained on turned images too.
TURNED = ("rotated_mnist",)
COLUMNS = (
    *("study", "data_entry", "network_entry", "dataset", "backbone", "group", "method", "family"),
    *("seed", "n_test", "images_upright"),
    *("identity_rate_percent", "acc_percent", "vanilla_acc_percent", "difference_points"),
)
_BANDS = (0, 50, 75, 90, 100)


def family(method: str) -> str:
    """What teaches a method the pose: one of ``FAMILIES``."""
    nothing, none, upright, turned, views, itself, other = FAMILIES
    try:
        known = get_method(method)
    except UserError:
        return other
    if known.scorer not in ("image", "features"):
        return itself if known.selection == "mixture" else views
    if not known.learns:
        return nothing
    if known.prior is None:
        return none
    return upright if known.prior == "identity" else turned


def identity_rates(studies: Sequence[Results]) -> pd.DataFrame:
    """One row a fine-tuned run that chooses poses; oracles, and runs without vanilla, left out.

    A run that several studies or entries repeat, with the same data, model, method, group, seed and
    rates, has one row, that of the first.

    Returns:
        ``COLUMNS``. data_entry, network_entry: their names in the study; dataset, backbone: what
        they are of. images_upright: whether the data set's images are. identity_rate_percent:
        upright test images whose chosen pose is the identity. difference_points: upright accuracy
        minus that of vanilla of the same study, entries, group and seed.
    """
    parts = [part for study in studies if len(part := _of_study(study))]
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    found = pd.concat(parts, ignore_index=True)
    same = ["dataset", "backbone", "group", "method", "seed", "n_test", "difference_points", *RATES]
    return found.drop_duplicates(same, ignore_index=True)[list(COLUMNS)]


def _of_study(study: Results) -> pd.DataFrame:
    metrics = read_csv(study.folder / outputs.METRICS)
    metrics = metrics[metrics["regime"] == "joint"]
    key = ["dataset", "backbone", "group", "seed"]
    vanilla = metrics.loc[metrics["method"] == "vanilla", [*key, "acc"]]
    oracle = metrics["method"].map(lambda name: method_style(name).reference)
    runs = metrics[metrics["identity_rate"].notna() & ~oracle]
    runs = runs.merge(vanilla, on=key, suffixes=("", "_vanilla"), validate="many_to_one")
    sources = runs["dataset"].map(lambda name: study.behind("datasets", name))
    return runs.assign(
        study=study.folder.name,
        data_entry=runs["dataset"],
        network_entry=runs["backbone"],
        dataset=sources,
        backbone=runs["backbone"].map(lambda name: study.behind("backbones", name)),
        family=runs["method"].map(family),
        images_upright=~sources.isin(TURNED),
        identity_rate_percent=100 * runs["identity_rate"],
        acc_percent=100 * runs["acc"],
        vanilla_acc_percent=100 * runs["acc_vanilla"],
        difference_points=100 * (runs["acc"] - runs["acc_vanilla"]),
    )


def by_data(frame: pd.DataFrame) -> Grid:
    """Rank correlation, and the median difference by identity rate, of each data set and of all."""
    columns = [Column("data", left=True), Column("studies"), Column("runs"), Column("Spearman's ρ")]
    columns += [Column(f"{low} to {high}% kept") for low, high in pairwise(_BANDS)]
    upright = frame[frame["images_upright"]]
    named = [(dataset_label(str(name)), part) for name, part in upright.groupby("dataset")]
    if len(named) > 1:
        named.append(("all", upright))
    return Grid(columns, [_row(label, part) for label, part in named])


def _row(label: str, part: pd.DataFrame) -> list[Text]:
    rate, difference = part["identity_rate_percent"], part["difference_points"]
    spread = rate.nunique() > 1 and difference.nunique() > 1  # else there is no correlation
    rho = rate.corr(difference, method="spearman") if spread else None
    row = [Text(label), Text(str(part["study"].nunique())), Text(str(len(part)))]
    row.append(Text(points(rho, 2)))
    # The upper end belongs to the next band, save for 100.
    bands = pd.cut(rate, [*_BANDS[:-1], 101], right=False)
    for band in bands.cat.categories:
        inside = difference[bands == band]
        count = f" ({len(inside)})" if len(inside) else ""
        row.append(Text(f"{signed(inside.median())}{count}"))
    return row
