"""The README's Python runs as it stands, and what it says about files and commands is there."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.inverse.stsl import STSL

RESTORE = "fewstep.restore(pipe, y, "
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 5
    slow = [block for block in blocks if RESTORE in block]
    assert len(slow) == 1  # its 50 steps take minutes: 2 of them here
    namespace: dict = {"__name__": "readme", "quick": STSL(steps=2, K=1)}
    for block in blocks:
        block = block.replace(RESTORE, f"{RESTORE}quick, ")
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "torch.Size([2, 3, 64, 64]) 32" in printed
    assert "10 network evaluations" in printed
    assert abs(float(re.search(r"std ([\d.]+)", printed)[1]) - 0.5) < 0.03
    assert namespace["image"].size == (64, 64)
    assert namespace["restored"].x.shape == (2, 3, 64, 64) and "chi^2" in printed


def test_every_linked_file_exists():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (document.parent / link).exists(), (document.name, link)
