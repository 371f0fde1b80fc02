"""Images as files."""

import errno
from pathlib import Path

import pytest
import torch
from PIL import Image

from vitgan.files import check_picture, from_uint8, grid, save_image, to_uint8


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert from_uint8(values).min() == -1
    assert from_uint8(values).max() == 1


def test_values_outside_the_range_are_clipped() -> None:
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pictures_keep_their_pixels(tmp_path: Path, channels: int, mode: str) -> None:
    image = torch.rand(channels, 4, 6) * 2 - 1
    save_image(image, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as read:
        assert read.mode == mode
        assert read.size == (6, 4)
        back = torch.tensor(list(read.tobytes()), dtype=torch.uint8).reshape(4, 6, channels).permute(2, 0, 1)
    assert torch.equal(back, to_uint8(image))


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_image(torch.zeros(3, 4, 4), path)
    before = path.read_bytes()

    def half_written(self: Image.Image, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="No space left on device") as info:
        save_image(torch.ones(3, 4, 4), path)
    assert info.value.filename == str(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(b"before")
    path.chmod(0o600)
    link.symlink_to(path)
    save_image(torch.zeros(3, 4, 4), link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    with Image.open(path) as image:
        assert image.size == (4, 4)


def test_a_grid_goes_row_by_row() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, -0.5, 0.0, 0.5, 0.75)])
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (1, 7, 10)
    assert sheet[0, 1, 1] == -1
    assert sheet[0, 1, 7] == 0
    assert sheet[0, 4, 1] == 0.5
    assert sheet[0, 4, 7] == 1
    assert (sheet[0, 0] == 1).all()


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        grid(torch.zeros(0, 3, 4, 4))


@pytest.mark.parametrize(("name", "channels"), [("a.png", 4), ("a.JPG", 3), ("a.jpeg", 1), ("a.webp", 4), ("a.png", 2)])
def test_what_is_called_a_picture_can_be_written(name: str, channels: int, tmp_path: Path) -> None:
    check_picture(tmp_path / name, channels)
    save_image(torch.zeros(channels, 8, 8), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.size == (8, 8)


@pytest.mark.parametrize(("name", "channels", "why"), [
    ("a.psd", 3, "no name of a picture"),
    ("folder.png", 3, "no name of a picture"),
    ("a.jpg", 4, "a JPEG has no transparency"),
    ("a.JPEG", 2, "a JPEG has no transparency"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused_before(name: str, channels: int, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=why):
        check_picture(tmp_path / name, channels)
