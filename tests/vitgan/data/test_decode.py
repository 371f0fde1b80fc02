import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vitgan.data.decode import decode_image

RNG = np.random.default_rng(0)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def flat(mode: str, colour: object, size: tuple[int, int] = (8, 8)) -> bytes:
    return encode(Image.new(mode, size, colour), "TIFF" if mode == "CMYK" else "PNG")  # type: ignore[arg-type]


def first_pixel(data: bytes, channels: int) -> list[int]:
    decoded = decode_image(data, 8, channels)
    assert decoded.shape == (channels, 8, 8)
    assert decoded.dtype == np.uint8
    return decoded[:, 0, 0].tolist()


def test_an_image_of_the_right_size_comes_through_untouched() -> None:
    pixels = noise(32, 32, 3)
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels)), 32, 3), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF"])
def test_other_lossless_formats(kind: str) -> None:
    pixels = noise(16, 16, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode_image(encode(Image.fromarray(pixels), kind, **options), 16, 3)[1], pixels[..., 1])


def test_first_frame_of_an_animation() -> None:
    red, blue = (Image.new("P", (8, 8)) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    data = encode(red, "GIF", save_all=True, append_images=[blue])
    assert first_pixel(data, 3) == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "expected"),
    [
        ("L", 77, 1, [77]),
        ("L", 77, 3, [77, 77, 77]),
        ("L", 77, 4, [77, 77, 77, 255]),
        ("1", 1, 3, [255, 255, 255]),
        ("RGB", (200, 100, 50), 1, [124]),
        ("RGB", (200, 100, 50), 2, [124, 255]),
        ("RGB", (200, 100, 50), 4, [200, 100, 50, 255]),
        ("CMYK", (0, 255, 255, 0), 3, [255, 0, 0]),
        ("CMYK", (0, 255, 255, 0), 2, [76, 255]),
        ("RGBA", (200, 100, 50, 255), 3, [200, 100, 50]),
        ("RGBA", (200, 100, 50, 0), 3, [255, 255, 255]),
        ("RGBA", (200, 100, 50, 0), 1, [255]),
        ("RGBA", (200, 100, 0, 51), 3, [244, 224, 204]),
        ("RGBA", (200, 100, 50, 51), 4, [200, 100, 50, 51]),
        ("LA", (100, 0), 3, [255, 255, 255]),
        ("LA", (100, 51), 2, [100, 51]),
    ],
)
def test_modes(mode: str, colour: object, channels: int, expected: list[int]) -> None:
    assert first_pixel(flat(mode, colour), channels) == expected


def test_palette() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert first_pixel(encode(image), 3) == [10, 200, 30]
    assert first_pixel(encode(image, transparency=1), 3) == [255, 255, 255]
    assert first_pixel(encode(image, transparency=1), 4)[3] == 0


def test_a_transparent_colour() -> None:
    data = encode(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3))
    assert first_pixel(data, 3) == [255, 255, 255]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (300, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_grey_is_scaled(value: int, expected: int) -> None:
    pixels = np.full((8, 8), value, dtype=np.uint16)
    assert first_pixel(encode(Image.fromarray(pixels)), 1) == [expected]
    assert first_pixel(encode(Image.fromarray(pixels.astype(np.int32)), "TIFF"), 3) == [expected] * 3


def test_sixteen_bit_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 8 for _ in range(8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    assert first_pixel(data, 3) == [255, 128, 0]


def test_resizing_does_not_show_the_colour_of_transparent_pixels() -> None:
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, :31] = (255, 0, 0, 255)
    pixels[:, 31:] = (0, 255, 0, 0)
    decoded = decode_image(encode(Image.fromarray(pixels)), 8, 4)
    visible = decoded[3] > 32
    assert decoded[1][visible].max() <= 8
    assert decoded[0][visible].min() >= 247


@pytest.mark.parametrize("turn", [False, True])
def test_the_middle_of_a_long_image_is_kept(turn: bool) -> None:
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    for third in range(3):
        pixels[:, 30 * third : 30 * third + 30, third] = 255
    image = Image.fromarray(pixels.transpose(1, 0, 2).copy() if turn else pixels)
    decoded = decode_image(encode(image), 10, 3)
    assert decoded[:, 5, 5].tolist() == [0, 255, 0]
    assert decoded[1].min() > 200
    assert np.array_equal(decode_image(encode(image), 30, 3)[1], np.full((30, 30), 255))


def test_fine_patterns_are_averaged() -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255
    decoded = decode_image(encode(Image.fromarray(board.astype(np.uint8))), 32, 1)
    assert np.abs(decoded.astype(int) - 127).max() < 10


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (33, 32), (1, 300), (317, 211)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    for channels in (1, 2, 3, 4):
        decoded = decode_image(flat("RGB", (90, 90, 90), size), 32, channels)
        assert decoded.shape == (channels, 32, 32)
        assert (decoded[0] == 90).all()


def test_large_jpeg_keeps_its_picture() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 1024).astype(np.uint8), (1024, 1024))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], 2))
    from_jpeg = decode_image(encode(image, "JPEG", quality=95), 32, 3)
    from_png = decode_image(encode(image), 32, 3)
    assert np.abs(from_jpeg.astype(int) - from_png).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera(orientation: int) -> None:
    upright = np.zeros((32, 32), dtype=np.uint8)
    upright[:16], upright[:16, :16] = 120, 240
    transform = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(transform[orientation].copy()), "JPEG", exif=exif, quality=95)
    assert np.abs(decode_image(data, 32, 1)[0].astype(int) - upright).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_an_error(kind: str) -> None:
    data = encode(Image.fromarray(noise(64, 64, 3)), kind)
    for part in (0.3, 0.7):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            decode_image(data[: int(part * len(data))], 16, 3)


def test_what_is_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        decode_image(b"", 8, 3)
    with pytest.raises(ValueError, match="not an image"):
        decode_image(b"<html>404</html>", 8, 3)
    with pytest.raises(ValueError, match="floating"):
        decode_image(encode(Image.fromarray(np.zeros((8, 8), dtype=np.float32)), "TIFF"), 8, 3)


def png(depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes], checksum: int = 0) -> bytes:
    """8 x 8 pixels; the checksums of the ancillary chunks are off by `checksum`."""
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d) ^ (0 if k[:1].isupper() else checksum))
        for k, d in parts
    )


@pytest.mark.parametrize("checksum", [0, 1])
@pytest.mark.parametrize(
    "chunk",
    [(b"zTXt", b"x\0\0" + zlib.compress(bytes(3 * 10**6))), (b"iCCP", b"x\0\0nonsense"), (b"eXIf", b"nonsense")],
)
def test_metadata_of_a_png_that_is_large_or_broken(chunk: tuple[bytes, bytes], checksum: int) -> None:
    assert first_pixel(png(8, 0, (b"\0" + b"M" * 8) * 8, chunk, checksum=checksum), 1) == [77]


@pytest.mark.parametrize("exif", [b"nonsense", b"II*\0\x08\0\0\0\xff\xff", b"II*\0\xff\xff\xff\xff"])
def test_broken_exif_of_a_jpeg(exif: bytes) -> None:
    data = encode(Image.new("L", (8, 8), 77), "JPEG", exif=b"Exif\0\0" + exif)
    assert first_pixel(data, 1) == [77]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth(depth: int) -> None:
    white, black = bytes([0] + [255] * depth), bytes(1 + depth)
    for value, expected in ((0, [255, 255]), (2**depth - 1, [255, 0])):
        assert first_pixel(png(depth, 0, white + black * 7, (b"tRNS", struct.pack(">H", value))), 2) == expected


def test_a_transparent_colour_of_sixteen_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="transparent colour of 16 bits: convert"):
        decode_image(png(16, 2, bytes(8 * 49), (b"tRNS", bytes(6))), 8, 3)


def tiff(values: np.ndarray, bits: int, white_is_zero: bool) -> bytes:
    """Grey pixels (8, 8), uncompressed, little-endian."""
    raw = (
        values.tobytes()
        if bits != 12
        else np.packbits(((values.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1).astype(np.uint8)).tobytes()
    )
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 122), (277, 1), (278, 8)]
    tags += [(279, len(raw))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + raw if len(head) == 122 else pytest.fail(str(len(head)))


@pytest.mark.parametrize(("bits", "white_is_zero", "expected"), [(12, False, 128), (16, False, 128), (16, True, 127)])
def test_grey_tiff_of_more_bits(bits: int, white_is_zero: bool, expected: int) -> None:
    values = np.full((8, 8), 2 ** (bits - 1), np.uint16)
    assert first_pixel(tiff(values, bits, white_is_zero), 1) == [expected]


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_grey_tiff_of_32_bits_is_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="numbers of 32 bits: convert the file to 8 or 16"):
        decode_image(tiff(np.full((8, 8), 10**9, dtype), 32, False), 8, 1)


def test_too_many_pixels_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(ValueError, match="more than 62 pixels: scale it down first"):
        decode_image(flat("L", 77), 8, 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_large_images_are_reduced_first_and_one_at_a_time(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(noise(16, 12, 3)).resize((960, 1280), Image.Resampling.BICUBIC).convert(mode))
    whole = decode_image(data, 16, 3).astype(int)
    locked: list[int] = []
    monkeypatch.setattr("fcntl.flock", lambda file, how: locked.append(how))
    monkeypatch.setattr("vitgan.data.decode.LARGE", 1000)
    assert np.abs(decode_image(data, 16, 3).astype(int) - whole).max() <= 4
    assert len(locked) == 1
