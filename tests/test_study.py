"""Studies: what is valid, how faults are told, what each run's recipe and digest depend on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eqadapt.datasets.variants import Preparation
from eqadapt.digest import code_id, modules_of
from eqadapt.errors import UserError
from eqadapt.methods import METHODS
from eqadapt.product_study import load_products
from eqadapt.study import Run, expanded, load_study, merge, parse_override
from eqadapt.study_rules import schema

REPOSITORY = Path(__file__).parents[1]
STUDIES = sorted(
    path
    for path in (REPOSITORY / "config").glob("*.yaml")
    if "study" in yaml.safe_load(path.read_text(encoding="utf-8"))
)


def a_study(**changes):
    base = {
        "study": "mine",
        "datasets": ["digits"],
        "backbones": {"resnet_small": {"weights": "pretrain"}},
        "methods": ["vanilla", "prlc", "oracle"],
    }
    return merge(base, changes)


def loaded(**changes):
    return load_study(a_study(**changes))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_in_config_is_valid_and_survives_a_round_trip(path, tmp_path):
    study = load_study(path)
    assert study.name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=")
    copy = tmp_path / "copy.yaml"
    copy.write_text(study.to_yaml(), encoding="utf-8")
    again = load_study(copy)
    assert again.config == study.config
    assert [again.recipe_hash(r) for r in again.runs()] == [
        study.recipe_hash(r) for r in study.runs()
    ]
    stems = [run.stem for run in study.runs()]
    assert len(set(stems)) == len(stems)


def test_the_study_in_the_documentation_is_one():
    text = (REPOSITORY / "docs" / "your_own_study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    study = load_study(yaml.safe_load(block))
    assert len(study.runs()) == 9
    side = study.recipe(study.runs()[0])["image"]["size"]
    assert study.preparation("mine").size == side == 224
    weights = text.split("## Backbones")[1].split("## A trained")[0]
    named = set(re.findall(r"`(?:config/)?([a-z0-9_]+\.yaml)`", weights))
    folder = REPOSITORY / "config"
    with_weights = {p.name for p in folder.glob("*.yaml") if "$EQADAPT_MIRROR/" in p.read_text()}
    assert with_weights == named


def test_the_default_study_explains_every_key():
    text = (REPOSITORY / "config" / "digits.yaml").read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    known = schema()["properties"]
    assert set(known) - set(given) == set()
    for section in ("image", "evaluate", "jobs"):
        keys = known[section].get("properties") or schema()["$defs"][section]["properties"]
        assert set(keys) == set(given[section])
    definitions = schema()["$defs"]
    assert set(definitions["train"]["properties"]) == set(given["train"])
    entries = {*definitions["dataset"]["properties"], *definitions["backbone"]["properties"]}
    for key in entries | set(known["test_time"]["properties"]):
        assert re.search(rf"\b{key}\b", text), key


def test_the_default_study_names_the_defaults_that_it_does_not_have():
    lines = (REPOSITORY / "config" / "digits.yaml").read_text(encoding="utf-8").splitlines()
    given = yaml.safe_load("\n".join(lines))
    places = {
        "image": schema()["$defs"]["image"],
        "train": schema()["$defs"]["train"],
        "evaluate": schema()["properties"]["evaluate"],
        "jobs": schema()["properties"]["jobs"],
    }
    wanted = {
        (section, key): options["default"]
        for section, place in places.items()
        for key, options in place["properties"].items()
        if key != "augment" and options["default"] != given[section][key]
    }
    wanted["backbones", "weights"] = schema()["$defs"]["backbone"]["properties"]["weights"][
        "default"
    ]
    said, section = {}, ""
    for line in lines:
        if top := re.match(r"(\w+):", line):
            section = top[1]
        if found := re.match(r" +(\w+): .*# default: (\S+)$", line):
            said[section, found[1]] = yaml.safe_load(found[2])
    assert said == wanted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trian": {}}, ["trian: unknown key", "did you mean train", "image, scorer, pretrain"]),
        ({"train": {"epoch": 3}}, ["train.epoch: unknown key", "did you mean epochs", "patience"]),
        ({"train": {"augment": {"mirror": True}}}, ["train.augment.mirror", "flip"]),
        ({"train": {"epochs": "many"}}, ["train.epochs", "'many'", "integer"]),
        ({"train": {"lr": 0}}, ["train.lr: 0", "> 0"]),
        ({"train": {"optimizer": "adam"}}, ["train.optimizer: 'adam'", "adamw, sgd"]),
        ({"study": "a b"}, ["study: 'a b'", "A-Za-z0-9"]),
        ({"regimes": ["thawed"]}, ["regimes.0: 'thawed'", "joint, frozen"]),
        (
            {"datasets": {"didgits": {}}},
            ["datasets.didgits: unknown data set", "digits", "cifar10"],
        ),
        (
            {"datasets": {"mine": {"source": "didgits"}}},
            ["datasets.mine.source: unknown data set", "did you mean digits"],
        ),
        ({"datasets": {"mnist": {"source": "digits"}}}, ["datasets.mnist.source", "another name"]),
        (
            {"datasets": {"a": {"folder": "a"}, "b": {"source": "a", "folder": "b"}}},
            ["datasets.b.folder: another folder for a"],
        ),
        ({"datasets": {"digits": {"limit": 3}}}, ["datasets.digits.limit", "limit_train"]),
        (
            {"backbones": {"resnet_smal": {}}},
            ["backbones.resnet_smal.model", "unknown backbone", "resnet_small", "vit_small"],
        ),
        ({"backbones": {"r": {"model": "resnet51"}}}, ["backbones.r.model", "resnet50"]),
        ({"backbones": {"r": {"model": "resnet18", "weights": "web"}}}, ["backbones.r.weights"]),
        ({"backbones": {"vit_small": {"weights": "pretrained"}}}, ["backbones.vit_small.weights"]),
        (
            {"backbones": {"vit_small": {"weights": "file", "file": "x.pt"}}},
            ["backbones.vit_small.weights", "sha256"],
        ),
        ({"groups": ["D4"]}, ["groups.D4: unknown group", "C8"]),
        ({"groups": ["C1"]}, ["groups.C1", "C4"]),
        ({"groups": ["C8", "C6"]}, ["evaluate.poses: C8 does not contain C6", "C24"]),
        ({"methods": ["vanila"]}, ["methods.vanila", "did you mean vanilla", "prlc_rotated"]),
        ({"methods": ["prlc", "oracle"]}, ["methods.oracle", "vanilla"]),
        (
            {"methods": ["vanilla"], "backbones": {"resnet_small": {"methods": ["lc"]}}},
            ["backbones.resnet_small.methods", "'lc'", "vanilla"],
        ),
        (
            {"methods": ["vanilla", "oracle"], "backbones": {"r": {"methods": ["oracle"]}}},
            ["backbones.r.methods", "oracle needs vanilla's"],
        ),
        (
            {"backbones": {"resnet_small": {"recipes": {"plrc": {}}}}},
            ["backbones.resnet_small.recipes.plrc", "unknown method", "prlc"],
        ),
        (
            {"backbones": {"resnet_small": {"recipes": {"prlc": {"scorer": {"widht": 8}}}}}},
            ["backbones.resnet_small.recipes.prlc.scorer.widht", "width"],
        ),
        ({"methods": ["rotation_augmentation"], "regimes": ["frozen"]}, ["regimes", "frozen"]),
        (
            {"backbones": {"vit_small": {"weights": "scratch"}}, "regimes": ["frozen"]},
            ["backbones.vit_small.weights", "nothing to freeze", "pretrain, file"],
        ),
        (
            # fine-tuned it would know them, but this network has no vanilla
            {
                "backbones": {
                    "a": {"model": "vit_small", "weights": "scratch", "methods": ["prlc"]}
                },
                "regimes": ["joint", "frozen"],
            },
            ["backbones.a.weights", "nothing to freeze"],
        ),
        ({"backbones": ["resnet10t.c3_in1k"]}, ["backbones", "resnet10t.c3_in1k"]),
        ({"datasets": ["my.images"]}, ["datasets", "my.images"]),
        (
            {
                "backbones": {"resnet10t": {"weights": "prototypes"}},
                "methods": ["vanilla", "rotation_head"],
                "regimes": ["frozen"],
            },
            ["methods.rotation_head", "zero-shot classifier", "backbones.resnet10t.methods"],
        ),
        ({"seeds": [0, 1, 0]}, ["seeds: 0 appears twice"]),
        (
            {"backbones": {"vit_small": {"weights": "scratch", "options": {"num_classes": 5}}}},
            ["backbones.vit_small.options.num_classes", "follows from the data set"],
        ),
        ({"scorer": {"name": "mlp"}}, ["scorer.name", "'mlp'", "group_cnn"]),
        ({"scorer": {"widht": 8}}, ["scorer.widht", "width"]),
        (
            {"scorer": {"name": "paired_cnn", "layers": 2}},
            ["scorer.layers: not an option of paired_cnn with inner staged_cnn", "stages"],
        ),
        (
            {"scorer": {"name": "paired_cnn", "inner": "group_cnn", "stages": 2}},
            ["scorer.stages: not an option of paired_cnn with inner group_cnn", "layers"],
        ),
        (
            {"scorer": {"name": "paired_cnn", "inner": "plain_cnn"}},
            ["scorer.inner: unknown inner network 'plain_cnn'", "staged_cnn, group_cnn"],
        ),
        ({"scorer": {"stride": "two"}}, ["scorer.stride: 'two'", "integer"]),
        ({"scorer": {"mask_input": 3}}, ["scorer.mask_input: 3", "boolean"]),
        (
            {"methods": {"vanilla": {}, "prlc": {"scorer": {"crop": 1.5}}}},
            ["methods.prlc.scorer.crop: 1.5", "<= 1"],
        ),
        (
            {"methods": ["prlc_classwise"], "scorer": {"name": "plain_cnn"}},
            ["scorer.name", "'plain_cnn' tells no classes", "staged_cnn"],
        ),
        (
            {"methods": {"vanilla": {}, "prlc": {"scorer": {"widht": 8}}}},
            ["methods.prlc.scorer.widht", "width"],
        ),
        ({"image": {"size": 16, "backbone_size": 32}}, ["image.size: 16", "backbone_size (32)"]),
        ({"evaluate": {"poses": "24"}}, ["evaluate.poses: unknown group '24'"]),
        ({"jobs": {"share": "all"}}, ["jobs.share: 'all'", "none, seeds, cell"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_fault_is_told_with_its_key_and_what_is_allowed(change, said):
    config = {**a_study(), **change}
    with pytest.raises(UserError) as caught:
        load_study(config)
    for part in said:
        assert part in str(caught.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(UserError) as caught:
        loaded(train={"epochs": -1, "lrr": 1}, seeds=[])
    assert str(caught.value).count("\n  - ") == 3


def test_what_must_be_given_is_named():
    with pytest.raises(UserError, match="datasets: missing"):
        load_study({"study": "x"})


def test_a_file_that_is_no_study_is_named(tmp_path):
    with pytest.raises(UserError, match="no such study"):
        load_study(tmp_path / "none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1", encoding="utf-8")
    with pytest.raises(UserError, match="not readable as YAML") as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    path.write_text("- 1", encoding="utf-8")
    with pytest.raises(UserError, match="not a mapping"):
        load_study(path)


def test_folders_of_ones_own_may_have_any_name():
    assert loaded(datasets={"birds": {"folder": "birds"}}).config["datasets"]["birds"]["folder"]


def test_overrides_reach_their_keys_and_are_checked():
    study = load_study(a_study(), ["train.epochs=2", "seeds=[7]", "train.augment.flip=true"])
    assert study.value("train.epochs") == 2
    assert study.config["train"]["augment"]["flip"] is True
    assert [run.seed for run in study.runs()] == [7] * len(study.runs())
    with pytest.raises(UserError, match=r"train\.epoch: unknown key"):
        load_study(a_study(), ["train.epoch=2"])
    with pytest.raises(UserError, match="not an override"):
        parse_override("train.epochs")
    with pytest.raises(UserError, match="not YAML"):
        parse_override("train=[1")


def test_texts_are_read_as_the_numbers_they_mean():
    study = loaded(
        train={"lr": "1e-3", "epochs": "2", "patience": "null", "augment": {"flip": "true"}},
        seeds=["0", "1"],
        scorer={"width": "4", "mask_input": "false"},
        jobs={"gpu": "1"},
        backbones={"resnet_small": {"options": {"drop_rate": "0.1"}, "sha256": "12345678"}},
        title="2023",
    )
    config = study.config
    assert config["train"]["lr"] == 1e-3 and config["train"]["epochs"] == 2
    assert config["train"]["patience"] is None and config["train"]["augment"]["flip"] is True
    assert config["seeds"] == [0, 1] and config["jobs"]["gpu"] == 1
    assert config["scorer"]["width"] == 4 and config["scorer"]["mask_input"] is False
    assert config["backbones"]["resnet_small"]["options"] == {"drop_rate": 0.1}
    assert config["backbones"]["resnet_small"]["sha256"] == "12345678"
    assert config["title"] == "2023"
    with pytest.raises(UserError, match=r"train\.epochs: 'two' is of the wrong type"):
        loaded(train={"epochs": "two"})


def test_runs_are_every_combination_that_makes_sense():
    study = loaded(
        methods=["vanilla", "rotation_augmentation", "prlc", "oracle"],
        regimes=["joint", "frozen"],
        seeds=[0, 1],
    )
    runs = study.runs()
    assert len(runs) == 2 * (1 + 2 + 2 + 1) + 2 * (1 + 2 + 1)
    assert runs == load_study(study.config).runs()
    assert Run("digits", "resnet_small", "joint", "vanilla", "C1", 0) in runs
    assert not [r for r in runs if r.method == "rotation_augmentation" and r.regime == "frozen"]
    assert {r.method for r in runs} - {r.method for r in study.trained_runs()} == {"oracle"}
    oracle = next(run for run in runs if run.method == "oracle")
    assert oracle.source == oracle.trained_as("vanilla") and not oracle.trains
    assert study.by_stem(oracle.stem) == oracle
    with pytest.raises(UserError, match="no run"):
        study.by_stem("digits-none")


def test_overrides_apply_backbone_then_group_then_method():
    study = loaded(
        train={"lr": 0.1, "epochs": 9},
        scorer={"name": "paired_cnn", "width": 8},
        backbones={
            "resnet_small": {"train": {"lr": 0.2}, "image": {"size": 64}},
            "vit_small": {"recipes": {"prlc": {"train": {"lr": 0.6}}, "lc": {}}},
        },
        groups={"C4": {"scorer": {"name": "group_cnn"}}, "C8": {"train": {"lr": 0.3}}},
        methods={"vanilla": {"train": {"epochs": 5}}, "prlc": {"train": {"lr": 0.4}}, "oracle": {}},
    )
    of = {
        name: [r for r in study.runs() if r.backbone == name] for name in study.config["backbones"]
    }
    others = {(r.method, r.group): study.recipe(r)["train"]["lr"] for r in of["vit_small"]}
    assert others["prlc", "C4"] == others["prlc", "C8"] == 0.6 and others["vanilla", "C1"] == 0.1
    recipes = {(r.method, r.group): study.recipe(r) for r in of["resnet_small"]}
    assert recipes["prlc", "C8"]["train"]["lr"] == 0.4
    assert recipes["vanilla", "C1"]["train"]["lr"] == 0.2
    assert recipes["vanilla", "C1"]["train"]["epochs"] == 5
    assert recipes["oracle", "C1"]["train"] == recipes["vanilla", "C1"]["train"]
    assert recipes["prlc", "C8"]["scorer"] == {"name": "paired_cnn", "width": 8}
    assert recipes["prlc", "C4"]["scorer"] == {"name": "group_cnn"}  # no width of another network
    assert recipes["prlc", "C4"]["image"]["size"] == 64
    assert study.config["image"]["size"] == 32


def hashes(**changes):
    study = loaded(**changes)
    return {run.stem: study.recipe_hash(run) for run in study.runs()}


def differing(**changes):
    before, after = hashes(), hashes(**changes)
    return {stem.split("-")[3] for stem in before if before[stem] != after[stem]}


def test_a_recipe_changes_with_what_decides_the_result_and_nothing_else():
    everything = {"vanilla", "prlc", "oracle"}
    assert differing(train={"epochs": 3}) == everything
    assert differing(pretrain={"epochs": 3}) == everything
    assert differing(image={"mask": "disk"}) == everything
    assert differing(methods={"vanilla": {}, "prlc": {"train": {"lr": 1.0}}, "oracle": {}}) == {
        "prlc"
    }
    for indifferent in (
        {"title": "T", "description": "D"},
        {"jobs": {"share": "cell", "threads": 4}, "device": "cpu"},
        {"evaluate": {"poses": "C24"}},
        {"seeds": [0, 1, 2, 3]},
    ):
        assert differing(**indifferent) == set()
    # Another canonicalizer, or none, is nothing to a network that has none.
    assert differing(scorer={"width": 4}) == {"prlc"}
    assert differing(train={"scorer_lr": 1.0, "scorer_optimizer": "muon"}) == {"prlc"}
    scratch = {"backbones": {"resnet_small": {"weights": "scratch"}}}
    assert hashes(**scratch) == hashes(**scratch, pretrain={"epochs": 3})


def test_a_frozen_backbone_starts_where_it_knows_the_classes():
    changes = {"regimes": ["joint", "frozen"]}
    frozen = Run("digits", "resnet_small", "frozen", "prlc", "C8", 1)
    assert loaded(**changes).start(frozen) is None
    scratch = loaded(**changes, backbones={"resnet_small": {"weights": "scratch"}})
    start = Run("digits", "resnet_small", "joint", "vanilla", "C1", 1)
    assert scratch.start(frozen) == start
    assert scratch.start(start) is None
    slower = load_study(
        merge(scratch.config, {"methods": {"vanilla": {"train": {"epochs": 1}}, "prlc": {}}})
    )
    assert slower.recipe_hash(frozen) != scratch.recipe_hash(frozen)


def test_a_backbone_may_have_some_of_the_methods():
    whole = loaded(backbones={"resnet_small": {}, "vit_small": {}})
    some = loaded(backbones={"resnet_small": {}, "vit_small": {"methods": ["vanilla"]}})
    left = [r for r in whole.runs() if r.backbone == "resnet_small" or r.method == "vanilla"]
    assert some.runs() == left != whole.runs()
    assert [some.recipe_hash(r) for r in left] == [whole.recipe_hash(r) for r in left]


def test_pretraining_has_a_digest_of_its_own():
    def digest(**changes):
        return loaded(**changes).pretrain_hash("digits", "resnet_small")

    assert digest() == digest(train={"epochs": 3}) == digest(scorer={"width": 4})
    assert digest() != digest(pretrain={"epochs": 3})
    assert digest() != digest(image={"size": 64})


def test_only_what_decides_a_frozen_networks_outputs_is_in_their_digest():
    run = Run("digits", "resnet_small", "frozen", "vanilla", "C1", 0)

    def digest(**changes):
        return loaded(**changes).outputs_hash(run)

    assert digest() == digest(train={"prior_weight": 3.0}) == digest(scorer={"width": 4})
    assert digest() == digest(datasets={"digits": {"limit_test": 50}})
    assert digest() != digest(image={"size": 64})
    assert digest() != digest(backbones={"resnet_small": {"options": {"channels": [8, 8, 8, 8]}}})
    scratch = {
        "regimes": ["joint", "frozen"],
        "backbones": {"resnet_small": {"weights": "scratch"}},
    }
    assert digest(**scratch) != digest(**scratch, train={"epochs": 3})  # vanilla trains it first


def test_prototypes_of_a_models_own_weights_need_those():
    def models(**section):
        section = {"model": "resnet18", "weights": "prototypes", **section}
        return loaded(
            backbones={"r": section}, regimes=["frozen"], methods=["vanilla"]
        ).hub_models()

    assert models() == ["resnet18"]
    assert models(file="somewhere.pth", sha256="ab" * 32) == []


def test_digests_of_published_results_stay_what_they_were():
    # A new key of a recipe must not call for all results to be made again: see study._LATER.
    study = loaded()
    prlc = Run("digits", "resnet_small", "joint", "prlc", "C8", 0)
    assert study.recipe_hash(prlc) == "a9a82c5d5c0b8875"
    assert study.pretrain_hash("digits", "resnet_small") == "c46e470b9773aaf2"
    assert differing(train={"validate_every": 2}) == {"vanilla", "prlc", "oracle"}


def test_every_method_of_the_registry_can_be_studied():
    study = loaded(methods=list(METHODS), train={"augment": {"flip": True}})
    assert {r.method for r in study.runs()} == set(METHODS)


def test_a_study_is_read_without_heavy_imports():
    program = (
        "import sys; from eqadapt.study import load_study; load_study(sys.argv[1]); "
        "print([m for m in ('torch', 'timm', 'escnn', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    study = str(REPOSITORY / "config" / "cifar10.yaml")
    done = subprocess.run(
        [sys.executable, "-c", program, study], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def package(tmp_path):
    """A package in which `verb` imports `a`, which imports `b` in a function; `c` stands apart."""
    files = {
        "__init__.py": '"""Package."""\n',
        "verb.py": "from eqadapt import a\n",
        "a.py": "def f():\n    from .sub.b import g\n    return g\n",
        "c.py": "x = 1\n",
        "late.py": 'MODULE = "eqadapt.c"\n',
        "lister.py": "import pkgutil\nfrom eqadapt import sub\npkgutil.iter_modules(sub)\n",
        "sub/__init__.py": "",
        "sub/b.py": "def g():\n    return 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def fresh_id(root, entry="eqadapt.verb"):
    for function in (code_id, modules_of.__globals__["imported_names"]):
        function.cache_clear()
    return code_id(entry, root=root)


def test_a_code_digest_follows_plugins(package, monkeypatch):
    plain = fresh_id(package)
    plugin, whole = package / "own_methods.py", package / "own_package"
    plugin.write_text("x = 1\n", encoding="utf-8")
    whole.mkdir()
    (whole / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("EQADAPT_PLUGINS", "own_methods, own_package, absent")
    first = fresh_id(package)
    plugin.write_text("# why\nx = 1\n", encoding="utf-8")
    assert fresh_id(package) == first != plain
    plugin.write_text("x = 2\n", encoding="utf-8")
    second = fresh_id(package)
    (whole / "part.py").write_text("y = 1\n", encoding="utf-8")
    assert len({plain, first, second, fresh_id(package)}) == 4


def test_a_code_digest_follows_imports(package):
    assert set(modules_of("eqadapt.verb", root=package)) == {
        "eqadapt",
        "eqadapt.verb",
        "eqadapt.a",
        "eqadapt.sub",
        "eqadapt.sub.b",
    }
    assert "eqadapt.c" in modules_of("eqadapt.late", root=package)
    assert "eqadapt.sub.b" in modules_of("eqadapt.lister", root=package)


def test_a_code_digest_changes_with_code_that_runs_and_with_nothing_else(package):
    before = fresh_id(package)
    (package / "c.py").write_text("x = 2\n", encoding="utf-8")
    assert fresh_id(package) == before
    (package / "sub" / "b.py").write_text(
        'def g():\n    """Words."""\n\n    return 1  # more words\n', encoding="utf-8"
    )
    assert fresh_id(package) == before
    (package / "sub" / "b.py").write_text("def g():\n    return 2\n", encoding="utf-8")
    assert fresh_id(package) != before


def test_training_does_not_depend_on_where_data_come_from():
    # Else one more data set would call for all results to be made again.
    assert "eqadapt.datasets.sources.digits" in modules_of("eqadapt.commands.prepare")
    for verb in ("train", "pretrain", "predict"):
        followed = modules_of(f"eqadapt.commands.{verb}")
        assert "eqadapt.datasets.prepared" in followed
        assert not [name for name in followed if name.startswith("eqadapt.datasets.sources")]


def test_a_code_digest_of_nothing_is_an_error(package):
    with pytest.raises(ModuleNotFoundError, match=r"eqadapt\.none"):
        fresh_id(package, "eqadapt.none")


def test_entries_of_one_source_share_a_preparation_where_its_options_are_the_same():
    study = loaded(
        datasets={
            "digits": {},
            "digits_n0100": {"source": "digits", "limit_train": 100},
            "digits_own": {"source": "digits", "validation": 200},
            "digits_held": {"source": "digits", "validation": 300},
            "digits_part": {"source": "digits", "validation": 0.25},
            "birds": {"folder": "birds", "size": 96},
            "birds_small": {"source": "birds", "folder": "birds", "size": 48},
        }
    )
    assert {name: study.preparation(name).name for name in study.config["datasets"]} == {
        "digits": "digits",
        "digits_n0100": "digits",
        "digits_own": "digits",  # what digits would take anyway
        "digits_held": "digits-v300",
        "digits_part": "digits-v0.25",
        "birds": "birds-s96",
        "birds_small": "birds-s48",
    }
    for name in study.config["datasets"]:
        preparation = study.preparation(name)
        assert Preparation.parse(preparation.name) == preparation
    assert study.preparation("digits_held").flags == "--validation 300"
    by_dataset = {run.dataset: study.recipe_hash(run) for run in study.runs()}
    assert len(set(by_dataset.values())) == len(by_dataset)


def test_a_source_named_after_itself_is_as_if_it_were_not_said():
    assert hashes(datasets={"digits": {"source": "digits"}}) == hashes(datasets={"digits": {}})
    study = loaded(datasets={"digits": {"source": "digits"}})
    assert "source" not in study.config["datasets"]["digits"]


def test_a_study_keeps_paths_as_they_were_written(monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/somewhere")
    section = {"model": "cifar_resnet20", "weights": "file", "file": "$WEIGHTS/a.th"}
    study = load_study(
        {
            "study": "s",
            "datasets": ["cifar10"],
            "backbones": {"net": {**section, "sha256": "12fca82f"}},
            "methods": ["vanilla"],
        }
    )
    assert "/somewhere" not in study.to_yaml()
    assert study.recipe(study.runs()[0])["backbone"]["file"] == "/somewhere/a.th"


def test_the_mirror_of_a_study_is_what_its_paths_mean(tmp_path, monkeypatch):
    """Whatever the environment says, in every path, by hand as in the workflow."""
    own = tmp_path / "own"
    (own / "images").mkdir(parents=True)
    (own / "w.pt").touch()
    monkeypatch.setenv("EQADAPT_MIRROR", str(tmp_path / "other"))
    section = {"weights": "file", "file": "$EQADAPT_MIRROR/w.pt", "sha256": "0" * 8}
    changes = {
        "backbones": {"resnet_small": section},
        "datasets": {"mine": {"folder": "${EQADAPT_MIRROR}/images"}},
        "train": {"scorer_start": "$EQADAPT_MIRROR/{seed}.safetensors"},
    }
    for mirror, folder in ((str(own), own), (None, tmp_path / "other")):
        study = load_study({**a_study(), **changes, "mirror": mirror})
        run = study.runs()[-1]
        assert study.recipe(run)["backbone"]["file"] == str(folder / "w.pt")
        assert study.scorer_start(study.trained_runs()[-1]).parent == folder
        missing = [line for line in study.missing_sources() if "scorer_start" not in line]
        assert len(missing) == (0 if mirror else 2)
    monkeypatch.setenv("HERE", str(own))
    assert load_study(a_study(mirror="$HERE")).mirror == str(own)
    monkeypatch.delenv("EQADAPT_MIRROR")
    assert load_study(a_study()).mirror is None
    assert expanded("$EQADAPT_MIRROR_2/x", "/m") == "$EQADAPT_MIRROR_2/x"


def test_a_comparison_on_products_has_its_mirror_too(tmp_path, monkeypatch):
    monkeypatch.setenv("EQADAPT_MIRROR", str(tmp_path / "other"))
    path = REPOSITORY / "config" / "products.yaml"
    study = load_products(path, [f"mirror={tmp_path}"]).study
    (run,) = study.runs()[:1]
    assert study.recipe(run)["backbone"]["file"].startswith(f"{tmp_path}/cifar10_resnets/")


def test_a_data_set_that_nobody_hands_out_needs_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EQADAPT_MIRROR", raising=False)

    def study(mirror=None):
        return load_study({**a_study(), "datasets": ["imagenet1k"], "mirror": mirror})

    (told,) = study().missing_sources()
    assert "data set imagenet1k: it cannot be downloaded" in told
    for name in ("digits", "cifar10", "rotated_mnist"):
        assert load_study({**a_study(), "datasets": [name]}).missing_sources() == []
    (tmp_path / "mirror").mkdir()
    assert len(study("mirror").missing_sources()) == 1
    (tmp_path / "mirror" / "imagenet1k").mkdir()
    assert study("mirror").missing_sources() == []
    (tmp_path / "data/raw/imagenet1k").mkdir(parents=True)
    (tmp_path / "data/raw/imagenet1k/source.json").touch()  # brought by hand
    assert study().missing_sources() == []


@pytest.mark.parametrize(
    ("model", "knows"),
    [
        ("vit_base_patch16_224", True),
        ("vit_base_patch16_224.augreg_in21k", False),  # 21843 classes
        ("vit_small_patch14_dinov2", False),  # no head
    ],
)
def test_only_weights_with_a_head_of_imagenets_classes_know_them(model, knows):
    backbones = {"net": {"model": model, "weights": "pretrained"}}
    study = {**a_study(), "datasets": ["imagenet1k"], "backbones": backbones}
    frozen = {**study, "regimes": ["frozen"]}
    if knows:
        assert load_study(frozen).start(load_study(frozen).runs()[0]) is None
        return
    with pytest.raises(UserError, match="do not know the classes of imagenet1k"):
        load_study(frozen)
    both = load_study({**study, "regimes": ["joint", "frozen"]})
    starts = {both.start(run) for run in both.runs() if run.regime == "frozen"}
    assert {start.method for start in starts} == {"vanilla"}  # which fine-tuning gave a head
