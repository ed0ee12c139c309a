"""One image over several devices: which rows a device holds, and what it needs of the others.

XLA's partitioner gathers the operands of grouped convolutions (openxla/xla issue 47945), so
the split is explicit: inside `jax.shard_map` over the mesh axis `HEIGHT_AXIS`, and under

    with use_height_shards(HeightShards(height, count)) as shards:

every map [B, h, W, C] is a device's own rows of the whole map, and each operation of `ops` and
`models` that reads other rows fetches them by the methods here. The image is padded to rows that
divide by 16 on every device, so that all its maps split evenly and strided layers keep their phase.
The rows beyond the true height, the surplus rows, hold anything: what mixes rows sees zeros there
and sends no gradient back, and statistics leave them out. So the result is one device's up to
rounding, for any height.

Without the context, `use_height_shards.value` is a single shard, whose methods change nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

HEIGHT_AXIS = "height"

_LARGEST_STRIDE = 16  # of a map against the image


@dataclasses.dataclass(frozen=True)
class HeightShards:
    """How an image and its maps are split.

    Attributes:
      height: of the image; None if nobody asks.
      count: devices along `HEIGHT_AXIS`; 1: nothing is split.
      holds_whole_maps: whether each device has a copy of the whole map at hand, such as a mean over
        all pixels.
    """

    height: int | None = None
    count: int = 1
    holds_whole_maps: bool = False

    @property
    def is_split(self) -> bool:
        """Whether a map at hand is only a part."""
        return self.count > 1 and not self.holds_whole_maps

    @property
    def axes(self) -> tuple[str, ...]:
        """The mapped axes to sum over for what concerns the whole image."""
        return (HEIGHT_AXIS,) if self.count > 1 else ()

    @property
    def copies(self) -> int:
        """How often a sum over `axes` counts each pixel."""
        return self.count if self.holds_whole_maps else 1

    @property
    def rows(self) -> int:
        """Rows of the image on each device, surplus ones too."""
        if not self.is_split:
            return self.height
        return -(-self.height // (_LARGEST_STRIDE * self.count)) * _LARGEST_STRIDE

    def of_height(self, height: int) -> "HeightShards":
        """The same devices for an image of another height."""
        return dataclasses.replace(self, height=height)

    def get_height(self, rows: int) -> int:
        """The true height of the map of which each device holds so many rows.

        Raises:
          ValueError: if that is no map at a stride of 1, 2, 4, 8 or 16.
        """
        if not self.is_split:
            return rows
        stride, remainder = divmod(self.rows, rows)
        if remainder or stride not in (1, 2, 4, 8, 16):
            raise ValueError(
                f"{rows} rows are no shard of a map of an image of which a device holds {self.rows}"
            )
        return -(-self.height // stride)

    def mask(self, x: Array) -> Array:
        """x [B, h, ...] with zeros in surplus rows."""
        if not self.is_split or self.get_height(x.shape[1]) == self.count * x.shape[1]:
            return x
        return jnp.where(self._index(x) < self.get_height(x.shape[1]), x, 0)

    def sum(self, x: Array) -> Array:
        """The sum over the devices that hold an image."""
        return lax.psum(x, HEIGHT_AXIS) if self.is_split else x

    def take(self, x: Array, rows: int | None = None, fill: int = 0) -> Array:
        """This device's rows of the whole array [B, H, ...], surplus ones filled.

        Args:
          x: of the image, or of a map.
          rows: on each device; None: `self.rows`.
          fill: of surplus rows.
        """
        if not self.is_split:
            return x
        rows = rows or self.rows
        surplus = rows * self.count - x.shape[1]
        x = jnp.pad(
            x,
            [(0, surplus if axis == 1 else 0) for axis in range(x.ndim)],
            "constant",
            constant_values=fill,
        )
        return lax.dynamic_slice_in_dim(x, lax.axis_index(HEIGHT_AXIS) * rows, rows, axis=1)

    def gather(self, x: Array) -> Array:
        """The whole map [B, H, ...] on every device."""
        if not self.is_split:
            return x
        whole = lax.all_gather(x, HEIGHT_AXIS, axis=1, tiled=True)
        return whole[:, : self.get_height(x.shape[1])]

    def exchange(self, x: Array, above: int, below: int) -> Array:
        """x [B, h, ...] between so many of the rows above and below it, zero outside the map.

        They may reach further than the neighbours: each distance is one `lax.ppermute`, which
        leaves zeros where nothing arrives.
        """
        x = self.mask(x)
        parts = [x]
        for hop, length in enumerate(_split_rows(above, x.shape[1]), start=1):
            parts.insert(0, self._fetch(x[:, x.shape[1] - length :], hop))
        for hop, length in enumerate(_split_rows(below, x.shape[1]), start=1):
            parts.append(self._fetch(x[:, :length], -hop))
        return jnp.concatenate(parts, 1)

    def repeat_edges(self, x: Array, axis: int = 1) -> Array:
        """x with one more entry at each end of an axis: its own, or another device's next row."""
        if axis != 1 or not self.is_split:
            first = lax.slice_in_dim(x, 0, 1, axis=axis)
            last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            return jnp.concatenate([first, x, last], axis)
        rows, height = x.shape[1], self.get_height(x.shape[1])
        x = self.exchange(x, 1, 1)
        index = self._index(x, rows) - 1
        x = jnp.where(index < 0, jnp.roll(x, -1, 1), x)
        return jnp.where(index == height, jnp.roll(x, 1, 1), x)

    def multiply(self, matrix: np.ndarray, x: Array, rows: int) -> Array:
        """This device's rows of `matrix @ x` along the height.

        Args:
          matrix: f64[out_height, in_height], of the whole maps; better a band.
          x: [B, h, W, C].
          rows: of the result on each device.

        Returns:
          [B, rows, W, C] of x's dtype.
        """
        if self.is_split:
            blocks, above, below = _cut_band(matrix, self.count, rows, x.shape[1])
            x = self.exchange(x, above, below)
            matrix = jnp.asarray(blocks, x.dtype)[lax.axis_index(HEIGHT_AXIS)]
        return _multiply(matrix, x)

    def reduce(self, matrix: np.ndarray, x: Array) -> Array:
        """All rows of `matrix @ x` on every device, for a matrix [few, in_height]."""
        if self.is_split:
            matrix = self.take(jnp.asarray(matrix.T, x.dtype)[None], x.shape[1])[0].T
        return self.sum(_multiply(matrix, self.mask(x)))

    def _fetch(self, x: Array, hop: int) -> Array:
        """What the device so far above has in place of x."""
        pairs = [(i, i + hop) for i in range(self.count) if 0 <= i + hop < self.count]
        return lax.ppermute(x, HEIGHT_AXIS, pairs) if pairs else jnp.zeros_like(x)

    def _index(self, x: Array, rows: int | None = None) -> Array:
        """The number in the whole map of each row of x, which starts where a device's rows do."""
        first = lax.axis_index(HEIGHT_AXIS) * (rows or x.shape[1])
        return first + lax.broadcasted_iota(jnp.int32, (1, x.shape[1], *(x.ndim - 2) * (1,)), 1)


# A context manager; its `value` is the `HeightShards` in use.
use_height_shards = jax.make_user_context(default_value=HeightShards())


def use_whole_maps():
    """A context in which each device holds a copy of the whole map at hand."""
    return use_height_shards(dataclasses.replace(use_height_shards.value, holds_whole_maps=True))


def _split_rows(number: int, rows: int) -> list[int]:
    """How many rows come from each device on the way, the nearest first."""
    return [min(rows, number - start) for start in range(0, number, rows)]


def _multiply(matrix: np.ndarray | Array, x: Array) -> Array:
    return jnp.einsum("oh,bhwc->bowc", jnp.asarray(matrix, x.dtype), x, precision="highest")


def _cut_band(
    matrix: np.ndarray, count: int, rows: int, in_rows: int
) -> tuple[np.ndarray, int, int]:
    """Each device's rows of the matrix over the rows that it reads.

    Returns:
      f64[count, rows, above + in_rows + below], and how many rows above and below its own a device
      reads at most.
    """
    whole = np.zeros((count * rows, count * in_rows))
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    above = below = 0
    for device, block in enumerate(np.split(whole, count)):
        if (read := np.flatnonzero(block.any(0))).size:
            above = max(above, device * in_rows - read[0])
            below = max(below, read[-1] + 1 - (device + 1) * in_rows)
    padded = np.pad(whole, ((0, 0), (above, below)))
    blocks = [
        block[:, device * in_rows : (device + 1) * in_rows + above + below]
        for device, block in enumerate(np.split(padded, count))
    ]
    return np.stack(blocks), int(above), int(below)
