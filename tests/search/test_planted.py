import dataclasses

import numpy as np
import pytest

from regseg_jax.search import planted, planted_network


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth noise, fewer and smaller than the images of the experiment."""
    noise = np.random.default_rng(0).standard_normal((4, 40, 40, 3))
    for axis in (1, 2):
        noise = sum(np.roll(noise, shift, axis) for shift in range(4))
    return (noise / noise.std()).astype(np.float32)


def test_found_rates_are_counted():
    rates = np.array([[3.04, 1.0], [2.0, 6.6], [4.0, 30.0]])
    as_they_are = planted.measure_distances(rates, any_order=False)
    swapped = planted.measure_distances(rates, any_order=True)
    assert (as_they_are <= 0.1).sum() == 2
    assert (swapped <= 0.1).sum() == 4
    assert (swapped <= 0.5).sum() == 5


def _shorten(monkeypatch, name, **changes):
    monkeypatch.setitem(planted.TRIES, name, dataclasses.replace(planted.TRIES[name], **changes))


def test_a_student_with_the_teachers_weights_approaches_its_rates(images):
    how = planted.Try(given_weights=True, start=1.0, tap_width=2.0, num_steps=40)
    result = planted.search(images, how, seed=0)
    assert np.shape(result["rates"]) == (3, 2)
    assert [note["step"] for note in result["log"]] == [6, 12, 18, 24, 30, 36, 40]
    # Of the first block, whose input is the teacher's; the rates start 2 from the planted ones.
    assert np.abs(np.subtract(result["rates"][0], planted.PLANTED_RATES[0])).sum() < 1


def test_a_relaxed_student_learns_and_its_rates_are_candidates(images, monkeypatch):
    monkeypatch.setattr(planted_network, "CANDIDATES", (1, 3, 7))
    _shorten(monkeypatch, "relaxed", num_steps=30)
    result = planted.run_try(images, "relaxed", seed=0)
    assert set(np.ravel(result["rates"])) <= {1, 3, 7}
    assert result["loss"] < 0.8 * result["log"][0]["loss"]
    assert result["loss_from_scratch"] < 1
    planted_rates = np.array(planted.PLANTED_RATES)
    assert result["found"]["0.1"] == (np.sort(result["rates"], 1) == planted_rates).sum()


def test_rates_move_layer_by_layer_if_asked(images):
    still = planted.search(images, planted.Try(by_layer=True, num_steps=3), seed=0)
    assert all(rate != 6 for block in still["rates"] for rate in block)
    first = planted.search(images, planted.Try(by_layer=True, num_steps=6), seed=0)["log"][1]
    assert [block == [6, 6] for block in first["rates"]] == [False, True, True]


def test_the_planted_rates_are_where_the_loss_is_zero(images):
    teacher = planted_network.create_params(0, planted.PLANTED_RATES)
    same = planted_network.create_params(0, planted.PLANTED_RATES)
    other = planted_network.create_params(0, [[1, 3], [2, 7], [4, 11]])
    expected = planted_network.apply(teacher, images, 1.0)
    np.testing.assert_array_equal(planted_network.apply(same, images, 1.0), expected)
    assert np.abs(planted_network.apply(other, images, 1.0) - expected).max() > 0.01
