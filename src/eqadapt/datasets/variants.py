"""The ways of preparing one data set, each with a folder of its own. No torch here.

``data/prepared/digits`` holds the data set as its source would have it; what is asked to differ is
in the name, ``data/prepared/digits-v500-s96``: 500 images held out, brought to 96 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqadapt.datasets import registry
from eqadapt.errors import UserError

_NAME = re.compile(r"(?P<source>\w+?)(-v(?P<validation>\d+(\.\d+)?))?(-s(?P<size>\d+))?")


@dataclass(frozen=True)
class Preparation:
    """One way of preparing a data set.

    Attributes:
        source: The registered data set, or the user's name of a folder.
        validation: Images held out of the training set, a count or a fraction; None: the source's
            own choice.
        size: Side in pixels, for images that vary in size; None: the source's own choice.
    """

    source: str
    validation: int | float | None = None
    size: int | None = None

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> Preparation:
        """What a study's entry of that name and with these options is prepared as.

        Options that say what the source would choose anyway count as not given, so that equal
        preparations have equal names.
        """
        source = str(options.get("source") or name)
        known = registry.all_sources().get(source, registry.get(registry.IMAGE_FOLDER))
        validation, size = options.get("validation"), options.get("size")
        if validation is not None and float(validation).is_integer():
            validation = int(validation)
        return cls(
            source,
            None if validation == known.validation else validation,
            None if known.resizes and size == known.size else size,
        )

    @classmethod
    def parse(cls, name: str) -> Preparation:
        """The inverse of ``name``.

        Raises:
            UserError: It is no such name.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise UserError(f"{name!r} names no preparation", fix="digits, digits-v500, x-v0.1-s96")
        validation, size = found["validation"], found["size"]
        number = None if validation is None else float(validation)
        if number is not None and number.is_integer():
            number = int(number)
        return cls(found["source"], number, None if size is None else int(size))

    @property
    def name(self) -> str:
        """Its folder under ``data/prepared``: ``digits``, ``digits-v500``, ``birds-v0.2-s96``."""
        validation = "" if self.validation is None else f"-v{self.validation}"
        return self.source + validation + ("" if self.size is None else f"-s{self.size}")

    @property
    def flags(self) -> str:
        """Its options as flags of ``eqadapt prepare``."""
        pairs = (("validation", self.validation), ("size", self.size))
        return " ".join(f"--{key} {value}" for key, value in pairs if value is not None)
