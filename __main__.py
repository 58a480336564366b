"""``python -m fewstep`` is the ``fewstep`` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
