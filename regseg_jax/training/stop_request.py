"""SIGTERM as a request to stop after the current step."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Turns SIGTERM into a flag; with several processes, into a step that they agree on."""

    def __init__(self):
        self._requested = False
        self._previous = None

    def __enter__(self) -> "StopRequest":
        # With several processes SIGTERM is JAX's, which tells the others.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self, *_: object) -> None:
        self._requested = True

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested
