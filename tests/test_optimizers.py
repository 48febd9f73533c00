"""Optimizers: who gets which, orthogonal steps for weights of any shape, states that come back."""

import copy

import pytest
import torch
from torch import nn

from eqadapt import checkpoint
from eqadapt.optimizers import MatrixMuon, Together, build_optimizer, is_matrix

TRAIN = {
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9,
    "scorer_lr": 1e-2, "scorer_weight_decay": 0.05, "scorer_optimizer": "muon",
}  # fmt: skip


class Model(nn.Module):
    """What ``build_optimizer`` looks at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, 4)
        self.scorer = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)
        )
        self.view_scorer = None

    def forward(self, images):
        return self.scorer(images).sum() + self.backbone(images.flatten(1)[:, :6]).square().sum()


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    loss = model(torch.randn(16, 3, 3, 3, generator=generator)).square()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def test_each_parameter_has_one_optimizer():
    model = Model()
    optimizer = build_optimizer(model, TRAIN, frozen=False)
    muon = optimizer.parts[1]
    assert [id(w) for w in muon.weights] == [id(model.scorer[0].weight)]
    held = [p for group in optimizer.parts[0].param_groups for p in group["params"]]
    everything = {id(p) for p in model.parameters()}
    assert {id(p) for p in held} | {id(model.scorer[0].weight)} == everything
    assert len(held) + 1 == len(everything)
    assert not is_matrix(model.scorer[4].weight)  # one output


def test_without_muon_there_is_one_optimizer():
    optimizer = build_optimizer(Model(), TRAIN | {"scorer_optimizer": "same"}, frozen=False)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_plain_gradient_descent_has_no_momentum_to_look_ahead_by(momentum, nesterov):
    train = TRAIN | {"optimizer": "sgd", "momentum": momentum, "scorer_optimizer": "same"}
    optimizer = build_optimizer(Model(), train, frozen=False)
    assert {group["nesterov"] for group in optimizer.param_groups} == {nesterov}


def test_the_update_is_orthogonal_whatever_the_shape():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    before = weight.detach().clone()
    optimizer = MatrixMuon([weight], lr=1e-2, weight_decay=0.0)
    weight.grad = torch.randn(8, 4, 3, 3) * torch.logspace(-2, 2, 8).view(8, 1, 1, 1)
    optimizer.step()
    update = (before - weight.detach()).flatten(1)
    sizes = torch.linalg.svdvals(update) / (1e-2 * 0.2 * 36**0.5)
    # Five Newton-Schulz steps bring all but the smallest directions close to 1, by design not to 1.
    assert sizes.max() < 1.3
    assert sizes[:6].min() > 0.6


def test_a_state_that_was_put_back_goes_on_the_same():
    first, second = Model(), Model()
    one, other = (build_optimizer(model, TRAIN, frozen=False) for model in (first, second))
    assert isinstance(one, Together)
    for seed in range(3):
        step(first, one, seed)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in one.param_groups]
    for model, optimizer in ((first, one), (second, other)):
        step(model, optimizer, 7)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scorers", ["same", "muon"])
def test_moments_from_a_file_lie_in_memory_as_their_weights(tmp_path, optimizer, scorers):
    """What the fused steps of a GPU ask for, of weights that lie channels last."""
    recipe = TRAIN | {"optimizer": optimizer, "scorer_optimizer": scorers}
    models = [Model().to(memory_format=torch.channels_last) for _ in range(2)]
    saved, found = (build_optimizer(model, recipe, frozen=False) for model in models)
    step(models[0], saved, 0)
    tensors, meta = checkpoint.pack_optimizer(saved)
    checkpoint.save(tmp_path / "state", tensors, meta)
    checkpoint.unpack_optimizer(found, *checkpoint.load(tmp_path / "state"))
    assert len(found.state) == len(saved.state) > 0
    lasts = 0
    for before, (weight, after) in zip(saved.state.values(), found.state.items(), strict=True):
        assert before.keys() == after.keys()
        for name in after:
            if isinstance(after[name], torch.Tensor):
                assert torch.equal(after[name], before[name])
                if after[name].shape == weight.shape:
                    assert after[name].stride() == weight.stride()
                    lasts += not weight.is_contiguous()
    assert (lasts > 0) == (scorers == "same")  # Muon has the one such weight as a matrix


def test_rates_of_all_parts_are_set_through_the_groups():
    model = Model()
    optimizer = build_optimizer(model, TRAIN, frozen=False)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
