"""The one exception for what a user can cause and mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, named before work starts: what is wrong, where, and what to do.

    Args:
        what: The fault in one sentence, with the value found.
        where: The file, key or flag it is in.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  to do: {self.fix}")
        return "\n".join(parts)


class NotFinite(UserError):
    """A loss or outputs that are no finite numbers: the training went wrong, or its recipe did."""
