"""Small projects in a folder of their own: prepared digits, a study, and what its verbs leave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from eqadapt.cli import main


def prepare_digits(folder: Path) -> None:
    """The digits, downloaded, verified and prepared under ``data``, where verbs look for them."""
    raw = folder / "data" / "raw" / "digits"
    assert main(["download", "--dataset", "digits", "--out", str(raw)]) == 0
    assert main(["verify", "--dataset", "digits", "--raw", str(raw)]) == 0
    prepared = str(folder / "data" / "prepared" / "digits")
    assert main(["prepare", "--dataset", "digits", "--raw", str(raw), "--out", prepared]) == 0


def run_study(folder: Path, study: Mapping[str, Any], *verbs: str) -> None:
    """Prepare the digits, write ``study.yaml``, and run verbs on it from within the folder."""
    prepare_digits(folder)
    (folder / "study.yaml").write_text(yaml.safe_dump(dict(study)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb in verbs:
            assert main([verb, "--study", "study.yaml"]) == 0
