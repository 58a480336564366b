"""``fewstep restore`` on a folder that has pictures: what is kept, what is made again, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.cli import png, record, restore_record
from fewstep.errors import NumericsError
from fewstep.inverse.restore import restore

from . import cli_runs
from .cli_runs import pixels
from .test_cli_restore import QUICK, draw

cli, model = cli_runs.cli, cli_runs.model


def test_metadata_are_written_and_taken_away_where_that_is_asked_for(cli, model):
    """The same pixels: what is there with metadata is not what --no-metadata makes, nor the other way round."""
    how = ("restore", draw("a.png"), "-m", model, "--operator", "sr:factor=2", *QUICK, "--no-side-by-side")
    file = Path(cli(*how)[1].strip())
    first, bare = pixels(file), (*how, "--no-metadata")
    for words, has in ((bare, False), (how, True), (bare, False)):
        code, out, err = cli(*words)
        assert code == 0 and out.strip() == str(file) and "there already" not in err
        assert ("fewstep" in png.read_text(file).texts) == has and np.array_equal(pixels(file), first)
        assert "there already" in cli(*words)[2]


def test_samples_of_other_versions_are_not_mixed_without_a_word(cli, model, monkeypatch):
    how = ("restore", draw("a.png"), "-m", model, "--operator", "sr:factor=2", *QUICK, "--samples")
    here = record.versions()
    monkeypatch.setattr(record, "versions", lambda: here | {"torch": "1.0"})
    monkeypatch.setattr(restore_record, "versions", record.versions)
    assert cli(*how, 1)[0] == 0
    monkeypatch.setattr(record, "versions", lambda: here)
    assert "warning" not in cli(*how, 1)[2]  # nothing is made
    assert "warning: what is there was made with other versions (torch 1.0)" in cli(*how, 2)[2]


def test_a_sample_that_fails_leaves_the_mean_out_and_says_so(cli, model, monkeypatch):
    def second_fails(*arguments, seeds, **options):
        if 1 in seeds:
            raise NumericsError("STSL diverged")
        return restore(*arguments, seeds=seeds, **options)

    monkeypatch.setattr("fewstep.inverse.restore.restore", second_fails)
    how = ("restore", draw("a.png"), "-m", model, "--operator", "sr:factor=2", *QUICK, "--samples", 3)
    code, out, err = cli(*how)
    assert code == 3 and len(out.split()) == 2
    assert "what is made of all samples is not written, since 1 of 3 failed" in err


def test_equal_pictures_and_transparent_ones_are_named(cli, model):
    for folder in ("x", "y"):
        Path(folder).mkdir()
        draw(f"{folder}/a.png")
    rgba = np.full((16, 16, 4), 255, np.uint8)
    rgba[:4, :, 3] = 0
    Image.fromarray(rgba).save("hole.png")
    how = ("restore", "x/a.png", "y/a.png", "hole.png", "-m", model, "--operator", "denoise", "--dry-run")
    code, out, err = cli(*how)
    assert code == 0 and out.count("picture ") == 2
    assert "1 of 3 pictures have name and contents of another one" in err
    assert "warning: hole.png is transparent in places, which become white: measured, not missing" in err
