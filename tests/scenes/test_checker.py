"""The renderer and the exact checker, on pictures whose content is known."""

import numpy as np
import pytest
from scipy import ndimage

from ttsnap.scenes.checker import check
from ttsnap.scenes.grammar import COLORS, KINDS, RELATIONS, SHAPES, UNSEEN_KINDS, parse, sample_spec
from ttsnap.scenes.render import RGB, render, signed_distance

RED, BLUE = COLORS.index("red"), COLORS.index("blue")
CIRCLE, SQUARE = SHAPES.index("circle"), SHAPES.index("square")


def _picture(objects):
    """Objects (x, y, colour, shape) of radius 5 on black, (1, 3, 32, 32)."""
    ys, xs = np.mgrid[0:32, 0:32].astype(np.float32) + np.float32(0.5)
    image = np.full((1, 3, 32, 32), 0.06, np.float32)
    for x, y, color, shape in objects:
        inside = signed_distance(shape, xs - np.float32(x), ys - np.float32(y), 5.0) < 0
        image[0] = np.where(inside, RGB[color][:, None, None], image[0])
    return image


@pytest.mark.parametrize("kind", [*KINDS, *UNSEEN_KINDS])
def test_truth_is_right_also_one_by_one(kind):
    # which takes long to draw
    rng, n = np.random.default_rng(1), 4 if kind == "arrangement" else 10
    specs = [sample_spec(rng, kind) for _ in range(n)]
    images = render(specs, rng)
    assert (images.shape, images.dtype) == ((n, 3, 32, 32), np.float32)
    assert 0 <= images.min() <= images.max() <= 1
    soft, strict = check(images, specs)
    assert (soft.dtype, strict.dtype) == (np.float32, bool)
    assert strict.mean() >= 0.95
    assert soft.mean() > 0.9
    assert 0 <= soft.min() <= soft.max() <= 1
    mixed = images[rng.permutation(n)]
    soft, strict = check(mixed, specs)
    alone = [check(mixed[i : i + 1], specs[i : i + 1]) for i in range(n)]
    np.testing.assert_array_equal(soft, [a[0] for a, _ in alone])
    np.testing.assert_array_equal(strict, [b[0] for _, b in alone])


def test_known_kinds_are_drawn_as_ever():
    """Pictures for training depend on the layout's random stream: how many numbers its rejections
    take is told here."""
    rng = np.random.default_rng(0)
    specs = [sample_spec(rng) for _ in range(500)]
    render(specs, rng)
    assert rng.integers(2**32) == 99285719


WRONG = """\
a red circle | a blue circle | a red square | two red circles
three red circles | two red circles
a red circle and a blue square | a blue circle and a red square | a red circle
a red circle above a blue square | a red circle below a blue square
a red circle left of a blue square | a red circle above a blue square
a red circle on a black background | a red circle on a white background
two red circles and a blue square | a red circle and two blue squares
two red circles, a red cross, a blue circle and a blue cross | a red circle, a red cross, two blue circles and a blue cross | two red circles, a red cross, a green circle and a green cross
two red circles, a red cross and a blue circle | two red circles, a red cross, a blue circle and a blue cross
three red circles and two blue squares | two red circles and two blue squares | two red circles and three blue squares
four red circles and a blue square | three red circles and two blue squares
two red circles above a blue square | two red circles below a blue square | two red circles left of a blue square
two red circles above a blue square | three red circles above a blue square | a red circle above two blue squares
two red circles above two blue squares | two blue squares above two red circles
a red circle right of three blue squares | three blue squares right of a red circle
"""  # noqa: E501
"""What is shown, and what is asked for: other attributes, also swapped; one too many or missing;
other relations."""


@pytest.mark.parametrize("line", WRONG.splitlines())
def test_wrong_is_wrong(line):
    shown, *asked = map(parse, line.split(" | "))
    # by which six objects soon have found their places
    images = render([shown], np.random.default_rng(1))
    right, _ = check(images, [shown])
    for spec in asked:
        soft, strict = check(images, [spec])
        assert soft[0] < right[0]
        assert not strict[0]


def test_relation_is_read_from_the_picture():
    for relation in RELATIONS:
        images = render(
            [parse(f"a green square {relation} an orange cross")] * 10, np.random.default_rng(0)
        )
        for other in RELATIONS:
            _, strict = check(images, [parse(f"a green square {other} an orange cross")] * 10)
            assert strict.all() == (other == relation)
            assert strict.any() == (other == relation)


def test_a_relation_holds_for_each_object_of_a_group():
    """Two circles far left and one square: right until one circle is beyond the square."""
    spec = parse("two red circles left of a blue square")
    held = []
    for x in (6.0, 16.0, 26.0):  # of the second circle; the square is at 21
        at = [(6.0, 6.0, RED, CIRCLE), (x, 26.0, RED, CIRCLE), (21.0, 16.0, BLUE, SQUARE)]
        soft, strict = check(_picture(at), [spec])
        held.append((float(soft[0]), bool(strict[0])))
    assert [strict for _, strict in held] == [True, True, False]
    assert held[0][0] > held[1][0] > held[2][0] > 0.4


def test_a_missing_group_leaves_half_of_the_relations_credit():
    """All that is there is right, two of three objects: 2/3 of the credit for objects, and none for
    the relation."""
    at = [(8.0, 8.0, RED, CIRCLE), (24.0, 8.0, RED, CIRCLE)]
    together, _ = check(_picture(at), [parse("two red circles")])
    soft, strict = check(_picture(at), [parse("two red circles above a blue square")])
    np.testing.assert_allclose(soft, together * 2 / 3 * 0.5, rtol=1e-6)
    assert not strict[0]


def test_soft_is_graded():
    rng = np.random.default_rng(2)
    specs = [sample_spec(rng) for _ in range(40)]
    images = render(specs, rng)
    means = [
        check(ndimage.gaussian_filter(images, (0, 0, b, b)), specs)[0].mean()
        for b in (0, 0.6, 1.5, 2.5)
    ]
    assert means == sorted(means, reverse=True)
    assert (means[1] > 0.85, means[-1] < 0.6) == (True, True)
    noisy, strict = check(images + rng.normal(0, 0.05, images.shape), specs)
    assert (noisy.mean() > 0.85, strict.mean() > 0.9) == (True, True)


@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_empty_pictures_score_nothing(fill):
    soft, strict = check(np.full((1, 3, 32, 32), fill), [parse("a red circle")])
    assert (soft[0], strict[0]) == (0, False)
    assert [len(part) for part in check(np.zeros((0, 3, 32, 32)), [])] == [0, 0]


def test_bad_input():
    shapes = [np.zeros((1, 3, 64, 64)), np.zeros((2, 3, 32, 32)), np.full((1, 3, 32, 32), np.nan)]
    for images, message in zip(
        shapes, (r"\(1, 3, 64, 64\)", "2 images but 1 specs", "NaN"), strict=True
    ):
        with pytest.raises(ValueError, match=message):
            check(images, [parse("a red circle")])


def test_labels_agree_with_the_picture():
    images, maps = render(
        [parse("two red crosses on a black background")], np.random.default_rng(0), labels=True
    )
    red_cross = 1 + COLORS.index("red") * len(SHAPES) + SHAPES.index("cross")
    assert set(np.unique(maps)) == {0, red_cross}
    assert ((images[0, 0] > 0.5) == (maps[0] == red_cross)).mean() > 0.99
