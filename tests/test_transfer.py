"""Canonicalizers on other data: what is measured is what predictions say of the run's own data."""

import csv

import pytest
import yaml

from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.study import load_study
from eqadapt.transfer import (
    COLUMNS,
    Transfer,
    canonicalizers,
    read_transfers,
    with_rows,
    write_transfers,
)

STUDY = {
    "study": "two",
    "datasets": {
        "digits": {"limit_train": 300, "limit_test": 40},
        "digits_held": {
            "source": "digits",
            "validation": 300,
            "limit_train": 20,
            "limit_test": 30,
            "train": {"epochs": 0},
        },
    },
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4", "C8"],
    "methods": ["vanilla", "prlc_rotated", "oracle"],
    "seeds": [0],
    "image": {"size": 16},
    "scorer": {"inner": "group_cnn", "width": 4, "layers": 2, "input_size": 17},
    "train": {"epochs": 6, "batch_size": 30, "scorer_lr": 0.03, "prior_weight": 10.0},
    "evaluate": {"poses": "C8", "gallery": 1},
    "device": "cpu",
}


def test_only_networks_that_look_at_the_input_are_transferred():
    methods = ["vanilla", "prlc", "oracle", "equitune", "lps", "lc", "rotation_augmentation"]
    study = load_study({**STUDY, "methods": methods})
    assert {run.method for run in canonicalizers(study.runs())} == {"prlc", "lc"}


def row_of(seed, pose_acc):
    return Transfer("a", "b", "resnet_small", "joint", "prlc", "C4", seed, pose_acc, 0.5, 1 / 3, 40)


def test_rows_of_other_runs_are_kept(tmp_path):
    path = tmp_path / "transfer.csv"
    assert read_transfers(path) == []
    write_transfers(path, [row_of(0, 0.25), row_of(1, 0.5)])
    written = path.read_bytes()
    write_transfers(path, with_rows(read_transfers(path), [row_of(1, 0.75)]))
    assert [row.pose_acc for row in read_transfers(path)] == [0.25, 0.75]
    write_transfers(path, with_rows(read_transfers(path), [row_of(1, 0.5)]))
    assert path.read_bytes() == written


@pytest.mark.parametrize("text", ["a,b\n1,2\n", f"{','.join(COLUMNS)}\na,b\n"])
def test_a_table_of_another_form_is_not_overwritten_by_a_part(tmp_path, text):
    path = tmp_path / "transfer.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="without filters"):
        read_transfers(path)


@pytest.mark.slow
def test_transfer_measures_what_predictions_say(tmp_path, monkeypatch, capsys):
    from project_fixtures import prepare_digits

    prepare_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    held = ["--validation", "300", "--out", "data/prepared/digits-v300"]
    assert main(["prepare", "--dataset", "digits", *held]) == 0
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    study = ["--study", "study.yaml"]
    wanted = ["--method", "prlc_rotated"]
    for verb in ("train", "predict", "transfer"):
        assert main([verb, *study, *wanted]) == 0
    with (tmp_path / "results/two/transfer.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 2 * 2 * 2

    (tmp_path / "results/two/study.yaml").write_text(
        load_study("study.yaml").to_yaml(), encoding="utf-8"
    )
    assert main(["metrics", "--results", "results/two"]) == 0
    with (tmp_path / "results/two/metrics.csv").open(encoding="utf-8") as stream:
        metrics = {(r["dataset"], r["group"]): r for r in csv.DictReader(stream)}
    for row in rows:
        if row["trained_on"] == row["tested_on"]:
            expected = metrics[row["trained_on"], row["group"]]
            for rate in ("pose_acc_exact", "identity_rate"):
                assert float(row[rate]) == pytest.approx(float(expected[rate]))
    found = {(r["trained_on"], r["tested_on"]): float(r["pose_acc"]) for r in rows
             if r["group"] == "C4"}  # fmt: skip
    # What was trained goes on working on other images of the same kind; what was not, does not.
    assert found["digits", "digits_held"] > 0.5 > found["digits_held", "digits"]

    assert main(["transfer", *study, *wanted, "--to", "digits", "--group", "C4"]) == 0
    with (tmp_path / "results/two/transfer.csv").open(encoding="utf-8") as stream:
        assert list(csv.DictReader(stream)) == rows  # measured again, the others kept

    capsys.readouterr()
    assert main(["transfer", *study, *wanted, "--to", "mnist"]) == 2
    assert "no data set 'mnist'" in capsys.readouterr().err
    assert main(["transfer", *study, "--method", "vanilla"]) == 2
