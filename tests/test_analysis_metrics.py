"""Prediction files and the metrics computed from them, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from analysis_fixtures import BEHAVIOURS, Behaviour, StudySpec, make_study, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from eqadapt.analysis.evaluations import evaluate
from eqadapt.analysis.metrics import COLUMNS, accuracy_by_pose, metrics_frame, rates
from eqadapt.analysis.predictions import angle_gap, iterate_predictions, load_predictions
from eqadapt.analysis.results import open_results
from eqadapt.cli import main
from eqadapt.errors import UserError

LABEL = [0, 1, 2, 3]
# Rows: four images; columns: eight poses, 0 to 315 degrees. 1: predicted right.
RIGHT = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 1, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 1],
    ]
)


def predictions_from(right: np.ndarray) -> np.ndarray:
    label = np.asarray(LABEL)[:, None]
    return np.where(right == 1, label, (label + 1) % 10)


def evaluated(path: Path, *groups: str) -> list[dict[str, float]]:
    return [rates(e) for e in evaluate(load_predictions(path), groups)]


def test_accuracies_by_hand(tmp_path):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    c8, c4 = evaluated(path, "C8", "C4")
    assert c8["acc"] == c4["acc"] == 3 / 4
    assert c8["cn_avg"] == (8 + 3 + 1 + 2) / 32
    # Poses 0, 90, 180, 270: columns 0, 2, 4, 6.
    assert c4["cn_avg"] == (3 + 3 + 2 + 1) / 16
    assert (c8["worst_pose_acc"], c4["worst_pose_acc"]) == (1 / 4, 1 / 4)
    assert c8["orbit_agreement"] == 1 / 4
    assert math.isnan(c8["identity_rate"]) and math.isnan(c8["consistency_exact"])


def test_orbit_agreement_compares_predictions_and_not_hits(tmp_path):
    """Two wrong answers that differ are no agreement, two equal wrong answers are."""
    prediction = np.array([[1, 2, 1, 2, 1, 2, 1, 2], [3, 3, 3, 3, 3, 3, 3, 3]])
    path = write_run(tmp_path, label=[0, 0], prediction=prediction)
    assert evaluated(path, "C8")[0]["orbit_agreement"] == 1 / 2
    assert evaluated(path, "C4")[0]["orbit_agreement"] == 1


def test_pose_rates_by_hand(tmp_path):
    chosen = np.array(
        [
            [0, 1, 2, 3, 4, 5, 6, 7],  # right everywhere
            [3, 4, 5, 6, 7, 0, 1, 2],  # consistent, always 135 degrees too far
            [0, 0, 2, 0, 4, 0, 6, 0],  # right at multiples of 90 degrees only
            [1, 1, 1, 1, 1, 1, 1, 1],  # always the same
        ]
    )
    path = write_run(
        tmp_path,
        label=LABEL,
        prediction=predictions_from(RIGHT),
        chosen=chosen,
        method="lc",
        group="C8",
    )
    found = evaluated(path)[0]
    assert found["identity_rate"] == 2 / 4
    assert found["pose_acc_exact"] == (4 + 0 + 4 + 0) / 16
    assert found["pose_acc_rest"] == (4 + 0 + 0 + 1) / 16
    # Three turns by multiples of 90 degrees besides the identity; four others.
    assert found["consistency_exact"] == (3 + 3 + 3 + 0) / 12
    assert found["consistency_rest"] == (4 + 4 + 0 + 0) / 16


def test_c4_has_no_rest(tmp_path):
    chosen = np.tile([0, 1, 2, 3], (4, 1))
    path = write_run(
        tmp_path,
        label=LABEL,
        prediction=predictions_from(RIGHT[:, ::2]),
        chosen=chosen,
        method="prlc",
        group="C4",
    )
    found = evaluated(path)[0]
    assert found["pose_acc_exact"] == found["consistency_exact"] == found["identity_rate"] == 1
    assert math.isnan(found["pose_acc_rest"]) and math.isnan(found["consistency_rest"])


def test_a_group_free_run_gives_one_evaluation_a_group(tmp_path):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    found = evaluate(load_predictions(path), ["C4", "C8"])
    assert [e.cell.group for e in found] == ["C4", "C8"]
    path = write_run(
        tmp_path, label=LABEL, prediction=predictions_from(RIGHT), method="lc", group="C8"
    )
    assert [e.cell.group for e in evaluate(load_predictions(path), ["C4", "C8"])] == ["C8"]


def test_row_order_does_not_matter(tmp_path):
    plain = write_run(tmp_path / "a", label=LABEL, prediction=predictions_from(RIGHT))
    mixed = write_run(tmp_path / "b", label=LABEL, prediction=predictions_from(RIGHT), shuffle=True)
    assert evaluated(mixed, "C8")[0] == pytest.approx(evaluated(plain, "C8")[0], nan_ok=True)


def test_group_must_divide_poses(tmp_path):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    with pytest.raises(UserError, match="orbit of C16 is not among the C8 poses"):
        evaluate(load_predictions(path), ["C16"])


@settings(max_examples=40, deadline=None)
@given(st.floats(-720, 720), st.floats(-720, 720), st.integers(-3, 3))
def test_angle_gap_is_a_distance_on_the_circle(left, right, turns):
    gap = angle_gap(left, right)
    assert 0 <= gap <= 180
    assert gap == pytest.approx(angle_gap(right, left), abs=1e-6)
    assert gap == pytest.approx(angle_gap(left + 360 * turns, right), abs=1e-6)


# --- whole studies ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    spec = StudySpec(images=100, jitter=0.0, backbones=("resnet10t",), seeds=(0, 1))
    folder = make_study(tmp_path_factory.mktemp("results") / "digits", spec)
    assert main(["metrics", "--results", str(folder)]) == 0
    return folder


def test_metrics_csv_has_the_accuracies_asked_for(study):
    frame = pd.read_csv(study / "metrics.csv")
    assert list(frame.columns) == list(COLUMNS)
    # vanilla and oracle: 2 groups x 2 seeds each; four methods: the same, one row a run.
    assert len(frame) == 6 * 2 * 2
    for name, behaviour in BEHAVIOURS.items():
        rows = frame[(frame["method"] == name) & (frame["group"] == "C4")]
        assert rows["acc"].to_numpy() == pytest.approx(round(100 * behaviour.upright) / 100)
        expected = (round(100 * behaviour.upright) + 3 * round(100 * behaviour.exact)) / 400
        assert rows["cn_avg"].to_numpy() == pytest.approx(expected)
        if behaviour.identity is not None:
            assert rows["identity_rate"].to_numpy() == pytest.approx(behaviour.identity)
            assert rows["consistency_exact"].to_numpy() == pytest.approx(1.0)
            assert rows["consistency_rest"].isna().all()


def test_oracle_takes_its_record_from_the_run_it_reuses(study):
    frame = pd.read_csv(study / "metrics.csv").set_index(["method", "group", "seed"])
    oracle, vanilla = (frame.loc[(m, "C8", 1)] for m in ("oracle", "vanilla"))
    assert oracle["train_seconds"] == vanilla["train_seconds"] > 0
    assert oracle["commit"] == vanilla["commit"]
    assert oracle["trained_group"] == "C1"


def test_metrics_are_the_same_bytes_again(study):
    before = (study / "metrics.csv").read_bytes()
    assert main(["metrics", "--results", str(study)]) == 0
    assert (study / "metrics.csv").read_bytes() == before


def test_accuracy_by_pose_covers_every_angle(study):
    frame = accuracy_by_pose(open_results(study).evaluations)
    one = frame[(frame["method"] == "prlc") & (frame["group"] == "C8") & (frame["seed"] == 0)]
    assert one["angle"].tolist() == [15.0 * k for k in range(24)]
    assert one["accuracy"].iloc[0] == pytest.approx(round(100 * BEHAVIOURS["prlc"].upright) / 100)


def test_groups_flag_and_missing_records(tmp_path):
    write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    with pytest.raises(UserError, match="no group to evaluate at"):
        _ = open_results(tmp_path).evaluations
    out = tmp_path / "elsewhere.csv"
    argv = ["metrics", "--results", str(tmp_path), "--groups", "C4", "--out", str(out)]
    assert main(argv) == 0
    frame = pd.read_csv(out)
    assert frame["group"].tolist() == ["C4"] and frame["train_seconds"].isna().all()


def test_runs_the_study_does_not_name_are_left_out(tmp_path, capsys):
    spec = StudySpec(images=20, seeds=(0,), groups=("C4",), backbones=("resnet10t",))
    folder = make_study(tmp_path / "digits", spec)
    write_run(folder, label=LABEL, prediction=predictions_from(RIGHT), method="lps", group="C4")
    results = open_results(folder)
    assert "lps" not in {p.meta["method"] for p in results.predictions}
    assert "left out: 1 prediction file" in capsys.readouterr().err


def test_runs_that_a_backbone_no_longer_has_are_left_out(tmp_path, capsys):
    spec = StudySpec(images=20, seeds=(0,), groups=("C4",), backbones=("resnet10t", "vit_small"))
    folder = make_study(tmp_path / "digits", spec)
    path = folder / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["backbones"]["vit_small"]["methods"] = ["vanilla"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    kept = {(p.meta["backbone"], p.meta["method"]) for p in open_results(folder).predictions}
    assert {method for backbone, method in kept if backbone == "vit_small"} == {"vanilla"}
    assert ("resnet10t", "prlc") in kept and "left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["2024", "001", "NA", "1e5"])
def test_names_that_look_like_something_else_stay_names(tmp_path, name):
    spec = StudySpec(images=20, seeds=(0,), groups=("C4",), backbones=(name,), datasets=(name,))
    folder = make_study(tmp_path / "study", spec)
    assert main(["metrics", "--results", str(folder)]) == 0
    metrics = open_results(folder).metrics
    assert set(metrics["backbone"]) == set(metrics["dataset"]) == {name}
    assert metrics["acc"].dtype == float and metrics["seed"].dtype == int


def test_runs_without_predictions_are_named(tmp_path, capsys):
    spec = StudySpec(images=20, seeds=(0, 1), groups=("C4",), backbones=("resnet10t",))
    folder = make_study(tmp_path / "digits", spec)
    assert main(["metrics", "--results", str(folder)]) == 0
    assert not capsys.readouterr().err
    for path in (folder / "predictions").glob("*-prlc-*"):
        path.unlink()
    assert main(["metrics", "--results", str(folder)]) == 0
    said = capsys.readouterr().err
    assert "2 of the study's runs, digits-resnet10t-joint-prlc-C4-seed0 the first" in said


@pytest.mark.filterwarnings("error")
def test_runs_that_trained_nothing_have_no_curve(tmp_path):
    spec = StudySpec(images=20, seeds=(0, 1), groups=("C4",), backbones=("resnet10t",))
    folder = make_study(tmp_path / "digits", spec)
    path = next((folder / "runs").glob("*-vanilla-*-seed1")) / "history.csv"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    curves = open_results(folder).histories
    assert set(curves[curves["method"] == "vanilla"]["seed"]) == {0}
    assert set(curves[curves["method"] == "prlc"]["seed"]) == {0, 1}


def test_quick_on_a_study_of_many_runs(tmp_path):
    """Vectorised: 54 files of 80,000 rows are a matter of seconds, so one is of milliseconds."""
    import time

    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, 10_000)
    path = write_run(
        tmp_path,
        label=label,
        prediction=rng.integers(0, 10, (10_000, 8)),
        chosen=rng.integers(0, 8, (10_000, 8)),
        method="lc",
        group="C8",
    )
    start = time.perf_counter()
    evaluated(path)
    assert time.perf_counter() - start < 1.0


# --- files of the wrong form --------------------------------------------------------------------


def rewritten(path: Path, change) -> Path:
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    return path


def with_column(name: str, values) -> object:
    def change(table: pa.Table) -> pa.Table:
        number = table.column_names.index(name)
        return table.set_column(number, name, pa.array(values(table[name].to_numpy())))

    return change


def without_meta_key(key: str):
    def change(table: pa.Table) -> pa.Table:
        meta = json.loads(table.schema.metadata[b"eqadapt"])
        meta.pop(key)
        return table.replace_schema_metadata({b"eqadapt": json.dumps(meta).encode()})

    return change


FAULTS = {
    "missing column chosen": lambda t: t.drop_columns(["chosen"]),
    "no 'eqadapt' metadata": lambda t: t.replace_schema_metadata({}),
    "metadata is not JSON": lambda t: t.replace_schema_metadata({b"eqadapt": b"{"}),
    "lacks poses": without_meta_key("poses"),
    "has no rows": lambda t: t.slice(0, 0),
    "exactly once": lambda t: t.slice(0, t.num_rows - 1),
    "8 poses exactly once": lambda t: pa.concat_tables([t.slice(0, 31), t.slice(0, 1)]),
    "holds double, not integers": with_column("label", lambda v: v.astype(float)),
    "two labels": with_column("label", lambda v: np.r_[v[0] + 1, v[1:]]),
    "predictions outside 0..9": with_column("prediction", lambda v: v + 100),
    "scores outside": with_column("score", lambda v: v * 2),
    "angles that are not those of the poses": with_column("angle", lambda v: -v),
}


@pytest.mark.parametrize("message", FAULTS)
def test_wrong_form_is_named(tmp_path, message):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    rewritten(path, FAULTS[message])
    with pytest.raises(UserError, match=message) as caught:
        load_predictions(path)
    assert str(path) in str(caught.value)


def test_chosen_angle_must_be_that_of_the_chosen_element(tmp_path):
    path = write_run(
        tmp_path,
        label=LABEL,
        prediction=predictions_from(RIGHT),
        chosen=np.zeros((4, 8), int),
        method="lc",
        group="C8",
    )
    rewritten(path, with_column("chosen_angle", lambda v: v + 45))
    with pytest.raises(UserError, match="not those of the chosen elements"):
        load_predictions(path)


@pytest.mark.parametrize("content", [b"", b"PAR1 not a parquet file", b"\x00" * 64])
def test_unreadable_parquet(tmp_path, capsys, content):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        load_predictions(path)
    assert main(["metrics", "--results", str(tmp_path), "--groups", "C4"]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "metrics.csv").exists()


def test_truncated_parquet(tmp_path):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        load_predictions(path)


def test_misnamed_file(tmp_path):
    path = write_run(tmp_path, label=LABEL, prediction=predictions_from(RIGHT))
    path.rename(path.with_name("digits-resnet10t-joint-lc-C8-seed0.parquet"))
    with pytest.raises(UserError, match="describes itself as run 'digits-resnet10t-joint-vanilla"):
        list(iterate_predictions(path.parent))


def test_empty_and_absent_folders(tmp_path):
    with pytest.raises(UserError, match="no prediction files"):
        list(iterate_predictions(tmp_path))
    with pytest.raises(UserError, match="no such results folder"):
        open_results(tmp_path / "nowhere")


def test_stale_metrics_are_noticed(tmp_path):
    spec = StudySpec(images=20, seeds=(0,), groups=("C4",), backbones=("resnet10t",))
    folder = make_study(tmp_path / "digits", spec)
    with pytest.raises(UserError, match="no metrics yet"):
        _ = open_results(folder).metrics
    assert main(["metrics", "--results", str(folder)]) == 0
    next((folder / "predictions").glob("*-prlc-*")).unlink()
    with pytest.raises(UserError, match="6 rows where the prediction files give 5"):
        _ = open_results(folder).metrics


def test_a_plugged_in_method_that_chooses_nothing_has_empty_pose_rates(tmp_path):
    behaviour = {"my_new_idea": Behaviour(0.9, 0.9, 0.9, passes=8)}
    spec = StudySpec(images=20, seeds=(0,), groups=("C8",), behaviours=behaviour)
    results = open_results(make_study(tmp_path / "digits", spec))
    frame = metrics_frame(results.evaluations, results.records)
    assert frame["identity_rate"].isna().all()
    assert frame["backbone_passes"].tolist() == [8, 8]
