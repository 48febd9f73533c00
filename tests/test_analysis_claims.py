"""Claims: verdicts that follow the numbers, scopes, variants, and the published figures."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from analysis_fixtures import BEHAVIOURS, Behaviour, StudySpec, make_study, write_run

from eqadapt.analysis import claims as claims_module
from eqadapt.analysis.claim_rules import Check, Claim, Term
from eqadapt.analysis.claims import (
    CLAIMS,
    claims_document,
    doubts,
    judge,
    register,
)
from eqadapt.analysis.published import load_published
from eqadapt.analysis.report import claim_view
from eqadapt.analysis.results import open_results
from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.transfer import Transfer, write_transfers

PUBLISHED = Path(__file__).parents[1] / "config" / "published.yaml"
# The published pattern, with room to spare, so that each claim holds.
HOLDS = {
    "vanilla": Behaviour(0.97, 0.55, 0.48, has_group=False),
    "rotation_augmentation": Behaviour(0.90, 0.87, 0.86),
    "lc": Behaviour(0.85, 0.85, 0.848, 0.2),
    "prlc": Behaviour(0.962, 0.962, 0.958, 0.97),
    "prlc_rotated": Behaviour(0.964, 0.964, 0.96, 0.95),
}


def verdicts(folder: Path, changes: dict[str, Behaviour] | None = None, **spec) -> dict[str, dict]:
    behaviours = HOLDS | (changes or {})
    settings = {"images": 500, "jitter": 0.0, "backbones": ("resnet10t",), "poses": 8} | spec
    study = make_study(folder, StudySpec(behaviours=behaviours, **settings))
    document = claims_document(open_results(study), load_published(PUBLISHED))
    return {entry["id"]: entry for entry in document["claims"]}


def test_all_six_hold_on_the_published_pattern(tmp_path):
    found = verdicts(tmp_path, images=1500)
    assert {k: found[k]["verdict"] for k in ("K1", "K2", "K3", "K4", "K5", "K6")} == {
        f"K{n}": "reproduced" for n in range(1, 7)
    }
    for number in range(7, 16):
        entry = found[f"K{number}"]
        assert entry["verdict"] == "not run" and entry["reason"]


@pytest.mark.parametrize(
    ("claim", "method", "change"),
    [
        ("K1", "vanilla", {"exact": 0.9, "rest": 0.9}),  # no collapse
        ("K2", "rotation_augmentation", {"upright": 0.98, "exact": 0.98}),  # costs nothing
        ("K2", "rotation_augmentation", {"exact": 0.9, "rest": 0.9}),  # leaves no gap
        ("K3", "lc", {"rest": 0.8}),  # does not close the gap
        ("K3", "lc", {"upright": 0.98, "exact": 0.98, "rest": 0.98}),  # costs nothing
        ("K4", "prlc", {"upright": 0.95, "exact": 0.95}),  # two points below vanilla
        ("K4", "prlc", {"exact": 0.94, "rest": 0.94}),  # average two points below upright
        ("K5", "lc", {"upright": 0.965, "exact": 0.965, "rest": 0.965}),  # LC above PRLC
        ("K6", "prlc", {"exact": 0.96}),  # one image differs over the orbit
    ],
)
def test_a_verdict_flips_with_its_numbers(tmp_path, claim, method, change):
    changed = dataclasses.replace(HOLDS[method], **change)
    found = verdicts(tmp_path, {method: changed})[claim]
    assert found["verdict"] == "not reproduced"
    failed = [c for cell in found["cells"] for c in cell["checks"] if not c["passed"]]
    assert failed and all(check["text"] for check in failed)


def test_an_order_must_be_significant(tmp_path):
    """One image more out of 60 is ahead, and not a finding."""
    label = np.zeros(60, int)
    for method, wrong in (("vanilla", 1), ("lc", 2)):
        prediction = np.zeros((60, 8), int)
        prediction[:wrong] = 1
        write_run(
            tmp_path,
            label=label,
            prediction=prediction,
            method=method,
            group="C1" if method == "vanilla" else "C8",
        )
    claim = Claim("T1", "", "", (Check(Term("vanilla", "acc"), Term("lc", "acc"), "ahead"),))
    results = open_results(tmp_path, ["C8"])
    entry = judge(claim, results, load_published(PUBLISHED))
    check = entry["cells"][0]["checks"][0]
    assert check["difference_points"] == pytest.approx(100 / 60)
    assert check["p_sign_flip"] == 1.0 and not check["passed"] and not check["clear"]
    assert check["agrees"] and "some are not significant" in entry["reason"]
    bare = dataclasses.replace(claim.checks[0], rule="at_least")
    entry = judge(dataclasses.replace(claim, checks=(bare,)), results, load_published(PUBLISHED))
    assert entry["verdict"] == "reproduced"


def test_missing_methods_and_groups_are_not_run(tmp_path):
    behaviours = {k: HOLDS[k] for k in ("vanilla", "lc")}
    spec = StudySpec(images=60, behaviours=behaviours, groups=("C8",), poses=8)
    results = open_results(make_study(tmp_path, spec))
    document = claims_document(results, load_published(PUBLISHED))
    found = {entry["id"]: entry for entry in document["claims"]}
    assert found["K1"]["verdict"] == "reproduced"
    assert (found["K4"]["verdict"], found["K4"]["reason"]) == ("not run", "no runs of prlc")
    assert (found["K6"]["verdict"], found["K6"]["reason"]) == (
        "not run",
        "the study has no C4 runs",
    )
    assert document["counts"]["not run"] == sum(
        entry["verdict"] == "not run" for entry in document["claims"]
    )


def ordered(folder, wrong_by_seed, regime="joint", group="C8", methods=("vanilla", "lc")):
    """Two methods that get so many of 400 images wrong: what a claim of their order comes to."""
    for seed, wrongs in enumerate(wrong_by_seed):
        for method, wrong in zip(methods, wrongs, strict=True):
            prediction = np.zeros((400, 8), int)
            prediction[:wrong] = 1
            write_run(
                folder, label=np.zeros(400, int), prediction=prediction, method=method, seed=seed,
                regime=regime, group="C1" if method == "vanilla" else group,
                meta={"params_added": 0 if method == "vanilla" else 10},
            )  # fmt: skip
    claim = Claim("T1", "", "", (Check(Term(methods[0], "acc"), Term(methods[1], "acc"), "ahead"),))
    claim = dataclasses.replace(claim, regimes=(regime,))
    return judge(claim, open_results(folder, [group]), load_published(PUBLISHED))


def test_a_verdict_says_what_other_seeds_could_change(tmp_path):
    sure = ordered(tmp_path / "a", [(10, 50), (11, 52), (10, 51)])
    assert (sure["verdict"], sure["reason"]) == ("reproduced", "")
    noisy = ordered(tmp_path / "b", [(10, 120), (11, 12), (10, 30)])
    assert noisy["verdict"] == "reproduced"
    assert noisy["reason"] == "within noise: an interval reaches past its bound"
    assert (
        claim_view(noisy, open_results(tmp_path / "b"))["rows"][0]["holds"]
        == "✓ yes (within noise)"
    )
    mixed = ordered(tmp_path / "c", [(10, 120), (11, 9), (10, 30)])
    assert mixed["verdict"] == "not reproduced"
    assert mixed["reason"] == "every difference is as claimed, but some are not in every seed"
    assert (
        claim_view(mixed, open_results(tmp_path / "c"))["rows"][0]["holds"] == "✗ not in every seed"
    )
    plain = ordered(tmp_path / "d", [(50, 10), (52, 11), (51, 10)])
    one = {"within noise": 1}
    assert [doubts(e["cells"]) for e in (sure, noisy, mixed, plain)] == [{}, one, one, {}]
    assert not any("unclear" in e["cells"][0]["checks"][0] for e in (sure, noisy, mixed, plain))


def test_one_seed_makes_no_verdict_clear(tmp_path):
    """However far from its bound the interval over images is."""
    for seeds, remark in (((0, 1, 2), ""), ((0,), "one training: says nothing about another")):
        found = verdicts(tmp_path / str(len(seeds)), seeds=seeds)["K1"]
        assert (found["verdict"], found["reason"]) == ("reproduced", remark)
    check = found["cells"][0]["checks"][0]
    assert check["low_points"] > check["bound_points"] and check["unclear"] == "one training"
    assert (
        claim_view(found, open_results(tmp_path / "1"))["rows"][0]["holds"]
        == "✓ yes (one training)"
    )


@pytest.mark.parametrize("regime", ["joint", "frozen"])
def test_one_training_of_two_methods_makes_no_check_clear(tmp_path, regime):
    """Whatever other methods there are, and before a frozen network as well."""
    entry = ordered(tmp_path, [(10, 50)], regime, methods=("prlc", "optc"))
    assert entry["verdict"] == "reproduced" and entry["reason"].startswith("one training:")


def test_of_networks_that_nothing_trained_one_seed_says_all(tmp_path):
    for method, wrong in (("equizero", 10), ("equitune", 50)):
        prediction = np.zeros((400, 8), int)
        prediction[:wrong] = 1
        write_run(
            tmp_path, label=np.zeros(400, int), prediction=prediction, method=method, seed=0,
            regime="frozen", group="C8", meta={"params_added": 0},
        )  # fmt: skip
    claim = Claim("T1", "", "", (Check(Term("equizero", "acc"), Term("equitune", "acc"), "ahead"),))
    claim = dataclasses.replace(claim, regimes=("frozen",))
    entry = judge(claim, open_results(tmp_path, ["C8"]), load_published(PUBLISHED))
    assert (entry["verdict"], entry["reason"]) == ("reproduced", "")


@pytest.mark.parametrize(
    ("backbone", "seeds", "remark"),
    [
        ({"weights": "pretrain"}, 1, "one training: says nothing about another"),
        ({"weights": "pretrain"}, 3, "one training: says nothing about another"),
        ({"weights": "pretrained"}, 1, "one training: says nothing about another"),
        ({"weights": "file"}, 1, ""),
    ],
    ids=["pretrained by the study", "once for all seeds", "begins as its vanilla run", "given"],
)
def test_a_frozen_network_that_the_study_trained_is_one_training(tmp_path, backbone, seeds, remark):
    config = {
        "datasets": {"digits": {}},
        "backbones": {"resnet10t": {"model": "resnet10t", **backbone}},
        "regimes": ["frozen"],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for seed, (method, wrong) in product(range(seeds), (("equizero", 10), ("equitune", 50))):
        prediction = np.zeros((400, 8), int)
        prediction[:wrong] = 1
        write_run(
            tmp_path, label=np.zeros(400, int), prediction=prediction, method=method, seed=seed,
            regime="frozen", group="C8",
        )  # fmt: skip
    claim = Claim("T1", "", "", (Check(Term("equizero", "acc"), Term("equitune", "acc"), "ahead"),))
    claim = dataclasses.replace(claim, regimes=("frozen",))
    entry = judge(claim, open_results(tmp_path, ["C8"]), load_published(PUBLISHED))
    assert (entry["verdict"], entry["reason"]) == ("reproduced", remark)


def test_two_seeds_that_differ_alike_make_no_check_clear(tmp_path):
    entry = ordered(tmp_path, [(10, 50), (20, 60)])
    check = entry["cells"][0]["checks"][0]
    assert check["low_points"] == check["high_points"] == 10 and not check["clear"]
    assert entry["reason"] == check["unclear"] == "no spread between seeds"
    assert doubts(entry["cells"]) == {"no spread between seeds": 1}


def test_a_claim_is_judged_by_the_method_nearest_to_its_papers(tmp_path):
    near = dataclasses.replace(HOLDS["prlc"], upright=0.9, exact=0.9, rest=0.9)
    plain = {"optc": HOLDS["prlc"]}
    assert verdicts(tmp_path / "plain", plain)["K9"]["verdict"] == "reproduced"
    both = verdicts(tmp_path / "both", plain | {"optc_artifact": near})["K9"]
    assert both["verdict"] == "not reproduced" and "artifact" in both["rule"][0]


def test_seeds_that_are_all_the_same_are_one_for_an_interval(tmp_path):
    """Of a network that was not trained: its images are what could have been others."""
    check = ordered(tmp_path, [(10, 50)] * 3)["cells"][0]["checks"][0]
    assert check["interval"] == "images" and check["n_seeds"] == check["seeds_first_ahead"] == 3
    assert check["low_points"] < check["difference_points"] == 10 < check["high_points"]
    same = ordered(tmp_path / "same", [(10, 10)] * 3)["cells"][0]["checks"][0]
    assert same["low_points"] == same["high_points"] == 0 and not same["clear"]


def test_a_difference_of_none_is_not_below_none_by_rounding(tmp_path):
    assert Check(Term("a", "acc"), Term("b", "acc"), "at_least", 0.0).holds(-4.6e-16)
    assert not Check(Term("a", "acc"), Term("b", "acc"), "at_least", 0.0).holds(-1e-6)


def test_a_claim_may_be_about_whatever_groups_there_are(tmp_path):
    behaviours = {"prlc": HOLDS["prlc"], "optc": HOLDS["prlc"]}
    for groups in (("C4",), ("C4", "C8")):
        found = verdicts(
            tmp_path / str(len(groups)), {"optc": HOLDS["lc"]}, images=60, groups=groups
        )["K9"]
        assert [cell["group"] for cell in found["cells"]] == list(groups)
        assert found["verdict"] == "not reproduced" and found["cells_counted"] == len(groups)
        assert [f"OptC {group}-Avg" in rule for group, rule in zip(groups, found["rule"])] == [
            True
        ] * len(groups)
        view = claim_view(found, open_results(tmp_path / str(len(groups))))
        texts = [row["text"] for row in view["rows"]]
        assert [f"{group}-Avg" in text for group, text in zip(groups, texts)] == [True] * len(texts)
    spec = StudySpec(images=60, behaviours=behaviours, groups=("C4",), poses=8)
    document = claims_document(
        open_results(make_study(tmp_path / "same", spec)), load_published(PUBLISHED)
    )
    assert {e["id"]: e for e in document["claims"]}["K9"]["verdict"] == "reproduced"


def test_a_network_that_knows_the_classes_is_no_zero_shot_one(tmp_path):
    behaviours = {
        "vanilla": Behaviour(0.9, 0.5, 0.4, has_group=False),
        "equitune": Behaviour(0.7, 0.7, 0.7),
        "equizero": Behaviour(0.85, 0.85, 0.85),
    }
    spec = StudySpec(
        images=400, behaviours=behaviours, groups=("C4",), poses=8, regimes=("frozen",),
        datasets=("cifar100",), backbones=("one", "other"),
    )  # fmt: skip
    study = make_study(tmp_path, spec)
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for model, counted in (("resnet10t", [True, True]), ("open_clip:RN50", [False, True])):
        config["backbones"] = {
            "one": {"model": "resnet10t", "weights": "prototypes"},  # means of labelled images
            "other": {"model": model, "weights": "pretrained"},
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        entry = judge(CLAIMS["K10"], open_results(study), load_published(PUBLISHED))
        assert entry["verdict"] == "reproduced" and entry["in_scope"] == (model != "resnet10t")
        assert [cell["counted"] for cell in entry["cells"]] == counted
        assert "not a zero-shot one" in entry["cells"][0]["scope"]
        assert ("zero-shot" in entry["cells"][1]["scope"]) == (model == "resnet10t")


def test_test_time_methods_cannot_show_that_they_are_invariant(tmp_path):
    """Their outputs for turned images are permuted, so that equality is no finding."""
    spec = StudySpec(images=60, behaviours=HOLDS, groups=("C4",), poses=8)
    study = make_study(tmp_path, spec)
    before = judge(CLAIMS["K6"], open_results(study), load_published(PUBLISHED))
    assert before["verdict"] == "reproduced"
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(config | {"test_time": {"folder": "config/methods"}}))
    after = judge(CLAIMS["K6"], open_results(study), load_published(PUBLISHED))
    assert after["verdict"] == "not run" and "another order" in after["reason"]


def test_an_entry_of_data_is_what_its_source_is(tmp_path):
    study = make_study(tmp_path, StudySpec(images=60, behaviours=HOLDS, datasets=("part",)))
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["datasets"] = {"part": {"source": "cifar10"}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    entry = judge(CLAIMS["K1"], open_results(study), load_published(PUBLISHED))
    assert entry["in_scope"] and "the paper's data set" in entry["cells"][0]["scope"]


def test_another_data_set_says_so_and_gives_way_to_the_papers(tmp_path):
    other = verdicts(tmp_path / "a", images=60)["K1"]
    assert not other["in_scope"]
    assert (
        "another data set than the paper's (CIFAR-10 and CIFAR-100)" in other["cells"][0]["scope"]
    )
    both = verdicts(tmp_path / "b", images=60, datasets=("digits", "cifar10"), reduced=True)["K1"]
    assert [cell["counted"] for cell in both["cells"]] == [False, True]
    assert both["in_scope"] and both["cells_counted"] == 1
    assert both["cells"][1]["scope"] == "the paper's data set; reduced study"


def test_one_failing_cell_is_enough(tmp_path):
    spec = StudySpec(
        images=100, behaviours=HOLDS, backbones=("one", "two"), groups=("C8",), poses=8
    )
    folder = make_study(tmp_path, spec)
    label = np.zeros(100, int)
    for seed in spec.seeds:
        right = np.zeros((100, 8), int)
        right[:3] = 1
        for path in (folder / "predictions").glob(f"digits-two-joint-vanilla-C1-seed{seed}.*"):
            path.unlink()
        write_run(folder, label=label, prediction=right, backbone="two", seed=seed)
    entry = judge(CLAIMS["K1"], open_results(folder), load_published(PUBLISHED))
    assert [cell["verdict"] for cell in entry["cells"]] == ["reproduced", "not reproduced"]
    assert (entry["verdict"], entry["cells_reproduced"]) == ("not reproduced", 1)


def test_variants_are_judged_and_do_not_count(tmp_path):
    bad = dataclasses.replace(HOLDS["prlc"], rest=0.8)
    entry = verdicts(tmp_path, {"prlc": bad})["K4"]
    assert entry["verdict"] == "not reproduced"
    variant = entry["variants"][0]
    assert (variant["method"], variant["verdict"]) == ("prlc_rotated", "reproduced")
    assert "PRLC (rotated prior)" in variant["cells"][0]["checks"][0]["text"]


def test_the_rules_hold_on_the_published_figures_they_come_from():
    published = load_published(PUBLISHED)
    for name in ("K1", "K2", "K3", "K4", "K5"):
        entries = claims_module.published_checks(CLAIMS[name], published)
        scope = [entry for entry in entries if entry["in_scope"]]
        assert scope and all(entry["passed"] for entry in scope), name
    gap = claims_module.published_checks(CLAIMS["K1"], published)[0]
    assert gap["checks"][0]["difference_points"] == pytest.approx(96.97 - 57.77)
    assert {figure["grade"] for figure in gap["figures"]} == {"B", "C"}


def test_clip_has_its_published_figures_by_regime():
    """Zero-shot ones are of frozen networks, fine-tuned ones of a training."""
    published = load_published(PUBLISHED)
    zero, tuned = (claims_module.published_checks(CLAIMS[k], published) for k in ("K10", "K11"))
    assert [entry["dataset"] for entry in zero] == ["cifar100"] * 4 + ["imagenet_v2"] * 4
    assert all(entry["passed"] and entry["in_scope"] for entry in zero)
    gaps = [check["difference_points"] for check in zero[0]["checks"]]
    assert zero[0]["backbone"] == "open_clip:RN50" and gaps == [10.52, 4.02]
    passed = {entry["backbone"].removeprefix("open_clip:"): entry["passed"] for entry in tuned}
    assert passed == {"RN50": True, "RN101": True, "ViT-B-32": False, "ViT-B-16": True}
    assert {figure["grade"] for entry in zero + tuned for figure in entry["figures"]} == {"A"}
    cell = ("cifar100", "open_clip:RN50", "C4", "equitune", "cn_avg")
    assert published.find(*cell, regime="frozen").value == 28.35
    assert published.find(*cell).value == 34.01
    upright = ("cifar100", "open_clip:ViT-B-16", "C4", "vanilla", "acc")
    assert published.find(*upright, regime="frozen").value == 68.25


def test_figures_stand_beside_the_network_that_an_entry_is_of(tmp_path):
    study = make_study(
        tmp_path,
        StudySpec(images=60, behaviours=HOLDS, datasets=("part",), backbones=("resnet50", "r50")),
    )
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["datasets"] = {"part": {"source": "cifar10"}}
    config["backbones"] = {"resnet50": {"model": "resnet18"}, "r50": {"model": "resnet50"}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    results = open_results(study)
    rows = claim_view(judge(CLAIMS["K1"], results, load_published(PUBLISHED)), results)["rows"]
    beside = {row["cell"]: row["published"] for row in rows}
    assert beside["part, r50, joint"] == ["+39.20 (CIFAR-10, ResNet-50)"]
    assert len(beside["part, ResNet-50, joint"]) == 3  # none of its own: all that are claimed


def test_a_later_study_replaces_a_claim_that_was_not_run(monkeypatch):
    monkeypatch.setattr(claims_module, "CLAIMS", dict(CLAIMS))
    new = Claim(
        "K14", "Clouds", "kaba2023", (Check(Term("optc", "acc"), Term("lc", "acc"), "ahead"),)
    )
    assert register(new) is new
    with pytest.raises(UserError, match="two claims are named 'K14'"):
        register(dataclasses.replace(new, text="another"))
    assert list(claims_module.CLAIMS) == list(CLAIMS)


def test_a_claim_may_compare_groups(tmp_path):
    spec = StudySpec(images=80, behaviours=BEHAVIOURS, groups=("C4", "C8"), poses=8)
    results = open_results(make_study(tmp_path, spec))
    check = Check(Term("vanilla", "cn_avg"), Term("vanilla", "cn_avg", "C4"), "at_most", 0.0)
    claim = Claim("K99", "Finer groups are harder.", "mondal2023", (check,))
    entry = judge(claim, results, load_published(PUBLISHED))["cells"][0]
    judged = entry["checks"][0]
    means = {
        cell.group: np.mean([e.correct.mean() for e in results.at(cell)["vanilla"].values()])
        for cell in results.cells()
        if cell.backbone == entry["backbone"]
    }
    assert judged["text"] == "Vanilla C8-Avg minus Vanilla (C4) C4-Avg at most 0 points"
    assert judged["difference_points"] == pytest.approx(100 * (means["C8"] - means["C4"]))


def test_verb_writes_plain_json(tmp_path, capsys):
    spec = StudySpec(images=40, behaviours=BEHAVIOURS, seeds=(0,), backbones=("resnet10t",))
    folder = make_study(tmp_path / "digits", spec)
    argv = ["claims", "--results", str(folder), "--published", str(PUBLISHED)]
    assert main(argv) == 0
    text = (folder / "claims.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["study"] == "digits"
    p_values = re.findall(r'"p_\w+": ([0-9][^,\s]*)', text)
    assert p_values and all(p == repr(float(f"{float(p):.6g}")) for p in p_values)
    assert "K15  not run" in capsys.readouterr().out
    assert main([*argv[:-1], str(tmp_path / "none.yaml")]) == 2


def transfer_study(folder: Path, loss: float, seeds: int = 3, base=0.8, step=0.001) -> Path:
    """A study of two data sets whose canonicalizers lose ``loss`` points on the other one."""
    study = make_study(folder, StudySpec(datasets=("cifar10", "cifar100"), images=40))
    config = yaml.safe_load((study / "study.yaml").read_text(encoding="utf-8"))
    (study / "study.yaml").write_text(yaml.safe_dump(config | {"transfer": True}))
    rows = [
        Transfer(
            trained_on=source,
            tested_on=target,
            backbone="resnet10t",
            regime="joint",
            method="prlc",
            group=group,
            seed=seed,
            pose_acc=round(base + step * seed - (0.01 * loss if source != target else 0), 12),
            pose_acc_exact=0.8,
            identity_rate=0.8,
            n_test=40,
        )
        for source in ("cifar10", "cifar100")
        for target in ("cifar10", "cifar100")
        for group in ("C4", "C8")
        for seed in range(seeds)
    ]
    write_transfers(study / "transfer.csv", rows)
    return study


@pytest.mark.parametrize(("loss", "verdict"), [(14, "reproduced"), (3, "not reproduced")])
def test_transfer_is_judged_by_pose_accuracy(tmp_path, loss, verdict):
    study = transfer_study(tmp_path, loss)
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    assert entry["verdict"] == verdict and entry["cells_counted"] == 2
    assert {cell["group"] for cell in entry["cells"]} == {"C4"}
    for cell in entry["cells"]:
        (check,) = cell["checks"]
        assert check["difference_points"] == pytest.approx(loss) and check["n_seeds"] == 3
        assert check["clear"] and "unclear" not in check
    view = claim_view(entry, open_results(study))
    assert view["tally"] == f"{2 * (loss > 10)} of 2" and "CIFAR-10" in view["rows"][0]["text"]


def test_transfer_at_its_bound_does_not_turn_on_rounding(tmp_path):
    """0.83 and 0.73 differ by 9.999999999999998 points in floating point."""
    study = transfer_study(tmp_path, 10, base=0.83, step=0.0)
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    check = entry["cells"][0]["checks"][0]
    assert check["difference_points"] < 10 and check["passed"] and not check["clear"]
    assert entry["verdict"] == "reproduced"


def test_two_seeds_that_transfer_alike_make_no_check_clear(tmp_path):
    study = transfer_study(tmp_path, 14, seeds=2)
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    check = entry["cells"][0]["checks"][0]
    assert check["passed"] and not check["clear"]
    assert entry["reason"] == "no spread between seeds"


def test_transfer_is_no_matter_of_methods_that_learn_no_pose(tmp_path):
    """A closed form finds as many poses whatever it was trained on."""
    study = transfer_study(tmp_path, 14)
    rows = pd.read_csv(study / "transfer.csv")
    same = rows.assign(method="pca_frame", pose_acc=0.8)
    pd.concat([rows, same]).to_csv(study / "transfer.csv", index=False)
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    assert entry["verdict"] == "reproduced" and entry["cells_counted"] == 2


def test_transfer_without_another_data_set_or_seed_is_not_run(tmp_path):
    study = transfer_study(tmp_path, 14)
    frame = pd.read_csv(study / "transfer.csv")
    there = frame["trained_on"] == frame["tested_on"]
    for kept in (frame[there], frame[there & (frame["seed"] > 0) | ~there & (frame["seed"] == 0)]):
        kept.to_csv(study / "transfer.csv", index=False)
        entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
        assert entry["verdict"] == "not run" and "another data set" in entry["reason"]


def test_transfer_to_another_part_of_the_same_data_is_none(tmp_path):
    study = transfer_study(tmp_path, 14)
    config = yaml.safe_load((study / "study.yaml").read_text(encoding="utf-8"))
    config["datasets"] = {name: {"source": "digits"} for name in config["datasets"]}
    (study / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    assert entry["verdict"] == "not run" and "another data set" in entry["reason"]


def test_transfer_without_the_method_it_is_judged_on_says_so(tmp_path):
    study = transfer_study(tmp_path, 14)
    rows = pd.read_csv(study / "transfer.csv").assign(method="lc")
    rows.to_csv(study / "transfer.csv", index=False)
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    assert (entry["verdict"], entry["reason"]) == ("not run", "no runs of prlc")


def test_transfer_of_one_seed_has_no_interval(tmp_path):
    study = transfer_study(tmp_path, 14, seeds=1)
    entry = judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))
    check = entry["cells"][0]["checks"][0]
    assert check["low_points"] is None and not check["clear"] and check["passed"]
    assert entry["reason"] == "one training: says nothing about another"
    (study / "transfer.csv").unlink()
    with pytest.raises(UserError, match="eqadapt transfer"):
        judge(CLAIMS["K15"], open_results(study), load_published(PUBLISHED))


def sized_study(folder: Path, drop: float) -> Path:
    """One network behind two canonicalizers ('large', 'small'), and another network."""
    study = make_study(
        folder,
        StudySpec(
            backbones=("large", "small", "other"),
            behaviours={"vanilla": Behaviour(0.97, 0.5, 0.5, has_group=False)},
            groups=("C8",),
            poses=8,
        ),
    )
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["methods"]["prlc"] = {}
    for name in ("large", "small"):
        config["backbones"][name] = {"model": "resnet10t", "scorer": {"width": len(name)}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    label = np.zeros(200, int)
    for backbone, added, lost in (("large", 900, 0.0), ("small", 30, drop), ("other", 7, 0.5)):
        for seed in range(3):
            wrong = np.arange(200)[:, None] < 200 * (0.05 + lost)
            write_run(
                study,
                label=label,
                prediction=np.repeat(wrong.astype(int), 8, axis=1),
                chosen=np.zeros((200, 8), int),
                dataset="digits",
                backbone=backbone,
                regime="joint",
                method="prlc",
                group="C8",
                seed=seed,
                meta={"backbone_passes": 1, "params_added": added, "reduced": False},
            )
    return study


@pytest.mark.parametrize(("drop", "verdict"), [(0.1, "reproduced"), (0.0, "not reproduced")])
def test_size_is_judged_where_one_network_has_several_canonicalizers(tmp_path, drop, verdict):
    study = sized_study(tmp_path, drop)
    entry = judge(CLAIMS["K8"], open_results(study), load_published(PUBLISHED))
    (cell,) = entry["cells"]  # the other network has one canonicalizer only
    (check,) = cell["checks"]
    assert entry["verdict"] == verdict and "900" in check["text"] and "30" in check["text"]
    assert check["difference_points"] == pytest.approx(100 * drop, abs=0.6)
    assert claim_view(entry, open_results(study))["rows"][0]["passed"] == (drop > 0)


@pytest.mark.parametrize(
    "change", [{"train": {"epochs": 50}}, {"scorer": {"name": "group_cnn", "width": 5}}]
)
def test_sizes_of_another_training_or_form_are_not_compared(tmp_path, change):
    study = sized_study(tmp_path, 0.1)
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["backbones"]["large"].update(change)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    entry = judge(CLAIMS["K8"], open_results(study), load_published(PUBLISHED))
    assert entry["verdict"] == "not run"


def test_a_size_with_fewer_methods_is_one_of_the_same_network(tmp_path):
    study = sized_study(tmp_path, 0.1)
    path = study / "study.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["backbones"]["large"]["methods"] = ["prlc"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    entry = judge(CLAIMS["K8"], open_results(study), load_published(PUBLISHED))
    assert entry["verdict"] == "reproduced"


def test_a_claim_about_a_regime_names_the_regime_that_is_lacking(tmp_path):
    found = verdicts(tmp_path, images=60, groups=("C4",))["K10"]
    assert found["reason"] == "the study has no C4 runs of the regime frozen"


def test_size_is_not_judged_without_sizes(tmp_path):
    found = verdicts(tmp_path)["K8"]
    assert found["verdict"] == "not run" and "several sizes" in found["reason"]
