"""FLOPs of networks in files of ONNX, of which each operator's are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttsnap.profiling.flops import count_onnx
from ttsnap.reward_models.ocr import _LINE, _PICTURE, OCR

pytest.importorskip("onnxruntime")


def number(value):
    """A varint of protobuf."""
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + number(value // 128)


def field(tag, value):
    if isinstance(value, int):
        return number(tag * 8) + number(value)
    held = value.encode() if isinstance(value, str) else value
    return number(tag * 8 + 2) + number(len(held)) + held


def weights(name, *shape):
    dims = b"".join(field(1, size) for size in shape)
    return field(
        5, dims + field(2, 1) + field(8, name) + field(9, np.ones(shape, np.float32).tobytes())
    )


def tensor(tag, name, *shape):
    dims = field(2, b"".join(field(1, field(1, size)) for size in shape))
    return field(tag, field(1, name) + field(2, field(1, field(1, 1) + dims)))


SHAPE = (1, 2, 8, 8)
GRAPHS = {
    # 6 x 6 pixels of 5 channels, each of 2 x 3 x 3 weights.
    "Conv": (weights("w", 5, 2, 3, 3), 2 * 36 * 5 * 18, (1, 5, 6, 6)),
    # Each of 2 x 64 numbers goes to 3 x 2 x 2.
    "ConvTranspose": (weights("w", 2, 3, 2, 2), 2 * 128 * 12, (1, 3, 9, 9)),
    "MatMul": (weights("w", 8, 7), 2 * 16 * 8 * 7, (1, 2, 8, 7)),
    "Add": (weights("w", 8), 0, SHAPE),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_operators_are_counted_by_the_shapes_that_they_see(kind, tmp_path):
    held, flops, shape = GRAPHS[kind]
    node = field(1, field(1, "x") + field(1, "w") + field(2, "y") + field(4, kind))
    graph = node + field(2, "g") + held + tensor(11, "x", *SHAPE) + tensor(12, "y", *shape)
    (tmp_path / "a.onnx").write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
    assert count_onnx(tmp_path / "a.onnx", SHAPE) == flops
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_the_reader_sees_images_in_the_shapes_that_are_counted():
    pytest.importorskip("rapidocr")
    reward, seen, image = OCR(), set[tuple[int, ...]](), torch.full((1, 3, 64, 64), 0.4)
    reward.read(image)  # its networks are loaded late
    for part in (reward._reader.text_det, reward._reader.text_rec):
        part.session = lambda batch, session=part.session: (seen.add(batch.shape), session(batch))[
            1
        ]
    reward.read(image)
    assert seen == {(1, 3, _PICTURE, _PICTURE), (1, 3, *_LINE)}
    assert 1.5e9 < OCR("line").flops < 3e9
    assert 1.1e10 < reward.flops - OCR("line").flops < 1.2e10
