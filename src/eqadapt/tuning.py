"""A search for recipes: its space, its trials and its outcome. No torch here.

Every method of a study gets the same number of trials around each backbone, the first of which is
the study's own recipe without its backbones' ``recipes``; the best on the validation split are
written as such a part of a study.
"""

from __future__ import annotations

import csv
import functools
import itertools
import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from eqadapt.errors import UserError
from eqadapt.files import write_text
from eqadapt.study import Run, Study, load_study, merge, read_yaml

RULES = {
    "mean": "mean of upright accuracy and average over the group",
    "cn_avg": "average over the group",
}
_RUN_KEYS = ("dataset", "backbone", "regime", "group", "seed")
_RATES = ("val_acc", "val_cn_avg", "score", "seconds")
_FOUND = (*_RATES, "config_hash", "inputs")
Point = Mapping[str, Any]
"""Dotted keys of a method's section with their values."""


@functools.cache
def _schema() -> dict[str, Any]:
    text = resources.files("eqadapt").joinpath("tuning.schema.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


@dataclass(frozen=True)
class Search:
    """What is searched; see ``tuning.schema.yaml``.

    Attributes:
        trials: Recipes a method.
        select: A key of ``RULES``.
        seed: The seed every trial trains with.
        draw: Seed of the draws.
        spaces: Method -> dotted key -> values or range.
        backbones: Backbone -> dotted key -> what is searched around it instead.
        within: Merged into the study for the trials alone.
    """

    trials: int
    select: str
    seed: int
    draw: int
    spaces: Mapping[str, Mapping[str, Any]]
    backbones: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    within: Mapping[str, Any] = field(default_factory=dict)

    def space(self, method: str, backbone: str) -> dict[str, Any]:
        """What is searched for a method around a backbone: dotted key -> values or range.

        Ranges of the backbone's own go first; null there: the key is not searched around it.
        """
        own = self.backbones.get(backbone, {})
        found = {key: own.get(key, of) for key, of in self.spaces[method].items()}
        return {key: of for key, of in found.items() if of is not None}

    def points(self, method: str, backbone: str) -> list[Point]:
        """The recipes tried for a method around a backbone; the first changes nothing.

        Raises:
            UserError: The space has fewer points than there are trials.
        """
        space, wanted = self.space(method, backbone), self.trials - 1
        if all(isinstance(values, list) for values in space.values()):
            grid = [dict(zip(space, values)) for values in itertools.product(*space.values())]
            if wanted and (len(grid) < wanted or not space):
                raise UserError(
                    f"{len(grid) if space else 0} points for {wanted} trials beside the study's "
                    "own recipe: the budget would not be the same for all methods",
                    where=f"methods.{method}",
                    fix="more values, a range, or fewer trials",
                )
            random.Random(f"{self.draw} {method}").shuffle(grid)
            return [{}, *grid[:wanted]]
        drawn = (random.Random(f"{self.draw} {method} {trial}") for trial in range(1, self.trials))
        return [{}, *({key: _drawn(chance, of) for key, of in space.items()} for chance in drawn)]


def _drawn(chance: random.Random, of: Any) -> Any:
    if isinstance(of, list):
        return of[chance.randrange(len(of))]
    low, high = float(of["low"]), float(of["high"])
    if of.get("scale", "log") == "linear":
        value = low + (high - low) * chance.random()
    else:
        value = low * (high / low) ** chance.random()
    return float(f"{value:.3g}")  # what a person would write


def load_search(path: Path, study: Study, trials: int | None = None) -> Search:
    """Read and check a search.

    Args:
        path: The file.
        study: Whose methods are tuned.
        trials: In place of the file's number.

    Raises:
        UserError: No such file, not of this form, a method that the study does not train, or a
            range that is none.
    """
    from jsonschema import Draft202012Validator

    if not path.is_file():
        raise UserError(
            "nothing says what to search",
            where=str(path),
            fix="write one as config/tuning/digits.yaml is, or name it with --space",
        )
    content = read_yaml(path)
    faults = [
        f"{'.'.join(map(str, error.absolute_path)) or 'the search'}: {error.message}"
        for error in Draft202012Validator(_schema()).iter_errors(content)
    ]
    trained = list(dict.fromkeys(run.method for run in study.trained_runs()))
    given = content.get("methods", {}) if not faults else {}
    faults += [f"methods.{name}: not trained by the study" for name in set(given) - set(trained)]
    shared = content.get("space", {}) if not faults else {}
    spaces = {method: _space(shared, given.get(method, {})) for method in trained}
    backbones = content.get("backbones", {}) if not faults else {}
    faults += [
        f"backbones.{name}: not in the study"
        for name in set(backbones) - set(study.config["backbones"])
    ]
    searched = {key for space in spaces.values() for key in space}
    faults += [
        f"backbones.{name}: {key}: searched for no method"
        for name, space in backbones.items()
        for key in set(space) - searched
    ]
    faults += [
        f"{name}: {key}: low {of['low']}, high {of['high']}"
        for name, space in {**spaces, **backbones}.items()
        for key, of in space.items()
        if isinstance(of, Mapping) and not _is_range(of)
    ]
    if faults:
        raise UserError(
            "not a valid search: " + "; ".join(sorted(faults)),
            where=str(path),
            fix="every key is described in src/eqadapt/tuning.schema.yaml",
        )
    seed = content.get("seed")
    return Search(
        trials or content["trials"],
        content.get("select", "mean"),
        study.config["seeds"][0] if seed is None else seed,
        content.get("draw", 0),
        spaces,
        backbones,
        content.get("within", {}),
    )


def _space(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: of for key, of in {**shared, **own}.items() if of is not None}


def _is_range(of: Mapping[str, Any]) -> bool:
    floor = -math.inf if of.get("scale", "log") == "linear" else 0.0
    return bool(floor < of["low"] < of["high"])


def as_overrides(point: Point) -> dict[str, Any]:
    """``{"train.lr": 0.1}`` to ``{"train": {"lr": 0.1}}``."""
    found: dict[str, Any] = {}
    for key, value in point.items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        found = merge(found, nested)
    return found


def untuned(study: Study) -> Study:
    """The study without its backbones' ``recipes``: no search builds on an earlier choice."""
    backbones = {
        name: {key: value for key, value in section.items() if key != "recipes"}
        for name, section in study.config["backbones"].items()
    }
    return load_study({**study.config, "backbones": backbones})


def with_point(study: Study, method: str, point: Point) -> Study:
    """The study with one method's recipe changed, around every backbone.

    Raises:
        UserError: That is no valid study.
    """
    changed = {"recipes": {method: as_overrides(point)}}
    return load_study(
        merge(study.config, {"backbones": dict.fromkeys(study.config["backbones"], changed)})
    )


@dataclass(frozen=True)
class Trial:
    """One run of one recipe.

    Attributes:
        number: From 0, the study's own recipe.
        run: What was trained.
        point: What was changed.
        found: ``val_acc``, ``val_cn_avg`` (fractions), ``score``, ``seconds``, ``config_hash``, and
            ``inputs``, a digest of what else decides it: data, weights to begin with, groups, code.
    """

    number: int
    run: Run
    point: Point
    found: Mapping[str, Any]


def write_trials(
    path: Path, trials: Iterable[Trial], others: Iterable[Mapping[str, str]] = ()
) -> None:
    """The trials as CSV; a parameter left as the study has it is empty.

    Args:
        path: The file.
        trials: Those of this search.
        others: Rows that stay as they are, see ``other_rows``.
    """
    import io

    rows: list[Mapping[str, Any]] = list(others)
    for trial in trials:
        run = {key: getattr(trial.run, key) for key in ("method", *_RUN_KEYS)}
        found = {key: trial.found[key] for key in _FOUND}
        rows.append({"trial": trial.number, **run, **trial.point, **found})
    first = ("trial", "method", *_RUN_KEYS)
    keys = sorted({key for row in rows for key in row} - {*first, *_FOUND})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*first, *keys, *_FOUND], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (int(row["trial"]), _run_of(row))))
    write_text(path, text.getvalue())


def other_rows(path: Path, planned: Collection[tuple[int, str]]) -> list[dict[str, str]]:
    """Rows of an earlier search that this one does not plan, and must not lose.

    Args:
        path: The file.
        planned: (trial, stem of the run) of this search.
    """
    return [
        row for row in _rows(path) if (int(row["trial"]), _run_of(row).stem) not in set(planned)
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _run_of(row: Mapping[str, Any]) -> Run:
    dataset, backbone, regime, method, group = (
        str(row[key]) for key in ("dataset", "backbone", "regime", "method", "group")
    )
    return Run(dataset, backbone, regime, method, group, int(row["seed"]))


def known_trials(path: Path) -> dict[tuple[int, str, str, str], dict[str, Any]]:
    """What an earlier search left.

    Returns:
        Trial, stem of the run, digests of its recipe and of its inputs -> findings. Trials of
        earlier versions, which did not tell their inputs, are not among them.
    """
    known = {}
    for row in _rows(path):
        recipe, inputs = row["config_hash"], row.get("inputs")
        if inputs:
            found: dict[str, Any] = {rate: float(row[rate]) for rate in _RATES}
            key = (int(row["trial"]), _run_of(row).stem, recipe, inputs)
            known[key] = {**found, "config_hash": recipe, "inputs": inputs}
    return known


def best_by_backbone(trials: Sequence[Trial]) -> dict[str, tuple[Point, float]]:
    """Backbone -> its best recipe and that one's score."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.run.backbone, []).append(trial)
    return {backbone: best(of) for backbone, of in found.items()}


def best(trials: Sequence[Trial]) -> tuple[Point, float]:
    """The recipe with the best mean score over its runs, and that score; of equals, the first."""
    scores: dict[int, list[float]] = {}
    points: dict[int, Point] = {}
    for trial in trials:
        scores.setdefault(trial.number, []).append(float(trial.found["score"]))
        points[trial.number] = trial.point
    means = {number: sum(values) / len(values) for number, values in scores.items()}
    winner = max(sorted(means), key=lambda number: means[number])
    return points[winner], means[winner]


Choice = Mapping[str, Mapping[str, tuple[Point, float]]]
"""Method -> backbone -> best recipe and its score."""


def write_choice(
    path: Path, study: Study, search: Search, chosen: Choice, replaces: bool = False
) -> None:
    """The choice as a part of a study: each backbone's ``recipes``, with what was found best.

    Args:
        path: The file, YAML.
        study: The study as it was given; methods that were not tuned stay as they are there.
        search: What was searched.
        chosen: The best recipes.
        replaces: Whether the study has ``recipes`` already. Laid over these, a choice would be
            mixed with them: to a recipe that nobody tried.
    """
    use = [f"#   snakemake --configfile config/{study.name}.yaml {path.as_posix()}"]
    if replaces:
        use = [
            f"# put these in the place of the `recipes` of config/{study.name}.yaml. (Laid over it",
            "# with --configfile they would be mixed with those.)",
        ]
    lines = [
        f"# Recipes of {study.name}, chosen on the validation split: for each backbone and method",
        f"# the best of {search.trials} trials, seed {search.seed}, by the {RULES[search.select]}.",
        "# The test split was not read. To use it:",
        *use,
        "#",
        *(
            f"# {name}, {backbone}: {100 * score:.2f}"
            for name, found in chosen.items()
            for backbone, (_, score) in found.items()
        ),
    ]
    if search.within:
        changed = yaml.safe_dump(dict(search.within), default_flow_style=True, width=60).strip()
        lines += ["# trials ran with:", *(f"#   {line}" for line in changed.splitlines())]
    left = [name for name in study.config["methods"] if name not in chosen]
    lines += [f"# not tuned: {', '.join(left)}"] if left else []
    recipes: dict[str, Any] = {}
    for name, found in chosen.items():
        for backbone, (point, _) in found.items():
            part = recipes.setdefault(backbone, {"recipes": {}})
            part["recipes"][name] = as_overrides(point)
    body = yaml.safe_dump({"backbones": recipes}, sort_keys=False)
    write_text(path, "\n".join(lines) + "\n" + body)
