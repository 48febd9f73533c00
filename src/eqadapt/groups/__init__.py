"""What acts: finite rotation groups and their action on images."""

from eqadapt.groups.cyclic import CyclicGroup, parse_group
from eqadapt.groups.images import RotationAction, disk_mask, rotate

__all__ = ["CyclicGroup", "RotationAction", "disk_mask", "parse_group", "rotate"]
