"""How does a file that only ever grows outlive its process?

The owner knows how many bytes of the file count, and a checkpoint stores what tells it. Whatever a
killed process wrote behind them is dropped at the next write, so reading changes nothing.
"""

import os
from pathlib import Path


class FileDamaged(ValueError):
    """A file without what a run wrote to it; the message names it and says what to do."""


def extend(path: Path, size: int, content: bytes) -> int:
    """Put `content` behind the first `size` bytes of the file, and nothing behind it.

    It is on disk when this returns.

    Returns:
        How many bytes of the file count now.
    """
    born = not path.exists()
    with path.open("w+b" if born else "r+b") as file:
        there = file.seek(0, os.SEEK_END)
        if there < size:
            raise FileDamaged(
                f"{path}: holds {there:,} bytes, but this run wrote {size:,}; something else "
                "changed it, so give the same command again to go on from the last checkpoint"
            )
        file.truncate(size)
        file.seek(size)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if born:
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the new name itself must survive a crash of the machine
        os.close(folder)
    return size + len(content)
