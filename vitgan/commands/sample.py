"""vitgan sample: grids, folders, arrays and videos of generated images."""

import math
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from vitgan.devices import pick_device
from vitgan.errors import InputError, VitganError
from vitgan.files import PICTURE_SUFFIXES, atomic_write, check_picture, grid, save_image, to_uint8, whole_file
from vitgan.training.checkpoint import latest_checkpoint, load_config, load_generator, run_of


@dataclass(frozen=True)
class Sample:
    """Make images with a trained generator (the averaged one)."""

    model: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints."""
    out: Path = Path("samples.png")
    """A .png, .jpg or .webp for a grid or strip; .npz for an array of bytes (N, H, W, C); .gif or .mp4 for a walk; a
    path without an ending is a folder for one file an image."""
    count: int = 64
    """Number of images; of a walk, of steps."""
    seed: int = 0
    """Chooses the latents."""
    truncation: float = 1.0
    """1 shows everything the generator can do; towards 0, images come closer to the mean one (StyleGAN's psi). Beyond
    1 or below 0 they leave what was trained."""
    label: str | None = None
    """Class of all images, by name, or by number where no name is a number, if the run was conditional; None draws one
    for each."""
    interpolate: bool = False
    """Walk from one random image to the next in w and back, as a strip or, for .gif and .mp4, as a video."""
    fps: int = 20
    """Images a second of a video."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""


def main(arguments: list[str]) -> int:
    """A grid, a folder, an array of images, or an interpolation."""
    options = tyro.cli(Sample, args=arguments, prog="vitgan sample")
    if options.count < 1:
        raise InputError(f"--count must be at least 1, got {options.count}")
    suffix = options.out.suffix.lower()
    _check_ending(options.out, suffix)
    if suffix in VIDEO_SUFFIXES:
        check_fps(options.fps, suffix)
    generator = load_generator(options.model, device=pick_device(options.device))
    if suffix in PICTURE_SUFFIXES:
        check_picture(options.out, generator.channels)
    labels = None if options.label is None else class_number(options.model, options.label)
    mean = generator.mean_w(labels=labels) if options.truncation != 1 else None
    choose = generator.walk if options.interpolate or suffix in VIDEO_SUFFIXES else generator.map_latents
    w = choose(options.count, seed=options.seed, labels=labels)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if suffix not in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES, ".npz"):
        _prepare_folder(options.out, options.count)
    batches = generator.render_batches(w, truncation=options.truncation, mean=mean)
    if suffix in PICTURE_SUFFIXES:
        save_image(grid(torch.cat(list(batches)), columns=options.count if options.interpolate else None), options.out)
    elif suffix in VIDEO_SUFFIXES:
        save_video(torch.cat(list(batches)), options.out, fps=options.fps)
    elif suffix == ".npz":
        pixels = torch.cat([to_uint8(images) for images in batches]).permute(0, 2, 3, 1)
        with atomic_write(options.out) as file:
            np.savez_compressed(file, images=pixels.numpy())
    else:
        for number, image in enumerate(image for images in batches for image in images):
            save_image(image, options.out / _file_name(number))
    print(f"{options.count} images -> {options.out}")
    return 0


def _check_ending(out: Path, suffix: str) -> None:
    known = (*PICTURE_SUFFIXES, ".npz", *VIDEO_SUFFIXES)
    if suffix in known:
        if out.is_dir():
            raise InputError(f"--out {out} is a folder, and a file is written under that name: choose another")
    elif suffix[1:2].isalpha() and not out.is_dir():  # v1.5 has no ending
        raise InputError(
            f"--out {out} ends in {suffix}, which is not written here: give one of {', '.join(known)}, "
            f"or a path without an ending for a folder of images"
        )


def _file_name(number: int) -> str:
    return f"{number:06d}.png"


def _prepare_folder(out: Path, count: int) -> None:
    """Make the folder. ValueError where files would stay beside those that are to come."""
    out.mkdir(parents=True, exist_ok=True)
    visible = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    others = visible - {_file_name(number) for number in range(count)}
    if others:
        raise InputError(
            f"--out {out} holds other files ({min(others)} and so on), which would lie among the new images: choose "
            "another folder, or empty it"
        )


def class_number(model: Path, label: str) -> Tensor:
    """The class of that name, or number where no name is one, (1,). ValueError names those there are."""
    names = load_config(run_of(latest_checkpoint(model.resolve()))).class_names
    if not names:
        raise InputError(f"{model} is not conditional: leave out --label")
    if label in names:
        return torch.tensor([names.index(label)])
    named_by_numbers = any(name.isdecimal() for name in names)
    if not named_by_numbers and label.isdecimal() and int(label) < len(names):
        return torch.tensor([int(label)])
    if named_by_numbers:
        raise InputError(f"no class is called {label!r}; there are {', '.join(names)}")
    raise InputError(f"no class {label!r}; there are {', '.join(f'{i} {name}' for i, name in enumerate(names))}")


VIDEO_SUFFIXES = (".gif", ".mp4")
MAX_FPS = {".gif": 50, ".mp4": 240}
"""Images a second. Players show the images of a GIF that is faster for a tenth of a second each."""
SIDE = 256
"""Smaller images are repeated pixel by pixel to at least this side."""


def check_fps(fps: int, suffix: str) -> None:
    """Raise ValueError where the format does not show so many images a second."""
    if not 1 <= fps <= MAX_FPS[suffix]:
        raise InputError(f"a {suffix} shows from 1 to {MAX_FPS[suffix]} images a second, got fps {fps}")


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
