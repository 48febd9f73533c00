"""The example of the README runs, and does what is said there."""

import re
from pathlib import Path

import timm
import torch

from eqadapt.adaptation import ImageScorer
from eqadapt.groups import CyclicGroup
from eqadapt.scorers.base import PoseScorer
from eqadapt.symmetrize import Symmetrized

REPOSITORY = Path(__file__).parents[1]


def test_the_example_of_the_readme_adapts_a_network_and_exports_its_canonicalizer(monkeypatch):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import timm, torch\n.*?)```", text, re.DOTALL)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *_, pretrained: create("test_resnet"))
    found = {}
    torch.manual_seed(0)
    exec(code, found)
    model, scorer, output = found["model"], found["scorer"], found["output"]
    assert found["group"] == CyclicGroup(8)
    assert isinstance(scorer, PoseScorer) and not isinstance(model.scorer, PoseScorer | ImageScorer)
    assert not model.scorer.training
    trained = Symmetrized(model.backbone, model.action, "argmax", scorer).eval()
    images = torch.rand(16, 3, 224, 224)
    with torch.no_grad():
        assert output.chosen.shape == (8,) and output.logits.shape[0] == 8
        ours, exported = trained(images), model(images)
    torch.testing.assert_close(exported.pose_logits, ours.pose_logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(exported.chosen, ours.chosen)
    torch.testing.assert_close(exported.logits, ours.logits)
