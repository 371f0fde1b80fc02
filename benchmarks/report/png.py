"""Drawings as PNG, which carry a digest of the SVG that they were made from.

So a chart can be held against its results exactly, on machines that cannot draw it too.
"""

import hashlib
import io
from pathlib import Path

from PIL import Image, PngImagePlugin

KEY = "Source"  # of the digest, among the file's texts
SCALE = 2  # pixels a unit of the drawing: sharp on screens of twice the usual density
FAMILY = "Roboto"


def digest(drawing: str) -> str:
    """Of a drawing's SVG."""
    return f"SVG sha256:{hashlib.sha256(drawing.encode()).hexdigest()}"


def is_of(path: Path, drawing: str) -> bool:
    """Whether the file is a PNG that was made from this SVG."""
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.info.get(KEY) == digest(drawing)
    except OSError:  # there is none, or it is no image
        return False


def write(path: Path, drawing: str) -> None:
    """Draw the SVG into a file. ValueError where what that takes is not installed."""
    try:
        import font_roboto
        import resvg_py
    except ImportError as error:
        raise ValueError(f"{path.name} cannot be drawn ({error}): pip install -e '.[charts]'") from error
    # One font that comes with pip: the same picture on every machine, and no missing text on one without fonts.
    fonts = [font_roboto.font_files[name] for name in ("Roboto", "RobotoMedium", "RobotoBold")]
    drawn = resvg_py.svg_to_bytes(
        svg_string=drawing, zoom=SCALE, skip_system_fonts=True, font_files=fonts, sans_serif_family=FAMILY
    )
    texts = PngImagePlugin.PngInfo()
    texts.add_text(KEY, digest(drawing))
    with Image.open(io.BytesIO(drawn)) as image:
        path.parent.mkdir(parents=True, exist_ok=True)
        # few colours and the shades between them: a third of the size
        few = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(path, pnginfo=texts, optimize=True)
