"""Files that are small and would be large, or that no reader of their format may take."""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

HUGE = 8191


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=2, height=2, *between, pixels=None, mode=2):
    """An RGB PNG, whose header may lie about its size; mode 0: a grey one. between: chunks before
    the pixels."""
    line = bytes(1 + (3 if mode else 1) * width)
    pixels = zlib.compress(line * height) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(between)
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def animated_png(frames, side, **more):
    """A picture that says that it has so many frames, and has one."""
    return png(side, side, chunk(b"acTL", struct.pack(">II", frames, 0)), **more)


def saved(kind, side=32, frames=1, **options):
    file, more = io.BytesIO(), [Image.new("RGB", (side, side), "red")] * (frames - 1)
    moving = {"save_all": True, "append_images": more} if more else {}
    Image.new("RGB", (side, side)).save(file, format=kind, **moving, **options)
    return bytearray(file.getvalue())


def huge(kind, mark, after, layout):
    """A small picture whose header, so many bytes from this mark on, says that it is a huge one."""
    data = saved(kind)
    at = data.index(mark) + after
    data[at : at + 4] = struct.pack(layout, HUGE, HUGE)
    return bytes(data)


def large_canvas():
    """Ten small frames on a large canvas, of which a decoder makes large ones."""

    def part(kind, data):
        return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    frame = bytes(6) + (31).to_bytes(3, "little") * 2 + bytes(4) + bytes(saved("WEBP")[12:])
    canvas = bytes([2, 0, 0, 0]) + (HUGE - 1).to_bytes(3, "little") * 2
    body = b"WEBP" + part(b"VP8X", canvas) + part(b"ANIM", bytes(6)) + part(b"ANMF", frame) * 10
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated_webp(frames, side):
    """Of these frames the second is repeated."""
    data = bytes(saved("WEBP", side, 2, duration=9, quality=0))
    data += data[data.rindex(b"ANMF") :] * (frames - 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def gif(side, inner):
    """Whose second frame is larger than its screen."""
    data = saved("GIF", side, 2)
    at = data.rindex(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", inner, inner)
    return bytes(data)


def mp4(frames, side):
    import av

    file, black = (
        io.BytesIO(),
        av.VideoFrame.from_image(Image.new("RGB", (side, side))).reformat(format="yuv420p"),
    )
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(black))
        container.mux(stream.encode(None))
    return file.getvalue()


AV = importlib.util.find_spec("av") is not None
STILLS = {
    "png": cache(partial(png, HUGE, HUGE)),
    "animated png": cache(partial(animated_png, 1000, HUGE, mode=0)),
    "jpeg": partial(huge, "JPEG", b"\xff\xc0", 5, ">HH"),
    "webp": partial(huge, "WEBP", b"\x9d\x01\x2a", 3, "<HH"),
    "animated webp": large_canvas,
    "gif": lambda: bytes(saved("GIF", frames=10)),
}
"""Pictures of HUGE x HUGE pixels, but for the GIF, which moves."""
PICTURES = {
    "many large frames": partial(animated_webp, 300, 1024),
    "many frames": partial(animated_webp, 5000, 16),
    "more frames than there are": partial(animated_png, 2**31 - 1, 16),
    "many large frames in a png": partial(animated_png, 300, 1024),
    "a frame of nine": partial(animated_png, 9, 16),
    "a gif": partial(gif, 16, 16),
    "a large frame in a gif": partial(gif, 16, 65535),
    "empty": bytes,
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "no pixels of many": partial(png, 12_000, 12_000, pixels=b""),
    "no pixels of most": partial(png, 2**31 - 1, 2**31 - 1, pixels=b""),
    "a long text": lambda: png(2, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))),
    "truncated": lambda: png(64, 64)[:-30],
    "no pixels": partial(png, 64, 64, pixels=b""),
    "a wrong chunk": lambda: png(2, 2, chunk(b"tRNS", b"x")),
}
"""What is no picture, and no video, that is read."""
JSON = (
    *(
        "[" * 100_000,
        '{"a":' * 300 + "1" + "}" * 300,
        '{"a": 1, "b": 2, "a": 3}',
        "[NaN]",
        "[-Infinity]",
        "[1e999]",
    ),
    *(
        "[" + "9" * 400 + "]",
        "[" + "9" * 5000 + "]",
        "[18446744073709551616]",
        '["\\ud800"]',
        "",
        b"\xff\xfe\xff",
        "{",
    ),
    *(
        "3",
        '{"a": 1e999}',
        '{"a": NaN}',
        "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"199999":0}',
    ),
)
YAML = (
    *(
        "a: &x [1]\nb: *x",
        "a: !!python/object/apply:os.system ['true']",
        "a:\n  !!set {b: null}",
        "a: !!omap [b: 1]",
    ),
    *(
        "a: !!pairs [b: 1]",
        "a: !!binary aGk=",
        "a: !!timestamp 2001-01-01",
        "a: !mine 1",
    ),
    *(
        "a: !!str {b: 1}",
        "a: !!map [1]",
        "a: !!bool maybe",
        "a: .inf",
        "a: .NaN",
        "a: 1e999",
        "1: 2",
        "a: b: c",
    ),
    *(
        "a: 18446744073709551616",
        "a: " + "9" * 400,
        "a: " + "9" * 5000,
        "a: 1\nb: 2\na: 3",
        "? [a]\n: 1",
    ),
    *(
        'a: "\\ud800"',
        "--- 1\n--- 2",
        "[" * 5000 + "]" * 5000,
        "a: [" + "[" * 100 + "]" * 100 + "]",
        b"\xff\xfe\xff",
    ),
    "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]),
)
"""Texts that stand for no plain value, of which the last would be a billion."""


class Runs:
    """What runs where a pickle is trusted: it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bad_tensors(ran):
    """What is no safetensors. ran: a file that one of them makes where it is trusted."""
    head = b'{"a":{"dtype":"F64","shape":[%d],"data_offsets":[0,%d]}}'
    return (
        *(
            b"",
            bytes(8),
            pickle.dumps(Runs(ran)),
            b"PK\3\4" + bytes(64),
            struct.pack("<Q", 2**62),
            b"\xff" * 64,
        ),
        *(
            struct.pack("<Q", len(h)) + h
            for h in (b"{" * 90_000, b"[]", head % (2**50, 2**53), head % (-1, 8), b"3")
        ),
    )


def repacked(data):
    """A zip whose entries are compressed, so that they may unpack to a thousand times its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as plain, zipfile.ZipFile(file, "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def npy_header(numbers):
    """Of an array of so many, which are not there."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f2", "fortran_order": False, "shape": (numbers,)}
    )
    return file.getvalue()


def tar(name, content=b"", kind=tarfile.REGTYPE):
    """Of one entry, which may be a link to a file elsewhere."""
    entry, file = tarfile.TarInfo(name), io.BytesIO()
    entry.type, entry.linkname, entry.size = kind, "/etc/passwd", len(content)
    with tarfile.open(fileobj=file, mode="w") as packing:
        packing.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def bad_tars():
    """What is no tar of recorded images, of which the last has an entry of negative size."""
    name, large = "00000-7-002.png", io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, format="PNG")
    whole = tar(name, png())
    return (
        *(tar(name, kind=kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)),
        *(tar(name, b"no picture"), tar(name, large.getvalue()), tar("../../x.png", png())),
        *(tar(f"{'9' * 5000}-1-002.png", png()), whole[:124] + b"-0000001000\0" + whole[136:]),
    )
