import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.prediction import engine
from regseg_jax.prediction.engine import Failures, Predictor, map_ahead, predict_all
from regseg_jax.prediction.tiles import Tiling


def red(variables, images, size):
    """Scores whose best class is the red channel."""
    del variables
    assert images.shape[1:3] == size
    return jax.nn.one_hot(images[..., 0], 19)


def create_image(size, value):
    image = np.random.default_rng(value).integers(0, 19, (*size, 3)).astype(np.uint8)
    image[0, 0] = value
    return image


def run(images, predictor, **kwargs):
    """Returns what was written by item, and the failures."""
    written, failures = {}, Failures()

    def write(item, image, prediction):
        np.testing.assert_array_equal(prediction, image[..., 0])
        written[item] = prediction

    def load(item):
        if isinstance(images[item], Exception):
            raise images[item]
        return images[item]

    done = list(predict_all(range(len(images)), load, predictor, write, failures, **kwargs))
    assert sorted(done) == list(range(len(images)))
    return written, failures


@pytest.mark.parametrize("parallel", [True, False])
def test_images_of_many_sizes_each_with_its_own_prediction(parallel, monkeypatch):
    monkeypatch.setattr(engine, "_MAX_BATCH_SIZE", 4)
    sizes = [(8, 6), (6, 8), (8, 6), (5, 5)] * 5
    images = [create_image(size, i % 19) for i, size in enumerate(sizes)]
    written, failures = run(images, Predictor(red, {}), parallel=parallel)
    assert sorted(written) == list(range(20))
    assert failures.messages == []


def test_unreadable_images_do_not_stop_the_rest():
    images = [create_image((8, 6), i) for i in range(10)]
    images[3], images[7] = ValueError("cannot read 3.png"), MemoryError()
    written, failures = run(images, Predictor(red, {}))
    assert sorted(written) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert failures.messages[0] == "cannot read 3.png"
    assert (
        "7: there is not enough memory; predict it in tiles, with --tile=" in failures.messages[1]
    )
    with pytest.raises(ValueError, match=r"2 of 10 could not be predicted: cannot read 3\.png; 7"):
        failures.raise_any(10)


def test_only_the_first_failures_are_named():
    with pytest.raises(ValueError, match=r"12 of 99 .*: bad; bad; .*and 10 more$"):
        Failures(["bad"] * 12).raise_any(99, shown=2)
    Failures().raise_any(99)


def test_an_item_with_nothing_to_do_is_passed_over():
    written, failures = run([None, create_image((4, 4), 1)], Predictor(red, {}))
    assert list(written) == [1]
    assert failures.messages == []


def test_a_full_disk_stops_everything():
    def write(item, image, prediction):
        raise OSError("disk full")

    items = [create_image((4, 4), 1)] * 3
    with pytest.raises(OSError, match="disk full"):
        list(predict_all(range(3), items.__getitem__, Predictor(red, {}), write, Failures()))


def test_memory_of_the_device_names_the_image_and_tiles():
    def too_large(variables, images, size):
        raise MemoryError

    _, failures = run([create_image((4, 4), 1)], Predictor(too_large, {}))
    assert failures.messages == [
        "0: there is not enough memory; predict it in tiles, with --tile=1024,1024 or smaller ones"
    ]

    class FullDevice(Predictor):
        def start(self, images):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    _, failures = run([create_image((4, 4), 1)], FullDevice(red, {}))
    assert "--tile" in failures.messages[0]

    class BrokenDevice(Predictor):
        def start(self, images):
            raise jax.errors.JaxRuntimeError("INTERNAL: another fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="another fault"):
        run([create_image((4, 4), 1)], BrokenDevice(red, {}))


def test_a_last_batch_is_padded_rather_than_compiled(monkeypatch):
    monkeypatch.setattr(engine, "_MAX_BATCH_SIZE", 4)
    shapes = []

    def score(variables, images, size):
        shapes.append(images.shape)  # when it is traced, so once a program
        return red(variables, images, size)

    written, _ = run([create_image((8, 6), i) for i in range(11)], Predictor(score, {}))
    assert len(written) == 11
    assert shapes == [(4, 8, 6, 3)]


def test_batches_hold_so_many_pixels():
    predictor = Predictor(red, {}, Tiling(2048, 2048, 512))
    assert predictor.get_batch_size((48, 64)) == 64
    assert predictor.get_batch_size((360, 480)) == 12
    assert predictor.get_batch_size((1024, 2048)) == 1
    assert predictor.get_batch_size((4096, 4096)) == 1


def test_larger_images_are_cut(monkeypatch):
    def score(variables, images, size):
        assert size[0] <= 32
        assert size[1] <= 48
        return red(variables, images, size)

    images = [create_image(size, 3) for size in ((32, 48), (100, 48), (16, 200), (99, 101))]
    written, failures = run(images, Predictor(score, {}, Tiling(32, 48, 16)))
    assert len(written) == 4
    assert failures.messages == []


def test_very_large_images_are_cut_without_being_asked(monkeypatch):
    monkeypatch.setattr(engine, "_MAX_WHOLE_PIXELS", 2000)
    monkeypatch.setattr(engine, "Tiling", lambda: Tiling(32, 32, 16))
    sizes = []

    def score(variables, images, size):
        sizes.append(size)
        return red(variables, images, size)

    written, _ = run([create_image((60, 70), 3)], Predictor(score, {}))
    assert len(written) == 1
    assert set(sizes) == {(32, 32)}
    _, failures = run([create_image((60, 70), 3)], Predictor(red, {}, can_tile=False))
    assert "0: an image of 60 x 70 pixels is too large without tiles" in failures.messages[0]
    with pytest.raises(ValueError, match=r"--tile: the run resizes every image"):
        Predictor(red, {}, Tiling(), can_tile=False)


def test_map_ahead_is_ordered_bounded_and_raises_in_its_place():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = map_ahead(lambda x: x * x, items(), num_threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) < 12
    results.close()

    threads = threading.active_count()
    results = map_ahead(lambda x: 1 // (x - 2), range(5), num_threads=2)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == threads


def test_variables_are_arguments_of_the_program():
    """Not constants in it, of which each size would keep a copy."""

    def score(variables, images, size):
        assert isinstance(variables["w"], jax.core.Tracer)
        return red(variables, images, size) * variables["w"]

    written, _ = run([create_image((4, 4), 1)], Predictor(score, {"w": jnp.ones(())}))
    assert len(written) == 1
