"""Does somebody want the run to end? Ctrl-C, or the signal that a cluster sends before its own end.

A signal may come in the middle of anything, so it is only noted; the run looks for it between two
decisions, where everything with state is whole.
"""

import signal
import threading
from types import FrameType


class Stop:
    """Notes the first SIGINT or SIGTERM while it is entered as a context; the next one kills."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        """Start noting; outside the main thread, where Python allows no handlers, do nothing."""
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._before[name] = signal.signal(name, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for name, handler in self._before.items():
            signal.signal(name, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if the end was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, number: int, _: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)
