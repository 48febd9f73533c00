"""On a real GPU, where there is one: exactness, no waits in a step, and a whole small study.

Elsewhere these are skipped, and test_gpu.py asks the same of a pretended one.
"""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from project_fixtures import prepare_digits
from test_gpu import METHODS_OF_STUDY, STUDY
from test_relatives import CLASSES, SIZE, adapted, images, recipe

from eqadapt.adaptation import choose_device
from eqadapt.cli import main
from eqadapt.evaluation import predict_orbit
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.methods import METHODS, get_method
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.training import LabelledImages, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def float32_convolutions():
    choose_device("cuda")


@contextlib.contextmanager
def no_waits():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("order", [4, 8])
def test_images_are_turned_as_on_the_cpu_and_by_quarters_exactly(order, interpolation):
    action = RotationAction(CyclicGroup(order), interpolation)
    x = torch.rand(order, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    g = torch.arange(order)
    moved, gpu_g = x.cuda(), g.cuda()
    action.act(moved, gpu_g), action.orbit(moved)  # fills what is kept
    with no_waits():
        found, orbit = action.act(moved, gpu_g), action.orbit(moved)
    torch.testing.assert_close(found.cpu(), action.act(x, g), rtol=0, atol=1e-5)
    torch.testing.assert_close(orbit.cpu(), action.orbit(x), rtol=0, atol=1e-5)
    for k in range(0, order, order // 4):
        assert torch.equal(found[k].cpu(), torch.rot90(x[k], 4 * k // order, (-2, -1)))


@pytest.mark.parametrize("method", ["prlc", "prlc_classwise", "optc", "self_canonicalizer", "lc"])
@pytest.mark.parametrize("order", [4, 8])
def test_predictions_are_exactly_invariant_under_quarter_turns(method, order):
    model = adapted(method, f"C{order}").cuda().eval()
    data = images(24).cuda()
    labels = torch.zeros(24, dtype=torch.long, device="cuda")
    found = predict_orbit(
        model, get_method(method), data, labels, torch.arange(24), ImagePipeline(SIZE),
        RotationAction(CyclicGroup(4)), 24,
    )  # fmt: skip
    by_pose = found.prediction.reshape(4, 24)
    assert all(np.array_equal(by_pose[0], row) for row in by_pose[1:])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].mirrored])
def test_a_step_of_training_waits_for_nothing(method, frozen):
    settings = recipe(
        teacher_weight=0.5, teacher_temperature=2.0, views_a_step=2, amp="bf16",
        channels_last=True, augment={"crop_padding": 2, "flip": True, "jitter_degrees": 5.0},
    )  # fmt: skip
    data = LabelledImages(images(), torch.arange(12) % CLASSES)
    trainer = Trainer(
        adapted(method, "C8").cuda(), get_method(method), settings, data, data,
        seed=0, frozen=frozen, state_path=None, digest="d",
    )  # fmt: skip
    if trainer.optimizer is None:
        return
    if trainer.method.distils:
        trainer.targets = trainer._pose_targets()
    trainer.model.train()
    rows = torch.arange(8, device="cuda")
    trainer._step(rows)
    with no_waits():
        parts = trainer._step(rows)
    assert torch.isfinite(parts).all()


def test_a_study_on_the_gpu_predicts_what_the_cpu_does(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    shared = ["--study", "tiny.yaml", "--results", "trained", "--scratch", "scratch"]
    of_one = ["--dataset", "digits", "--backbone", "resnet_small"]
    for verb, more in (("pretrain", of_one), ("train", [])):
        assert main([verb, *shared, "--set", "device=cuda", *more]) == 0
    for device in ("cuda", "cpu"):
        assert main(["predict", *shared, "--set", f"device={device}"]) == 0
        (tmp_path / "trained/predictions").rename(tmp_path / device)
    files = sorted(path.name for path in (tmp_path / "cuda").glob("*.parquet"))
    assert len(files) == 2 * len(METHODS_OF_STUDY) - 2
    files = [name for name in files if "-lps-" not in name]  # devices draw other poses
    agree = [
        (pd.read_parquet(f"cuda/{name}").prediction == pd.read_parquet(f"cpu/{name}").prediction)
        for name in files
    ]
    assert min(share.mean() for share in agree) > 0.9  # near-ties of barely trained networks
