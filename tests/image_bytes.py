"""Image files, byte by byte: kinds that no library writes, or that are damaged on purpose."""

from __future__ import annotations

import struct
import zlib


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, row: bytes, between: bytes = b"") -> bytes:
    """A PNG whose rows are all alike; ``between`` are chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    rows = min(height, 100)  # more are not needed by what refuses the file for its size
    pixels = png_chunk(b"IDAT", zlib.compress((b"\0" + row) * rows))
    return b"\x89PNG\r\n\x1a\n" + header + between + pixels + png_chunk(b"IEND", b"")


def tiff(
    width: int,
    height: int,
    bits: int,
    content: bytes,
    kind: int = 1,
    white_is_zero: bool = False,
    orientation: int = 1,
    order: str = "<",
) -> bytes:
    """An uncompressed grey TIFF in one strip; ``kind`` is 1 for unsigned, 2 for signed and 3 for floating numbers."""
    short, long = 3, 4
    tags = [
        (256, short, width),
        (257, short, height),
        (258, short, bits),
        (259, short, 1),
        (262, short, 0 if white_is_zero else 1),
        (273, long, 0),
        (274, short, orientation),
        (277, short, 1),
        (278, short, height),
        (279, long, len(content)),
        (339, short, kind),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, size, value in tags:
        value = start if tag == 273 else value
        packed = struct.pack(f"{order}HH", value, 0) if size == short else struct.pack(f"{order}I", value)
        entries += struct.pack(f"{order}HHI", tag, size, 1) + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    header = magic + struct.pack(f"{order}IH", 8, len(tags))
    return header + entries + struct.pack(f"{order}I", 0) + content


def sgi_16_bit(width: int, height: int, content: bytes) -> bytes:
    header = struct.pack(">hBBHHHHll", 474, 0, 2, 2, width, height, 1, 0, 65535)
    return header.ljust(512, b"\0") + content


def fits(width: int, height: int, bits: int, content: bytes) -> bytes:
    cards = [
        "SIMPLE  =                    T", f"BITPIX  = {bits:20}", "NAXIS   =                    2",
        f"NAXIS1  = {width:20}", f"NAXIS2  = {height:20}", "BZERO   =                32768", "END",
    ]  # fmt: skip
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + content.ljust(2880, b"\0")
