"""What a user should know once, and not once for each of a thousand files."""

import multiprocessing
import sys
import threading

from tqdm import tqdm

_said: set[str] = set()
_lock = threading.Lock()


def say_once(message: str, path: object) -> None:
    """Prints a line to stderr, above a progress bar if one is there; the same message only once.

    Worker processes stay silent: the main process has met the same files, in the check before
    training or while reading sizes.

    Args:
      message: of all such files.
      path: the first one, as an example.
    """
    if multiprocessing.parent_process() is not None:
        return
    with _lock:
        if message in _said:
            return
        _said.add(message)
    tqdm.write(f"note: {message} (such as {path})", file=sys.stderr)
