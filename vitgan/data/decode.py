"""From the bytes of an image file to a square of uint8, as somebody who looks at the picture expects it."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def decode_image(data: bytes, image_size: int, channels: int) -> NDArray[np.uint8]:
    """One image file as uint8 (channels, image_size, image_size); of an animation, the first frame.

    The camera's orientation is applied. Any exception of the decoder's may come out of broken data.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("not an image, or of a format that Pillow cannot read") from None
    with image:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time. Twice the wanted
        # size is enough for the resampling that follows.
        image.draft(None, (2 * image_size, 2 * image_size))
        return fit_image(ImageOps.exif_transpose(image), image_size, channels)


def fit_image(image: Image.Image, image_size: int, channels: int) -> NDArray[np.uint8]:
    """The largest centred square of `image`, scaled to uint8 (channels, image_size, image_size).

    Alpha is kept with 2 or 4 channels, laid onto white with 1 or 3, and opaque where the image has none.
    """
    image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels in (1, 3):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.convert(MODES[channels])
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    pixels = np.asarray(image).reshape(image_size, image_size, channels)
    return pixels.transpose(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight; Pillow's own conversion would clip it at 255."""
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers: convert the file to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    wide = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
