"""Whether the installed Triton can compile the kernels: they pass tuples of pointers, which works from 3.4 on."""

from __future__ import annotations

import triton

OLDEST = (3, 4)


def is_new_enough() -> bool:
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= OLDEST
