"""The README's Python runs as it stands, and what it says about files and commands is there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fewstep.inverse.stsl import STSL

from .tiny import tiny_sd

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


def test_the_python_of_the_page_on_restoration_runs(capsys):
    """Two steps where it says none, or 100."""
    text = (ROOT / "docs" / "restore.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 4
    namespace: dict = {"__name__": __name__, "pipe": tiny_sd(), "pictures": torch.rand(2, 3, 16, 16)}
    namespace["quick"] = STSL(steps=2, K=1)
    for block in blocks:
        block = block.replace("STSL()", "quick").replace("seeds=(0, 1)))", "seeds=(0, 1)), quick)")
        exec(compile(block.replace("steps: int = 100", "steps: int = 2"), "restore.md", "exec"), namespace)
    assert namespace["result"].x.shape == (2, 3, 16, 16) and "MyMethod" in str(namespace["result"].report)
    printed = re.findall(r"-?\d+\.\d+", capsys.readouterr().out.split("chi^2")[-1])
    ours, exact = (torch.tensor([float(x) for x in pair]) for pair in (printed[-4:-2], printed[-2:]))
    assert (ours - exact).abs().max() < 0.2  # 100 samples of a standard deviation of about 0.45


def test_every_linked_file_exists():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (document.parent / link).exists(), (document.name, link)
