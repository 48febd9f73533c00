"""Several processes train one run: they end alike, and like one process; failures stop all."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from project_fixtures import prepare_digits
from torch import nn

from eqadapt import checkpoint, distributed
from eqadapt.errors import UserError
from eqadapt.files import json_dumps
from eqadapt.image_store import HostImages
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.training import LabelledImages

HERE = Path(__file__).parent
# method, frozen: every way in which a loss reaches backbone and scorer
CASES = (
    ("vanilla", False),
    ("rotation_augmentation", False),
    ("lc", False),
    ("prlc", False),
    ("prlc_rotated", False),
    ("weighted_frame", False),
    ("equitune", False),
    ("prlc_rotated", True),
    ("lc", True),
    ("self_canonicalizer", False),
)

PROGRAM = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    here, out, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    sys.path.insert(0, here)
    import torch
    torch.set_num_threads(1)
    from eqadapt import distributed
    import test_distributed as t

    with distributed.session("cpu"):
        if mode == "cases":
            for method, frozen in t.CASES:
                t.train(method, frozen, out)
        else:
            t.train("prlc", False, out, state=out / "state.safetensors", dies=mode == "die")
    """
)


def train(method, frozen, out, state=None, dies=False):
    """Train without dropout, whose masks no two numbers of processes share; keep every weight."""
    import signal

    import test_training

    # Not Adam, which blows rounding up to steps where a gradient is zero but for rounding.
    trainer = test_training.make_trainer(
        method,
        frozen=frozen,
        state=state,
        epochs=3,
        optimizer="sgd",
        lr=0.1,
        scorer_lr=0.1,
        views_a_step=2,  # of a network that canonicalizes itself
    )
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if method == "rotation_augmentation" and distributed.size() > 1:
        # one case from the host, where each process gathers its own images alone
        on_host = HostImages(trainer.data.images, trainer.device)
        trainer.data = LabelledImages(on_host, trainer.data.labels)
    if dies and distributed.rank() == 1:
        steps, step = [], trainer._step

        def dying(rows):
            steps.append(1)
            if len(steps) == 15:  # in the middle of the third epoch
                os.kill(os.getpid(), signal.SIGKILL)
            return step(rows)

        trainer._step = dying
    result = trainer.run()
    name = f"{method}-{'frozen' if frozen else 'joint'}-{distributed.rank()}of{distributed.size()}"
    history = [
        {key: value for key, value in row.items() if key != "seconds" and value is not None}
        for row in result.history
    ]
    checkpoint.save(out / f"{name}.safetensors", trainer.model.state_dict(), {"history": history})


def torchrun(arguments, processes=2, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc_per_node={processes}", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


@pytest.mark.slow
def test_two_processes_end_alike_and_like_one(program, tmp_path):
    done = torchrun([program, HERE, tmp_path, "cases"])
    assert done.returncode == 0, done.stderr[-3000:]
    torch.set_num_threads(1)
    for method, frozen in CASES:
        train(method, frozen, tmp_path)
        name = f"{method}-{'frozen' if frozen else 'joint'}"
        first, of_first = checkpoint.load(tmp_path / f"{name}-0of2.safetensors")
        second, of_second = checkpoint.load(tmp_path / f"{name}-1of2.safetensors")
        alone, of_alone = checkpoint.load(tmp_path / f"{name}-0of1.safetensors")
        assert of_first == of_second
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)
            torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-5)
        assert len(of_first["history"]) == len(of_alone["history"]) == 3
        for row, expected in zip(of_first["history"], of_alone["history"], strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-5), name
        assert of_first["history"][-1]["train_loss"] != of_first["history"][0]["train_loss"]


@pytest.mark.slow
def test_a_killed_process_stops_the_others_and_the_run_goes_on_to_the_same_bytes(program, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    assert torchrun([program, HERE, whole, "go"]).returncode == 0
    died = torchrun([program, HERE, killed, "die"])
    assert died.returncode != 0 and "SIGKILL" in died.stderr
    assert [path.name for path in killed.iterdir()] == ["state.safetensors"]
    _, meta = checkpoint.load(killed / "state.safetensors")
    assert len(meta["history"]) == 2
    assert torchrun([program, HERE, killed, "go"]).returncode == 0
    for path in whole.glob("prlc*"):
        assert path.read_bytes() == (killed / path.name).read_bytes()


@pytest.mark.slow
def test_torchrun_trains_a_study_and_a_fault_is_told(tmp_path):
    prepare_digits(tmp_path)
    study = {
        "study": "two",
        "datasets": {"digits": {"limit_train": 60, "limit_test": 40}},
        "backbones": {"vit_small": {"options": {"patch_size": 8}}},
        "groups": ["C4"],
        "methods": ["vanilla", "prlc"],
        "seeds": [0],
        "image": {"size": 32},
        "scorer": {"inner": "group_cnn", "width": 2, "layers": 2, "input_size": 17},
        "train": {"epochs": 1, "batch_size": 20},
        "device": "cpu",
    }
    (tmp_path / "study.yaml").write_text(json_dumps(study), encoding="utf-8")
    command = ["-m", "eqadapt", "train", "--study", "study.yaml"]
    done = torchrun(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 0") == 2  # the first process alone speaks
    for name in ("vanilla-C1", "prlc-C4"):
        folder = tmp_path / "results" / "two" / "runs" / f"digits-vit_small-joint-{name}-seed0"
        assert sorted(path.name for path in folder.iterdir()) == [
            "checkpoint.safetensors",
            "history.csv",
            "run.json",
        ]
        assert json.loads((folder / "run.json").read_text("utf-8"))["processes"] == 2
    assert not list((tmp_path / "scratch" / "two" / "states").iterdir())
    wrong = torchrun([*command, "--set", "train.batch_size=15"], cwd=tmp_path)
    assert wrong.returncode != 0
    assert "a batch of 15 images cannot be shared equally by 2 processes" in wrong.stderr
    assert "eqadapt/cli.py" not in wrong.stderr  # told, not thrown


def test_in_one_process_nothing_is_shared_or_wrapped():
    def objective(rows):
        return rows.sum(), []

    model = nn.Linear(2, 2)
    assert distributed.size() == 1 and distributed.rank() == 0 and distributed.is_first()
    assert distributed.averaged(objective, model) is objective
    assert distributed.part(7) == slice(None)
    values = torch.rand(3)
    assert distributed.mean(values) is values
    assert distributed.weighted({"val_acc": 0.5, "rate": None}, 4) == {"val_acc": 0.5, "rate": None}
    with distributed.session("cpu"):
        assert distributed.size() == 1
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with distributed.own_chance(3):
        assert torch.equal(torch.rand(2), expected)


def test_a_batch_is_shared_out_whole_or_not_at_all(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    rows = torch.arange(12)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(rows[distributed.part(12)])
    assert torch.equal(torch.cat(shares), rows)
    with pytest.raises(UserError, match="a batch of 10 images cannot be shared equally"):
        distributed.part(10)


def test_what_a_network_draws_is_its_processes_own(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    drawn, after = [], []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(5)
        with distributed.own_chance(0):
            drawn.append(torch.rand(4))
        after.append(torch.rand(4))
    torch.manual_seed(5)
    assert not torch.equal(*drawn)
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], torch.rand(4))


@pytest.mark.parametrize("options", [{}, {"flip": True, "crop_padding": 2, "jitter_degrees": 9.0}])
def test_an_image_is_augmented_alike_in_any_part(options):
    images = torch.randint(0, 255, (8, 3, 12, 12), dtype=torch.uint8)
    pipeline = ImagePipeline(size=16, **options)
    torch.manual_seed(1)
    whole, mirrored = pipeline.augmented(images)
    after = torch.rand(1)
    for part in (slice(0, 4), slice(4, 8)):
        torch.manual_seed(1)
        x, turned = pipeline.augmented(images[part], part, len(images))
        assert torch.equal(x, whole[part]) and torch.equal(turned, mirrored[part])
        assert torch.equal(after, torch.rand(1))
