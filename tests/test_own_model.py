"""A model of one's own gets what a study's would, and stands beside the study's methods."""

from pathlib import Path

import numpy as np
import pytest
import torch
from project_fixtures import run_study
from torch import nn

from eqadapt.analysis.predictions import load_predictions
from eqadapt.errors import UserError
from eqadapt.own_model import against, describe, evaluate
from eqadapt.trained import load_trained

STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 60, "limit_test": 30}},
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4"],
    "methods": ["vanilla", "prlc"],
    "seeds": [0],
    "image": {"size": 16, "mask": "disk"},
    "scorer": {"inner": "group_cnn", "width": 2, "layers": 2, "input_size": 17},
    "train": {"epochs": 1, "batch_size": 20},
    "evaluate": {"poses": "C8", "batch_size": 7},
    "device": "cpu",
}
RUN = "digits-resnet_small-joint-{}-seed0"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    run_study(folder, STUDY, "train", "predict")
    return folder


def of_study(project, run):
    results, stem = project / "results" / "tiny", RUN.format(run)
    model = load_trained(results / "runs" / stem / "checkpoint.safetensors")
    return model, results / "predictions" / f"{stem}.parquet"


def measured(project, model, **options):
    return evaluate(model, project / "study.yaml", data=project / "data" / "prepared", **options)


@pytest.mark.parametrize("run", ["vanilla-C1", "prlc-C4"])
def test_a_model_of_the_study_gets_the_studys_own_answers(project, run):
    model, path = of_study(project, run)
    found, theirs = measured(project, model), load_predictions(path)
    assert found.group.name == "C8" and np.array_equal(found.predictions.index, theirs.index)
    assert np.array_equal(found.predicted, theirs.prediction)
    np.testing.assert_allclose(found.predictions.score, theirs.score, atol=1e-5)


def test_it_is_compared_with_a_run_image_by_image(project):
    model, _ = of_study(project, "prlc-C4")
    _, vanilla = of_study(project, "vanilla-C1")
    found = measured(project, model, group="C4")
    ahead = against(found, vanilla)
    theirs = load_predictions(vanilla)
    upright = found.correct[:, 0].mean() - theirs.correct[:, 0].mean()
    average = found.correct.mean() - theirs.correct[:, ::2].mean()
    assert ahead["acc"].estimate.mean == pytest.approx(upright)
    assert ahead["cn_avg"].estimate.mean == pytest.approx(average)
    with pytest.raises(UserError, match="one of C4, the evaluation one of C8"):
        against(measured(project, model), of_study(project, "prlc-C4")[1])


def test_what_is_saved_is_a_predictions_file(project, tmp_path):
    model, _ = of_study(project, "vanilla-C1")
    found = measured(project, model, save=tmp_path / "mine.parquet")
    again = load_predictions(tmp_path / "mine.parquet")
    assert np.array_equal(again.prediction, found.predicted)
    same = against(found, tmp_path / "mine.parquet")
    assert same["acc"].estimate.mean == 0 and same["acc"].p == 1


def test_words_give_the_rates(project):
    def constant(images):
        assert images.shape[1:] == (1, 16, 16) and images.min() >= 0 and images.max() <= 1
        assert images[:, :, 0, 0].abs().max() == 0  # the study's mask
        return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    found = measured(project, constant)
    share = (found.predictions.label == 3).mean() * 100
    words = describe(found).splitlines()
    assert [line.split("  ")[0] for line in words[:2]] == ["upright", "C8-Avg"]
    assert all(f"{share:.1f}" in line for line in words[:3])
    assert words[3].endswith("100.0")


class Modal(nn.Module):
    """Notes how it is called."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = nn.Dropout(), set()
        self.inner.eval()

    def forward(self, x):
        self.seen.add(self.training)
        return torch.zeros(len(x), 10)


def test_a_module_is_evaluated_in_evaluation_mode_and_left_as_it_was(project):
    model = Modal().train()
    model.inner.eval()
    measured(project, model)
    assert model.seen == {False} and model.training and not model.inner.training


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda x: torch.zeros(len(x), 5), r"gives \(\d, 5\) for \d images of 10 classes"),
        (lambda x: [1], "gives list, not a tensor of logits"),
        (lambda x: torch.full((len(x), 10), torch.nan), "not all finite"),
    ],
)
def test_outputs_that_are_no_logits_are_told(project, model, said):
    with pytest.raises(UserError, match=said):
        measured(project, model)


def test_outputs_that_are_no_numbers_and_batches_of_none_are_told(project):
    with pytest.raises(UserError, match="not all finite") as told:
        measured(project, lambda x: torch.full((len(x), 10), torch.inf))
    assert "train" not in told.value.fix
    for size in (0, -3):
        with pytest.raises(UserError, match=f"a batch of {size} images"):
            measured(project, lambda x: torch.zeros(len(x), 10), batch_size=size)


def test_what_the_study_does_not_have_is_told(project):
    with pytest.raises(UserError, match="no run of the study"):
        measured(project, Modal(), dataset="cifar10")
    with pytest.raises(UserError, match="not prepared"):
        evaluate(Modal(), project / "study.yaml", data=Path("nowhere"))
