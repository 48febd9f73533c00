"""``python -m eqadapt``."""

from eqadapt.cli import main

raise SystemExit(main())
