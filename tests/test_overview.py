"""The page over all studies: every verdict and run in its place, every link leads somewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from analysis_fixtures import BEHAVIOURS, StudySpec, make_study

from eqadapt.analysis import overview as overview_page
from eqadapt.analysis.formatting import signed
from eqadapt.analysis.identity_rates import family
from eqadapt.analysis.results import read_csv
from eqadapt.cli import main

PUBLISHED = Path(__file__).parents[1] / "config" / "published.yaml"
COMMITTED = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two studies, a reduced one among them, one without its verdicts yet, and what is no study."""
    folder = tmp_path_factory.mktemp("results")
    spec = StudySpec(
        title="Digits | turned",
        images=60,
        seeds=(0, 1),
        groups=("C8",),
        backbones=("resnet10t",),
        behaviours={k: BEHAVIOURS[k] for k in ("vanilla", "lc", "prlc")},
        reduced=True,
    )
    one = make_study(folder / "one", spec)
    for verb, flags in (("metrics", []), ("claims", ["--published", str(PUBLISHED)])):
        assert main([verb, "--results", str(one), *flags]) == 0
    assert main(["tables", "--results", str(one), "--published", str(PUBLISHED)]) == 0
    two = shutil.copytree(one, folder / "two")
    text = (two / "study.yaml").read_text().replace("reduced: true", "reduced: false")
    (two / "study.yaml").write_text(re.sub(r"(?m)^study: .*$", "study: two", text))
    claims = json.loads((two / "claims.json").read_text())
    for claim in claims["claims"]:
        if claim["id"] == "K1":
            claim.update(verdict="not reproduced", cells_reproduced=0, cells_counted=3)
        if claim["id"] == "K3":
            claim.update(verdict="reproduced", cells_reproduced=1, cells_counted=1)
            claim["cells"][0].update(verdict="reproduced", counted=True)
            first, second = claim["cells"][0]["checks"]
            first.update(passed=True, clear=True)
            second.update(passed=True, clear=False)  # as files of before that name no cause
            second.pop("unclear", None)
    (two / "claims.json").write_text(json.dumps(claims))
    shutil.copytree(one, folder / "unfinished")
    (folder / "unfinished" / "claims.json").unlink()
    (folder / "benchmarks").mkdir()
    return folder


@pytest.fixture(scope="module")
def page(results):
    assert main(["overview", "--results", str(results)]) == 0
    return (results / "README.md").read_text(encoding="utf-8")


def rows(page):
    """First cell -> its row's other cells."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_each_verdict_stands_in_its_column_with_the_study_that_gave_it(results, page):
    said, reproduced, not_reproduced = rows(page)["K1"]
    assert said.startswith("A pretrained network fine-tuned")
    assert re.fullmatch(r"\[\w+\]\(one/claims.json\)\\\* 1/1", reproduced)
    assert not_reproduced == "[two](two/claims.json) 0/3"
    claims = json.loads((results / "one" / "claims.json").read_text())["claims"]
    for claim in claims:
        cells = rows(page)[claim["id"]]
        there = [verdict for verdict, cell in zip(("reproduced", "not reproduced"), cells[1:])
                 if "one/" in cell]  # fmt: skip
        assert there == ([] if claim["verdict"] == "not run" else [claim["verdict"]])
    names = [name for name in rows(page) if re.fullmatch(r"K\d+", name)]
    assert names == sorted(names, key=lambda name: int(name[1:]))


def test_a_verdict_that_other_seeds_could_change_says_so(page):
    assert "[two](two/claims.json) 1/1 (within noise)" in rows(page)["K3"][1]
    assert "[one](one/claims.json)\\* 1/1 (" not in page


def test_a_verdict_from_one_training_is_not_called_noise(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    path = folder / "two" / "claims.json"
    claims = json.loads(path.read_text(encoding="utf-8"))
    (k3,) = (claim for claim in claims["claims"] if claim["id"] == "K3")
    k3["cells"][0]["checks"][1]["unclear"] = "one training"
    path.write_text(json.dumps(claims), encoding="utf-8")
    assert main(["overview", "--results", str(folder)]) == 0
    changed = (folder / "README.md").read_text(encoding="utf-8")
    assert "[two](two/claims.json) 1/1 (one training)" in rows(changed)["K3"][1]


def test_the_parts_of_one_experiment_are_not_counted_as_several(results, page, tmp_path):
    """Save for what they say of the canonicalizer's size."""
    folder = shutil.copytree(results, tmp_path / "results")
    study = folder / "two" / "study.yaml"
    study.write_text(study.read_text(encoding="utf-8") + "ablation: true\n", encoding="utf-8")
    claims = json.loads((folder / "two" / "claims.json").read_text(encoding="utf-8"))
    for claim in claims["claims"]:
        if claim["id"] == "K8":
            claim.update(verdict="reproduced", cells_reproduced=1, cells_counted=1)
    (folder / "two" / "claims.json").write_text(json.dumps(claims), encoding="utf-8")
    assert main(["overview", "--results", str(folder)]) == 0
    changed = rows((folder / "README.md").read_text(encoding="utf-8"))
    before = rows(page)
    assert "[two](two/claims.json) 1/1" in changed["K8"][1]
    assert "[two]" in before["K1"][2] and "[two]" not in "".join(changed["K1"])
    assert changed["K1"][1] == before["K1"][1]  # the other study counts as before
    assert "[two](two/study.yaml)" in changed


def test_every_finished_study_has_a_row_and_its_links_lead_somewhere(results, page):
    assert "unfinished/" not in page and "benchmarks/" not in page
    title, data, networks, groups, methods, seeds, tested, *_ = rows(page)["[two](two/study.yaml)"]
    assert title == r"Digits \| turned"
    assert (data, networks, groups) == ("Digits", "ResNet-10t", "C8")
    assert (methods, seeds, tested) == ("3", "2", "60 (±7.7)")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert any(link.startswith("two/tables/main-") for link in links)
    assert all((results / link).exists() for link in links)


def test_what_a_study_no_longer_has_is_not_shown(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    shutil.copy(folder / "two/tables/main-joint-C8.md", folder / "two/tables/main-joint-C16.md")
    (folder / "two/headline").mkdir()
    (folder / "two/headline/digits-resnet10t-joint-lc-C16.json").write_text("{}")
    assert main(["headline", "--results", str(folder / "two")]) == 0
    kept = {path.stem for path in (folder / "two/headline").iterdir()}
    assert kept == {f"digits-resnet10t-joint-{name}-C8" for name in ("vanilla", "lc", "prlc")}
    assert main(["overview", "--results", str(folder)]) == 0
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert "two/tables/main-joint-C8.md" in written and "C16" not in written


def test_a_folder_without_studies_is_told(tmp_path, capsys):
    assert main(["overview", "--results", str(tmp_path)]) == 2
    assert "no finished study" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_study_may_list_names_where_it_says_nothing_of_them(results, page, tmp_path):
    """As its author may write it, and copy it by hand."""
    folder = shutil.copytree(results, tmp_path / "results")
    path = folder / "two" / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config |= {"datasets": ["digits"], "backbones": {"resnet10t": None}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["overview", "--results", str(folder)]) == 0
    listed = rows((folder / "README.md").read_text(encoding="utf-8"))
    assert listed["[two](two/study.yaml)"] == rows(page)["[two](two/study.yaml)"]


# --- poses kept -----------------------------------------------------------------------------------

RATES = [f"identity_rate.{form}" for form in ("csv", "svg", "png")]


def changed_metrics(results, folder, change):
    """A copy of the studies, the page made again with ``change`` of the metrics of each."""
    shutil.copytree(results, folder)
    for name in ("one", "two"):
        path = folder / name / "metrics.csv"
        change(name, pd.read_csv(path)).to_csv(path, index=False)
    assert main(["overview", "--results", str(folder)]) == 0
    return (folder / "README.md").read_text(encoding="utf-8")


def test_each_canonicalized_run_is_a_point_beside_its_own_vanilla(results, page):
    """Copies of a run, as all those of the second study are, count once."""
    metrics = pd.read_csv(results / "one" / "metrics.csv").set_index(["method", "seed"])
    found = pd.read_csv(results / RATES[0])
    assert list(zip(found["method"], found["seed"])) == [
        ("lc", 0), ("lc", 1), ("prlc", 0), ("prlc", 1)
    ]  # fmt: skip
    assert set(found["study"]) == {"one"} and found["images_upright"].all()
    for row in found.itertuples():
        own, vanilla = metrics.loc[(row.method, row.seed)], metrics.loc[("vanilla", row.seed)]
        assert row.identity_rate_percent == pytest.approx(100 * own["identity_rate"])
        assert row.difference_points == pytest.approx(100 * (own["acc"] - vanilla["acc"]))
    cells = rows(page)["Digits"]
    assert cells[:2] == ["1", "4"]
    low, high = (found[found["method"] == name]["difference_points"] for name in ("lc", "prlc"))
    assert cells[3:] == [f"{signed(low.median())} (2)", "–", "–", f"{signed(high.median())} (2)"]
    assert "](identity_rate.png)" in page and "Hollow" not in page


def test_points_are_in_order_of_rank_where_the_correlation_is_one(results, tmp_path):
    def change(name, metrics):
        chosen = metrics["identity_rate"].notna()
        rates = [0.5, 0.75, 0.9, 1.0] if name == "one" else [0.1, 0.2, 0.3, 0.4]
        metrics.loc[chosen, "identity_rate"] = rates
        metrics.loc[chosen, "acc"] = [rate**2 for rate in rates]
        metrics.loc[metrics["method"] == "vanilla", "acc"] = 1.0
        return metrics

    page = changed_metrics(results, tmp_path / "results", change)
    digits = rows(page)["Digits"]
    assert digits == ["2", "8", "1.00", "−93.5 (4)", "−75.0 (1)", "−43.8 (1)", "−9.5 (2)"]


def test_oracles_frozen_networks_and_studies_without_vanilla_have_no_points(results, tmp_path):
    def change(name, metrics):
        if name == "two":
            return metrics[metrics["method"] != "vanilla"].assign(acc=0.5)
        return metrics.replace({"method": {"prlc": "oracle"}})

    folder = tmp_path / "results"
    changed_metrics(results, folder, change)
    found = pd.read_csv(folder / RATES[0])
    assert set(zip(found["study"], found["method"])) == {("one", "lc")}
    page = changed_metrics(
        folder, tmp_path / "frozen", lambda _, metrics: metrics.assign(regime="frozen")
    )
    assert "identity_rate" not in page
    assert not any((tmp_path / "frozen" / name).exists() for name in RATES)


def test_images_that_come_turned_are_drawn_and_not_counted(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    path = folder / "two" / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(config | {"datasets": {"digits": {"source": "rotated_mnist"}}}))
    assert main(["overview", "--results", str(folder)]) == 0
    found = pd.read_csv(folder / RATES[0])
    assert found.groupby("dataset")["images_upright"].agg(["all", "size"]).to_dict("index") == {
        "digits": {"all": True, "size": 4},
        "rotated_mnist": {"all": False, "size": 4},
    }
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "Hollow, and not in the table: Rotated MNIST" in page
    assert "Rotated MNIST" not in rows(page) and "all" not in rows(page)


def test_equal_metrics_give_equal_bytes(results, page, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    for name in RATES:
        (folder / name).unlink()
    assert main(["overview", "--results", str(folder)]) == 0
    for name in ("README.md", *RATES):
        assert (folder / name).read_bytes() == (results / name).read_bytes()


@pytest.mark.parametrize(
    ("method", "taught_by"),
    [
        ("pca_frame", "Nothing"),
        ("frozen_canonicalizer", "Nothing"),
        ("lc", "No prior"),
        ("optc_noprior", "No prior"),
        ("top_2", "Prior on upright images"),
        ("prlc_classwise_mirrored", "Prior on turned images"),
        ("rotation_head", "Prior on turned images"),
        ("equizero", "Network's own outputs"),
        ("self_canonicalizer", "Self-canonicalizer"),
        ("of_a_plugin", "Other"),
    ],
)
def test_methods_are_told_apart_by_what_teaches_the_pose(method, taught_by):
    assert family(method).startswith(taught_by)


def test_studies_that_share_the_runs_of_a_claim_are_named():
    """K1 speaks of vanilla alone: the same runs in two studies are one reproduction."""
    by_run: dict[str, set[str]] = {}
    for path in COMMITTED.glob("*/claims.json"):
        claims = json.loads(path.read_text(encoding="utf-8"))["claims"]
        if next(claim for claim in claims if claim["id"] == "K1")["verdict"] != "not run":
            metrics = read_csv(path.parent / "metrics.csv")
            vanilla = metrics[(metrics["method"] == "vanilla") & (metrics["regime"] == "joint")]
            for run in vanilla["config_hash"]:
                by_run.setdefault(run, set()).add(path.parent.name)
    shared = {" and ".join(sorted(names)) for names in by_run.values() if len(names) > 1}
    assert shared and all(pair in overview_page._ABOUT_CLAIMS for pair in shared)
