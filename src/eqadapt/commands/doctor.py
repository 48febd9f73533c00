"""``eqadapt doctor``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from eqadapt.groups import RotationAction
    from eqadapt.law import ElementCheck

HELP = "say whether a canonicalizer or a trained model keeps the law, and which layer breaks it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scorer", metavar="NAME", help="a scorer with random weights, by its name")
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="a trained run's")
    parser.add_argument("--group", default="C8", help="of the turns; a run's own, if any [C8]")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the scorer, e.g. form=reference",
    )
    parser.add_argument("--channels", type=int, default=3, help="of the scorer's images [3]")
    parser.add_argument("--side", type=int, help="of the images [64; a checkpoint's own]")
    parser.add_argument("--images", type=int, default=16, help="how many, of smooth noise [16]")
    parser.add_argument("--training", action="store_true", help="in training mode, not evaluation")


def run(args: argparse.Namespace) -> None:
    """Print a report; exit status 1 where the law is broken under quarter turns."""
    keeps = _checkpoint(args) if args.checkpoint else _scorer(args)
    if not keeps:
        raise SystemExit(1)


def _scorer(args: argparse.Namespace) -> bool:
    import torch

    from eqadapt.groups import RotationAction, parse_group
    from eqadapt.law import smooth_images
    from eqadapt.scorers import build_scorer
    from eqadapt.study import merge, parse_override

    options: dict[str, Any] = reduce(merge, map(parse_override, args.option), {})
    group = parse_group(args.group)
    torch.manual_seed(0)
    scorer = build_scorer(args.scorer, group, args.channels, **options)
    images = smooth_images(args.images, args.side or 64, args.channels)
    name = f"scorer {args.scorer}, {group.name}"
    return _examine(name, scorer.train(args.training), RotationAction(group), images, scorer)


def _checkpoint(args: argparse.Namespace) -> bool:
    from eqadapt import checkpoint
    from eqadapt.adaptation import build_action
    from eqadapt.errors import UserError
    from eqadapt.law import smooth_images
    from eqadapt.methods import get_method
    from eqadapt.trained import load_trained

    model = load_trained(args.checkpoint).train(args.training)
    meta = checkpoint.load(args.checkpoint)[1]
    section, method = meta["model"], get_method(meta["method"])
    if method.selection == "sample":
        raise UserError(
            f"{method.name} draws its poses: its law is one of means, not of single outputs",
            where=str(args.checkpoint),
        )
    side = args.side or section["image"]["size"]
    images = smooth_images(args.images, side, section["channels"])
    action = build_action(section, meta["group"] if method.uses_group else args.group)
    keeps = True
    if model.scorer is not None:
        name = f"canonicalizer of {method.name}, {action.group.name}"
        keeps = _examine(name, model.scorer, action, images, model.scorer)

    def logits(x: Tensor) -> Tensor:
        return model(x).logits

    name = f"logits of {method.name}, {action.group.name}"
    return _examine(name, logits, action, images, None) and keeps


def _examine(
    name: str,
    network: Callable[[Tensor], Tensor],
    action: RotationAction,
    images: Tensor,
    scorer: nn.Module | None,
) -> bool:
    """Report on a scorer, whose outputs move, or on logits, which stay; whether the law holds."""
    from eqadapt.law import broken, check_elements, first_break, sides_that_keep

    moves, side = scorer is not None, images.shape[-1]
    checks = check_elements(network, action, images, moves)
    print(f"{name}, {len(images)} images of {side} x {side}")
    print(_table(checks, "pose follows" if moves else "class stays"))
    if not any(check.exact for check in checks):
        print("The law is asked of no turn that resamples nothing.\n")
        return True
    if not broken(checks):
        print("The law holds under quarter turns, up to rounding.\n")
        return True
    print("The law is broken under quarter turns, where nothing is resampled.")
    found = first_break(scorer, images) if scorer is not None else None
    if found is not None:
        print(
            f"First at layer {found.name!r} ({found.kind}, output {found.shape}): the sum of its "
            f"squared outputs changes by {found.change:.1e} of it."
        )
    near = [s for s in range(max(8, side - 8), side + 9) if s != side]
    kept = sides_that_keep(network, action, images, near, moves)
    print(f"Sides near {side} at which it holds: {', '.join(map(str, kept)) or 'none'}\n")
    return False


def _table(checks: list[ElementCheck], follows: str) -> str:
    lines = [f"  {'turned by':>10}  {'off by':>8}  {follows}"]
    for check in checks:
        how = "" if check.exact else "  (resampled)"
        angle = f"{check.degrees:.4g}°"
        lines.append(f"  {angle:>10}  {check.error:8.1e}  {check.follows:.0%}{how}")
    return "\n".join(lines)
