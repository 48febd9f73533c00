"""Figures and the report: every declared file, nothing loaded from elsewhere, same bytes again."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from analysis_fixtures import BEHAVIOURS, Behaviour, StudySpec, make_study
from PIL import Image

from eqadapt.analysis import outputs
from eqadapt.analysis.figures.gallery import load_pictures
from eqadapt.analysis.figures.poses import offset_shares
from eqadapt.analysis.figures.style import save, themed
from eqadapt.analysis.labels import METHODS, method_styles
from eqadapt.analysis.narrative import method_sentences, scope_sentences, training_seconds
from eqadapt.analysis.published import load_published
from eqadapt.analysis.results import open_results
from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.study import load_study, merge

CONFIG = Path(__file__).parents[1] / "config"
PUBLISHED = CONFIG / "published.yaml"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    behaviours = {k: BEHAVIOURS[k] for k in ("vanilla", "lc", "prlc")}
    behaviours["my_new_idea"] = Behaviour(0.9, 0.9, 0.9, passes=8)
    spec = StudySpec(
        title="Digits <turned> & repaired",
        images=60,
        seeds=(0, 1),
        groups=("C8",),
        backbones=("resnet10t",),
        behaviours=behaviours,
        galleries=True,
        reduced=True,
    )
    folder = make_study(tmp_path_factory.mktemp("results") / "digits", spec)
    published = ["--published", str(PUBLISHED)]
    for verb, flags in (
        ("metrics", []),
        ("tables", published),
        ("claims", published),
        ("figures", []),
        ("report", published),
    ):
        assert main([verb, "--results", str(folder), *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def page(study):
    return (study / "report.html").read_text(encoding="utf-8")


def test_every_declared_figure_is_written_and_not_blank(study):
    declared = outputs.figure_files(open_results(study).config)
    written = {p.relative_to(study).as_posix() for p in (study / "figures").iterdir()}
    assert written == set(declared)
    for name in declared:
        if name.endswith(".png"):
            with Image.open(study / name) as image:
                assert min(image.size) > 150
                assert (image.mode == "P") == ("gallery" not in name)
                low, high = image.convert("L").getextrema()
                assert high - low > 100


def test_figures_are_the_same_bytes_again(study, tmp_path):
    from eqadapt.analysis.figures import FIGURES

    results = open_results(study)
    with themed():
        for name in ("upright_vs_cn_avg", "chosen_poses"):
            figure = FIGURES[name](results, results.cells("joint", "C8"))
            for path in save(figure, tmp_path / name):
                stem = outputs.figure_stem(name, "digits", "joint", "C8")
                assert path.read_bytes() == (study / f"{stem}{path.suffix}").read_bytes()


def test_drawings_keep_their_colours_in_a_third_of_the_bytes(study, tmp_path):
    from eqadapt.analysis.figures import FIGURES

    results = open_results(study)
    with themed():
        figure = FIGURES["accuracy_by_angle"](results, results.cells("joint", "C8"))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(tmp_path / "whole.png")
    few = next((study / "figures").glob("accuracy_by_angle-*-C8.png"))
    assert few.stat().st_size < (tmp_path / "whole.png").stat().st_size / 2
    with Image.open(tmp_path / "whole.png") as whole, Image.open(few) as reduced:
        first, second = (np.asarray(image.convert("RGB")).astype(int) for image in (whole, reduced))
        assert reduced.info["dpi"] == pytest.approx(whole.info["dpi"])
    assert np.abs(first - second).mean() < 0.5 and (np.abs(first - second) > 16).mean() < 1e-3


def test_lines_of_a_crowded_drawing_keep_their_colours(tmp_path):
    """Bands over bands have thousands of colours: they may not take those of the lines."""
    styles = list(method_styles(METHODS).values())[:24]
    at = np.linspace(0.0, 1.0, 40)
    with themed():
        figure, axes = plt.subplots()
        for place, style in enumerate(styles):
            curve = 0.9 + 0.002 * place + 0.01 * np.sin(20.0 * at + place)
            axes.plot(at, curve, color=style.colour, marker=style.marker, label=style.label)
            axes.fill_between(at, curve - 0.3, curve + 0.1, color=style.colour, alpha=0.15, lw=0)
        axes.legend(ncols=3)
        (path,) = (path for path in save(figure, tmp_path / "crowded") if path.suffix == ".png")
    with Image.open(path) as image:
        assert image.mode == "P"
        drawn = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for style in styles:
        colour = [int(style.colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(drawn - colour).max(axis=1) <= 1).any(), style


def test_shares_of_chosen_poses(study):
    results = open_results(study)
    (cell,) = results.cells("joint", "C8")
    evaluation = results.at(cell)["prlc"][0]
    upright = offset_shares(evaluation, evaluation.angles == 0)
    assert upright.sum() == pytest.approx(100)
    assert upright[0] == pytest.approx(100 * evaluation.pose_right[:, 0].mean())


def test_galleries_of_the_wrong_form_are_named(study, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not readable as safetensors"):
        load_pictures(path)
    pictures = load_pictures(next((study / "galleries").glob("*-prlc-*")))
    assert pictures.canonical.shape == pictures.inputs.shape


class Links(HTMLParser):
    """Everything a browser would load, and every anchor."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        if tag == "a":
            self.anchors.append(found["href"])
        else:
            self.loads += [found[k] for k in ("src", "href", "data", "poster") if k in found]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_loads_nothing_from_elsewhere(study, page):
    links = Links()
    links.feed(page)
    assert links.loads and all(load.startswith("data:image/") for load in links.loads)
    assert "<script" not in page and "@import" not in page
    assert not re.search(r"url\(\s*['\"]?(?!data:)", page)
    # Well-formed, and every link leads somewhere on the page.
    assert not links.open
    files = [anchor for anchor in links.anchors if not anchor.startswith("#")]
    assert len(files) == 3 * len(outputs.TABLES) and all((study / file).is_file() for file in files)
    assert all(anchor[1:] in links.ids for anchor in links.anchors if anchor not in files)
    outside = study.parent / "elsewhere" / "page.html"
    argv = ["report", "--results", str(study), "--published", str(PUBLISHED)]
    assert main([*argv, "--out", str(outside)]) == 0
    assert 'href="../digits/tables/main-joint-C8.csv"' in outside.read_text(encoding="utf-8")


def test_tables_without_any_published_figure_do_not_say_so_in_every_cell(study, page):
    ours = page[page.index('id="tables"') :].split("</table>")[0]
    assert "Vanilla" in ours and "n/a" not in ours and 'class="note"' not in ours
    assert "there is none for this cell" not in page
    text = (study / "tables/main-joint-C8.md").read_text(encoding="utf-8")
    assert "(n/a)" not in text.split("Published figures of cells not run here")[0]


def test_the_report_shows_the_numbers_that_were_computed(study, page):
    claims = json.loads((study / "claims.json").read_text())
    for claim in claims["claims"]:
        assert f'id="{claim["id"]}"' in page
    metrics = open_results(study).metrics
    vanilla = metrics[metrics["method"] == "vanilla"]
    drop = f"from {100 * vanilla['acc'].mean():.1f}% to {100 * vanilla['cn_avg'].mean():.1f}%"
    assert drop in page
    for text in ("0123456789abcdef", "d" * 64, "a" * 64, "cpu (synthetic)", "96.97 B"):
        assert text in page
    assert page.count("<figure>") == len(outputs.FIGURES) + 1


def test_a_reduced_study_is_labelled_and_text_is_escaped(page):
    assert "Reduced study." in page and 'class="badge reduced"' in page
    assert "Digits &lt;turned&gt; &amp; repaired" in page and "<turned>" not in page


def test_a_method_nobody_listed_is_explained(page):
    assert "My new idea" in page and "The method registered as my_new_idea." in page


def test_what_a_study_lacks_is_told_wherever_it_is_written(tmp_path, capsys):
    spec = StudySpec(
        images=40,
        seeds=(0, 1),
        groups=("C8",),
        backbones=("cnn",),
        behaviours={k: BEHAVIOURS[k] for k in ("vanilla", "prlc")},
        galleries=True,
    )
    folder = make_study(tmp_path / "digits", spec)
    network = {"model": "resnet10t", "weights": "scratch"}
    planned = merge(
        yaml.safe_load((CONFIG / "digits.yaml").read_text(encoding="utf-8")),
        {"groups": ["C8"], "methods": ["vanilla", "prlc"], "seeds": [0, 1, 2]},
    )
    study = load_study({**planned, "backbones": {"cnn": network}})
    (folder / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
    said = "2 of the study's runs, digits-cnn-joint-vanilla-C1-seed2 the first"
    for verb in ("metrics", "claims", "figures", "report"):
        published = ["--published", str(PUBLISHED)] if verb in ("claims", "report") else []
        capsys.readouterr()
        assert main([verb, "--results", str(folder), *published]) == 0
        assert (said in capsys.readouterr().err) == (verb in ("metrics", "claims"))
    assert said in html.unescape((folder / "report.html").read_text(encoding="utf-8"))


def test_a_report_cites_whose_claims_it_judges(study):
    results, published = open_results(study), load_published(PUBLISHED)

    def scope(**verdicts: str) -> str:
        claims = [{"source": source, "verdict": verdict} for source, verdict in verdicts.items()]
        return " ".join(scope_sentences(results, published, {"claims": claims}))

    both = scope(mondal2023="not run", basu2023lambda="reproduced", kaba2023="not reproduced")
    cited = [published.citation(source) in both for source in ("basu2023lambda", "kaba2023")]
    assert all(cited) and published.citation("mondal2023") not in both
    none = scope(mondal2023="not run")
    assert "tests claims" not in none and "This study asks" in none


def test_runs_at_fewer_poses_are_said_to_be(study):
    results = open_results(study)
    assert "in 24 poses, 15° apart." in method_sentences(results)[0]
    metrics = results.metrics.assign(n_poses=8)
    own = metrics["trained_group"] == "C8"
    parts = [metrics, metrics[own].assign(group="C4", trained_group="C4", n_poses=4)]
    results.__dict__["metrics"] = pd.concat(parts)  # as a study of test-time methods has them
    said = method_sentences(results)[0]
    assert "in 8 poses, 45° apart (by runs for C4 in 4, 90° apart)." in said


def test_frozen_networks_as_they_are_are_no_trainings(tmp_path, study):
    import shutil

    other = tmp_path / "digits"
    shutil.copytree(study, other)
    trained = training_seconds(open_results(other))
    for path in (other / "runs").glob("*-vanilla-*/run.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "epochs": 0, "train_seconds": 0.0}))
    left = training_seconds(open_results(other))
    assert {stem for stem in trained if "-vanilla-" not in stem} == set(left) != set(trained)


def test_a_study_that_is_not_reduced_is_not_labelled(tmp_path, study):
    import shutil

    other = tmp_path / "digits"
    shutil.copytree(study, other)
    config = (other / "study.yaml").read_text().replace("reduced: true", "reduced: false")
    (other / "study.yaml").write_text(config)
    argv = ["report", "--results", str(other), "--published", str(PUBLISHED)]
    assert main([*argv, "--command", "make it"]) == 0
    text = (other / "report.html").read_text()
    assert "<b>Reduced study." not in text and "<pre>make it</pre>" in text

    (other / "claims.json").unlink()
    assert main(argv) == 2
    shutil.copy(study / "claims.json", other)
    next((other / "figures").glob("chosen_poses*.svg")).unlink()
    assert main(argv) == 2
