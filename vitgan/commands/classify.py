"""vitgan classify."""

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from vitgan.config import check_numbers
from vitgan.data import ImageDataset, open_dataset
from vitgan.data.decode import ImageFiles
from vitgan.data.sources import Archive, Folder, SingleFile, is_image
from vitgan.devices import check_seed, pick_device, use_threads
from vitgan.errors import InputError
from vitgan.files import atomic_write, from_uint8, save_image
from vitgan.models import DiscriminatorConfig
from vitgan.training.classifier import Classifier, confusion, fit, split

PICTURE_SIDE = 256
MIN_BRIGHTNESS = 0.15
"""Of an image lit by the attention: what is left of its brightness where there is none."""

USAGE = """\
usage: vitgan classify train|predict ...

  vitgan classify train     train on a folder or zip of one folder for each class
  vitgan classify predict   the classes of images, and what they were told by

Each explains itself with --help.
"""


@dataclass(frozen=True)
class Train:
    """Train the discriminator's vision transformer to tell classes of images apart."""

    data: tyro.conf.Positional[str]
    """Folder or zip with a folder for each class, or cifar10, shapes, hf:NAME."""
    out: Path = Path("classifier")
    """Folder for the classifier, its accuracy and its confusion matrix."""
    encoder: Path | None = None
    """Run whose trained discriminator to start from, with its sizes; None starts from scratch."""
    model: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig(patch_size=8, dim=64, depth=2, heads=2)
    )
    """Sizes of a network from scratch."""
    image_size: int = 32
    """Side that images are scaled and cropped to, from scratch."""
    channels: int = 3
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, from scratch."""
    steps: int = 2000
    """Steps of training."""
    batch_size: int = 64
    """Images of a step."""
    lr: float = 2e-3
    """Highest learning rate, after the warm-up; then it falls along a cosine."""
    warm_up: float = 0.05
    """Share of the steps over which the learning rate rises."""
    test_share: float = 0.1
    """Share of each class that is not trained on, but tested on in the end."""
    seed: int = 0
    """Of the weights, the test images and the order."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None takes cuda where there is one."""
    threads: int | None = None
    """CPU threads that PyTorch computes with; None leaves the choice to PyTorch."""

    def __post_init__(self) -> None:
        limits = (
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("batch-size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("lr", self.lr, 0 < self.lr < math.inf, "positive and finite"),
            ("test-share", self.test_share, 0 < self.test_share < 1, "between 0 and 1"),
            ("warm-up", self.warm_up, 0 <= self.warm_up < 1, "at least 0 and below 1"),
        )
        for name, value, fits, limit in limits:
            if not fits:
                raise InputError(f"--{name} must be {limit}, got {value}")
        check_seed(self.seed)
        check_numbers(self)


@dataclass(frozen=True)
class Predict:
    """The classes of images: a line for each, and pictures of what the classifier attended to."""

    classifier: tyro.conf.Positional[Path]
    """Folder that vitgan classify train wrote."""
    images: tyro.conf.Positional[Path]
    """An image, or a folder of images."""
    attention: Path | None = None
    """Folder for pictures of each image beside what the class token attends to; None makes none."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads that PyTorch computes with; None leaves the choice to PyTorch."""


def main(arguments: list[str]) -> int:
    """Hands over to train or predict."""
    if arguments and arguments[0] == "train":
        return train(tyro.cli(Train, args=arguments[1:], prog="vitgan classify train"))
    if arguments and arguments[0] == "predict":
        return predict(tyro.cli(Predict, args=arguments[1:], prog="vitgan classify predict"))
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    wrong = f"vitgan classify: no command {arguments[0]!r}\n\n" if arguments else ""
    print(f"{wrong}{USAGE}", end="", file=sys.stderr)
    return 2


def train(options: Train) -> int:
    """Trains, tests, and writes the classifier with test.json."""
    use_threads(options.threads)
    torch.manual_seed(options.seed)
    device = pick_device(options.device)
    if options.encoder is not None:
        # Twice: the number of classes is in the data, and the size to open the data in is in the run.
        shape = Classifier.from_discriminator(options.encoder, ["a", "b"]).image_shape
        dataset = _with_classes(open_dataset(options.data, image_size=shape[1], channels=shape[0]), options.data)
        classifier = Classifier.from_discriminator(options.encoder, dataset.class_names or [])
    else:
        side, channels = options.image_size, options.channels
        dataset = _with_classes(open_dataset(options.data, image_size=side, channels=channels), options.data)
        classifier = Classifier(options.model, dataset.class_names or [], image_size=side, channels=channels)
    print(dataset)
    classifier.to(device)
    training, testing = split(dataset, options.test_share, options.seed)
    if not len(training):
        raise InputError(f"{options.data}: no images are left to train on beside {len(testing)} to test on")
    if options.out.is_dir() and any(options.out.iterdir()):
        raise InputError(f"--out {options.out} is not empty: choose another")
    options.out.mkdir(parents=True, exist_ok=True)  # now: nothing that is trained should have no place to go
    with Progress(*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"), transient=True) as bar:
        task = bar.add_task("training", total=options.steps, loss=float("nan"))
        fit(
            classifier,
            dataset,
            training,
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            warm_up=options.warm_up,
            seed=options.seed,
            progress=lambda done, loss: bar.update(task, completed=done, loss=loss),
        )
    matrix = confusion(classifier, dataset, testing)
    accuracy = float(matrix.trace() / matrix.sum())
    classifier.save(options.out)
    result = {"accuracy": accuracy, "images": len(testing), "classes": classifier.class_names}
    with atomic_write(options.out / "test.json") as file:
        file.write(json.dumps(result | {"confusion": matrix.tolist()}, indent=2).encode())
    _print_matrix(matrix, classifier.class_names)
    print(f"{accuracy:.1%} of {len(testing)} test images -> {options.out}")
    return 0


def predict(options: Predict) -> int:
    """Prints the most likely class of each image and its probability; 1 where images had to be left out."""
    use_threads(options.threads)
    device = pick_device(options.device)
    classifier = Classifier.load(options.classifier).to(device)
    if options.attention is not None:
        _check_apart(options.attention, options.images)
        options.attention.mkdir(parents=True, exist_ok=True)
    files = _files(options.images, classifier.image_shape)
    left_out = 0
    for index, member in enumerate(files.archive.members):
        pixels, bad = files.try_fetch([index])
        if bad:
            print(f"left out: {bad[0]}", file=sys.stderr)
            left_out += 1
            continue
        image = from_uint8(pixels.to(device))
        with torch.no_grad():
            probability, label = classifier(image).softmax(dim=1)[0].max(dim=0)
        print(f"{member.name}\t{classifier.class_names[int(label)]}\t{float(probability):.3f}")
        if options.attention is not None:
            picture = attention_picture(image[0].cpu(), classifier.attention(image)[0].cpu())
            path = options.attention / f"{member.name}.png"  # a.jpg and a.png have one each
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(picture, path)
    if left_out:
        print(f"{left_out} of {len(files)} images cannot be read", file=sys.stderr)
    return 1 if left_out else 0


def attention_picture(image: Tensor, attention: Tensor) -> Tensor:
    """The image (C, S, S), the attention (rows, columns) from dark to bright, and the image lit by it, side by side.

    Enlarged by a whole number k to PICTURE_SIDE pixels or so a side: (3, k S, 3 k S), in [-1, 1].
    """
    size = image.shape[-1] * max(1, PICTURE_SIDE // image.shape[-1])
    colours = image[: 1 if len(image) < 3 else 3].expand(3, -1, -1)
    colours = F.interpolate(colours[None], size=(size, size), mode="nearest")[0]
    light = F.interpolate((attention / attention.max())[None, None], size=(size, size), mode="bilinear")[0]
    lit = (colours + 1) * (MIN_BRIGHTNESS + (1 - MIN_BRIGHTNESS) * light) - 1
    return torch.cat([colours, (light * 2 - 1).expand(3, -1, -1), lit], dim=2)


def _with_classes(dataset: ImageDataset, name: str) -> ImageDataset:
    if dataset.labels is None:
        raise InputError(f"{name} has no classes: put the images of each class into a folder of its own")
    if dataset.class_names is None:
        dataset.class_names = [str(number) for number in range(int(dataset.labels.max()) + 1)]
    return dataset


def _check_apart(attention: Path, images: Path) -> None:
    """Pictures among the images would be classified as images the next time."""
    if images.is_dir() and attention.resolve().is_relative_to(images.resolve()):
        raise InputError(f"--attention {attention} lies in the folder of the images: choose another")


def _files(path: Path, shape: tuple[int, int, int]) -> ImageFiles:
    archive: Archive
    if path.is_file() and is_image(path.name):
        archive = SingleFile(path)
    elif path.is_dir():
        archive = Folder(path)
    else:
        raise InputError(f"{path} is neither an image nor a folder of images")
    return ImageFiles(archive, shape[1], shape[0], name=str(path))


def _print_matrix(matrix: Tensor, names: list[str]) -> None:
    table = Table("true \\ predicted", *names, title="test images")
    for name, row in zip(names, matrix.tolist(), strict=True):
        table.add_row(name, *map(str, row))
    console = Console()
    unbounded = console.options.update(max_width=1_000_000)
    if console.measure(table, options=unbounded).maximum <= console.width:
        console.print(table)
        return
    print("right of each class (the whole matrix is in test.json):")
    for name, row, right in zip(names, matrix.tolist(), matrix.diagonal().tolist(), strict=True):
        print(f"  {name}: {right} of {sum(row)}")
