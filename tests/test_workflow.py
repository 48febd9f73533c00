"""The workflow: every study plans and lints, faults stop before the first job, changes redo only
what depends on them.

Snakemake takes seconds to start, so calls are made in batches, each batch in one process.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from eqadapt.analysis import outputs
from eqadapt.study import load_study, read_yaml

REPOSITORY = Path(__file__).parents[1]
STUDIES = sorted(
    path
    for path in (REPOSITORY / "config").glob("*.yaml")
    if "study" in yaml.safe_load(path.read_text(encoding="utf-8"))
)
SMOKE = ("--configfile", "config/smoke.yaml")

CALLER = """
import json, sys
from snakemake.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as stop:
        print("\\n=== status", stop.code, flush=True)
"""


@dataclass(frozen=True)
class Call:
    """What one call of Snakemake said."""

    status: int
    said: str

    @property
    def jobs(self):
        """Planned jobs by rule, from the table of a dry run."""
        table = self.said.split("Job stats:")[-1].split("total")[0]
        return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.M)}


def snakemake(folder, *calls, **environment):
    """Run Snakemake in a folder, once for each list of arguments."""
    done = subprocess.run(
        [sys.executable, "-c", CALLER, json.dumps(calls)],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    parts = re.split(r"\n=== status (\d+)\n", done.stdout)
    found = [Call(int(status), said) for said, status in zip(parts[::2], parts[1::2])]
    assert len(found) == len(calls), done.stdout
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the workflow without data or results."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("workflow", "profiles", "config", "notebooks"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name in ("Snakefile", "environment.yml", "environment.post-deploy.sh"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def plans(project):
    """A lint and a dry run of every study."""
    calls = [
        [mode, "--configfile", f"config/{path.name}"]
        for path in STUDIES
        for mode in ("--lint", "-n")
    ]
    found = snakemake(project, *calls)
    return {path.stem: found[2 * k : 2 * k + 2] for k, path in enumerate(STUDIES)}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_lints_and_plans_each_of_its_runs(plans, path):
    lint, plan = plans[path.stem]
    assert lint.status == 0, lint.said
    assert plan.status == 0, plan.said
    study = load_study(path)
    runs, datasets = study.runs(), study.config["datasets"]
    share = {"none": 6, "seeds": 5, "cell": 3}[study.config["jobs"]["share"]]
    fields = ("dataset", "backbone", "regime", "method", "group", "seed")[:share]

    def processes(of):
        return len({tuple(getattr(run, field) for field in fields) for run in of})

    jobs = plan.jobs
    trains = sum(count for rule, count in jobs.items() if rule.split("_")[0] == "train")
    predicts = sum(count for rule, count in jobs.items() if rule.split("_")[0] == "predict")
    assert trains == processes(study.trained_runs())
    by_cell = sum(count for rule, count in jobs.items() if rule.startswith("methods_"))
    cells = len(datasets) * len(study.config["backbones"]) * len(study.config["groups"])
    test_time = study.config["test_time"] is not None
    assert predicts == (0 if test_time else processes(runs))
    assert by_cell == (cells if test_time else 0)
    shared = study.shared_canonicalizers is not None
    scored = cells // (len(study.config["backbones"]) if shared else 1)
    assert jobs.get("poses", 0) == (scored if test_time else 0)
    pretrained = [b for b in study.config["backbones"].values() if b["weights"] == "pretrain"]
    assert jobs.get("pretrain", 0) == len(pretrained) * len(datasets)
    assert jobs.get("hub_weights", 0) == len(study.hub_models())
    preparations = {study.preparation(name) for name in datasets}
    assert jobs["prepare"] == len(preparations)
    assert jobs["verify"] == jobs["download"] == len({p.source for p in preparations})
    for rule in ("study_config", "metrics", "tables", "figures", "claims", "report", "all"):
        assert jobs[rule] == 1
    assert jobs.get("headline", 0) == (not test_time)


def test_a_study_yaml_of_another_configuration_is_written_anew(project, tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(project, folder)
    (folder / "results" / "smoke").mkdir(parents=True)
    (folder / "results" / "smoke" / "study.yaml").write_text("study: smoke\n", encoding="utf-8")
    (plan,) = snakemake(folder, ["-n", *SMOKE])
    assert plan.jobs["study_config"] == 1


def test_a_study_whose_weights_are_missing_is_planned_but_not_begun(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    study = ["--configfile", "config/zero_shot.yaml"]
    nowhere = {"EQADAPT_MIRROR": str(tmp_path / "nowhere")}
    plan, begun = snakemake(folder, ["-n", *study], [*study, "--cores", "1"], **nowhere)
    assert plan.status == 0 and begun.status != 0
    assert "no such weights file: $EQADAPT_MIRROR/cifar10_resnets" in begun.said
    assert not (folder / "data").exists()


def test_a_study_whose_images_are_missing_is_planned_but_not_begun(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    lacking = 'datasets={mine: {folder: "no/such/folder", size: 8}}'
    plan, begun = snakemake(
        folder, ["-n", *SMOKE, "--config", lacking], [*SMOKE, "--config", lacking, "--cores", "1"]
    )
    assert plan.status == 0 and begun.status != 0
    for call in (plan, begun):
        assert "data set mine: no such folder of images: no/such/folder" in call.said
    assert not (folder / "data").exists()


def test_a_folder_that_cannot_be_written_to_is_told(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    (folder / "scratch").touch()
    (call,) = snakemake(folder, ["-n", *SMOKE])
    assert call.status != 0 and "cannot be written into scratch/smoke" in call.said
    assert "Traceback" not in call.said


def test_cells_whose_names_look_alike_are_told_apart(project):
    content = read_yaml(REPOSITORY / "config" / "methods_digits.yaml")
    content["datasets"] = {"digits": {}, "digits_big": {"source": "digits"}}
    network = {"model": "resnet_small", "weights": "pretrain"}
    content["backbones"] = {"big_net": network, "net": network}
    path = project / "config" / "alike.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    (plan,) = snakemake(project, ["-n", "--configfile", "config/alike.yml"])
    assert plan.status == 0, plan.said
    cells = sum(count for rule, count in plan.jobs.items() if rule.startswith("methods_"))
    assert cells == 2 * 2 * len(content["groups"])


def test_a_notebook_of_an_odd_name_is_left_out_and_told(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    for name in ("explore copy", "my-own_2"):
        shutil.copy(
            folder / "notebooks" / "look_at_failures.ipynb", folder / f"notebooks/{name}.ipynb"
        )
    plan, page = snakemake(
        folder,
        ["-n", "-p", *SMOKE],
        ["-n", "results/smoke/notebooks/explore copy.html", *SMOKE],
    )
    assert plan.status == 0 and plan.jobs["notebook"] == 5
    assert re.search(r"left out, .*: notebooks/explore copy\.ipynb", plan.said)
    assert "notebooks/my-own_2.ipynb" in plan.said
    assert page.status != 0 and "Missing" in page.said


def test_faults_stop_before_the_first_job_with_key_and_allowed_values(project):
    wrong_key, wrong_value, own_study, partial = snakemake(
        project,
        ["-n", "--config", "train={epoch: 2}"],
        ["-n", *SMOKE, "--config", "groups=[D4]"],
        ["-n", *SMOKE, "--config", "train={epochs: 2}"],
        ["-n", "--config", "study=mine", "seeds=[5]"],
    )
    assert wrong_key.status != 0
    assert "train.epoch: unknown key (did you mean epochs?)" in wrong_key.said
    assert wrong_value.status != 0
    assert "groups.D4: unknown group 'D4'; allowed: C1, C2, C4" in wrong_value.said
    for call in (wrong_key, wrong_value):
        assert "Traceback" not in call.said
        assert not call.jobs
    # A study given by --configfile replaces the default one; --config alone changes that one.
    assert own_study.status == 0 and own_study.jobs["train"] == 1
    assert partial.status == 0 and "results/mine/report.html" in partial.said


def test_a_study_that_lacks_its_name_is_not_taken_for_the_default_one(project):
    content = read_yaml(REPOSITORY / "config" / "smoke.yaml")
    for name, kept in (("nameless", content.keys() - {"study"}), ("bare", {"seeds"})):
        path = project / "config" / f"{name}.yml"
        path.write_text(yaml.safe_dump({key: content[key] for key in kept}), encoding="utf-8")
    nameless, bare = snakemake(
        project,
        ["-n", "--configfile", "config/nameless.yml"],
        ["-n", "--configfile", "config/bare.yml"],
    )
    for call in (nameless, bare):
        assert call.status != 0 and not call.jobs
        assert "study: missing" in call.said and "Traceback" not in call.said


def test_a_list_of_names_selects_entries_and_keeps_what_they_say(project, tmp_path):
    """A method by its name alone would be trained by another recipe than the file's."""
    study = read_yaml(REPOSITORY / "config" / "cifar10_imagenet_c8.yaml")
    files = {
        "some": {**study, "study": "some"},
        "more": {"methods": {"prlc": {"train": {"lr": 7.0e-4}}}},
    }
    for name, content in files.items():
        path = project / "config" / f"{name}.yml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    chosen = ["methods=[vanilla, prlc]", "datasets=[cifar10]", "groups=[C4]", "seeds=[0]"]
    laid_over = ["config/some.yml", "config/more.yml"]
    call = ["-n", "--configfile", *laid_over, "--config", *chosen]
    (found,) = snakemake(project, call)
    assert found.status == 0 and found.jobs["train"] == 2, found.said
    (merged,) = (project / "scratch" / "some").glob("study-*.yaml")
    merged = read_yaml(merged)
    assert list(merged["methods"]) == ["vanilla", "prlc"] and list(merged["groups"]) == ["C4"]
    assert study["datasets"]["cifar10"].items() <= merged["datasets"]["cifar10"].items()
    prlc = study["methods"]["prlc"]
    assert merged["methods"]["prlc"] == {**prlc, "train": {**prlc["train"], "lr": 7.0e-4}}


def test_a_key_that_stands_twice_is_refused_here_too(project):
    """Snakemake's own reader takes the last of them without a word."""
    content = (REPOSITORY / "config" / "smoke.yaml").read_text(encoding="utf-8")
    (project / "config" / "twice.yml").write_text(content + "seeds: [7]\n", encoding="utf-8")
    (call,) = snakemake(project, ["-n", "--configfile", "config/twice.yml"])
    assert call.status != 0 and not call.jobs
    assert "the key 'seeds' stands twice" in call.said and "Traceback" not in call.said


def test_folders_with_spaces_and_quotes_reach_the_commands_whole(project):
    content = read_yaml(REPOSITORY / "config" / "smoke.yaml")
    content["datasets"] = {"mine": {"folder": "it's my $(folder)"}}
    path = project / "config" / "quoted.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    (call,) = snakemake(project, ["-n", "-p", "--configfile", "config/quoted.yml"])
    assert call.status == 0, call.said
    (line,) = [line for line in call.said.splitlines() if "eqadapt download" in line]
    assert shlex.split(line)[shlex.split(line).index("--folder") + 1] == "it's my $(folder)"


def touch_all(folder, *arguments):
    """Make a finished tree of empty files, and have Snakemake take it for its own work."""
    (listed,) = snakemake(folder, ["--summary", *arguments])
    files = re.findall(r"^((?:results|data)/\S+)\t", listed.said, re.M)
    assert len(files) > 40
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    touched, after = snakemake(
        folder, ["--touch", "--forceall", "--cores", "1", *arguments], ["-n", *arguments]
    )
    assert touched.status == 0, touched.said
    assert "Nothing to be done" in after.said


FINISHED = ("--configfile", "config/smoke.yaml", "--config", "jobs={share: none}", "seeds=[0, 1]")


@pytest.fixture(scope="module")
def finished(project, tmp_path_factory):
    """A finished smoke study of two seeds, a process a run."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(project, folder)
    touch_all(folder, *FINISHED)
    return folder


def test_a_change_of_the_study_redoes_what_depends_on_it(finished):
    analysis = {"study_config", "metrics", "headline", "tables", "figures", "claims", "report"}
    models = {"pretrain", "train", "predict"}
    cases = {
        "train={epochs: 2}": {"train", "predict"} | analysis,
        "pretrain={epochs: 2}": models | analysis,
        "image={mask: disk}": models | analysis,
        "evaluate={gallery: 3}": {"predict"} | analysis,
        "datasets={digits: {validation: 90}}": {"prepare"} | models | analysis,
        "title=Other": analysis,
        "device=auto": analysis,
        "seeds=[0]": analysis,
    }
    calls = [["-n", *FINISHED, change] for change in cases]
    for (change, expected), call in zip(cases.items(), snakemake(finished, *calls)):
        redone = {rule for rule in call.jobs if rule not in ("all", "notebook")}
        assert redone == expected, (change, call.said[-3000:])


def test_a_change_of_one_method_redoes_that_method_alone(finished):
    methods = (
        "methods={vanilla: {}, rotation_augmentation: {}, prlc: {train: {lr: 0.1}}, oracle: {}}"
    )
    added = "methods=[vanilla, rotation_augmentation, lc, prlc, oracle]"
    seeds = "seeds=[0, 1, 2]"
    changed, more, longer = snakemake(
        finished, ["-n", *FINISHED, methods], ["-n", *FINISHED, added], ["-n", *FINISHED, seeds]
    )
    two_groups_two_seeds = 4
    assert changed.jobs["train"] == changed.jobs["predict"] == two_groups_two_seeds
    assert more.jobs["train"] == more.jobs["predict"] == two_groups_two_seeds
    assert "pretrain" not in changed.jobs
    assert longer.jobs["train"] == 1 + 2 + 2 and longer.jobs["predict"] == 1 + 2 + 2 + 1


def test_another_backbone_redoes_nothing_of_those_there(finished):
    other = "backbones={other: {model: resnet18, weights: pretrained}}"
    (more,) = snakemake(finished, ["-n", *FINISHED, other])
    two_seeds = 2
    assert more.jobs["hub_weights"] == 1 and "pretrain" not in more.jobs
    assert more.jobs["train"] == two_seeds * (1 + 2 + 2)
    assert more.jobs["predict"] == two_seeds * (1 + 2 + 2 + 1)


def test_orbits_wait_for_the_weights_of_their_own_backbone_alone(project):
    content = read_yaml(REPOSITORY / "config" / "methods_digits.yaml")
    content["datasets"] = {"imagenet1k": {"folder": "images"}}
    content["backbones"] = {name: {"weights": "pretrained"} for name in ("resnet18", "resnet34")}
    path = project / "config" / "published.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    cache = f"data/orbits/{content['study']}/imagenet1k-resnet34-C8-test.safetensors"
    (plan,) = snakemake(project, ["-n", cache, "--configfile", "config/published.yml"])
    assert plan.jobs["hub_weights"] == plan.jobs["orbits"] == 1, plan.said
    assert "resnet18" not in plan.said


@pytest.mark.slow
def test_touches_and_moves_redo_nothing(finished, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished, moved)
    for path in (moved / "data").rglob("*"):
        os.utime(path)
    (same,) = snakemake(moved, ["-n", *FINISHED])
    assert "Nothing to be done" in same.said
    changed = next((moved / "data" / "prepared" / "digits").glob("test*"))
    changed.write_text("one byte more", encoding="utf-8")
    (redone,) = snakemake(moved, ["-n", *FINISHED])
    assert {"pretrain", "train", "predict"} <= set(redone.jobs) and "prepare" not in redone.jobs


@pytest.mark.slow
def test_a_change_of_code_redoes_what_runs_it(finished, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(REPOSITORY / "src" / "eqadapt", source / "eqadapt")
    calls = []
    for module, text in (
        ("analysis/tables.py", "\n# Nothing but a remark.\n"),
        ("analysis/tables.py", "\nCHANGED = True\n"),
        ("commands/predict.py", "\nCHANGED = True\n"),
        ("datasets/preparation.py", "\nCHANGED = True\n"),
    ):
        path = source / "eqadapt" / module
        before = path.read_text(encoding="utf-8")
        path.write_text(before + text, encoding="utf-8")
        calls += snakemake(finished, ["-n", *FINISHED], PYTHONPATH=str(source))
        path.write_text(before, encoding="utf-8")
    remark, tables, predict, prepare = calls
    assert "Nothing to be done" in remark.said
    assert "tables" in tables.jobs and "train" not in tables.jobs
    assert "predict" in predict.jobs and "train" not in predict.jobs
    assert "prepare" in prepare.jobs and "download" not in prepare.jobs


def test_every_way_of_sharing_plans_the_same_files(project):
    fewer = "{other: {model: resnet_small, weights: pretrain, methods: [vanilla, prlc]}}"
    more = ("seeds=[0, 1]", "regimes=[joint, frozen]", f"backbones={fewer}")
    study = load_study(project / "config" / "smoke.yaml", more)
    named = outputs.table_files(study.config) + outputs.figure_files(study.config)
    calls = [
        ["--summary", *SMOKE, "--config", f"jobs={{share: {share}}}", *more]
        for share in ("none", "seeds", "cell")
    ]
    for listed in snakemake(project, *calls):
        files = set(re.findall(r"^((?:results|data)/\S+)\t", listed.said, re.M))
        for run in study.runs():
            assert f"results/smoke/predictions/{run.stem}.parquet" in files
            assert (f"results/smoke/runs/{run.stem}/run.json" in files) == run.trains
        assert sum("/predictions/" in file for file in files) == len(study.runs())
        assert sum(file.endswith("run.json") for file in files) == len(study.trained_runs())
        assert {f"results/smoke/{name}" for name in named} <= files


@pytest.mark.slow
def test_the_smoke_study_runs_through_every_rule(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    first, second, report = snakemake(
        folder, [*SMOKE, "--cores", "2"], ["-n", *SMOKE], [*SMOKE, "--report", "report.html"]
    )
    assert first.status == 0, first.said[-5000:]
    assert "Nothing to be done" in second.said
    assert report.status == 0 and (folder / "report.html").stat().st_size > 1e6
    assert (folder / "results" / "smoke" / "report.html").is_file()
    written = yaml.safe_load((folder / "results" / "smoke" / "study.yaml").read_text("utf-8"))
    assert written == load_study(folder / "config" / "smoke.yaml").config
    changed, forced = snakemake(
        folder, ["-n", *SMOKE, "--config", "title=Other"], ["-n", "--forceall", *SMOKE]
    )
    assert "train" not in changed.jobs and "train" in forced.jobs


@pytest.mark.slow
def test_a_data_set_by_another_name_and_split_goes_through_every_rule(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    study = yaml.safe_load((folder / "config" / "smoke.yaml").read_text(encoding="utf-8"))
    study |= {"study": "alias", "groups": ["C4"], "methods": ["vanilla", "prlc"]}
    few = {"source": "digits", "validation": 90, "limit_train": 200, "limit_test": 60}
    study["datasets"] = {"few": few}
    (folder / "config" / "alias.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    (done,) = snakemake(folder, ["--configfile", "config/alias.yaml", "--cores", "2"])
    assert done.status == 0, done.said[-5000:]
    assert len(list((folder / "results" / "alias" / "notebooks").glob("*.html"))) == 4


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_the_same(project, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    changes = ("train={epochs: 6}", "methods=[vanilla, prlc]")
    study = (*SMOKE, "--config", *changes)
    (whole,) = snakemake(folder, ["runs", *study, "study=whole", "--cores", "1"])
    assert whole.status == 0, whole.said[-3000:]

    command = [sys.executable, "-m", "snakemake", "runs", *study, "study=killed", "--cores", "1"]
    log = folder / "first.log"
    with log.open("w") as stream:
        running = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
        kill_training(log, "prlc-C4-seed0  epoch 2")
        assert running.wait() != 0
    assert not (folder / "results" / "killed" / "runs").exists()

    (second,) = snakemake(folder, ["runs", *study, "study=killed", "--cores", "1"])
    assert second.status == 0, second.said[-3000:]
    epochs = re.findall(r"^\S+(vanilla|prlc-C4)\S*  epoch (\d)", second.said, re.M)
    assert "vanilla" not in dict(epochs) and epochs[0][1] != "0"
    found = sorted((folder / "results" / "whole" / "runs").glob("*/checkpoint.safetensors"))
    assert len(found) == 3
    for path in found:
        other = folder / "results" / "killed" / "runs" / path.parent.name / path.name
        assert path.read_bytes() == other.read_bytes()

    shared = ("seeds=[0, 1]", "jobs={share: seeds}")
    (more,) = snakemake(folder, ["runs", *study, "study=killed", *shared, "--cores", "1"])
    assert more.status == 0, more.said[-3000:]
    assert set(re.findall(r"seed(\d)  epoch", more.said)) == {"1"}
    for path in found:
        other = folder / "results" / "killed" / "runs" / path.parent.name / path.name
        assert path.read_bytes() == other.read_bytes()


def kill_training(log, sign, patience=300):
    """End the training whose log says ``sign``, as a full machine would."""
    deadline = time.monotonic() + patience
    while sign not in log.read_text("utf-8"):
        assert time.monotonic() < deadline, log.read_text("utf-8")[-3000:]
        time.sleep(0.05)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if words[1:4] == ["-m", "eqadapt", "train"] and "results/killed" in words:
                os.kill(int(folder.name), signal.SIGKILL)


def test_headlines_are_means_over_seeds_of_each_cell():
    from eqadapt.commands.headline import headlines

    cell = {
        "dataset": "d",
        "backbone": "b",
        "regime": "joint",
        "method": "prlc",
        "group": "C8",
        "worst_pose_acc": "",
    }
    rows = [
        {**cell, "acc": "0.9", "cn_avg": "0.8", "identity_rate": "1"},
        {**cell, "acc": "0.8", "cn_avg": "0.6", "identity_rate": "0.5"},
    ]
    other = {**rows[0], "method": "vanilla", "identity_rate": ""}
    assert headlines([*rows, other]) == {
        "d-b-joint-prlc-C8": {"seeds": 2, "acc": 0.85, "cn_avg": 0.7, "identity_rate": 0.75},
        "d-b-joint-vanilla-C8": {"seeds": 1, "acc": 0.9, "cn_avg": 0.8},
    }
