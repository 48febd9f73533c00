"""What would run on a GPU, run on a pretended one: as on the CPU, and without waits in a step.

``pretend_gpu`` says what is pretended. Mixed precision, generated code and what a GPU's own
arithmetic changes are not seen here.
"""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pretend_gpu import GPU, MixedDevicesError, on_cpu, on_gpu, pretended_gpu
from project_fixtures import prepare_digits
from test_relatives import CLASSES, SIZE, adapted, images, recipe

from eqadapt import checkpoint
from eqadapt.cli import main
from eqadapt.methods import METHODS, get_method
from eqadapt.training import LabelledImages, Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter")  # of no meaning here
METHODS_OF_STUDY = (
    "vanilla", "prlc", "prlc_classwise", "optc", "distil_prior", "rotation_head",
    "pca_frame", "lambda_equitune", "equizero", "self_canonicalizer", "lps", "top_2", "oracle",
)  # fmt: skip
STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 40, "limit_test": 20}},
    "backbones": {"resnet_small": {"weights": "pretrain"}},
    "groups": ["C4", "C8"],
    "methods": dict.fromkeys(METHODS_OF_STUDY)
    | {"optc": {"scorer": {"name": "plain_cnn", "width": 4, "input_size": 17}}},
    "seeds": [0],
    "image": {"size": 32},
    "scorer": {"name": "paired_cnn", "inner": "group_cnn", "width": 2, "input_size": 17},
    "pretrain": {"epochs": 1, "batch_size": 20},
    "train": {
        "epochs": 1,
        "batch_size": 20,
        "teacher_weight": 0.5,
        "augment": {"crop_padding": 1, "jitter_degrees": 3.0},
    },
    "evaluate": {"poses": "C8", "gallery": 2},
    "device": "cpu",
}


def test_the_pretence_refuses_what_a_gpu_refuses_and_counts_waits():
    with pretended_gpu() as waits:
        x = on_gpu(torch.arange(4.0))
        for wrong in (
            lambda: x + torch.ones(4),
            lambda: torch.ones(4)[x > 1],
            lambda: x[[2, 0]],
            lambda: torch.rand(4, device=GPU, generator=torch.Generator()),
        ):
            with pytest.raises(MixedDevicesError):
                wrong()
        with pytest.raises(TypeError):
            np.asarray(x)
        assert not waits
        assert (2 * x).device == GPU and torch.equal(on_cpu(x.flip(0)), torch.arange(4.0).flip(0))
        assert x[torch.tensor([1])].device == GPU  # indices are taken from anywhere
        assert x.sum().item() == 6.0 and x[x > 1].tolist() == [2.0, 3.0]
        assert len(waits) == 3 and x.cpu().device.type == "cpu" and len(waits) == 4


def taught(method, group, frozen, device):
    """The parts of the losses of a method's second step, the weights after it, and its waits."""
    settings = recipe(
        teacher_weight=0.5,
        teacher_temperature=2.0,
        views_a_step=2,
        augment={"crop_padding": 2, "flip": True, "jitter_degrees": 5.0},
    )
    move = on_gpu if device == GPU else torch.Tensor.clone
    with pretended_gpu() as waits:
        model = adapted(method, group)
        data = LabelledImages(move(images()), move(torch.arange(12) % CLASSES))
        trainer = Trainer(
            on_gpu(model) if device == GPU else model, get_method(method), settings, data, data,
            seed=0, frozen=frozen, state_path=None, digest="d",
        )  # fmt: skip
        if trainer.method.distils:
            trainer.targets = trainer._pose_targets()
        if trainer.optimizer is None:
            return None
        torch.manual_seed(0)
        model.train()
        rows = move(torch.arange(8))
        trainer._step(rows)  # fills what is kept: grids, masks
        before = len(waits)
        parts = trainer._step(rows)
        assert parts.device == device
        state = {key: on_cpu(value) for key, value in model.state_dict().items()}
        return on_cpu(parts), state, waits[before:]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].mirrored])
def test_a_step_of_training_waits_for_nothing_and_is_the_cpus(method, frozen):
    found = taught(method, "C8", frozen, GPU)
    expected = taught(method, "C8", frozen, torch.device("cpu"))
    if expected is None:
        assert found is None
        return
    assert found[2] == []
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    for key, value in expected[1].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=2e-2)  # AdamW's first steps


@pytest.mark.parametrize("method", ["prlc", "self_canonicalizer"])
def test_a_compiled_step_is_the_plain_one_and_leaves_nothing_out(method, monkeypatch):
    """Traced and differentiated as for a GPU, but run as it is: no code is generated here."""
    compiled, graphs = torch.compile, []

    def traced(graph, inputs):
        graphs.append(graph)
        return compiled_backend(graph, inputs)

    compiled_backend = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend=traced))
    data, parts = LabelledImages(images(), torch.arange(12) % CLASSES), []
    for compiles in (False, True):
        trainer = Trainer(
            adapted(method), get_method(method), recipe(compile=compiles, views_a_step=2),
            data, data, seed=0, state_path=None, digest="d",
        )  # fmt: skip
        torch.manual_seed(0)
        trainer.model.train()
        parts.append(trainer._step(torch.arange(8)))
    torch.testing.assert_close(parts[0], parts[1])
    calls = [node.target for graph in graphs for node in graph.graph.nodes]
    assert sum("conv2d" in str(target) for target in calls) >= 9  # the network's, not the losses'


@pytest.mark.parametrize("method", ["prlc", "optc", "self_canonicalizer", "equizero"])
def test_ties_are_settled_on_a_gpu_as_on_the_cpu(method):
    x = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    half = torch.maximum(x, torch.rot90(x, 2, (-2, -1)))
    x = torch.cat([x, half, torch.full((1, 1, SIZE, SIZE), 0.3), 0 * x[:1]])
    with torch.no_grad():
        expected = adapted(method, "C4").eval()(x)
        with pretended_gpu():
            found = on_gpu(adapted(method, "C4").eval())(on_gpu(x))
    assert torch.equal(on_cpu(found.chosen), expected.chosen)
    torch.testing.assert_close(on_cpu(found.logits), expected.logits)


def test_a_run_on_a_gpu_is_resumed_to_the_same_weights(tmp_path):
    def run(state, stop=False):
        def report(row):
            if stop and row["epoch"] == 0:
                raise KeyboardInterrupt

        data = LabelledImages(images(), torch.arange(12) % CLASSES)
        trainer = Trainer(
            on_gpu(adapted("prlc")), get_method("prlc"), recipe(epochs=2), data, data,
            seed=0, state_path=state, digest="d", report=report,
        )  # fmt: skip
        trainer.run()
        return {key: on_cpu(value) for key, value in trainer.model.state_dict().items()}

    with pretended_gpu():
        whole, state = run(None), tmp_path / "state.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(state, stop=True)
        assert {value.device.type for value in checkpoint.load(state)[0].values()} == {"cpu"}
        resumed = run(state)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.slow
def test_a_study_on_a_gpu_leaves_the_files_of_the_cpu(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")

    def ran(name):
        shared = ["--study", "tiny.yaml", "--results", name, "--scratch", f"{name}/scratch"]
        of_one = ["--dataset", "digits", "--backbone", "resnet_small"]
        for verb, more in (("pretrain", of_one), ("train", []), ("predict", [])):
            assert main([verb, *shared, *more]) == 0

    ran("cpu")
    with pretended_gpu() as waits:
        ran("gpu")
    assert waits  # it was not the CPU
    files = sorted(path.relative_to(tmp_path / "cpu") for path in tmp_path.glob("cpu/*/*.parquet"))
    assert len(files) == 2 * len(METHODS_OF_STUDY) - 2  # vanilla and the oracle look at no group
    for path in files:
        pd.testing.assert_frame_equal(
            *(pd.read_parquet(tmp_path / d / path) for d in ("cpu", "gpu"))
        )
