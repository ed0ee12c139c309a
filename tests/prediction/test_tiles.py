"""What the module says of tiles and whole images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.data.augment import normalize
from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.resize import upsample_bilinear
from regseg_jax.prediction.tiles import Tiling, parse_tiling, predict_in_tiles

HEIGHT, WIDTH = 192, 256


@pytest.fixture(scope="module")
def image():
    coarse = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="module")
def network(image):
    """A RegSeg of one block a stage, which sees fewer than 48 pixels to each side; random weights.

    Each class's mean score on the image is taken off, so that all classes occur.
    """
    block = variants.Block
    stages = (("stage4", 16), ("stage8", 16), ("stage16", 32))
    backbone = variants.Backbone(
        stages=tuple((name, (block(width, stride=2),)) for name, width in stages)
    )
    model = RegSeg(variants.Variant("tiny", backbone, "decoder4"), num_classes=7)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3)), train=False))
    variables = init(jax.random.key(0))

    @jax.jit
    def score(variables, images):
        logits = model.apply(variables, normalize(images), train=False)
        return upsample_bilinear(logits, images.shape[1:3])

    means = np.asarray(score(variables, image[None])).mean((0, 1, 2))
    return variables, lambda *inputs: score(*inputs) - means


def without_global_means(variables):
    """Squeeze-and-excite that gives the same factors whatever the mean."""

    def clear(path, x):
        names = [str(getattr(entry, "key", entry)) for entry in path]
        in_squeeze = any("squeeze" in name or name == "se" for name in names)
        return jnp.zeros_like(x) if in_squeeze and names[-1] == "kernel" else x

    cleared = jax.tree_util.tree_map_with_path(clear, variables)
    changed = sum(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(cleared), strict=True)
    )
    assert changed >= 3, "the test knows no squeeze-and-excite by name"
    return cleared


def predict_both(network, variables, image, tiling):
    _, score = network
    whole = np.asarray(score(variables, image[None])[0])
    tiles = predict_in_tiles(
        lambda tile: np.asarray(score(variables, tile[None])[0]), image, tiling
    )
    return whole, tiles


def assert_same(whole, tiles):
    """Equal but where the two best scores are within rounding of each other."""
    best_two = np.sort(whole, axis=-1)[..., -2:]
    tied = best_two[..., 1] - best_two[..., 0] < 1e-5
    assert ((whole.argmax(-1) == tiles) | tied).all()
    assert tied.mean() < 0.01
    assert len(np.unique(tiles)) > 1


def test_one_tile_is_the_whole_image(network, image):
    whole, tiles = predict_both(network, network[0], image, Tiling(HEIGHT, WIDTH + 16, 64))
    np.testing.assert_array_equal(whole.argmax(-1), tiles)


def test_equal_to_rounding_without_global_means(network, image):
    variables = without_global_means(network[0])
    assert_same(*predict_both(network, variables, image, Tiling(160, 160, 144)))


def test_not_equal_with_global_means_or_too_little_overlap(network, image):
    """So that the test above would see a seam."""
    for variables, tiling in (
        (network[0], Tiling(160, 160, 144)),
        (without_global_means(network[0]), Tiling(64, 64, 0)),
    ):
        whole, tiles = predict_both(network, variables, image, tiling)
        assert (whole.argmax(-1) != tiles).any()


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 130), (100, 300), (257, 64)])
@pytest.mark.parametrize("tiling", [Tiling(64, 64, 16), Tiling(64, 96, 0), Tiling(64, 64, 48)])
def test_every_pixel_of_any_size_is_predicted(size, tiling):
    image = np.random.default_rng(0).integers(0, 5, (*size, 3)).astype(np.uint8)
    tiles = predict_in_tiles(lambda tile: np.eye(5)[tile[..., 0]], image, tiling)
    np.testing.assert_array_equal(tiles, image[..., 0])


def test_the_seam_is_weighted_away():
    """Scores that are wrong near every tile's border do not show where tiles overlap."""
    image = np.zeros((64, 256, 3), np.uint8)

    def score(tile):
        wrong = np.zeros(tile.shape[:2])
        wrong[:, :10] = wrong[:, -10:] = 1
        return np.stack([1 - wrong, wrong], -1)

    tiles = predict_in_tiles(score, image, Tiling(64, 96, 32))
    assert not tiles[:, 10:-10].any()
    assert tiles[:, :10].all()  # the image's own border is the tile's to say
    assert tiles[:, -10:].all()


def test_flags():
    assert parse_tiling(["512", "1024"]) == Tiling(512, 1024, 128)
    assert parse_tiling(["512", "1024"], 64) == Tiling(512, 1024, 64)
    assert parse_tiling(None) is None
    for sides, overlap, message in (
        (["512"], None, "--tile is 512; use HEIGHT,WIDTH"),
        (["a", "b"], None, "--tile is a,b; use HEIGHT,WIDTH"),
        (["500", "512"], None, "--tile is 500,512; use .* multiples of 16"),
        (["512", "512"], 512, "--overlap is 512; use 0 to 496"),
        (None, 64, "--overlap needs tiles; add --tile"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_tiling(sides, overlap)
