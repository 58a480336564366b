"""Imports the installed package before pytest meets the checkout.

The root of the checkout is a package, so pytest imports its ``__init__.py`` under the name of the folder. In a clone
that is called ``fewstep``, the tests would then see the checkout in place of the installed package.
"""

from pathlib import Path

import fewstep


def pytest_report_header() -> str:
    return f"fewstep: {Path(fewstep.__file__).parent}"
