"""The benchmarks' own machinery, and quick pairs with whatever peers are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import figures, measures, rows, table
from benchmarks.__main__ import main
from benchmarks.ours import operations
from benchmarks.registry import Context, NotAvailable, NotComparable, largest_difference
from benchmarks.rows import Row
from benchmarks.study import Process, busy_seconds, origin, processes
from benchmarks.timing import QUICK, Effort, Samples, compare, peak_memory, ratio_spread

CPU = torch.device("cpu")
HAS_REFERENCE = importlib.util.find_spec("equiadapt") is not None
HAS_PEERS = HAS_REFERENCE and importlib.util.find_spec("ttach") is not None


def test_slower_side_is_found_slower_and_sides_take_turns() -> None:
    turns: list[str] = []

    def side(name: str, seconds: float):
        def call() -> None:
            turns.append(name)
            time.sleep(seconds)

        return call

    sides = {"a": side("a", 0.012), "b": side("b", 0.002)}
    found = compare(sides, CPU, Effort(seconds=0.0, rounds=5, sample_seconds=0.0))
    assert found["a"].median > 2 * found["b"].median
    assert turns[-10:] == ["a", "b"] * 5
    assert len(found["a"].seconds) == 5


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no such /proc here")
def test_peak_memory_sees_a_large_tensor_that_is_freed() -> None:
    peak = peak_memory(lambda: torch.ones(32 << 18).sum(), CPU)  # 32 MiB
    assert peak is not None and 24 < peak < 200


def test_ratio_spread_ignores_a_drift_that_both_sides_share() -> None:
    drifting = Samples((1.0, 2.0, 4.0), None)
    assert ratio_spread(drifting, Samples((0.5, 1.0, 2.0), None)) == pytest.approx(0.0)
    assert ratio_spread(drifting, Samples((0.5, 0.5, 0.5), None)) > 0.5


def test_unequal_outputs_are_refused() -> None:
    x = torch.ones(3)
    assert largest_difference(x, x + 1e-6, 1e-4, "x") == pytest.approx(1e-6, rel=0.2)
    for wrong in (x + 1, x * torch.nan, torch.ones(4)):
        with pytest.raises(NotComparable):
            largest_difference(x, wrong, 1e-4, "x")


def _row(measure: str, device: str = "here", **values) -> Row:
    return Row(measure, "C8, 32 px, batch 16", device, **values)


def test_file_keeps_other_measures_and_other_devices(tmp_path) -> None:
    path, order = tmp_path / "speed.csv", ("warp", "growth")
    old = [_row("growth_order", our_seconds=1.0), _row("warp", "gpu", ratio=3.0, repeats=4)]
    rows.replace(path, "growth", "here", old[:1], order)
    rows.replace(path, "warp", "gpu", old[1:], order)
    fresh = [_row("warp", ratio=10.0, floor=10.0, note="a, b")]
    rows.replace(path, "warp", "here", fresh, order)
    assert rows.read(path) == [old[1], fresh[0], old[0]]
    rows.replace(path, "growth", "here", [_row("growth_side")], order)
    assert [row.measure for row in rows.read(path)] == ["warp", "warp", "growth_side"]


def test_floor_is_reached_or_not_or_absent() -> None:
    assert _row("warp", ratio=10.0, floor=10.0).met is True
    assert _row("warp", ratio=9.9, floor=10.0).met is False
    assert _row("warp", ratio=9.9).met is None


def test_speed_at_a_lower_accuracy_does_not_count() -> None:
    reached = {"ratio": 60.0, "floor": 50.0, "peer_pose_accuracy": 0.5, "peer_cn_avg": 0.7}
    equal = _row("quality_pair", **reached, our_pose_accuracy=0.5, our_cn_avg=0.7)
    assert equal.as_accurate and equal.met is True
    for lower in ({"our_pose_accuracy": 0.4, "our_cn_avg": 0.8}, {"our_cn_avg": 0.6}):
        row = _row("quality_pair", **reached, **lower)
        assert not row.as_accurate and row.met is False
    assert _row("warp", ratio=10.0, floor=10.0).as_accurate is None


def test_measure_that_stops_keeps_its_rows_and_is_taken_up_again(
    tmp_path, monkeypatch, capsys
) -> None:
    def rows_of(settings: str, stops: bool):
        def run(context: Context):
            for setting in settings:
                yield context.row("warp", setting, our_seconds=1.0, note=settings)
            if stops:
                raise NotAvailable("no such peer")

        return run

    def notes(settings: str, stops: bool, *more: str) -> dict[str, str]:
        warp = measures.MEASURES["warp"]
        monkeypatch.setitem(measures.MEASURES, "warp", replace(warp, run=rows_of(settings, stops)))
        given = ["--only", "warp", "--device", "cpu", "--rows-only", "--out", str(tmp_path)]
        assert main([*given, *more]) == int(stops)
        return {row.setting: row.note for row in rows.read(tmp_path / "speed.csv")}

    assert notes("ab", False) == {"a": "ab", "b": "ab"}
    assert notes("bc", True) == {"a": "ab", "b": "bc", "c": "bc"}
    assert "no such peer" in capsys.readouterr().err
    assert notes("d", False, "--resume") == {"d": "d"}  # begun before, and not finished
    assert notes("e", False, "--resume") == {"d": "d"}
    assert [path.name for path in tmp_path.iterdir()] == ["speed.csv"]


def test_complex_products_count_as_four_real_ones() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert operations(lambda x: x @ b, a) == 2 * 2 * 3 * 4 * 5
    turned = torch.complex(b, b)
    assert operations(lambda x: torch.complex(x, x) @ turned, a) == 4 * 2 * 2 * 3 * 4 * 5


def test_study_is_timed_by_what_its_processes_and_runs_say(tmp_path) -> None:
    def process(end: float, wall: float) -> Process:
        return Process("train", wall, wall, 1.0, end)

    assert busy_seconds([process(10, 10), process(12, 4), process(30, 5)]) == 17
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "train.tsv").write_text("s\tmax_rss\tmean_load\tcpu_time\n50\t9\t80\t30\n")
    (found,) = processes(logs)
    assert (found.stage, found.wall, found.cpu, found.memory) == ("train", 50, 40, 9)
    for seed, commit in enumerate("aab"):
        (tmp_path / f"runs/{seed}").mkdir(parents=True)
        record = {"device": "a processor", "commit": commit}
        (tmp_path / f"runs/{seed}/run.json").write_text(json.dumps(record))
        if commit == "a":
            assert origin(tmp_path / "runs") == ("a processor", "a")
    with pytest.raises(NotAvailable, match="2 devices or commits"):
        origin(tmp_path / "runs")


def test_no_measure_writes_rows_of_another() -> None:
    for name in measures.ORDER:
        assert [other for other in measures.ORDER if rows.belongs(_row(name), other)] == [name]


def test_tables_and_figures_are_whole_and_repeatable(tmp_path) -> None:
    pair = {"peer": "p", "peer_seconds": 0.02, "our_seconds": 0.01, "ratio": 2.0, "floor": 10.0}
    found = [
        *(_row(measure, **pair) for measure in ("warp", "optc", "train_joint")),
        _row("growth_order", our_seconds=0.1),
        _row("limits_stage", peer="limit", peer_seconds=0.1, our_seconds=0.2, ratio=0.5),
        _row("quality_curve", our_seconds=0.01, our_cn_avg=0.7, our_pose_accuracy=0.5),
        _row("quality_curve", peer_seconds=2.0, peer_cn_avg=0.6, peer_pose_accuracy=0.4),
    ]
    written = table.write(found, tmp_path) + figures.write(found, tmp_path)
    assert len(written) == 2 + 4 * 2
    before = {path: path.read_bytes() for path in written}
    assert "not reached" in before[tmp_path / "speed_table.md"].decode()
    table.write(found, tmp_path)
    figures.write(found, tmp_path)
    assert {path: path.read_bytes() for path in written} == before
    # Of two pairs the table tells enough.
    assert len(figures.write(found[1:], tmp_path / "few")) == 3 * 2


def test_units_and_ratios_are_legible() -> None:
    assert [table.seconds(value) for value in (2.3, 0.0571, 3.1e-4, None)] == [
        "2.30 s",
        "57.1 ms",
        "310 µs",
        "–",
    ]
    assert [table.ratio(value) for value in (0.956, 2.15, 128.4)] == ["0.956x", "2.15x", "128x"]


def test_command_lists_runs_resumes_and_refuses(tmp_path, capsys) -> None:
    out = str(tmp_path)
    assert main(["--list"]) == 0
    assert set(measures.ORDER) <= set(capsys.readouterr().out.split())
    assert main(["--only", "nothing", "--out", out]) == 2
    quick = ["--quick", "--threads", "1", "--device", "cpu", "--only", "inference", "--out", out]
    threads = torch.get_num_threads()
    try:
        assert main(quick) == 0
        first = (tmp_path / "speed.csv").read_bytes()
        assert main([*quick, "--resume"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "speed.csv").read_bytes() == first
    for row in rows.read(tmp_path / "speed.csv"):
        assert row.ratio and row.outputs_max_difference is not None and "timm" in row.versions


def test_several_measures_run_in_processes_of_their_own(tmp_path, capfd) -> None:
    quick = ["--quick", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*quick, "--only", "parts", "--only", "inference"]) == 0
    found = rows.read(tmp_path / "speed.csv")
    assert {row.measure for row in found} == {"parts", "inference"}
    assert all(row.device.endswith(", 1 threads") for row in found)
    assert "parts: " in capfd.readouterr().err


@pytest.mark.skipif(HAS_REFERENCE, reason="equiadapt is installed")
def test_missing_peer_is_said_and_no_row_invented(tmp_path, capsys) -> None:
    assert main(["--quick", "--only", "warp", "--out", str(tmp_path)]) in (1, 2)
    assert "requirements-benchmarks.lock" in capsys.readouterr().err
    assert not (tmp_path / "speed.csv").exists()


@pytest.mark.skipif(not HAS_REFERENCE, reason="needs the extra benchmarks")
@pytest.mark.parametrize("order", [4, 8])
def test_reference_and_ours_are_the_same_network(order: int) -> None:
    from benchmarks.peers import reference_canonicalizer, same_network
    from eqadapt.law import smooth_images

    torch.manual_seed(0)
    reference = reference_canonicalizer(order, 32, CPU, fields=2, resize=24)
    ours, x = same_network(reference, order, CPU), smooth_images(4, 32)
    with torch.no_grad():
        theirs = reference.get_group_activations(x)
        assert theirs.std() > 1e-4
        assert (theirs - ours(x)).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in measures.ORDER if n not in ("study", "quality")])
def test_every_measure_runs_quickly(name: str) -> None:
    try:
        found = list(measures.MEASURES[name].run(Context(CPU, quick=True)))
    except NotAvailable as error:
        # Peers are an extra, and an allocator may be one that cannot be told to keep memory.
        # Outputs that differ, or installed peers that cannot be imported, are failures.
        if HAS_PEERS and name != "kept_memory":
            raise
        pytest.skip(str(error))
    assert found
    assert all(row.our_seconds for row in found)


def test_quick_effort_is_small() -> None:
    assert QUICK.most_rounds <= 2
