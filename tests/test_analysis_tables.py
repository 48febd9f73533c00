"""Tables and names of outputs: published figures beside ours, never in their place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from analysis_fixtures import BEHAVIOURS, Behaviour, StudySpec, make_study

from eqadapt.analysis import formatting as f
from eqadapt.analysis import labels, outputs
from eqadapt.analysis.published import load_published
from eqadapt.analysis.results import Results, open_results
from eqadapt.analysis.tables import diagnostics_table, main_table, published_grid
from eqadapt.cli import main
from eqadapt.errors import UserError

PUBLISHED = Path(__file__).parents[1] / "config" / "published.yaml"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """CIFAR-10 on ResNet-50, a published cell, and on a network nobody published."""
    behaviours = BEHAVIOURS | {"my_new_idea": Behaviour(0.5, 0.5, 0.5, passes=8)}
    spec = StudySpec(
        name="cifar10",
        datasets=("cifar10",),
        backbones=("resnet50", "mine"),
        groups=("C4", "C8"),
        images=100,
        behaviours=behaviours,
    )
    folder = make_study(tmp_path_factory.mktemp("results") / "cifar10", spec)
    assert main(["metrics", "--results", str(folder)]) == 0
    assert main(["tables", "--results", str(folder), "--published", str(PUBLISHED)]) == 0
    return folder


def cell(frame: pd.DataFrame, backbone: str, method: str, metric: str) -> pd.Series:
    here = (frame["backbone"] == backbone) & (frame["method"] == method)
    here &= frame["dataset"] == "cifar10"
    return frame[here & (frame["metric"] == metric)].squeeze()


def test_every_declared_table_is_written(study):
    config = open_results(study).config
    written = {p.relative_to(study).as_posix() for p in (study / "tables").iterdir()}
    assert written == set(outputs.table_files(config))


def test_published_beside_ours(study):
    frame = pd.read_csv(study / "tables/main-joint-C8.csv", keep_default_na=False)
    row = cell(frame, "resnet50", "prlc", "cn_avg")
    assert float(row["published_percent"]) == 95.31
    assert (row["published_grade"], row["published_paper"]) == ("C", "mondal2023")
    ours = float(row["mean_percent"])
    assert float(row["difference_points"]) == pytest.approx(ours - 95.31)
    metrics = pd.read_csv(study / "metrics.csv")
    here = metrics[(metrics.method == "prlc") & (metrics.group == "C8")]
    assert ours == pytest.approx(100 * here[here.backbone == "resnet50"]["cn_avg"].mean())


def test_published_figures_are_found_by_what_an_entry_is_of(tmp_path):
    spec = StudySpec(
        datasets=("part",), backbones=("resnet50", "r50"), groups=("C8",), images=20, poses=8,
        behaviours={name: BEHAVIOURS[name] for name in ("vanilla", "prlc")},
    )  # fmt: skip
    folder = make_study(tmp_path, spec)
    config = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    config["datasets"] = {"part": {"source": "cifar10"}}
    config["backbones"] = {"resnet50": {"model": "resnet18"}, "r50": {"model": "resnet50"}}
    (folder / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    table = main_table(open_results(folder), load_published(PUBLISHED), "joint", "C8")
    found = table.frame.set_index(["dataset", "backbone", "method", "metric"])["published_percent"]
    assert found["part", "r50", "prlc", "acc"] == 96.19
    assert found["part", "resnet50", "prlc", "acc"] == "n/a"
    assert ("cifar10", "resnet50", "prlc", "acc") not in found.index  # it was run
    assert all("CIFAR-10, " not in column.group for column in table.grids[1].columns)


def test_every_published_cell_of_the_papers_study_is_found():
    published = load_published(PUBLISHED)
    config = yaml.safe_load((PUBLISHED.parent / "paper.yaml").read_text(encoding="utf-8"))
    results = Results(Path("paper"))
    results.__dict__["config"] = config
    run = {
        results.published_as(dataset, backbone)
        for dataset in config["datasets"]
        for backbone in config["backbones"]
    }
    for group in config["groups"]:
        assert set(published.tabled(group)) <= run
    pair = results.published_as("cifar100", "vit_b16")
    assert published.find(*pair, "C8", "prlc", "acc").value == 84.27


def test_networks_that_would_be_called_alike_keep_their_names_and_columns(tmp_path):
    names = ("vit_small_patch16_224", "vit_small_patch16_384")
    spec = StudySpec(
        backbones=names, groups=("C8",), images=20, poses=8, seeds=(0, 1),
        behaviours={name: BEHAVIOURS[name] for name in ("vanilla", "prlc")},
    )  # fmt: skip
    results = open_results(make_study(tmp_path, spec))
    assert [results.backbone_label(name) for name in names] == list(names)
    grid = main_table(results, load_published(PUBLISHED), "joint", "C8").grids[0]
    groups = f.column_groups(grid.columns)
    assert groups == [("", 1), *((f"Digits, {name}", 2) for name in names)]
    alike = [f.Column("Acc", "ViT-S/16", cell=(name,)) for name in names for _ in range(2)]
    assert f.column_groups(alike) == [("ViT-S/16", 2), ("ViT-S/16", 2)]


def test_absent_published_cells_are_na(study):
    frame = pd.read_csv(study / "tables/main-joint-C8.csv", keep_default_na=False)
    for backbone, method in (("mine", "prlc"), ("resnet50", "prlc_rotated")):
        row = cell(frame, backbone, method, "acc")
        assert row["published_percent"] == row["difference_points"] == "n/a"
    text = (study / "tables/main-joint-C8.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| PRLC (rotated prior)"))
    assert line.count("(n/a)") == 4
    line = next(line for line in text.splitlines() if line.startswith("| PRLC |"))
    assert "96.19 B; " in line and "95.31 C; " in line and line.count("(n/a)") == 2


def test_published_cells_that_were_not_run_have_no_number_of_ours(study):
    frame = pd.read_csv(study / "tables/main-joint-C8.csv", keep_default_na=False)
    row = frame[(frame.dataset == "cifar100") & (frame.method == "lc") & (frame.metric == "acc")]
    assert row["mean_percent"].tolist() == ["", ""]
    assert [float(value) for value in row["published_percent"]] == [78.6, 80.86]


def test_rotated_mnist_has_its_published_figures():
    """Models of the paper as networks, methods and groups of ours; none in place of another."""
    published = load_published(PUBLISHED)

    def acc(backbone, group, method):
        figure = published.find("rotated_mnist", backbone, group, method, "acc")
        return figure.value if figure else None

    assert acc("mnist_cnn", "C4", "lc") == 97.59 and acc("mnist_cnn", "C64", "lc") == 98.01
    assert acc("mnist_cnn", "C16", "lc") is None
    assert acc("mnist_cnn", "C4", "frozen_canonicalizer") == 96.09
    for group in ("C4", "C16"):  # of no group
        assert acc("mnist_cnn", group, "pca_frame") == acc("mnist_cnn", group, "optimised") == 96.65
        assert acc("mnist_cnn", group, "vanilla") == 95.10 != acc("mnist_gcnn", group, "vanilla")
    assert published.find("rotated_mnist", "mnist_cnn", "C4", "lc", "cn_avg") is None
    # Studies of other data do not list what has no average over the group.
    assert all(dataset != "rotated_mnist" for dataset, _ in published.cells("C4"))


def test_a_regime_and_group_without_runs_or_published_figures_has_an_empty_table(study):
    table = main_table(open_results(study), load_published(PUBLISHED), "frozen", "C64")
    assert table.frame.empty and "mean_percent" in table.frame and not table.grids


def test_copies_of_one_run_have_no_interval_over_seeds(tmp_path):
    spec = StudySpec(images=40, poses=8, groups=("C8",), backbones=("one",))
    folder = make_study(tmp_path, spec)
    assert main(["metrics", "--results", str(folder)]) == 0
    metrics = pd.read_csv(folder / "metrics.csv")
    same = metrics["method"] == "vanilla"
    own = [name for name in metrics if name not in ("run", "seed")]
    for name in own:
        metrics.loc[same, name] = metrics.loc[same, name].iloc[0]
    metrics.to_csv(folder / "metrics.csv", index=False)
    table = diagnostics_table(open_results(folder), load_published(PUBLISHED), "joint", "C8")
    ends = table.frame.set_index("method")[["worst_pose_acc_low", "worst_pose_acc_high"]]
    assert ends.loc["vanilla"].isna().all() and ends.loc["prlc"].notna().all()


def test_published_figures_are_no_measure_of_a_frozen_network(tmp_path):
    spec = StudySpec(
        datasets=("cifar10",), backbones=("resnet50",), regimes=("frozen",), images=20, poses=8
    )
    table = main_table(
        open_results(make_study(tmp_path, spec)), load_published(PUBLISHED), "frozen", "C8"
    )
    ours = table.frame[table.frame["mean_percent"].notna()]
    assert set(ours["published_percent"]) == {"n/a"}


def test_the_best_of_a_column_is_bold_and_never_the_oracle(study):
    table = main_table(open_results(study), load_published(PUBLISHED), "joint", "C8")
    grid = table.grids[0]
    bold = {
        (row[0].value, number) for row in grid.rows for number, text in enumerate(row) if text.bold
    }
    assert bold == {
        ("Vanilla", 1),
        ("PRLC (rotated prior)", 2),
        ("Vanilla", 3),
        ("PRLC (rotated prior)", 4),
    }
    assert grid.rows[-1][0].value == "Oracle (true pose)" and grid.rules == (len(grid.rows) - 1,)


def test_diagnostics_and_paired_tests(study):
    frame = pd.read_csv(study / "tables/diagnostics-joint-C8.csv").set_index(["backbone", "method"])
    assert frame.loc[("mine", "prlc"), "consistency_rest"] == pytest.approx(0.3)
    assert pd.isna(frame.loc[("mine", "vanilla"), "identity_rate"])
    assert frame.loc[("mine", "my_new_idea"), "backbone_passes"] == 8
    paired = pd.read_csv(study / "tables/paired_tests-joint-C8.csv")
    # 7 methods: 21 pairs, twice (metrics), twice (networks).
    assert len(paired) == 21 * 2 * 2
    assert (paired["p_holm"] >= paired["p_sign_flip"]).all()
    row = paired[
        (paired["first"] == "vanilla") & (paired["second"] == "lc") & (paired.metric == "cn_avg")
    ]
    assert (row["difference"] < -20).all() and (row["p_holm"] < 0.001).all()
    assert row["p_mcnemar"].isna().all()


def test_angles_between_the_groups_have_a_column_where_they_were_tested(study, tmp_path):
    metrics = pd.read_csv(study / "metrics.csv").groupby(["backbone", "group", "method"])
    wanted = metrics["all_pose_acc"].mean()
    for group, others in (("C4", 20), ("C8", 16)):
        path = study / f"tables/diagnostics-joint-{group}"
        frame = pd.read_csv(path.with_suffix(".csv")).set_index(["backbone", "method"])
        assert frame["all_pose_acc"]["mine", "lc"] == pytest.approx(wanted["mine", group, "lc"])
        text = path.with_suffix(".md").read_text(encoding="utf-8")
        assert f"24 angles tested, of which {others} are no elements of {group}." in text
        head, line = (
            next(x for x in text.splitlines() if s in x) for s in ("| Method", ", mine | LC")
        )
        cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
        assert cells["All angles"] == f.share(wanted["mine", group, "lc"])
        assert " & All angles & " in path.with_suffix(".tex").read_text(encoding="utf-8")
    spec = StudySpec(groups=("C4", "C8"), backbones=("one",), images=20, poses=8, seeds=(0, 1))
    folder = make_study(tmp_path, spec)
    assert main(["metrics", "--results", str(folder)]) == 0
    for group, shown in (("C4", True), ("C8", False)):
        table = diagnostics_table(open_results(folder), load_published(PUBLISHED), "joint", group)
        assert ("All angles" in [column.title for column in table.grids[0].columns]) == shown
        assert ("All angles" in table.grids[0].caption) == shown
        assert table.frame["all_pose_acc"].notna().all() == shown
        assert len({len(row) for row in table.grids[0].rows} | {len(table.grids[0].columns)}) == 1


def test_latex_is_balanced_and_escaped(study):
    text = (study / "tables/main-joint-C8.tex").read_text()
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    assert text.count("{") == text.count("}")
    widths = {
        line.count("&") + sum(int(n) - 1 for n in _spans(line))
        for line in text.split(r"\end{table}")[0].splitlines()
        if line.endswith(r"\\")
    }
    assert widths == {4}
    assert r"\textbf{" in text and r"$\pm$" in text and "n/a" in text
    assert f.latex_escape("50% & λ_1 < 2") == r"50\% \& $\lambda$\_1 $<$ 2"
    assert f.latex_escape("|f(x)|") == "$|$f(x)$|$"  # OT1 would set a dash


def _spans(line: str) -> list[str]:
    return [part.split("}")[0] for part in line.split(r"\multicolumn{")[1:]]


def test_one_seed_has_an_interval_over_images(tmp_path):
    spec = StudySpec(images=100, seeds=(0,), groups=("C8",), backbones=("mine",), poses=8)
    table = main_table(
        open_results(make_study(tmp_path, spec)), load_published(PUBLISHED), "joint", "C8"
    )
    assert set(table.frame[table.frame["mean_percent"].notna()]["interval"]) == {"images"}
    vanilla = table.grids[0].rows[0][1].value
    assert vanilla.startswith("97.0 [9") or vanilla.startswith("96.0 [9")


def test_a_group_without_published_figures_has_no_reference_table():
    published = load_published(PUBLISHED)
    assert published_grid(published, "C16") is None
    assert published.find("cifar10", "resnet50", "C16", "prlc", "acc") is None
    timm = published.find("cifar100", "vit_base_patch16_224.augreg_in21k", "C8", "prlc", "acc")
    assert timm is not None and (timm.value, timm.grade) == (84.27, "B")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable as YAML"),
        ("papers: {}", "no key 'classification'"),
        ("classification: [{paper: x, dataset: y}]", "entry 1 of 'classification' lacks backbone"),
    ],
)
def test_a_wrong_published_file_is_named(tmp_path, text, message):
    path = tmp_path / "published.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_published(path)


# --- names ----------------------------------------------------------------------------------------


def test_names_follow_from_the_configuration():
    config = {
        "datasets": {"digits": {}},
        "backbones": ["one", "two"],
        "groups": {"C4": {}, "C8": {}},
        "regimes": ["joint"],
    }
    tables, figures = outputs.table_files(config), outputs.figure_files(config)
    assert "tables/main-joint-C8.tex" in tables and "tables/accuracy_by_angle.csv" in tables
    assert len(tables) == len(set(tables)) == 3 * 2 * 3 + 1
    assert "figures/gallery-digits-two-joint-C4.png" in figures
    assert "figures/accuracy_by_angle-digits-joint-C8.svg" in figures
    assert len(figures) == len(set(figures)) == 5 * 2 * 2 + 2 * 2


def test_names_import_nothing_heavy():
    code = (
        "import sys, eqadapt.analysis.outputs, eqadapt.analysis.labels;"
        "print([m for m in ('numpy', 'pandas', 'torch', 'matplotlib', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listed_methods_are_told_apart_without_colour():
    styles = labels.method_styles(labels.METHODS)
    assert len({style.colour for style in styles.values()}) == len(styles)
    assert len({(style.marker, style.dash) for style in styles.values()}) == len(styles)
    assert all(style.sentence.endswith(".") for style in styles.values())


def test_unknown_methods_get_a_style_of_their_own():
    names = [f"idea_{k}" for k in range(12)] + ["vanilla", "oracle", "its_confidence"]
    styles = labels.method_styles(names)
    assert next(iter(styles)) == "vanilla" and list(styles)[-1] == "oracle"
    assert styles["idea_3"].label == "Idea 3" and styles["its_confidence"].label == "ITS confidence"
    assert styles["idea_3"] == labels.method_styles(names)["idea_3"]
    assert len({(style.marker, style.dash) for style in styles.values()}) == len(styles)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mobilenetv2_100", "MobileNetV2"),
        ("mobilenetv2_050", "MobileNetV2 (0.5)"),
        ("resnet50", "ResNet-50"),
        ("resnet50.a1_in1k", "ResNet-50"),
        ("resnet10t", "ResNet-10t"),
        ("cifar_resnet20", "ResNet-20 (CIFAR)"),
        ("vit_base_patch16_224", "ViT-B/16"),
        ("vit_tiny_patch16_224", "ViT-Ti/16"),
        ("vit_small", "ViT small"),
        ("open_clip:RN50", "CLIP RN50"),
    ],
)
def test_backbone_labels(name, label):
    assert labels.backbone_label(name) == label


def test_numbers_as_text():
    assert f.points(57.84) == "57.8" and f.points(-0.04) == "0.0" and f.points(-1.25) == "−1.2"
    assert f.signed(1.2) == "+1.2" and f.signed(-1.2) == "−1.2" and f.signed(0.01) == "0.0"
    assert f.with_interval(94.9, 94.5, 95.3, "seeds") == "94.9 ± 0.4"
    assert f.with_interval(94.9, 93.0, 96.2, "images") == "94.9 [93.0, 96.2]"
    assert f.with_interval(94.9, float("nan"), float("nan"), "none") == "94.9"
    assert f.p_value(0.0004) == "<0.001" and f.p_value(0.05) == "0.050"
    assert f.duration(42.4) == "42 s" and f.duration(210) == "3.5 min"
