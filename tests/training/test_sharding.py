import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from regseg_jax.training import sharding


def test_mesh_has_every_device_on_one_axis():
    mesh = sharding.create_mesh(16)
    assert mesh.devices.shape == (8,)
    assert mesh.axis_names == ("data",)
    assert set(mesh.devices) == set(jax.devices())


def test_batch_that_does_not_divide_over_devices_is_named():
    with pytest.raises(ValueError, match=r"config\.global_batch_size is 12, which does not"):
        sharding.create_mesh(12)
    with pytest.raises(ValueError, match=r"config\.eval\.batch_size is 9"):
        sharding.create_mesh(9, "eval.batch_size")
    message = r"is 24, .* 8 devices with config\.accumulation_steps=2 on each; set a multiple of 16"
    with pytest.raises(ValueError, match=message):
        sharding.create_mesh(24, accumulation_steps=2)


def test_a_batch_is_split_along_its_first_axis():
    mesh = sharding.create_mesh(16)
    batch = {
        "image": np.arange(16 * 4 * 5 * 3, dtype=np.uint8).reshape(16, 4, 5, 3),
        "label": np.arange(16 * 4 * 5, dtype=np.int32).reshape(16, 4, 5),
    }
    arrays = sharding.shard_batch(batch, mesh)
    assert arrays.keys() == batch.keys()
    for name, array in arrays.items():
        assert array.dtype == batch[name].dtype
        assert array.sharding.spec == PartitionSpec("data")
        np.testing.assert_array_equal(array, batch[name])
        for i, device in enumerate(mesh.devices):
            (shard,) = (s for s in array.addressable_shards if s.device == device)
            np.testing.assert_array_equal(shard.data, batch[name][2 * i : 2 * i + 2])


def test_replicating_puts_a_whole_copy_on_each_device():
    mesh = sharding.create_mesh(8)
    tree = {"a": np.arange(6.0, dtype=np.float32), "b": [np.int32(3)]}
    copies = sharding.replicate(tree, mesh)
    assert jax.tree.structure(copies) == jax.tree.structure(tree)
    for value, copy in zip(jax.tree.leaves(tree), jax.tree.leaves(copies), strict=True):
        assert len(copy.addressable_shards) == 8
        for shard in copy.addressable_shards:
            np.testing.assert_array_equal(shard.data, value)


def test_the_only_process_is_the_main_one():
    assert sharding.is_main_process()
