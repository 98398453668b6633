"""Lines of a file that may be larger than memory, plain or gzip."""

import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

BLOCK = 1 << 20  # bytes read, and bytes unpacked at most, at a time
MAX_LINE = 1 << 20  # the longest line of ConceptNet 5.7 has some kilobytes
GZIP_MAGIC = b"\x1f\x8b"


class EndsEarlyError(Exception):
    """A gzip file that is cut off or damaged; its lines up to there have been given out."""


def read_lines(file: Path, advance: Callable[[], None] = lambda: None) -> Iterator[list[bytes]]:
    """Yield the lines of a file in lists of some thousands, without their ends, the last with or without one.

    Memory stays at a few MiB whatever is in the file. A line of more than 1 MiB comes as an empty one.

    Args:
        file: plain, or gzip of one or several members, told by its first two bytes.
        advance: is called for each MiB read of the file itself.

    Raises:
        OSError: the file cannot be read.
        EndsEarlyError: after the last line that could be read of a damaged gzip file.
    """
    tail = b""
    overlong = False
    broken: EndsEarlyError | None = None
    with file.open("rb") as stream:
        blocks = _blocks(stream, advance)
        while True:
            try:
                block = next(blocks, None)
            except EndsEarlyError as error:
                broken, block = error, None
            if block is None:
                break
            lines = (tail + block).split(b"\n")
            tail = lines.pop()
            if overlong and lines:
                lines[0], overlong = b"", False
            if overlong or len(tail) > MAX_LINE:
                tail, overlong = b"", True
            if lines:
                yield lines
    if tail or overlong:
        yield [tail]
    if broken is not None:
        raise broken


def size_in_blocks(file: Path) -> int:
    """How often `read_lines` will call `advance`; 1 for a pipe, whose size is not known.

    Raises:
        OSError: there is no such file.
    """
    status = file.stat()
    return max(1, -(-status.st_size // BLOCK)) if stat.S_ISREG(status.st_mode) else 1


def _blocks(stream: IO[bytes], advance: Callable[[], None]) -> Iterator[bytes]:
    raw = stream.read(BLOCK)
    unpack = zlib.decompressobj(wbits=31) if raw.startswith(GZIP_MAGIC) else None
    while raw:
        advance()
        if unpack is None:
            yield raw
            raw = stream.read(BLOCK)
            continue
        while raw:
            try:
                block = unpack.decompress(raw, BLOCK)
            except zlib.error as error:
                raise EndsEarlyError(f"its gzip data is damaged ({error})") from None
            if block:
                yield block
            if unpack.eof and (raw := unpack.unused_data.lstrip(b"\0")):  # another member, after any padding
                unpack = zlib.decompressobj(wbits=31)
            elif not unpack.eof:
                raw = unpack.unconsumed_tail
        raw = stream.read(BLOCK)
        if unpack.eof and (raw := raw.lstrip(b"\0")):
            unpack = zlib.decompressobj(wbits=31)
    if unpack is not None and not unpack.eof:
        raise EndsEarlyError("its gzip data is cut off")
