"""All studies of a results folder on one page: claims, what each study is, and poses kept."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from eqadapt.analysis import outputs
from eqadapt.analysis.claims import CLAIMS, doubts
from eqadapt.analysis.formatting import DASH, Column, Grid, Text, to_markdown
from eqadapt.analysis.identity_rates import STEM, TURNED, by_data, identity_rates
from eqadapt.analysis.labels import backbone_label, dataset_label, distinct_labels
from eqadapt.analysis.metrics import write_csv
from eqadapt.analysis.results import Results, read_csv
from eqadapt.analysis.statistics import wilson_interval
from eqadapt.errors import UserError
from eqadapt.files import write_text

NAME = "README.md"
_ACCURACY = 0.9  # for which the page says how surely so many test images tell it
_CLAIM_HEADINGS = tuple(
    Column(title, left=True) for title in ("claim", "what it says", "reproduced", "not reproduced")
)
_STUDY_HEADINGS = (
    *(Column(title, left=True) for title in ("study", "what", "data", "networks", "groups")),
    Column("methods"),
    Column("seeds"),
    Column("test images"),
    *(Column(title, left=True) for title in ("device", "commits", "tables")),
)

_ABOUT_CLAIMS = (
    "After a study's name: in how many of the cells that count for its verdict, each an entry of "
    "data and one of networks, the claim was reproduced; it counts as reproduced where it was in "
    "all of them. Within noise: in some or all of the cells an interval over seeds, or over "
    "images where nothing differs between seeds, reaches past the claim's bound, so that others "
    "could say otherwise. One training, or no spread: the interval there, if any, does not tell "
    "what another training would do. Studies that change one experiment in one thing after "
    "another are not counted, save for what they say of the canonicalizer's size. "
    "cifar10_imagenet_c8 and cifar10_imagenet_scorer_c8 share their vanilla runs, and so do "
    "cifar100_imagenet and cifar100_imagenet_scorer: of what these alone decide (K1) each pair is "
    "one reproduction. "
    "Studies marked * call themselves reduced. Most are on other data or networks than the "
    "papers': reports say so beside each verdict, and `claims.json` has its rule, numbers and "
    "tests."
)
_ABOUT_STUDIES = (
    "Groups, methods and seeds are those of the runs that were evaluated; entries share a network, "
    "or a source of data, and differ in their recipes or parts. The commits are those that "
    "trained the runs (of test-time methods: that predicted). Behind the number of test images: "
    f"how far, in points, other ones would move an accuracy of {_ACCURACY:.0%} (half of a 95% "
    "interval). Intervals over seeds do not contain that; methods are compared on the same "
    "images, so that differences between them are surer."
)

_ABOUT_RATES = (
    "A point is a fine-tuned run of a method that chooses a pose, oracles aside, at one group; a "
    "run that several studies or entries repeat counts once. Across: the share of upright test "
    "images whose pose it keeps. Up: its accuracy on them minus that of the vanilla network of "
    "the same study, data, network and seed; runs without one are left out. Coloured by what "
    "teaches the choice. In the table: Spearman's rank correlation of the two over runs, and the "
    "median difference, in points, of the runs that keep so many poses, with their number. Runs "
    "of a study share its data, and methods its vanilla networks, so that they are no independent "
    "sample; methods differ in more than this rate."
)


def write_overview(folder: Path) -> list[Path]:
    """Write ``README.md``, and the figure in it with its points, into a folder of studies.

    The files of the figure are written where at least one run has a point in it, else deleted.

    Args:
        folder: ``results``; each folder in it with ``study.yaml``, ``metrics.csv`` and
            ``claims.json`` is a study.

    Returns:
        The page first, then the points (CSV) and the figure in each format.

    Raises:
        UserError: There is no finished study in it.
    """
    studies = [
        Results(path.parent)
        for path in sorted(folder.glob(f"*/{outputs.CLAIMS}"))
        if (path.parent / outputs.METRICS).is_file() and (path.parent / "study.yaml").is_file()
    ]
    if not studies:
        raise UserError(
            "no finished study", where=str(folder), fix="run one, or name another --results"
        )
    path, rates = folder / NAME, identity_rates(studies)
    write_text(path, overview(studies, rates))
    return [path, *_write_rates(folder / STEM, rates)]


def _write_rates(base: Path, rates: pd.DataFrame) -> list[Path]:
    if rates.empty:
        for form in ("csv", *outputs.FIGURE_FORMATS):
            base.with_suffix(f".{form}").unlink(missing_ok=True)
        return []
    # Here, as matplotlib takes a second to import.
    from eqadapt.analysis.figures.identity_rate import accuracy_against_identity_rate
    from eqadapt.analysis.figures.style import save, themed

    table = base.with_suffix(".csv")
    write_csv(rates, table)
    with themed():
        return [table, *save(accuracy_against_identity_rate(rates), base)]


def overview(studies: Sequence[Results], rates: pd.DataFrame) -> str:
    """The page as Markdown; links are relative to the folder of the studies.

    Args:
        studies: The finished studies.
        rates: As ``identity_rates`` returns it for them.
    """
    parts = [
        "# All studies",
        "",
        "Made by `eqadapt overview` from what the studies left; not edited by hand.",
        "",
        "## Where each claim was tested",
        "",
        to_markdown(Grid(_CLAIM_HEADINGS, _claim_rows(studies))),
        _ABOUT_CLAIMS,
        "",
        "## What each study is",
        "",
        to_markdown(Grid(_STUDY_HEADINGS, [_study_row(study) for study in studies])),
        _ABOUT_STUDIES,
        *_rates_section(rates),
    ]
    return "\n".join(parts) + "\n"


def _rates_section(rates: pd.DataFrame) -> list[str]:
    if rates.empty:
        return []
    turned = [dataset_label(name) for name in TURNED if name in set(rates["dataset"])]
    hollow = f" Hollow, and not in the table: {', '.join(turned)}, whose images come turned."
    return [
        "",
        "## Poses kept and upright accuracy",
        "",
        f"![Upright accuracy minus vanilla's against the share of poses kept]({STEM}.png)",
        "",
        f"{_ABOUT_RATES}{hollow if turned else ''} [All points]({STEM}.csv).",
        "",
        to_markdown(by_data(rates)).rstrip("\n"),
    ]


def _claim_rows(studies: Sequence[Results]) -> list[list[Text]]:
    said: dict[str, str] = {}
    places: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for study in studies:
        text = (study.folder / outputs.CLAIMS).read_text(encoding="utf-8")
        for claim in json.loads(text)["claims"]:
            said[claim["id"]] = claim["text"]
            if not study.ablation or _about_sizes(claim["id"]):
                places[claim["id"]][claim["verdict"]].append(_place(study, claim))
    return [
        [
            Text(name),
            Text(said[name]),
            *(
                Text(", ".join(places[name][verdict]) or DASH)
                for verdict in ("reproduced", "not reproduced")
            ),
        ]
        for name in sorted(said, key=_number)
    ]


def _about_sizes(claim: str) -> bool:
    return claim in CLAIMS and CLAIMS[claim].by_size


def _number(claim: str) -> tuple[int, str]:
    """``"K10"`` after ``"K9"``; claims that others register, by their names, last."""
    digits = claim.removeprefix("K")
    return (int(digits), "") if digits.isdecimal() else (1_000_000, claim)


def _place(study: Results, claim: Mapping[str, Any]) -> str:
    mark = "\\*" if study.reduced else ""
    link = f"[{study.name}]({study.folder.name}/{outputs.CLAIMS}){mark}"
    causes = ", ".join(doubts(claim.get("cells", ())))
    doubt = f" ({causes})" if causes else ""
    return f"{link} {claim.get('cells_reproduced', 0)}/{claim.get('cells_counted', 0)}{doubt}"


def _study_row(study: Results) -> list[Text]:
    metrics = read_csv(study.folder / outputs.METRICS)
    listed = ", ".join(
        f"[{stem.split('-', 1)[1]}]({study.folder.name}/{stem}.md)" for stem in _tables(study)
    )
    note = "\\*" if study.reduced else ""
    return [
        Text(f"[{study.name}]({study.folder.name}/study.yaml){note}"),
        Text(study.words("title")),
        Text(_entries(study, "datasets", metrics["dataset"], dataset_label)),
        Text(_entries(study, "backbones", metrics["backbone"], backbone_label)),
        Text(_several(sorted(_seen(metrics, "group"), key=lambda group: int(group[1:])))),
        Text(str(metrics["method"].nunique())),
        Text(str(metrics["seed"].nunique())),
        Text(f"{_range(metrics['n_test'])} (±{_by_images(int(metrics['n_test'].min())):.1f})"),
        Text(_several(_seen(metrics, "device"))),
        Text(_several(f"`{_short(commit)}`" for commit in _seen(metrics, "commit"))),
        Text(listed or DASH),
    ]


def _tables(study: Results) -> list[str]:
    """Those of its first kind that are there; of regimes and groups it no longer has, none."""
    cells = product(outputs.regimes(study.config), outputs.groups(study.config))
    stems = (outputs.table_stem(outputs.tables(study.config)[0], *cell) for cell in cells)
    return sorted(stem for stem in stems if (study.folder / f"{stem}.md").is_file())


def _entries(study: Results, section: str, names: pd.Series, label: Callable[[str], str]) -> str:
    """``"ResNet-20 (CIFAR) (3 entries)"``: what is behind the names of a study's entries."""
    behind = Counter(study.behind(section, name) for name in names.unique())
    said = distinct_labels(behind, label)
    return _several(
        said[name] + (f" ({count} entries)" if count > 1 else "") for name, count in behind.items()
    )


def _seen(metrics: pd.DataFrame, column: str) -> list[str]:
    """The values of a column in their order."""
    return [str(value) for value in metrics[column].dropna().unique()]


def _several(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or DASH


def _short(commit: str) -> str:
    """Seven digits, and the mark of a tree with changes of its own."""
    return commit[:7] + ("-dirty" if commit.endswith("-dirty") else "")


def _by_images(count: int) -> float:
    """Half of the 95% interval over so many test images, in points."""
    return 100 * wilson_interval(round(_ACCURACY * count), count).half_width


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
