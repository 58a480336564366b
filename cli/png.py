"""PNG files: written with text, and their text read back without decoding a pixel.

Reading walks the chunks of the file with hard limits, so that a hostile picture costs neither memory nor time.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Mapping
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_TEXT = 4 << 20  # bytes of one text chunk, and of all of them
MAX_CHUNKS = 200_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STALE = 60.0  # seconds after which a temporary file belongs to nobody


class PngText(NamedTuple):
    width: int
    height: int
    texts: dict[str, str]


def read_text(path: Path) -> PngText:
    """Size and text chunks of a PNG. ConfigError, in one line, for anything that is not a whole and sane PNG."""
    try:
        with path.open("rb") as stream:
            return _read(stream, path.name)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _read(stream: BinaryIO, name: str) -> PngText:
    if stream.read(8) != SIGNATURE:
        raise ConfigError(f"{name} is not a PNG file")
    size, texts, spent = (0, 0), dict[str, str](), 0
    for number in range(MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            raise ConfigError(f"{name} is damaged: the PNG ends in the middle")
        length, kind = struct.unpack(">I4s", head)
        if number == 0 and (kind != b"IHDR" or length != 13):
            raise ConfigError(f"{name} is damaged: the PNG has no header")
        wanted = kind in (b"tEXt", b"iTXt", b"IHDR")
        if wanted and (spent := spent + length) > MAX_TEXT:
            raise ConfigError(f"{name} is refused: it has more than {MAX_TEXT >> 20} MB of text")
        data = _checked(stream, kind, length, wanted, name)
        if number == 0:
            size = struct.unpack(">II", data[:8])
            if not all(0 < side < 1 << 31 for side in size):
                raise ConfigError(f"{name} is damaged: a PNG of {size[0]}x{size[1]} pixels cannot be")
        elif kind == b"IEND":
            return PngText(*size, texts)
        elif wanted:
            key, value = _decode(kind, data)
            texts.setdefault(key, value)
    raise ConfigError(f"{name} is refused: it has more than {MAX_CHUNKS:,} chunks")


def _checked(stream: BinaryIO, kind: bytes, length: int, keep: bool, name: str) -> bytes:
    """The chunk's data if it is to be kept; the checksum of every chunk is verified, a block at a time."""
    kept, crc, left = bytearray(), zlib.crc32(kind), length
    while left:
        block = stream.read(min(left, 1 << 16))
        if not block:
            raise ConfigError(f"{name} is damaged: the PNG ends in the middle")
        crc, left = zlib.crc32(block, crc), left - len(block)
        if keep:
            kept += block
    checksum = stream.read(4)
    if len(checksum) < 4:
        raise ConfigError(f"{name} is damaged: the PNG ends in the middle")
    if checksum != struct.pack(">I", crc):
        raise ConfigError(f"{name} is damaged: a checksum of the PNG is wrong")
    return bytes(kept)


def _decode(kind: bytes, data: bytes) -> tuple[str, str]:
    """(key, text); compressed text, which could explode, counts as empty."""
    key, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return key.decode("latin-1"), rest.decode("latin-1")
    compressed, rest = rest[:1] == b"\1", rest[2:]
    value = rest.split(b"\0", 2)[-1]
    return key.decode("latin-1"), "" if compressed else value.decode("utf-8", errors="replace")


def encode(image: Image, texts: Mapping[str, str]) -> bytes:
    """The PNG file of a picture with its texts; equal input gives equal bytes."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)  # becomes iTXt (UTF-8) where Latin-1 cannot say it
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def picture(pixels: Any) -> Image:
    """A PIL image from a (3, H, W) tensor in [0, 1], rounded to 8 bits."""
    from PIL import Image

    array = (pixels * 255.0).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().contiguous().numpy()
    return Image.fromarray(array)


def remove_stale(folder: Path, start: str) -> None:
    """Remove the temporary files that a killed run left for files whose name begins with `start`."""
    for path in folder.glob(f".{escape(start)}*.part"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
        except OSError:
            continue  # somebody else was faster
