"""What sets the project up, beside its lock: Makefile, conda, the cluster's plugin, the archive."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from eqadapt.errors import UserError
from eqadapt.scorers import bases

REPOSITORY = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# A Python that tells what it is asked. Making a .venv, it leaves a python and tools like itself.
PYTHON = """#!/bin/bash
echo "$(basename "$0") $*" >> "$ASKED"
if [ "$2" = venv ]; then
    mkdir -p .venv/bin
    for name in python uv snakemake; do cp "$0" .venv/bin/$name; done
fi
"""
HALF_MADE = """#!/bin/bash
echo "No module named pip" >&2
exit 1
"""


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def make(folder, *arguments):
    """Run make in a folder; returns what it said and what Pythons and tools were asked."""
    asked = folder / "asked"
    asked.unlink(missing_ok=True)
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**os.environ, "ASKED": str(asked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, asked.read_text("utf-8").splitlines()


@pytest.fixture
def checkout(tmp_path):
    """The Makefile with a Python that only tells what it is asked."""
    folder = tmp_path / "checkout"
    (folder / "workflow").mkdir(parents=True)
    for name in ("Makefile", "workflow/find_python.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    script(folder / "python3", PYTHON)
    return folder


@needs_make
def test_an_environment_that_was_left_half_made_is_made_anew(checkout):
    script(checkout / ".venv" / "bin" / "python", HALF_MADE)
    said, asked = make(checkout, ".venv/.ready", "PYTHON=./python3")
    assert "python3 -m venv --clear .venv" in asked
    assert (checkout / ".venv" / ".ready").is_file()
    (checkout / ".venv" / ".ready").unlink()
    said, asked = make(checkout, ".venv/.ready", "PYTHON=./python3")
    assert not [line for line in asked if "venv" in line and "-m venv" in line], said


@needs_make
def test_make_tells_of_the_report_of_the_study_that_it_ran_alone(checkout):
    make(checkout, ".venv/.ready", "PYTHON=./python3")
    _, asked = make(checkout, "study", "STUDY=config/other.yaml")
    assert "snakemake --configfile config/other.yaml" in asked
    assert [line for line in asked if '"report:", load_study("config/other.yaml")' in line]
    for arguments in ("-n", "--config study=quick 'seeds=[0, (1)]'"):
        _, asked = make(checkout, "study", f"ARGS={arguments}")
        assert len(asked) == 1 and asked[0].startswith("snakemake")


def test_conda_makes_python_and_pip_alone():
    """Its list for pip becomes a file of requirements, in which pip refuses ``--no-deps``."""
    content = yaml.safe_load((REPOSITORY / "environment.yml").read_text("utf-8"))
    assert content["dependencies"] == ["python=3.11", "pip"]


CONDA = """#!/bin/bash
case "$1 $2" in
"info --json") echo '{"conda_prefix": "%(root)s", "platform": "linux-64"}' ;;
"--version "*) echo "conda 24.9.2" ;;
"config --get") echo '{"get": {"channel_priority": "strict"}}' ;;
"env create")
    while [ "$1" != --prefix ]; do shift; done
    mkdir -p "$2/bin"
    cp "%(root)s/python" "$2/bin/python" ;;
esac
"""
CONDA_PYTHON = """#!/bin/bash
echo "$PWD: $*" >> "$ASKED"
if [ "$2" = eqadapt ]; then PYTHONPATH="%(src)s" exec "%(python)s" "$@"; fi
"""
ACTIVATE = 'export PATH="$1/bin:$PATH"\n'


def test_an_environment_of_snakemakes_is_filled_from_the_lock_and_used(tmp_path):
    """By a stand-in for conda, which makes environments whose Python tells what it is asked."""
    root, folder = tmp_path / "conda", tmp_path / "project"
    python = {"src": REPOSITORY / "src", "python": sys.executable}
    script(root / "bin" / "conda", CONDA % {"root": root})
    script(root / "bin" / "activate", ACTIVATE)
    script(root / "python", CONDA_PYTHON % python)
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(REPOSITORY / name, folder / name)
    (folder / "notebooks").mkdir()
    names = ("environment.yml", "environment.post-deploy.sh")
    for name in ("Snakefile", "pyproject.toml", "requirements.lock", *names):
        shutil.copy(REPOSITORY / name, folder / name)
    record = "data/raw/digits/source.json"
    command = [sys.executable, "-m", "snakemake", "--sdm", "conda", "--cores", "1", record]
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "ASKED": str(tmp_path / "asked")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "asked").read_text("utf-8").splitlines() == [
        f"{folder}: -m pip install --no-deps --require-hashes -r requirements.lock",
        f"{folder}: -m pip install --no-deps --no-build-isolation -e .",
        f"{folder}: -m eqadapt download --dataset digits",
    ]


def test_the_plugin_of_the_cluster_is_one_that_the_lock_has_room_for():
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    extras = content["project"]["optional-dependencies"]
    assert extras["slurm"] == ["snakemake-executor-plugin-slurm>=2,<2.7"]
    told = re.compile(r"\.venv/bin/uv pip install 'snakemake-executor-plugin-slurm<2\.7' 'numpy<2'")
    for name in ("docs/your_own_study.md", "profiles/slurm/profile.yaml"):
        text = (REPOSITORY / name).read_text("utf-8")
        assert len(told.findall(text)) == text.count("plugin-slurm") == 1, name


def test_the_archive_of_the_package_has_no_half_of_the_tests(tmp_path):
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    with tarfile.open(next((folder / "dist").iterdir())) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "src/eqadapt/study.schema.yaml" in names
    assert not [name for name in names if name.startswith("tests")]


def test_what_is_told_where_escnn_is_missing_installs_the_versions_of_the_project(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match="escnn is not installed") as error:
        bases.escnn_version.__wrapped__()
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    named = content["project"]["optional-dependencies"]["escnn"]
    assert {re.split("[=<]", name)[0] for name in named} == {"escnn", "lie-learn", "numpy"}
    assert all(name in str(error.value) for name in named)
    assert "pip install --no-deps escnn" in str(error.value)


def test_a_canonicalizer_is_built_trained_and_examined_without_escnn():
    """As ``pip install .`` leaves it; that of the README."""
    program = textwrap.dedent(
        """
        import sys
        from importlib import metadata

        real = metadata.version
        def version(name):
            if name == "escnn":
                raise metadata.PackageNotFoundError(name)
            return real(name)

        metadata.version, sys.modules["escnn"], sys.modules["lie_learn"] = version, None, None
        import torch
        from eqadapt.cli import main
        from eqadapt.groups import CyclicGroup
        from eqadapt.losses import prior_loss
        from eqadapt.scorers import build_scorer

        scorer = build_scorer("paired_cnn", CyclicGroup(8), in_channels=3)
        images, upright = torch.rand(4, 3, 64, 64), torch.zeros(4, dtype=torch.long)
        prior_loss(scorer(images), upright).backward()
        assert main("doctor --scorer paired_cnn --option inner=staged_cnn".split()) == 0
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_stage_that_runs_rules_is_redone_after_an_edit_of_any():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text("utf-8"))["stages"]
    for name in ("data", "train", "predict", "analyse"):
        assert {"Snakefile", "workflow/rules", "src/eqadapt"} <= set(stages[name]["deps"]), name
