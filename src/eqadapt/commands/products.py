"""``eqadapt products``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from eqadapt.product_study import ProductStudy

HELP = "compare ways to be invariant to a product of groups on a frozen backbone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--study", required=True, metavar="YAML", help="e.g. config/products.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. datasets.cifar10.limit_test=200",
    )
    parser.add_argument("--results", type=Path, help="folder of the results [results/<name>]")
    parser.add_argument("--data", type=Path, default=Path("data/prepared"), help="prepared data")


def run(args: argparse.Namespace) -> None:
    """Write what each method makes of each image, the table and the record of the run."""
    from eqadapt.product_study import load_products

    comparison = load_products(args.study, args.set)
    folder = args.results or Path("results") / comparison.study.name
    import pandas as pd

    from eqadapt.analysis.product_table import write_product_tables
    from eqadapt.files import atomic_path, write_json

    frames, record = [], {}
    for frame, facts in _cells(comparison, folder, args.data):
        frames.append(frame)
        record.update(facts)
    path = folder / "images.parquet"
    with atomic_path(path) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, compression="zstd", index=False)
    write_json(folder / "run.json", record)
    for written in write_product_tables(folder):
        print(written)


def _cells(
    comparison: ProductStudy, folder: Path, data: Path
) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """The frame of each data set and backbone, and what identifies its result."""
    import time

    import torch

    from eqadapt.provenance import provenance
    from eqadapt.runs import StudyFiles, StudyRunner
    from eqadapt.study import Run

    study = comparison.study
    runner = StudyRunner(study, StudyFiles(folder, Path("scratch") / study.name, data))
    for dataset in study.config["datasets"]:
        for name in study.config["backbones"]:
            started = time.perf_counter()
            found = Run(dataset, name, "frozen", "vanilla", "C1", 0)
            recipe = study.recipe(found)
            backbone: Any = runner.backbone(found, recipe).to(runner.device).eval()
            backbone = backbone.to(memory_format=torch.channels_last)
            frame = _compared(comparison, runner, recipe, backbone, found)
            yield (
                frame,
                {
                    f"{dataset}-{name}": {
                        **provenance(runner.device),
                        "seconds": round(time.perf_counter() - started, 1),
                        "settings": comparison.settings,
                        "recipe": {key: recipe[key] for key in ("dataset", "image")},
                        "test_sha256": runner.data(dataset).test.metadata["data_sha256"],
                        "weights_sha256": recipe["backbone"]["sha256"],
                    }
                },
            )


def _compared(
    comparison: ProductStudy, runner: Any, recipe: dict[str, Any], backbone: Any, found: Any
) -> pd.DataFrame:
    import pandas as pd

    from eqadapt import product_comparison as products
    from eqadapt.groups import CyclicGroup, RotationAction
    from eqadapt.tasks.classification import ImagePipeline

    mask = RotationAction(CyclicGroup(1), mask=recipe["image"]["mask"]).masked
    pipeline, test = ImagePipeline.from_recipe(recipe), runner.data(found.dataset).test
    settings, parts = comparison.settings, []

    def batches() -> Iterator[Any]:
        for start in range(0, len(test.images), settings["batch_size"]):
            images = test.images[start : start + settings["batch_size"]]
            yield mask(pipeline.to_act_size(images.to(runner.device)))

    few = next(batches())[:4]
    for name, group in comparison.groups.items():
        table = products.orbit_table(
            backbone, group, batches(), test.labels, test.index, settings["energy_seeds"]
        )
        for method in (*products.OF_VIEWS, *products.OF_ENERGY):
            passes = products.count_passes(backbone, group, method, few)
            seeds = settings["energy_seeds"] if method in products.OF_ENERGY else [None]
            for seed in seeds:
                columns = {
                    "dataset": found.dataset,
                    "backbone": found.backbone,
                    "group": name,
                    "order": group.order,
                    "method": method,
                    "energy_seed": -1 if seed is None else seed,
                    "passes": passes,
                }
                rows = products.per_image(table, products.outputs(table, method, seed))
                parts.append(pd.DataFrame({**rows, **columns})[list(products.COLUMNS)])
            print(f"{found.dataset} {found.backbone} {name} {method}: {passes:g} passes")
    return pd.concat(parts, ignore_index=True)
