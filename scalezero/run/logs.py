"""How is what a run measures written down, so that a killed run can go on without a gap?

Every log is a file of JSON lines. A checkpoint stores how long each file was; a resumed run cuts
off what was written after that, and writes it again.
"""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np


class JsonLines:
    """A file of JSON objects, one a line, each on disk as soon as it is written."""

    def __init__(self, path: Path) -> None:
        """Append to the file at `path`, made if there is none."""
        self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append `record`. What is not finite becomes null; arrays become lists."""
        line = json.dumps(plain(record), allow_nan=False, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    @property
    def offset(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def truncate(self, offset: int) -> None:
        """Drop everything after the first `offset` bytes."""
        self._file.truncate(min(offset, self.offset))
        self._file.seek(0, 2)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The event files that TensorBoard reads; without its package, nothing."""

    def __init__(self, path: Path, first: int = 0) -> None:
        """Write to `path`; what an earlier start wrote from step `first` on is hidden."""
        self.problem: str | None = None
        try:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(path), purge_step=first, flush_secs=30)
        except (ImportError, TypeError) as error:  # TypeError: protobuf of another age
            self._writer = None
            self.problem = f"no TensorBoard files are written: {error}"

    def write(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append the numbers in `metrics`, as `JsonLines.write` takes them, at `step`."""
        if self._writer is None:
            return
        for name, value in metrics.items():
            number = plain(value)
            if isinstance(number, int | float) and not isinstance(number, bool):
                self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Write what is still waiting."""
        if self._writer is not None:
            self._writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records in a file of JSON lines; a last line cut short by a crash is left out."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else None
        case Mapping():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case Path():
            return str(value)
        case _:  # an array or a number of NumPy or JAX
            return plain(np.asarray(value).tolist())
