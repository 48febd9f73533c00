"""Everything that is not a rule: the study, names of files, and what is tracked of each step.

A step reruns when an input's content changes, or a value among its `params`: digests of the parts
of the study it depends on and of the code it runs. The merged study itself reaches the commands as
$STUDY, a file named by its content, through the shell's prefix, which is not tracked; so a change
of one key reruns what depends on that key. $RESULTS and $SCRATCH are the study's folders.
"""

import re
import shlex
import sys
from functools import reduce
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from eqadapt.analysis import outputs
from eqadapt.datasets.variants import Preparation
from eqadapt.digest import code_id, data_id
from eqadapt.errors import UserError
from eqadapt.files import tree_state, write_text
from eqadapt.methods import get_method
from eqadapt.study import digest_of, expanded, load_study, merge, read_yaml, selected
from eqadapt.study_rules import schema
from eqadapt.test_time.plan import load_plan

# A study given by --configfile, or by a workflow that includes this one, stands alone, whatever it
# lacks; changes by --config alone are to the default study.
STUDY_FILES = list(workflow.config_settings.configfiles)
if not STUDY_FILES and not set(schema()["required"]) <= set(config):
    STUDY_FILES.append("config/digits.yaml")

    configfile: "config/digits.yaml"


try:
    # Snakemake's own reader takes the last of two keys that are the same, and a list of names on the
    # command line in place of the files' entries with all that they say.
    config |= selected(reduce(merge, [read_yaml(Path(file)) for file in STUDY_FILES], {}), config)
    STUDY = load_study(config)
    # Studies of test-time methods predict by those, and train canonicalizers for them.
    PLAN = load_plan(STUDY) if STUDY.config["test_time"] else None
except UserError as error:
    raise WorkflowError(str(error)) from None

PREDICTED = PLAN.all_runs() if PLAN else STUDY.runs()

CANONICALIZERS = [run for run in STUDY.trained_runs() if get_method(run.method).finds_a_pose]

JOBS = STUDY.config["jobs"]
RESULTS = STUDY.results_dir.as_posix()
SCRATCH = f"scratch/{STUDY.name}"
LOGS = f"logs/{STUDY.name}"
ENVIRONMENT = "../../environment.yml"
PUBLISHED = "config/published.yaml"

SPLITS = ("train", "validation", "test")
PREPARED_SPLIT = "data/prepared/{preparation}/{split}.safetensors"
RUN = "{dataset}-{backbone}-{regime}-{method}-{group}-seed{seed}"
CHECKPOINT = f"{RESULTS}/runs/{RUN}/checkpoint.safetensors"
HISTORY = f"{RESULTS}/runs/{RUN}/history.csv"
RECORD = f"{RESULTS}/runs/{RUN}/run.json"
PREDICTIONS = f"{RESULTS}/predictions/{RUN}.parquet"
GALLERY = f"{RESULTS}/galleries/{RUN}.safetensors"
HUB_FILE = "data/weights/{model}.safetensors"
PRETRAINED = f"{RESULTS}/pretrained/{{dataset}}-{{backbone}}.safetensors"
ORBITS = f"data/orbits/{STUDY.name}/{{dataset}}-{{backbone}}-{{group}}-{{split}}.safetensors"
POSES = f"data/orbits/{STUDY.name}/poses/{RUN}-{{split}}.safetensors"
TRANSFER = f"{RESULTS}/{outputs.TRANSFER}"
STUDY_YAML = f"{RESULTS}/study.yaml"


wildcard_constraints:
    dataset=r"[A-Za-z0-9_]+",
    preparation=r"[A-Za-z0-9_]+(-v[0-9.]+)?(-s[0-9]+)?",
    backbone=r"[A-Za-z0-9_]+",
    model=r"[A-Za-z0-9_.]+",
    regime="joint|frozen",
    method=r"[A-Za-z0-9_]+",
    group=r"C\d+",
    seed=r"\d+",


def study_file():
    """The merged study as a file for the commands; its name follows from its content.

    It is newer than a study.yaml of another content: Snakemake keeps no record of files that git
    brought, by which it would know that theirs is not this study.
    """
    text, results = STUDY.to_yaml(), Path(STUDY_YAML)
    path = Path(SCRATCH) / f"study-{digest_of(text)}.yaml"
    other = results.exists() and results.read_text(encoding="utf-8") != text
    if other or not path.exists():
        try:
            write_text(path, text)
        except (UserError, OSError) as error:
            raise WorkflowError(
                f"the study cannot be written into {SCRATCH}, where commands read it: {error}\n"
                "  in a read-only checkout: copy it to where writing is allowed"
            ) from None
    return path.as_posix()


def shell_prefix():
    """Strict bash, the right Python first on the path, and what must not be tracked.

    That is the one that runs Snakemake, but for --sdm conda, which has put its own there before.
    """
    lines = ["set -euo pipefail"]
    if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
        lines.append(f'export PATH="{Path(sys.executable).parent}:$PATH"')
    lines.append(f"STUDY={study_file()} RESULTS={RESULTS} SCRATCH={SCRATCH}")
    if STUDY.config["mirror"]:
        lines.append(f"export EQADAPT_MIRROR={shlex.quote(expanded(STUDY.config['mirror']))}")
    return "; ".join(lines).replace("{", "{{").replace("}", "}}") + "; "


shell.prefix(shell_prefix())

# Weights files of the user's are tracked by their checksums and folders of images by their state,
# not as inputs: a study can be planned where they are not, but not begun.
MISSING = STUDY.missing_sources()
for message in MISSING:
    logger.warning(message)


onstart:
    if MISSING:
        raise WorkflowError(
            "; ".join(MISSING)
            + " (see docs/your_own_study.md; environment variables in a path must be set)"
        )


def hub_files(runs=None):
    """timm's pretrained weights that runs begin with, fetched once; None: those of all runs.

    Each job has those of its own runs alone, so that another backbone in the study redoes nothing.
    """
    return expand(HUB_FILE, model=STUDY.hub_models(runs))


def run_files(runs, *patterns):
    """Files of runs, pattern by pattern."""
    return [pattern.format(**run.as_dict()) for pattern in patterns for run in runs]


def as_flags(wildcards):
    """The wildcards as flags of a verb."""
    return " ".join(f"--{key} {value}" for key, value in wildcards.items())


def user_folder(source):
    """The user's folder that a data set comes from; else None."""
    for name, options in STUDY.config["datasets"].items():
        if STUDY.preparation(name).source == source and options["folder"]:
            return options["folder"]
    return None


def folder_flag(source):
    """The user's folder of a data set as a flag of a verb; else nothing."""
    folder = user_folder(source)
    return f"--folder {shlex.quote(STUDY.expanded(folder))}" if folder else ""


def folder_state(source):
    """What changes when the user changes images in that folder."""
    folder = user_folder(source)
    return tree_state(STUDY.expanded(folder)) if folder else ""


def prepared_splits(of):
    """The three files that an entry's images are read from; ``of`` has its name as ``dataset``."""
    preparation = STUDY.preparation(of.dataset).name
    return expand(PREPARED_SPLIT, preparation=preparation, split=SPLITS)


def raw_record(wildcards):
    """The verified archive that a preparation is made from."""
    return f"data/raw/{Preparation.parse(wildcards.preparation).source}/verified.json"


def preparation_flags(wildcards):
    """Data set and options of a preparation as flags of a verb."""
    preparation = Preparation.parse(wildcards.preparation)
    return f"--dataset {preparation.source} {preparation.flags}".strip()


class Part:
    """Runs that share a process, for all data sets: one rule a part.

    Args:
        verb: Name of the rule.
        runs: The runs that the verb works on in this part.
        *kind: What of the regime and the backbone the rule's name must tell.
    """

    def __init__(self, verb, runs, *kind):
        self.runs = list(runs)
        self.regime = "|".join(dict.fromkeys(run.regime for run in self.runs))
        self.backbone = "|".join(dict.fromkeys(run.backbone for run in self.runs))
        self.name = "_".join([verb, *kind])
        fields = {"none": 6, "seeds": 5, "cell": 3}[JOBS["share"]]
        self.fields = ("dataset", "backbone", "regime", "method", "group", "seed")[:fields]
        self.title = "-".join(f"{{{field}}}" for field in self.fields)

    def files(self, pattern):
        """Files that one job leaves, with the wildcards that tell jobs apart left in."""
        kept = {field: f"{{{field}}}" for field in self.fields}
        return list(dict.fromkeys(pattern.format(**{**r.as_dict(), **kept}) for r in self.runs))

    def covered(self, wildcards):
        """The runs of one job."""
        wanted = {field: getattr(wildcards, field) for field in self.fields}
        return [r for r in self.runs if all(str(getattr(r, f)) == v for f, v in wanted.items())]

    def recipes(self, wildcards):
        """Digest of the recipes of one job's runs."""
        return digest_of([STUDY.recipe_hash(run) for run in self.covered(wildcards)])

    def hub(self, wildcards):
        """The pretrained weights that one job's runs begin with."""
        return hub_files(self.covered(wildcards))

    def checkpoints(self, wildcards):
        """The checkpoints that one job's runs are evaluated with."""
        return run_files(dict.fromkeys(run.source for run in self.covered(wildcards)), CHECKPOINT)

    def starts(self, wildcards):
        """The checkpoints that one job's runs start from: of backbones, and of scorers."""
        runs = self.covered(wildcards)
        backbones = dict.fromkeys(filter(None, map(STUDY.start, runs)))
        scorers = dict.fromkeys(filter(None, map(STUDY.scorer_start, runs)))
        there = [path.as_posix() for path in scorers if path.is_file()]  # else told at the start
        return run_files(backbones, CHECKPOINT) + there


def parts(verb, runs):
    """One part; in shared cells one for each kind of cell.

    What a cell leaves must follow from its rule: not every method knows every regime, and a backbone
    may have methods of its own.
    """
    if JOBS["share"] != "cell":
        return [Part(verb, runs)]
    methods = STUDY.config["methods"]
    kinds = {}
    for run in runs:
        own = STUDY.config["backbones"][run.backbone].get("methods", methods)
        backbone = run.backbone if set(own) != set(methods) else None
        kinds.setdefault((run.regime, backbone), []).append(run)
    several = len({regime for regime, _ in kinds}) > 1
    return [
        Part(verb, found, *filter(None, (regime if several else None, backbone)))
        for (regime, backbone), found in kinds.items()
    ]


def pretraining(wildcards):
    """The pretraining that a backbone's runs start from, if they do."""
    weights = STUDY.config["backbones"][wildcards.backbone]["weights"]
    return PRETRAINED.format(**dict(wildcards.items())) if weights == "pretrain" else []


def pretrain_recipe(wildcards):
    """Digest of what decides a pretraining."""
    return STUDY.pretrain_hash(wildcards.dataset, wildcards.backbone)


def frozen_run(wildcards):
    """The run that stands for a frozen backbone, whatever the group."""
    return PLAN.cells(wildcards.dataset, wildcards.backbone)[0].run("vanilla")


def canonicalizers(cell):
    """The trained runs whose canonicalizers a cell of test-time methods uses."""
    seeds = STUDY.config["seeds"]
    return [
        PLAN.canonicalizer_run(cell, m, seed) for m in STUDY.config["methods"] for seed in seeds
    ]


def pose_files(cell):
    """What those canonicalizers say of the images that methods are selected and tested on."""
    return [
        POSES.format(**run.as_dict(), split=split)
        for run in canonicalizers(cell)
        for split in ("validation", "test")
    ]


def own_records(cell):
    """The runs of a cell of test-time methods that no training has left a record of."""
    trained = set(STUDY.trained_runs())
    return [run for run in PLAN.runs(cell) if run not in trained]


def temperatures():
    """The curves that join equizero to equitune, of test-time studies."""
    stems = [cell.run("boltzmann").stem for cell in PLAN.cells()] if PLAN else []
    return [f"{RESULTS}/temperatures/{stem}.parquet" for stem in stems]


def study_digest(*keys):
    """Digest of parts of the study."""
    return STUDY.digest(*keys)


def headline_files():
    """One file for each method in each cell; runs without a group are evaluated at every group.

    None of test-time methods, of which there are dozens.
    """
    if PLAN:
        return []
    cells = {
        (run.dataset, run.backbone, run.regime, run.method, group): None
        for run in STUDY.runs()
        for group in ([run.group] if run.group != "C1" else STUDY.config["groups"])
    }
    return [f"{RESULTS}/headline/{'-'.join(cell)}.json" for cell in cells]


def captioned(path):
    """A figure or table for the Snakemake report; its name tells what it shows."""
    kind, *shown = Path(path).stem.split("-")
    keys = ("dataset", "backbone", "regime", "group")
    keys = {3: (keys[0], *keys[2:]), 2: keys[2:]}.get(len(shown), keys)
    folder = Path(path).parent.name
    return report(
        path,
        caption=f"../report/{kind}.rst",
        category=folder.capitalize(),
        subcategory=kind.replace("_", " "),
        labels=dict(zip(keys, shown)),
    )


def result_files(files, *suffixes):
    """Analysis outputs under the results folder, those of the given forms in the report too."""
    paths = [f"{RESULTS}/{file}" for file in files]
    return [captioned(path) if path.endswith(suffixes) else path for path in paths]
