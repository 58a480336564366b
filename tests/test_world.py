"""The embedded world and its judge: rendering, grammar, splits, and how often the judge is right."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fewstep.errors import ConfigError
from fewstep.models import captions, scenes
from fewstep.models.captions import Request, Wanted, parse_caption, prompts, unknown_words
from fewstep.models.judge import decide, judge, read
from fewstep.models.scenes import BACKGROUNDS, COLOURS, INVERSE, RELATIONS, SHAPES, SIZES, Scene, Thing

KINDS = ("one", "two", "heldout")


def draw(kind, rng):
    if kind == "heldout":
        return scenes.sample_scene(rng, "heldout")
    return scenes.sample_scene(rng, "any", objects=1 if kind == "one" else 2)


def contradict(request, rng):
    """The request with one word changed, so that it is no longer true of the picture."""
    k = int(rng.integers(len(request.things)))
    thing = request.things[k]
    field = ("shape", "colour", "size", "relation", "background")[rng.integers(5 if request.relation else 4)]
    field = "background" if field == "relation" and not request.relation else field

    def other(values, old):
        rest = [v for v in values if v != old]
        return rest[rng.integers(len(rest))]

    if field == "relation":
        return Request(request.things, INVERSE[request.relation], request.background)
    if field == "background":
        return Request(request.things, request.relation, other(BACKGROUNDS, request.background))
    values = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES)}[field]
    parts = {"shape": thing.shape, "colour": thing.colour, "size": thing.size}
    parts[field] = other(values, parts[field])
    things = list(request.things)
    things[k] = Wanted(**parts)
    return Request(tuple(things), request.relation, request.background)


@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [0.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_accepts_the_truth_and_refuses_one_wrong_word(kind, noise, count):
    rng = np.random.default_rng(KINDS.index(kind))
    right = wrong = 0
    count = min(count, 500) if kind == "heldout" else count  # to the judge, a held-out pair is a pair like any other
    for _ in range(count):
        scene = draw(kind, rng)
        image = scenes.render(scene)
        if noise:
            image = np.rint(image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
        reading, request = read(image), parse_caption(scene.full_caption())
        right += decide(reading, request).accepted
        wrong += decide(reading, contradict(request, rng)).accepted
    assert right >= 0.99 * count
    assert wrong <= 0.01 * count


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_tolerates_a_little_blur(kind):
    rng = np.random.default_rng(5)
    accepted = 0
    for _ in range(100):
        scene = draw(kind, rng)
        x = np.pad(scenes.render(scene).astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
        x = (x[:-2] + 2 * x[1:-1] + x[2:]) / 4
        x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
        accepted += judge(x / 255, scene.full_caption()).accepted
    assert accepted >= 95


def test_the_judge_refuses_what_a_person_would():
    scene = Scene((Thing("circle", "red", "large"),), None, "gray", False)
    image = scenes.render(scene)
    assert judge(image, "a red circle").accepted
    empty = np.full((64, 64, 3), 128, np.uint8)
    assert "0 object(s), not 1" in judge(empty, "a red circle").reasons
    stray = image.copy()
    stray[5:9, 50:54] = COLOURS["blue"]
    assert "1 stray blob(s)" in judge(stray, "a red circle").reasons
    halves = image.copy()
    left = (np.arange(64) < 32)[None, :] & (image[..., 0] > 170)
    halves[left] = COLOURS["blue"]
    assert not judge(halves, "a red circle").accepted and not judge(halves, "a blue circle").accepted
    cut = image.copy()
    cut[:32] = 128
    assert not judge(cut, "a red circle").accepted
    pair_text = "a red circle left of a red square"
    rng = np.random.default_rng(0)
    assert not judge(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "a red circle").accepted
    gradient = np.broadcast_to(np.linspace(0, 255, 64)[:, None, None], (64, 64, 3)).astype(np.uint8)
    assert not judge(gradient, "a red circle").accepted
    pair = (Thing("circle", "red", "large", (8, 0)), Thing("square", "red", "large", (-7, 0)))
    merged = scenes.render(Scene(pair, "left of", "gray", False))
    assert not judge(merged, "a red circle").accepted and not judge(merged, pair_text).accepted


def test_the_judge_says_why():
    scene = Scene((Thing("circle", "red", "small"), Thing("star", "blue", "large")), "above", "black", True)
    image = scenes.render(scene)
    verdict = judge(image, "a red circle below a blue star")
    assert not verdict.accepted and verdict.reasons == ("small red circle is not below large blue star",)
    assert "small red circle is not green" in judge(image, "a green circle above a blue star").reasons
    assert {str(f) for f in verdict.found} == {"small red circle", "large blue star"}
    assert judge(image, "a blue star below a red circle on a black background").accepted


@pytest.mark.parametrize("bad", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.int64)])
def test_the_judge_names_unusable_images(bad):
    with pytest.raises(ConfigError, match="the judge got an image of"):
        judge(bad, "a red circle")


def test_rendering_is_deterministic_and_antialiased():
    a = scenes.sample_scene(np.random.default_rng(3))
    b = scenes.sample_scene(np.random.default_rng(3))
    assert a == b and np.array_equal(scenes.render(a), scenes.render(b))
    image = scenes.render(Scene((Thing("circle", "red", "large"),), None, "black", True))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    red = image[..., 0]
    assert ((red > 20) & (red < 200)).sum() > 20
    assert tuple(image[32, 32]) == COLOURS["red"] and tuple(image[0, 0]) == BACKGROUNDS["black"]


def test_caption_grammar_round_trip():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = scenes.sample_scene(rng, "any")
        text = scene.caption()
        things = tuple(Wanted(t.shape, t.colour, t.size if t.says_size else None) for t in scene.things)
        background = scene.background if scene.says_background else None
        assert parse_caption(text) == Request(things, scene.relation, background)
        assert unknown_words(text) == []
        assert text in scenes.captions_of(scene)


def test_captions_are_many():
    ones = 6 * 4 * 3 * 4
    pairs = 4 * 4 * (72 * 72 - 24 * 9)
    assert ones + pairs >= 3000
    rng = np.random.default_rng(0)
    assert len({scenes.sample_scene(rng).caption() for _ in range(5000)}) > 3000


def test_parse_is_forgiving_about_case_and_blanks_only():
    assert parse_caption("  A Red   circle ABOVE a blue square. ") == Request(
        (Wanted("circle", "red"), Wanted("square", "blue")), "above"
    )
    for text in ("a dragon", "a red circle above", "red circle", "a red circle and a blue square", ""):
        with pytest.raises(ConfigError):
            parse_caption(text)
    with pytest.raises(ConfigError, match="two equal objects"):
        parse_caption("a red star above a red star")


def test_unknown_words_and_prompts_that_work():
    assert unknown_words("a photo of a red dragon above a blue photo") == ["photo", "dragon"]
    with pytest.raises(ConfigError, match="never seen: purplish, hexagon") as error:
        parse_caption("a purplish hexagon on a black background")
    assert str(error.value).count("'a ") == 4
    for text in ("a purplish hexagon", "two red circles", "", "a small yellow star near a white moon", "red star star"):
        near = captions.nearest_prompts(text)
        assert len(set(near)) == 3
        for prompt in near:
            parse_caption(prompt)
    assert "a yellow star" in " ".join(captions.nearest_prompts("yellow star please"))


def test_ten_of_the_96_combinations_are_held_out():
    assert len(scenes.HELDOUT) == 10
    assert len({c[:2] for c in scenes.HELDOUT}) == 10, "no object may lose two places"
    assert all(s in SHAPES and c in COLOURS and r in RELATIONS for s, c, r in scenes.HELDOUT)


def test_splits_are_disjoint():
    rng = np.random.default_rng(1)
    trained = set()
    for _ in range(6000):
        scene = scenes.sample_scene(rng, "train")
        assert not scene.is_heldout() and not scenes.reserved(scene.caption())
        for thing, relation in zip(scene.things, (scene.relation, INVERSE.get(scene.relation)), strict=False):
            assert (thing.shape, thing.colour, relation) not in scenes.HELDOUT
        trained.add(scene.caption())
    for kind in KINDS:
        for text in prompts(kind, 500):
            request = parse_caption(text)
            assert text not in trained
            relations = (request.relation, INVERSE.get(request.relation))
            pairs = zip(request.things, relations, strict=False)
            held = any((t.shape, t.colour, r) in scenes.HELDOUT for t, r in pairs)
            assert held == (kind == "heldout")
            assert kind == "heldout" or scenes.reserved(text)
            assert len(request.things) == (1 if kind == "one" else 2)


def test_prompts_are_fixed():
    for kind in KINDS:
        assert prompts(kind, 7) == prompts(kind, 500)[:7]
    assert len(set(prompts("two", 500))) == len(set(prompts("heldout", 500))) == 500
    assert 15 <= len(set(prompts("one", 500))) < 60
    with pytest.raises(ConfigError):
        prompts("three", 5)
    with pytest.raises(ConfigError):
        prompts("one", 0)


def test_importing_the_world_loads_no_torch():
    code = (
        "import sys, json; import fewstep.models, fewstep.models.judge, fewstep.models.captions;"
        "print(json.dumps([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []


def test_unknown_embedded_model_is_named():
    from fewstep.models import EMBEDDED, embedded

    assert "tiny-sd" in EMBEDDED
    with pytest.raises(ConfigError, match="tiny-sdd"):
        embedded("tiny-sdd")
