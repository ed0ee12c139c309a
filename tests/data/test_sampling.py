import pickle

import numpy as np
import pytest

from regseg_jax.data.sampling import ClassUniformEpochs, Draw, ShuffledEpochs


def _epoch(sampler: ShuffledEpochs, epoch: int) -> list[int]:
    length = sampler.steps_per_epoch * sampler.global_batch_size
    return [sampler.draw(epoch * length + i).index for i in range(length)]


def test_each_epoch_is_a_permutation():
    sampler = ShuffledEpochs(num_examples=20, global_batch_size=4, seed=0)
    assert sampler.steps_per_epoch == 5
    for epoch in range(4):
        assert sorted(_epoch(sampler, epoch)) == list(range(20))


def test_order_differs_between_epochs_and_seeds():
    sampler = ShuffledEpochs(20, 4, seed=0)
    orders = [_epoch(sampler, epoch) for epoch in range(3)]
    orders += [_epoch(ShuffledEpochs(20, 4, seed=seed), 0) for seed in (1, 2)]
    orders.append(list(range(20)))
    assert len({tuple(order) for order in orders}) == len(orders)


def test_last_partial_batch_is_dropped_and_each_epoch_drops_others():
    sampler = ShuffledEpochs(num_examples=23, global_batch_size=4, seed=3)
    assert sampler.steps_per_epoch == 5
    epochs = [_epoch(sampler, epoch) for epoch in range(20)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    visits = np.bincount(np.concatenate(epochs), minlength=23)
    assert visits.min() >= 10  # nobody is always left out: 20 * 20 / 23 = 17.4 on average


def test_index_is_a_pure_function_of_its_place():
    first, second = (ShuffledEpochs(50, 8, seed=9) for _ in range(2))
    places = np.random.default_rng(0).integers(0, 2000, 60).tolist()
    forwards = [first.draw(place).index for place in places]
    backwards = [second.draw(place).index for place in reversed(places)]
    assert forwards == backwards[::-1]
    assert all(type(index) is int and 0 <= index < 50 for index in forwards)


def test_every_order_is_about_as_likely():
    firsts = [ShuffledEpochs(4, 4, seed=seed).draw(0).index for seed in range(400)]
    counts = np.bincount(firsts, minlength=4)
    assert counts.min() > 60  # 100 each on average


def test_whole_split_may_be_one_batch_but_no_less():
    assert ShuffledEpochs(8, 8, seed=0).steps_per_epoch == 1
    with pytest.raises(ValueError, match="7 examples, fewer than global_batch_size 8"):
        ShuffledEpochs(7, 8, seed=0)


def _centroids(counts: tuple[int, ...], num_examples: int) -> tuple[np.ndarray, ...]:
    """For each class this many centroids, all at different places."""
    rng = np.random.default_rng(0)
    tables, used = [], 0
    for count in counts:
        examples = rng.integers(0, num_examples, count)
        places = used + np.arange(count)
        tables.append(np.stack([examples, places, 3 * places], axis=1).astype(np.int32))
        used += count
    return tuple(tables)


def _author_s_counts(num_examples: int, centroids: list[list], fraction: float) -> dict[str, list]:
    """How often the author's rule takes each image anywhere, and each centroid of each class.

    `build_epoch` and `random_sampling` as NVIDIA's semantic-segmentation code, which the author
    used, writes them: a shuffled list, walked through again where it is too short.
    """

    def random_sampling(items: list, count: int) -> list:
        order = np.random.default_rng(1).permutation(len(items))
        return [items[order[i % len(items)]] for i in range(count)]

    anywhere = random_sampling(list(range(num_examples)), int(num_examples * (1 - fraction)))
    num_per_class = int(num_examples * fraction / len(centroids))
    by_class = [random_sampling(items, num_per_class) if items else [] for items in centroids]
    return {"anywhere": anywhere, "by_class": by_class}


def _how_often(items: list) -> list[int]:
    return sorted(np.unique(np.array(items), axis=0, return_counts=True)[1].tolist())


def test_a_class_uniform_epoch_has_the_statistics_of_the_author_s():
    """Cityscapes' sizes: 2975 images, 19 classes, the rarest in 142 of them."""
    counts = (5900, 5800, 4100, 970, 1300, 5000, 142, 20, 0, 1) + (700,) * 9
    centroids = _centroids(counts, 2975)
    sampler = ClassUniformEpochs(2975, 1, seed=0, centroids=centroids)
    length = sampler.steps_per_epoch
    author = _author_s_counts(2975, [rows.tolist() for rows in centroids], 0.5)
    for epoch in range(2):
        draws = [sampler.draw(epoch * length + i) for i in range(length)]
        assert length == 1487 + 18 * 78  # int(2975 / 2) images, int(2975 / 2 / 19) of 18 classes
        anywhere = [draw.index for draw in draws if draw.centroid == (-1, -1)]
        assert _how_often(anywhere) == _how_often(author["anywhere"]) == [1] * 1487
        rows = np.array([(draw.index, *draw.centroid) for draw in draws if draw.centroid[0] >= 0])
        starts = np.cumsum((0, *counts))  # centroids are numbered through over the classes
        for i, table in enumerate(centroids):
            of_class = rows[(rows[:, 1] >= starts[i]) & (rows[:, 1] < starts[i + 1])].tolist()
            assert all(row in table.tolist() for row in of_class[:50])
            expected = author["by_class"][i]
            assert _how_often(of_class) == _how_often(expected) if expected else not of_class


SMALL = ClassUniformEpochs(20, 4, seed=3, centroids=_centroids((9, 1, 0), 20))


def _draws(sampler: ClassUniformEpochs, epoch: int) -> list[Draw]:
    length = sampler.steps_per_epoch * sampler.global_batch_size
    return [sampler.draw(epoch * length + i) for i in range(length)]


def test_class_uniform_order_is_a_function_of_seed_and_epoch():
    assert SMALL.num_per_class == 3
    assert SMALL.steps_per_epoch == 4  # 10 + 3 + 3
    again = ClassUniformEpochs(20, 4, seed=3, centroids=SMALL.centroids)
    assert _draws(SMALL, 5) == _draws(again, 5)
    other_seed = ClassUniformEpochs(20, 4, seed=4, centroids=SMALL.centroids)
    orders = {tuple(_draws(SMALL, epoch)) for epoch in range(4)} | {tuple(_draws(other_seed, 0))}
    assert len(orders) == 5


def test_class_uniform_order_mixes_both_halves():
    is_centroid = [draw.centroid != (-1, -1) for draw in _draws(SMALL, 0)]
    assert is_centroid != sorted(is_centroid)
    assert is_centroid != sorted(is_centroid, reverse=True)


def test_class_uniform_epoch_smaller_than_a_batch_is_named():
    with pytest.raises(ValueError, match="16 examples, fewer than global_batch_size 17"):
        ClassUniformEpochs(20, 17, seed=0, centroids=SMALL.centroids)


def test_share_that_gives_no_class_a_crop_is_named():
    with pytest.raises(
        ValueError, match=r"share 0\.1 of 20 examples is less than one .* 3 classes"
    ):
        ClassUniformEpochs(20, 4, seed=0, centroids=SMALL.centroids, class_uniform_fraction=0.1)


def test_a_pickled_sampler_draws_the_same():
    again = pickle.loads(pickle.dumps(SMALL))
    assert _draws(again, 1) == _draws(SMALL, 1)
