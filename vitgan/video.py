"""Images in a row as a moving picture."""

import math
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vitgan.errors import VitganError
from vitgan.files import whole_file
from vitgan.images import to_uint8

MOVING = (".gif", ".mp4")
FASTEST = {".gif": 50, ".mp4": 240}
"""Images a second. Players show the images of a GIF that is faster for a tenth of a second each."""
SIDE = 256
"""Smaller images are repeated pixel by pixel to at least this side."""


def check_fps(fps: int, suffix: str) -> None:
    """Raise ValueError where the format does not show so many images a second."""
    if not 1 <= fps <= FASTEST[suffix]:
        raise ValueError(f"a {suffix} shows from 1 to {FASTEST[suffix]} images a second, got fps {fps}")


def save_video(images: Tensor, path: Path, *, fps: int) -> None:
    """Write images (N, C, H, W) in [-1, 1] as a .gif that repeats for ever, or as an .mp4.

    Raises:
        ValueError: the format does not show so many images a second.
        VitganError: an .mp4 is asked for, and its encoder is not installed or could not write it.
    """
    suffix = path.suffix.lower()
    check_fps(fps, suffix)
    pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()
    if pixels.shape[-1] in (2, 4):  # neither format keeps half-transparent pixels: onto white
        alpha = pixels[..., -1:] / 255.0
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:-1], 3))
    times = math.ceil(SIDE / pixels.shape[1])
    times += times * pixels.shape[1] % 2  # H.264 needs even sides
    frames = np.ascontiguousarray(pixels.repeat(times, axis=1).repeat(times, axis=2))
    if suffix == ".gif":
        first, *rest = (Image.fromarray(frame) for frame in frames)
        # A GIF counts in hundredths of a second: each image changes at the one nearest to its time.
        changes = [10 * round(100 * number / fps) for number in range(len(frames) + 1)]
        durations = [b - a for a, b in pairwise(changes)]
        with whole_file(path) as part:
            first.save(part, save_all=True, append_images=rest, duration=durations, loop=0)
        return
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise VitganError(
            f"an .mp4 needs an encoder ({error}): pip install 'vitgan[video]', or write a .gif"
        ) from error
    with whole_file(path) as part:
        writer = imageio_ffmpeg.write_frames(
            str(part), (frames.shape[2], frames.shape[1]), fps=fps, macro_block_size=1, ffmpeg_log_level="error"
        )
        with suppress(OSError), closing(writer):  # a broken pipe, where the encoder has ended
            writer.send(None)
            for frame in frames:
                writer.send(frame)
        if (written := _frames_of(part)) != len(frames):
            raise VitganError(f"{path}: the encoder wrote {written} of {len(frames)} images: is the disk full?")


def _frames_of(video: Path) -> int:
    """Frames that can be read of a video: the encoder does not say whether it could write them."""
    import imageio_ffmpeg

    try:
        count: int = imageio_ffmpeg.count_frames_and_secs(str(video))[0]
    except RuntimeError:
        return 0
    return count
