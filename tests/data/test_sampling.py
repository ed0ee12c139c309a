import numpy as np
import pytest

from regseg_jax.data.sampling import ShuffledEpochs


def _epoch(sampler: ShuffledEpochs, epoch: int) -> list[int]:
    length = sampler.steps_per_epoch * sampler.global_batch_size
    return [sampler.example_index(epoch * length + i) for i in range(length)]


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
    forwards = [first.example_index(place) for place in places]
    backwards = [second.example_index(place) for place in reversed(places)]
    assert forwards == backwards[::-1]
    assert all(type(index) is int and 0 <= index < 50 for index in forwards)


def test_every_order_is_about_as_likely():
    firsts = [ShuffledEpochs(4, 4, seed=seed).example_index(0) for seed in range(400)]
    counts = np.bincount(firsts, minlength=4)
    assert counts.min() > 60  # 100 each on average


def test_whole_split_may_be_one_batch_but_no_less():
    assert ShuffledEpochs(8, 8, seed=0).steps_per_epoch == 1
    with pytest.raises(ValueError, match="7 examples, fewer than global_batch_size 8"):
        ShuffledEpochs(7, 8, seed=0)
