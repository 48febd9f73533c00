"""What acts: finite rotation groups and their action on images.

The tables of the groups need no torch; the action on images loads it when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eqadapt.groups.cyclic import CyclicGroup, parse_group

if TYPE_CHECKING:
    from eqadapt.groups.images import RotationAction, disk_mask, rotate

__all__ = ["CyclicGroup", "RotationAction", "disk_mask", "parse_group", "rotate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eqadapt.groups import images

    return getattr(images, name)
