"""Several groups at once: the groups' tables, their action, the networks' laws, and the command."""

import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from project_fixtures import prepare_digits
from torch import nn

from eqadapt import cli, product_comparison
from eqadapt.analysis.product_table import markdown, summary
from eqadapt.backbones import Backbone, build_network
from eqadapt.errors import UserError
from eqadapt.evaluation import PassCounter
from eqadapt.groups import CyclicGroup
from eqadapt.groups.exact_images import ExactAction
from eqadapt.groups.finite import (
    DihedralGroup,
    DirectProduct,
    FactoredGroup,
    FiniteGroup,
    PermutationGroup,
    parse_finite_group,
)
from eqadapt.multi_group import (
    FibreAction,
    FixedCanonical,
    FixedEnergy,
    GroupAverage,
    InvariantSymmetric,
    MultiGroup,
    MultiInput,
)
from eqadapt.product_comparison import (
    OF_ENERGY,
    OF_VIEWS,
    count_passes,
    live,
    orbit_table,
    outputs,
    per_image,
)
from eqadapt.product_study import load_products

NAMES = ["C1", "C4", "C6", "D1", "D2", "D3", "D4", "D6", "S2", "S3", "A3", "S4", "A4"]
NAMES += ["C4xS3", "C4xA3", "D4xS3", "C2xD3xA3"]
ACTING = ["C1", "C2", "C4", "D1", "D2", "D4", "S3", "A3", "C4xA3", "C4xS3", "D4xS3", "S3xC4"]
PRODUCTS = ["D2", "D4", "C4xA3", "C4xS3", "D4xS3", "S3xC4"]


def images(count=3, size=6, channels=3, seed=0, dtype=torch.float32):
    """Images of bytes, as data are."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (count, channels, size, size), generator=generator)
    return values.to(dtype) / 255


def whole_images(count=3, size=4, channels=3, seed=0):
    """Images of whole numbers in float64, on which sums have no rounding."""
    return (images(count, size, channels, seed, torch.float64) * 255).round()


def network(outputs=5, size=6, channels=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(channels, 7, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(7 * (size - 2) ** 2, outputs),
        )
    return layers.double()


class WholeNetwork(nn.Module):
    """A network of small whole weights: its outputs of whole images are exact in any order."""

    def __init__(self, shape, outputs, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        inputs = int(np.prod(shape))
        self.first = torch.randint(-2, 3, (8, inputs), generator=generator).double()
        self.last = torch.randint(-2, 3, (int(np.prod(outputs)), 8), generator=generator).double()
        self.outputs = outputs

    def forward(self, x):
        y = (x.flatten(1) @ self.first.T).relu() @ self.last.T
        return y.unflatten(1, self.outputs)


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_axioms(name, data):
    group = parse_finite_group(name)
    elements = st.integers(0, group.order - 1)
    a, b, c = (data.draw(elements) for _ in range(3))
    assert group.compose(group.compose(a, b), c) == group.compose(a, group.compose(b, c))
    assert group.compose(a, 0) == a == group.compose(0, a)
    assert group.compose(a, group.inverse(a)) == 0 == group.compose(group.inverse(a), a)
    assert isinstance(group, FiniteGroup)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_table_holds_every_element_once(name):
    group = parse_finite_group(name)
    for a in range(group.order):
        assert {group.compose(a, b) for b in range(group.order)} == set(range(group.order))
    assert group.name == name


@pytest.mark.parametrize("n", [1, 3, 4, 8])
def test_the_dihedral_table_is_escnns(n):
    from escnn.group import dihedral_group

    theirs, ours = dihedral_group(n), DihedralGroup(n)
    elements = [theirs.element((f, k)) for f in range(2) for k in range(n)]
    for (a, left), (b, right) in itertools.product(enumerate(elements), repeat=2):
        assert elements[ours.compose(a, b)] == left @ right
        assert elements[ours.inverse(a)] == ~left


@pytest.mark.parametrize("name", [*PRODUCTS, "C2xD3xA3"])
def test_every_element_is_one_product_of_a_factor_and_its_complement(name):
    group = parse_finite_group(name)
    assert isinstance(group, FactoredGroup)
    for place, factor in enumerate(group.factors):
        others = group.complement(place)
        for subgroup in (factor, others):
            closed = {group.compose(a, b) for a in subgroup for b in subgroup}
            assert closed == set(subgroup)
        for left, right in ((factor, others), (others, factor)):
            products = [group.compose(a, b) for a in left for b in right]
            assert sorted(products) == list(range(group.order))


def test_a_cyclic_group_is_a_finite_group_without_factors():
    assert isinstance(CyclicGroup(4), FiniteGroup)
    assert not isinstance(CyclicGroup(4), FactoredGroup)
    assert DirectProduct((CyclicGroup(4), PermutationGroup(3))).split(7) == (1, 1)


@pytest.mark.parametrize("name", ["", "C0", "Q8", "C4x", "c4", "S1", "S5", "C4*S3"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="unknown group"):
        parse_finite_group(name)


# --- action -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTING)
def test_acting_twice_is_acting_with_the_product_to_the_last_bit(name):
    action, x = ExactAction(parse_finite_group(name)), images()
    group = action.group
    for a, b in itertools.product(range(group.order), repeat=2):
        assert torch.equal(action.turn(action.turn(x, b), a), action.turn(x, group.compose(a, b)))
    assert torch.equal(action.turn(x, 0), x)


@pytest.mark.parametrize("name", ACTING)
def test_different_elements_do_different_things(name):
    action, x = ExactAction(parse_finite_group(name)), images(1)
    seen = {action.turn(x, g).numpy().tobytes() for g in range(action.group.order)}
    assert len(seen) == action.group.order


def test_directions_and_order():
    x = images()
    turned = ExactAction(CyclicGroup(4))
    assert torch.equal(turned.turn(x, 1), torch.rot90(x, 1, (-2, -1)))
    both = ExactAction(DihedralGroup(4))
    assert torch.equal(both.turn(x, 4), x.flip(-1))
    mirrored_first = torch.rot90(x.flip(-1), 1, (-2, -1))
    assert torch.equal(both.turn(x, 5), mirrored_first)
    assert not torch.equal(torch.rot90(x, 1, (-2, -1)).flip(-1), mirrored_first)  # other order
    permuted = ExactAction(PermutationGroup(3))
    image = permuted.group.images[3]
    for channel, place in enumerate(image):
        assert torch.equal(permuted.turn(x, 3)[:, place], x[:, channel])


def test_each_image_by_its_own_element():
    action = ExactAction(parse_finite_group("D4xS3"))
    g = torch.tensor([0, 17, 30, 47, 17])
    x = images(5)
    moved = action.act(x, g)
    for row, element in enumerate(g.tolist()):
        assert torch.equal(moved[row : row + 1], action.turn(x[row : row + 1], element))
    assert torch.equal(action.undo(moved, g), x)
    orbit = action.orbit(x)
    assert torch.equal(orbit[:, 17], action.undo(x, torch.full((5,), 17)))


@pytest.mark.parametrize("name", ["C8", "D3", "C4xC4", "S3xA3", "C4xD4"])
def test_actions_that_resample_or_do_not_commute_are_refused(name):
    with pytest.raises(UserError):
        ExactAction(parse_finite_group(name))


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="square"):
        ExactAction(CyclicGroup(4)).turn(torch.zeros(1, 3, 4, 5), 1)
    with pytest.raises(UserError, match="channels"):
        ExactAction(PermutationGroup(3)).turn(torch.zeros(1, 1, 4, 4), 1)


# --- one input, a product of groups -------------------------------------------------------------


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("size", [5, 6])
def test_the_energy_is_invariant_to_the_averaged_factor_to_the_last_bit(name, size):
    action = ExactAction(parse_finite_group(name))
    x = images(8, size)
    for factor in action.group.factors:
        energy = FixedEnergy(action, x.shape[1:], factor, seed=3)
        for element in factor:
            assert torch.equal(energy(action.turn(x, element)), energy(x))
        assert float(energy.weight.sum()) == 0.0
        assert torch.allclose(energy(x + 0.25), energy(x), atol=1e-4)  # blind to the mean
        assert float(energy.weight.abs().max()) > 0


@pytest.mark.parametrize("name", PRODUCTS)
def test_multi_group_is_invariant_to_the_whole_product(name):
    action, x = ExactAction(parse_finite_group(name)), images(8, dtype=torch.float64)
    model = MultiGroup(network(), action, x.shape[1:])
    upright = model(x)
    for element in range(action.group.order):
        moved = model(action.turn(x, element))
        torch.testing.assert_close(moved, upright, rtol=0, atol=1e-12)
    assert (network()(action.turn(x, action.group.order - 1)) - network()(x)).abs().max() > 0.01


@pytest.mark.parametrize("name", PRODUCTS)
def test_images_of_few_grey_levels_are_no_exception(name):
    """Two poses of such an image often have one energy."""
    action = ExactAction(parse_finite_group(name))
    x = (images(64, dtype=torch.float64) > 0.5).double()
    energy = FixedEnergy(action, x.shape[1:])
    energies = torch.stack([energy(view) for view in action.orbit(x).unbind(1)], dim=1)
    ties = (energies == energies.max(dim=1, keepdim=True).values).sum(dim=1) > 1
    assert 5 < ties.sum() < 64
    for model in (FixedCanonical, MultiGroup):
        built = model(network(), action, x.shape[1:])
        for element in range(action.group.order):
            moved = built(action.turn(x, element))
            torch.testing.assert_close(moved, built(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PRODUCTS)
def test_multi_group_takes_the_sum_of_the_factors(name):
    action, x = ExactAction(parse_finite_group(name)), images(3, dtype=torch.float64)
    backbone = network()
    for model, passes in (
        (MultiGroup(backbone, action, x.shape[1:]), sum(map(len, action.group.factors))),
        (GroupAverage(backbone, action), action.group.order),
        (FixedCanonical(backbone, action, x.shape[1:]), 1),
    ):
        with PassCounter(backbone) as counter:
            model(x)
        assert counter.images == passes * len(x)


@pytest.mark.parametrize("name", ["D4", "C4xS3"])
def test_an_energy_not_invariant_to_the_factor_breaks_the_law(name):
    """Negative control: that the energy is fixed is not enough."""
    action, x = ExactAction(parse_finite_group(name)), images(16, dtype=torch.float64)
    model = MultiGroup(network(), action, x.shape[1:])
    model.energies = nn.ModuleList(FixedEnergy(action, x.shape[1:]) for _ in model.factors)
    gaps = [(model(action.turn(x, g)) - model(x)).abs().max() for g in range(action.group.order)]
    assert max(gaps) > 1e-3


@pytest.mark.parametrize("name", PRODUCTS)
def test_outputs_that_are_images_move_with_the_input(name):
    action, x = ExactAction(parse_finite_group(name)), images(6, dtype=torch.float64)
    torch.manual_seed(0)
    to_image = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 1)).double()
    for model in (
        MultiGroup(to_image, action, x.shape[1:], outputs=action),
        GroupAverage(to_image, action, outputs=action),
    ):
        upright = model(x)
        for element in range(action.group.order):
            moved = model(action.turn(x, element))
            torch.testing.assert_close(moved, action.turn(upright, element), rtol=0, atol=1e-12)


def test_of_an_invariant_network_nothing_changes():
    action, x = ExactAction(parse_finite_group("C4xS3")), images(4, dtype=torch.float64)
    invariant = GroupAverage(network(), action)
    found = MultiGroup(invariant, action, x.shape[1:])(x)
    torch.testing.assert_close(found, invariant(x), rtol=0, atol=1e-12)


def test_with_a_trivial_factor_it_is_half_equitune_and_half_the_canonical_form():
    group = DirectProduct((CyclicGroup(4), PermutationGroup(1)))
    action, x = ExactAction(group), images(6, channels=1, dtype=torch.float64)
    backbone = network(channels=1)
    found = MultiGroup(backbone, action, x.shape[1:], seed=2)(x)
    equitune = GroupAverage(backbone, action)(x)
    canonical = FixedCanonical(backbone, action, x.shape[1:], seed=2)(x)
    torch.testing.assert_close(found, (equitune + canonical) / 2, rtol=0, atol=1e-12)


def test_what_is_no_product_is_refused():
    with pytest.raises(UserError, match="not a product"):
        MultiGroup(network(), ExactAction(CyclicGroup(4)), (3, 6, 6))
    with pytest.raises(UserError, match="energy"):
        FixedEnergy(ExactAction(CyclicGroup(4)), (3, 6, 6))(images(size=4))


# --- an input for each group --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"), [("C4", "S3"), ("S3", "C4"), ("D4", "A3"), ("A3", "D4")]
)
def test_fusion_is_invariant_to_one_group_and_symmetric_under_the_other_exactly(source, target):
    acting, fibre = ExactAction(parse_finite_group(source)), parse_finite_group(target)
    outputs = FibreAction(fibre)
    model = WholeNetwork((3, 4, 4), (2, fibre.order))
    layer, x = InvariantSymmetric(model, acting, outputs), whole_images()
    found = layer(x)
    assert found.abs().max() > 0
    for g in range(acting.group.order):
        assert torch.equal(layer(acting.turn(x, g)), found)
    for h in range(fibre.order):
        assert torch.equal(outputs.turn(found, h), found)
    assert not torch.equal(model(acting.turn(x, 1)), model(x))  # neither law without the layer
    assert not torch.equal(outputs.turn(model(x), 1), model(x))


def test_fibre_action_is_left_regular():
    group = parse_finite_group("D4")
    action, y = FibreAction(group), torch.arange(8.0).expand(1, 8)
    for a, b in itertools.product(range(8), repeat=2):
        moved = action.turn(action.turn(y, b), a)
        assert torch.equal(moved, action.turn(y, group.compose(a, b)))
        assert action.turn(y, a)[0, group.compose(a, b)] == b


def two_inputs(coefficient=0.1):
    actions = [ExactAction(parse_finite_group("C4")), ExactAction(parse_finite_group("S3"))]
    outputs = [FibreAction(action.group) for action in actions]
    sizes = [(2, 4), (2, 6)]
    models = [WholeNetwork((3, 4, 4), size, seed) for seed, size in enumerate(sizes)]
    crossings = {
        (0, 1): WholeNetwork((3, 4, 4), sizes[0], 5),
        (1, 0): WholeNetwork((3, 4, 4), sizes[1], 6),
    }
    return MultiInput(models, crossings, actions, outputs, coefficient), actions, outputs


def test_each_output_moves_with_its_own_input_alone():
    model, actions, outputs = two_inputs(coefficient=0.5)
    x = [whole_images(seed=1), whole_images(seed=2)]
    y = model(x)
    for g, h in itertools.product(range(4), range(6)):
        moved = model([actions[0].turn(x[0], g), actions[1].turn(x[1], h)])
        assert torch.equal(moved[0], outputs[0].turn(y[0], g))
        assert torch.equal(moved[1], outputs[1].turn(y[1], h))


def test_fusion_with_coefficient_zero_is_equitune_of_each_input():
    model, actions, outputs = two_inputs(coefficient=0.0)
    x = [whole_images(seed=1), whole_images(seed=2)]
    for own, action, output, x_i, y_i in zip(model.own, actions, outputs, x, model(x)):
        assert torch.equal(y_i, GroupAverage(own.model, action, output)(x_i))
    fused, _, _ = two_inputs(coefficient=1.0)
    assert not torch.equal(fused(x)[0], model(x)[0])


def test_the_coefficients_are_learned():
    model, _, _ = two_inputs()
    x = [whole_images(seed=1), whole_images(seed=2)]
    sum((y * y).sum() for y in model(x)).backward()
    assert model.coefficients.shape == (2,)
    assert (model.coefficients.grad.abs() > 0).all()


def test_crossings_that_make_no_sense_are_refused():
    action = ExactAction(parse_finite_group("C4"))
    for crossings in ({(0, 0): nn.Identity()}, {(0, 2): nn.Identity()}):
        with pytest.raises(UserError, match="crossings"):
            MultiInput([nn.Identity()] * 2, crossings, [action] * 2, [None] * 2)
    with pytest.raises(UserError, match="one of each"):
        MultiInput([nn.Identity()], {}, [action] * 2, [None] * 2)


# --- the comparison -----------------------------------------------------------------------------


def backbone(channels=3):
    torch.manual_seed(0)
    built = build_network("cifar_resnet20", 10, channels, options={"width": 4})
    return Backbone(built, 8, [0.5] * channels, [0.25] * channels).eval()


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("name", ["D4", "C4xA3"])
def test_the_table_of_an_orbit_says_what_running_methods_say(name, levels):
    group, model, x = parse_finite_group(name), backbone(), images(5, 8)
    x = x if levels is None else (x > 0.5).float()  # with ties of the energies
    label = torch.arange(5)
    table = orbit_table(model, group, iter([x[:3], x[3:]]), label, label, [0, 1])
    action = ExactAction(group)
    for method in (*OF_VIEWS, *OF_ENERGY):
        seed = 1 if method in OF_ENERGY else None
        found = outputs(table, method, seed)
        for pose in range(group.order):
            running = live(model, group, method, action.turn(x, pose), pose, seed or 0)
            np.testing.assert_allclose(found[pose], running, atol=2e-4)
        same = per_image(table, found)["difference"]
        assert (same.max() == 0.0) == (method != "vanilla")  # to the last bit, but for vanilla
    counted = {m: count_passes(model, group, m, x) for m in (*OF_VIEWS, *OF_ENERGY)}
    whole, parts = group.order, sum(map(len, group.factors))
    assert counted == {
        "vanilla": 1,
        "equitune": whole,
        "equizero": whole,
        "oracle": 1,
        "fixed_energy": 1,
        "multi_group": parts,
    }


def test_rates_of_the_table_are_those_of_the_images():
    rows = {
        "dataset": "cifar10",
        "backbone": "cifar_resnet20",
        "group": "D4",
        "order": 8,
        "method": ["vanilla"] * 4,
        "energy_seed": -1,
        "passes": 1.0,
        "index": range(4),
        "upright": [True, True, True, False],
        "hits": [8, 4, 2, 2],
        "worst": [True, False, False, False],
        "agrees": [True, False, False, True],
        "difference": [0.0, 0.5, 2.0, 1.0],
    }
    table = summary(pd.DataFrame(rows))
    row = table.iloc[0]
    assert (row["acc"], row["group_avg"]) == (0.75, 0.5)
    assert (row["all_poses_right"], row["orbit_agreement"]) == (0.25, 0.5)
    assert (row["largest_difference"], row["images"], row["energies"]) == (2.0, 4, 0)
    assert "| Vanilla | 1 | 75.0 | 50.0 |" in markdown(table)


def a_comparison(folder, **changes):
    weights = folder / "weights.pth"
    torch.manual_seed(0)
    torch.save(build_network("resnet_small", 10, 1).state_dict(), weights)
    content = {
        "products": {"name": "tiny", "groups": ["D4"], "energy_seeds": [0, 1], "batch_size": 16},
        "datasets": {"digits": {"limit_test": 30}},
        "backbones": {
            "resnet_small": {
                "weights": "file",
                "file": str(weights),
                "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            }
        },
        "image": {"size": 8},
        "device": "cpu",
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def test_the_command_writes_images_table_and_record(tmp_path, capsys):
    raw, data = tmp_path / "raw", tmp_path / "data"
    for verb in (
        ["download", "--dataset", "digits", "--out", str(raw)],
        ["verify", "--dataset", "digits", "--raw", str(raw)],
        ["prepare", "--dataset", "digits", "--raw", str(raw), "--out", str(data / "digits")],
    ):
        assert cli.main(verb) == 0
    arguments = ["--study", str(a_comparison(tmp_path)), "--data", str(data)]
    assert cli.main(["products", *arguments, "--results", str(tmp_path / "results")]) == 0
    table = pd.read_csv(tmp_path / "results" / "products.csv").set_index("method")
    assert (table["images"] == 30).all()
    assert table.loc["multi_group", "passes"] == 6
    assert table.loc["equitune", "passes"] == 8
    assert table.loc["multi_group", "energies"] == 2
    invariant = table.drop("vanilla")
    assert (invariant["largest_difference"] == 0).all()
    assert np.allclose(invariant["acc"], invariant["group_avg"])
    assert table.loc["oracle", "acc"] == table.loc["vanilla", "acc"]
    assert (tmp_path / "results" / "tables" / "products.md").is_file()
    assert (tmp_path / "results" / "run.json").is_file()


def test_images_are_masked_where_the_study_says_so(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    seen = []
    count = product_comparison.count_passes
    monkeypatch.setattr(
        product_comparison,
        "count_passes",
        lambda backbone, group, method, few: (
            seen.append(few) or count(backbone, group, method, few)
        ),
    )
    path = a_comparison(tmp_path, image={"size": 8, "mask": "disk"})
    data = str(tmp_path / "data" / "prepared")
    arguments = ["--study", str(path), "--data", data, "--results", str(tmp_path / "results")]
    assert cli.main(["products", *arguments]) == 0
    assert seen[0][..., 0, 0].abs().max() == 0 and seen[0][..., 4, 4].abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"products": {"name": "tiny"}}, "'groups' is a required property"),
        ({"products": {"name": "tiny", "groups": ["C4"]}}, "not a product"),
        ({"products": {"name": "tiny", "groups": ["Q8"]}}, "unknown group"),
        ({"products": None}, "products: missing"),
        ({"methods": ["vanilla"]}, "unknown section"),
        ({"datasets": {"digit": {}}}, "unknown data set"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        load_products(a_comparison(tmp_path, **changes))


def test_the_shipped_comparison_is_valid():
    from pathlib import Path

    path = Path(__file__).parents[1] / "config" / "products.yaml"
    comparison = load_products(path, ["datasets.cifar10.limit_test=10"])
    assert list(comparison.groups) == ["D4", "C4xA3", "C4xS3"]
    assert comparison.study.config["datasets"]["cifar10"]["limit_test"] == 10
