"""Groups of images that are good and unlike each other, against brute force and by cases whose
answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ttsnap.core.diversity import distances, diverse, objective


def best(values, features, k, weight):
    """The highest objective of any group, by trying all."""
    groups = itertools.combinations(range(len(values)), k)
    return max(objective(values, features, np.array(group), weight) for group in groups)


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("k", [2, 3])
def test_greedy_against_brute_force(weight, k):
    shares = []
    for seed in range(40):
        rng = np.random.default_rng([seed, k])
        values, features = rng.normal(size=9), rng.normal(size=(9, rng.integers(2, 9))) + 1
        group = diverse(values, features, k, weight)
        assert len(set(group.tolist())) == k
        assert group[0] == values.argmax()
        shares.append(
            objective(values, features, group, weight) / best(values, features, k, weight)
        )
    assert min(shares) >= 0.5  # for a metric, as was proven
    assert max(shares) <= 1 + 1e-9
    assert np.mean(shares) > (0.98 if weight <= 1 else 0.9)


def test_one_image_and_no_weight_are_the_best_ones():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, features = rng.integers(0, 6, 12).astype(float), rng.normal(size=(12, 5))
        ranked = np.argsort(-values, kind="stable")
        np.testing.assert_array_equal(diverse(values, features, 1, 5.0), ranked[:1])
        np.testing.assert_array_equal(diverse(values, features, 4, 0.0), ranked[:4])
        np.testing.assert_array_equal(diverse(values, features, 20, 1.0), ranked)


@pytest.mark.parametrize("error", [0.0, 1e-5])
def test_of_images_that_are_alike_the_best_are_kept(error):
    rng = np.random.default_rng(1)
    values = rng.normal(size=9)
    features = np.repeat(rng.normal(size=(1, 6)), 9, 0) + error * rng.normal(size=(9, 6))
    np.testing.assert_array_equal(diverse(values, features, 4, 100.0), np.argsort(-values)[:4])


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("values", "features", "weight", "group"),
    [
        ([3.0, 2.9, 1.0, 0.9, 0.0], np.eye(3)[[0, 0, 1, 1, 2]], 2.0, {0, 2}),  # of twins one
        ([3.0, 2.9, 1.0, 0.9, 0.0], np.eye(3)[[0, 0, 1, 1, 2]], 4.0, {0, 2, 4}),
        ([3.0, 2.9, 1.0, 0.9, 0.0], np.eye(3)[[0, 0, 1, 1, 2]], 0.01, {0, 1}),
        ([7.0] * 4, np.eye(4)[[0, 0, 1, 2]], 1.0, {0, 2, 3}),  # nothing to divide by
        (
            [-INF, 1.0, -INF, 0.5, 0.2],
            [[0.0, -1], [1, 0], [NAN, NAN], [1, 0.1], [0, 1]],
            9.0,
            {1, 4},
        ),
        (
            [-INF, 1.0, -INF, 0.5, 0.2],
            [[0.0, -1], [1, 0], [NAN, NAN], [1, 0.1], [0, 1]],
            9.0,
            {1, 3, 4, 0},
        ),
    ],
)
def test_known_groups(values, features, weight, group):
    assert set(diverse(np.array(values), np.array(features), len(group), weight).tolist()) == group


def test_values_and_features_of_any_scale_give_the_same_group():
    rng = np.random.default_rng(2)
    values, features = rng.normal(size=15), rng.normal(size=(15, 4))
    group = diverse(values, features, 5, 1.0)
    np.testing.assert_array_equal(group, diverse(1e4 * values - 7e5, features, 5, 1.0))
    np.testing.assert_array_equal(
        group, diverse(values, features * rng.uniform(0.01, 9, (15, 1)), 5, 1.0)
    )


def test_distances_are_a_metric_of_mean_one():
    rng = np.random.default_rng(3)
    apart = distances(rng.normal(size=(12, 3)))
    assert (apart == apart.T).all()
    assert (np.diag(apart) == 0).all()
    assert apart.sum() / (12 * 11) == pytest.approx(1)
    assert (apart[:, :, None] <= apart[:, None, :] + apart.T[None, :, :] + 1e-9).all()
