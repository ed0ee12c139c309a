"""Predicts many images: decoding, the network and writing at the same time.

Threads decode and write, because both release Python's lock; the device works on one batch while
the next is gathered. The images of a batch have the same size.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from regseg_jax.prediction.tiles import Tiling, predict_in_tiles

T = TypeVar("T")
U = TypeVar("U")

# (variables, images uint8[B, H, W, 3], size) -> f32[B, *size, num_classes], or uint8[B, *size].
ScoreFn = Callable[[Any, jax.Array, tuple[int, int]], jax.Array]
ClassifyFn = ScoreFn

# Pixels and images in a batch, at most; the pixels are those of one image of Cityscapes.
_BATCH_PIXELS = 2**21
_MAX_BATCH_SIZE = 64
# Pixels of images that wait for others of their size.
_MAX_WAITING_PIXELS = 2**26
# Larger images are cut into tiles even if no tiling is asked for. It was Pillow's limit.
_MAX_WHOLE_PIXELS = 178_956_970
# Images ahead of the network, and predictions behind it, per thread.
_AHEAD = 2


class Predictor:
    """The class of each pixel of images.

    Args:
      score_fn: scores the classes, see `eval_step.create_score_fn`.
      variables: of the model.
      tiling: how larger images are cut; None: only very large ones are.
      can_tile: False if score_fn resizes images to one size, so that tiles make no sense.
      classify_fn: for images that are not cut, see `eval_step.create_classify_fn`; None: the class
        of score_fn's highest score.
    """

    def __init__(
        self,
        score_fn: ScoreFn,
        variables: Any,
        tiling: Tiling | None = None,
        can_tile: bool = True,
        classify_fn: ClassifyFn | None = None,
    ):
        self._variables, self._tiling, self._can_tile = variables, tiling, can_tile
        self._score = jax.jit(lambda v, images: score_fn(v, images, images.shape[1:3]))
        classify_fn = classify_fn or (lambda *inputs: score_fn(*inputs).argmax(-1))
        self._classify = jax.jit(
            lambda v, images: classify_fn(v, images, images.shape[1:3]).astype(jnp.uint8)
        )
        self._compiled: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
        if tiling and not can_tile:
            raise ValueError(
                "--tile: the run resizes every image to config.eval.image_size, so its tiles would "
                "be other pictures; leave it out"
            )

    def get_batch_size(self, size: tuple[int, int]) -> int:
        """How many images of height and width make a batch."""
        if self._get_tiling(size):
            return 1
        return max(min(_BATCH_PIXELS // (size[0] * size[1]), _MAX_BATCH_SIZE), 1)

    def start(self, images: list[np.ndarray]) -> jax.Array | np.ndarray:
        """Begins to predict images uint8[H, W, 3] of one size; does not wait for the device.

        Returns:
          uint8[at least len(images), H, W], training ids: surplus rows are padding.

        Raises:
          ValueError: if an image is too large without tiles and the run resizes its images.
        """
        size = images[0].shape[:2]
        if tiling := self._get_tiling(size):
            return np.stack([predict_in_tiles(self._score_tile, x, tiling) for x in images])
        # A batch that is not full is padded where that saves compiling another program.
        compiled = [n for n in self._compiled[size] if n >= len(images)]
        rows = min(compiled, default=len(images))
        self._compiled[size].add(rows)
        batch = np.stack([*images, *[images[-1]] * (rows - len(images))])
        return self._classify(self._variables, batch)

    def _get_tiling(self, size: tuple[int, int]) -> Tiling | None:
        tiling = self._tiling
        if tiling is None and size[0] * size[1] > _MAX_WHOLE_PIXELS:
            if not self._can_tile:
                raise ValueError(
                    f"an image of {size[0]} x {size[1]} pixels is too large without tiles, and the "
                    "run resizes its images (config.eval.image_size), so tiles cannot help; scale "
                    "it down"
                )
            tiling = Tiling()
        return tiling if tiling and not tiling.covers(size) else None

    def _score_tile(self, tile: np.ndarray) -> np.ndarray:
        return np.asarray(self._score(self._variables, tile[None])[0])


@dataclasses.dataclass
class Failures:
    """What could not be predicted.

    Attributes:
      messages: one entry per item.
    """

    messages: list[str] = dataclasses.field(default_factory=list)

    def raise_any(self, num_items: int, shown: int = 10) -> None:
        """Raises ValueError if there are any; names the first ones."""
        if self.messages:
            more = len(self.messages) - shown
            raise ValueError(
                f"{len(self.messages)} of {num_items} could not be predicted: "
                + "; ".join(self.messages[:shown])
                + (f"; and {more} more" if more > 0 else "")
            )


def predict_all(
    items: Iterable[T],
    load: Callable[[T], np.ndarray | None],
    predictor: Predictor,
    write: Callable[[T, np.ndarray, np.ndarray], Any],
    failures: Failures,
    parallel: bool = True,
) -> Iterator[T]:
    """Loads, predicts and writes every item; one that cannot be read does not stop the rest.

    Args:
      items: what to predict.
      load: the image of an item, uint8[H, W, 3]; None if nothing is to be done. Called in
        threads; raises ValueError if it cannot be read.
      predictor: of the images.
      write: called in threads with item, image and prediction; OSError, a full disk for instance,
        ends it all. Items of one size are written in order of their start.
      failures: gets those that fail.
      parallel: False: one item after the other, for images so large that memory holds few.

    Yields:
      Each item as it is done, or has failed.
    """

    def try_to_load(item: T) -> tuple[T, np.ndarray | ValueError | None]:
        try:
            return item, load(item)
        except MemoryError:
            return item, _explain_memory(item)
        except ValueError as error:
            return item, error

    def try_to_write(result: tuple[T, np.ndarray, np.ndarray | ValueError | None]) -> T:
        item, image, prediction = result
        if isinstance(prediction, np.ndarray):
            try:
                write(item, image, prediction)
            except ValueError as error:
                prediction = error
        if isinstance(prediction, ValueError):
            failures.messages.append(str(prediction))
        return item

    do = map_ahead if parallel else map
    yield from do(try_to_write, predict_batches(do(try_to_load, items), predictor))


def predict_batches(
    pairs: Iterable[tuple[T, np.ndarray | ValueError | None]], predictor: Predictor
) -> Iterator[tuple[T, np.ndarray | None, np.ndarray | ValueError | None]]:
    """Predicts images in batches of one size; those of one size stay in order.

    Args:
      pairs: items with their images uint8[H, W, 3]; with a failure or None, they pass through.
      predictor: of the images.

    Yields:
      Item, image and prediction uint8[H, W]; or item, None and failure or None.
    """
    groups: dict[tuple[int, int], list[tuple[T, np.ndarray]]] = {}
    started: collections.deque = collections.deque()  # with the device

    def finish(at_most: int) -> Iterator[tuple]:
        while len(started) > at_most:
            group, result = started.popleft()
            yield from _finish_batch(group, result)

    def start(size: tuple[int, int]) -> Iterator[tuple]:
        group = groups.pop(size)
        started.append((group, _start_batch(group, predictor)))
        yield from finish(at_most=1)

    for item, image in pairs:
        if not isinstance(image, np.ndarray):
            yield item, None, image
            continue
        size = image.shape[:2]
        try:
            batch_size = predictor.get_batch_size(size)
        except ValueError as error:
            yield item, None, ValueError(f"{_name(item)}: {error}")
            continue
        groups.setdefault(size, []).append((item, image))
        if len(groups[size]) >= batch_size:
            yield from start(size)
        while sum(h * w * len(group) for (h, w), group in groups.items()) > _MAX_WAITING_PIXELS:
            yield from start(next(iter(groups)))
    for size in list(groups):
        yield from start(size)
    yield from finish(at_most=0)


def _start_batch(group: list[tuple[Any, np.ndarray]], predictor: Predictor) -> Any:
    try:
        return predictor.start([image for _, image in group])
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        return _check_memory(error)


def _finish_batch(
    group: list[tuple[T, np.ndarray]], result: Any
) -> Iterator[tuple[T, np.ndarray | None, np.ndarray | ValueError]]:
    try:
        predictions = result if isinstance(result, Exception) else np.asarray(result)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:  # of the device, as it is waited for
        predictions = _check_memory(error)
    for row, (item, image) in enumerate(group):
        if isinstance(predictions, Exception):
            yield item, None, _explain_memory(item)
        else:
            yield item, image, predictions[row]


def _check_memory(error: Exception) -> Exception:
    """The error if memory ran out; any other is raised again."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return error
    raise error


def _explain_memory(item: Any) -> ValueError:
    return ValueError(
        f"{_name(item)}: there is not enough memory; predict it in tiles, with --tile=1024,1024 or "
        "smaller ones"
    )


def _name(item: Any) -> Any:
    return getattr(item, "path", item)


def map_ahead(
    fn: Callable[[T], U], items: Iterable[T], num_threads: int | None = None
) -> Iterator[U]:
    """Maps in threads, in order, a few items ahead of whoever takes the results.

    Args:
      fn: called in threads. Its error is raised where its result would be taken.
      items: taken one by one, in the caller's thread.
      num_threads: as many as the machine has cores, and a few that wait for disks, unless given.
    """
    num_threads = num_threads or (os.cpu_count() or 1) + 2
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(fn, item))
                if len(pending) > _AHEAD * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
