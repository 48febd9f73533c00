"""The report's sentences, generated from numbers: nothing here is written by hand per study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from eqadapt.analysis import formatting as f
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.labels import REGIMES, dataset_label, method_style
from eqadapt.analysis.published import Published
from eqadapt.analysis.results import Results
from eqadapt.analysis.tables import main_frame

MOST_CELLS = 4


def listed(items: Sequence[str], last: str = "and") -> str:
    """``"a, b and c"``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def plural(number: int, noun: str) -> str:
    """``"1 run"``, ``"3 runs"``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def scope_sentences(results: Results, published: Published, claims: Mapping[str, Any]) -> list[str]:
    """What is asked, and on what; whose claims are tested, where any are."""
    layout = results.layout
    datasets = listed([dataset_label(name) for name in layout["datasets"]])
    networks = listed([results.backbone_label(name) for name in layout["backbones"]])
    regimes = listed([REGIMES.get(name, name) for name in layout["regimes"]])
    judged = [claim for claim in claims["claims"] if claim["verdict"] != "not run"]
    sources = dict.fromkeys(str(claim["source"]) for claim in judged)
    description = results.words("description")
    sentences = [description] if description else []
    if sources:
        cited = listed([_cited(source, published) for source in sources])
        sentences.append(
            f"This study tests claims of {cited} on {datasets}, with {networks}, under {regimes}."
        )
    sentences += [
        f"{'It' if sources else 'This study'} asks whether a network that fails on turned images "
        "can be repaired by choosing a pose for each input and turning it back, and what that "
        "costs on upright images.",
    ]
    if results.reduced:
        note = results.words("reduced_note")
        sentences.append(
            "It is a reduced form of the experiment: its numbers show whether the effects are "
            f"there, not how large they are at the paper's size.{' ' if note else ''}{note}"
        )
    return sentences


def _cited(source: str, published: Published) -> str:
    """A paper by its title; of a source that is no paper, its name."""
    return f"“{published.citation(source)}”" if source in published.papers else source.lower()


def method_sentences(results: Results) -> list[str]:
    """What was run, how often, on what device and how long."""
    metrics = results.metrics
    runs = metrics.drop_duplicates(
        ["dataset", "backbone", "regime", "method", "trained_group", "seed"]
    )
    seeds = runs.groupby(["dataset", "backbone", "regime", "method", "trained_group"])[
        "seed"
    ].nunique()
    spread = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    images = listed(
        [
            f"{int(n):,} of {dataset_label(str(name))}"
            for name, n in metrics.groupby("dataset", sort=False)["n_test"].max().items()
        ]
    )
    sentences = [
        f"{plural(len(runs), 'run')}: {plural(runs['method'].nunique(), 'method')}, groups "
        f"{listed(results.groups)}, {spread} {'seed' if spread == '1' else 'seeds'} each. "
        f"Every test image ({images}) was classified in {_poses(metrics)}.",
        "What a run decides it decides on a validation split of the training set; the test set is "
        "read by its evaluation alone. Turns by multiples of 90° move pixels exactly; all other "
        "turns use one resampling, the same in training and evaluation.",
    ]
    if results.test_time:
        return [*sentences, _trials_sentence(metrics)]
    cost = _cost_sentence(results)
    return [*sentences, cost] if cost else sentences


def _poses(metrics: pd.DataFrame) -> str:
    """How many poses, and for which groups fewer: runs may have those of their own group alone."""
    by_group = metrics.groupby("trained_group", sort=False)["n_poses"].max()
    most = int(by_group.max())
    fewer = [
        f"by runs for {group} in {int(count)}, {360 / count:g}° apart"
        for group, count in by_group.items()
        if count < most
    ]
    return f"{most} poses, {360 / most:g}° apart" + (f" ({listed(fewer)})" if fewer else "")


def _trials_sentence(metrics: pd.DataFrame) -> str:
    trials = pd.to_numeric(metrics["trials"], errors="coerce")
    gated = metrics["gated"].fillna(False).astype(bool)
    most, behind_gate = trials[~gated].max(), trials[gated].max()
    more = f" ({behind_gate:.0f} with a gate)" if behind_gate > most else ""
    return (
        f"Hyper-parameters were chosen on the validation split, with at most {most:.0f} trials for "
        f"each method{more}, those of a method it builds on included. Everything is computed from "
        "one cache of what the frozen network says of every view of every image."
    )


def _cost_sentence(results: Results) -> str:
    seconds, devices = training_seconds(results), known(results.metrics["device"])
    if not seconds:
        return ""
    where = f" on {listed(devices)}" if devices else ""
    each = sum(seconds.values()) / len(seconds)
    return (
        f"Training took {f.duration(sum(seconds.values()))}{where}: "
        f"{plural(len(seconds), 'training')}, {f.duration(each)} each on average."
    )


def training_seconds(results: Results) -> dict[str, float]:
    """Seconds of each run that was trained: it reuses no checkpoint, and something learns."""
    return {
        stem: float(record["train_seconds"])
        for stem, record in results.records.items()
        if (results.folder / "runs" / stem / "run.json").exists()
        and record.get("train_seconds") is not None
        and record.get("epochs") != 0  # a frozen network as it is
    }


def known(values: pd.Series) -> list[str]:
    """Distinct values that are there, in order of appearance."""
    return [str(value) for value in dict.fromkeys(values.dropna())]


def result_sentences(
    results: Results, published: Published, claims: Mapping[str, Any]
) -> list[str]:
    """The findings in two or three sentences."""
    regime, group = results.layout["regimes"][0], results.groups[-1]
    every = results.cells(regime, group)
    cells = every[:MOST_CELLS]
    frame = main_frame(results, published, cells, group)
    table = frame[frame["mean_percent"].notna()].set_index(
        ["dataset", "backbone", "method", "metric"]
    )["mean_percent"]
    found = [_collapse(results, table, cells, group), _repair(results, table, cells, group)]
    if len(cells) < len(every) and any(found):
        found.append(
            f"These are {len(cells)} of {len(every)} pairs of data and network; the tables have "
            "all."
        )
    found.append(_verdicts(claims))
    return [sentence for sentence in found if sentence]


def _value(table: pd.Series, cell: Cell, method: str, metric: str) -> float | None:
    key = (cell.dataset, cell.backbone, method, metric)
    return float(table[key]) if key in table.index else None


def _collapse(results: Results, table: pd.Series, cells: Sequence[Cell], group: str) -> str:
    parts = []
    for cell in cells:
        upright = _value(table, cell, "vanilla", "acc")
        average = _value(table, cell, "vanilla", "cn_avg")
        if upright is not None and average is not None:
            label = results.cell_label(cell.dataset, cell.backbone)
            parts.append(f"from {f.points(upright)}% to {f.points(average)}% ({label})")
    if not parts:
        return ""
    return f"Turning the test images through {group} takes the vanilla network {listed(parts)}."


def _repair(results: Results, table: pd.Series, cells: Sequence[Cell], group: str) -> str:
    parts = []
    for cell in cells:
        here = table.loc[(cell.dataset, cell.backbone)].unstack()
        rivals = here[[not method_style(str(m)).reference for m in here.index]]
        if len(rivals) < 2:
            continue
        best = str(rivals["cn_avg"].idxmax())
        text = (
            f"{method_style(best).label} with {f.points(here.loc[best, 'cn_avg'])}% "
            f"({results.cell_label(cell.dataset, cell.backbone)}"
        )
        vanilla = _value(table, cell, "vanilla", "acc")
        if vanilla is not None and best != "vanilla":
            text += f"; upright {f.signed(here.loc[best, 'acc'] - vanilla)} points against vanilla"
        parts.append(text + ")")
    return f"Best on the {group} average: {listed(parts)}." if parts else ""


def _verdicts(claims: Mapping[str, Any]) -> str:
    by_verdict: dict[str, list[str]] = {"reproduced": [], "not reproduced": []}
    for claim in claims["claims"]:
        if claim["verdict"] in by_verdict:
            by_verdict[claim["verdict"]].append(claim["id"])
    yes, no = by_verdict["reproduced"], by_verdict["not reproduced"]
    if not yes and not no:
        return "No claim can be judged from these runs."
    text = f"Of {plural(len(yes) + len(no), 'claim')} tested, {len(yes)} "
    text += f"{'is' if len(yes) == 1 else 'are'} reproduced"
    text += f" ({listed(yes)})" if yes else ""
    return text + (
        f" and {len(no)} {'is' if len(no) == 1 else 'are'} not ({listed(no)})." if no else "."
    )
