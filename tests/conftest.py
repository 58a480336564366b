"""Imports the installed package before pytest meets the checkout.

The root of the checkout is a package, so pytest imports its ``__init__.py`` under the name of the folder. In a clone
that is called ``fewstep``, the tests would then see the checkout in place of the installed package.
"""

import os
from pathlib import Path

import fewstep


def pytest_configure() -> None:
    """The workers of `pytest -n` share the cores: torch, not yet imported, would give each of them all."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_report_header() -> str:
    return f"fewstep: {Path(fewstep.__file__).parent}"
