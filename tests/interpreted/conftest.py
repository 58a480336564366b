"""These tests run Triton's kernels in its interpreter, in a process of their own (see test_kernels_interpreted.py).

By hand: TRITON_INTERPRET=1 FEWSTEP_KERNELS=triton pytest tests/interpreted
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("FEWSTEP_KERNELS") == "triton"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]
