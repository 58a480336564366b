"""These tests run Triton's kernels in its interpreter, in a process of their own (see test_kernels_interpreted.py).

By hand: TRITON_INTERPRET=1 FEWSTEP_KERNELS=triton pytest tests/interpreted
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("FEWSTEP_KERNELS") == "triton"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def round_to_bfloat16_as_gpus_do():
    """The interpreter cuts float32 off where it becomes bfloat16. Hardware rounds to nearest, ties to even."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounded(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            bits = np.asarray(src.data, dtype=np.float32).view(np.uint32)
            nearest = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
            quiet_nan = (bits >> 16) | 0x40
            return TensorHandle(np.where(np.isnan(src.data), quiet_nan, nearest).astype(np.uint16), dst_type.scalar)
        if (src.dtype.scalar, dst_type.scalar) == (tl.bfloat16, tl.float32):
            return TensorHandle((src.data.astype(np.uint32) << 16).view(np.float32), dst_type.scalar)
        return cast(self, src, dst_type)

    InterpreterBuilder.cast_impl = rounded


@pytest.fixture
def reference(monkeypatch):
    """Plain torch instead of the kernels, for the length of a call."""
    from fewstep.kernels import choice

    def run(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(choice, "use_triton", lambda where: False)
            return function(*args, **kwargs)

    return run


if INTERPRETED:
    round_to_bfloat16_as_gpus_do()
