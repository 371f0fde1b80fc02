import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vitgan.data import DataError, cifar10, open_dataset

RECORDS = np.random.default_rng(0).integers(0, 256, (5, 4, 3073), dtype=np.uint8)
RECORDS[..., 0] %= 10


def archive(records: np.ndarray) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for i in reversed(range(5)):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i + 1}.bin")
            info.size = records[i].size
            tar.addfile(info, io.BytesIO(records[i].tobytes()))
    return out.getvalue()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the place of the real one."""
    path = tmp_path / "home" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    path.write_bytes(archive(RECORDS))
    monkeypatch.setattr(cifar10, "URL", path.as_uri())
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_images_and_labels(home: Path) -> None:
    dataset = open_dataset("cifar10")
    records = RECORDS.reshape(-1, 3073)
    assert np.array_equal(dataset.fetch(range(20)), records[:, 1:].reshape(-1, 3, 32, 32))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == records[:, 0].tolist()
    assert dataset.class_names is not None
    assert dataset.class_names[6] == "frog"
    assert dataset.name == "cifar10"


def test_it_is_downloaded_once(home: Path, own_cache: Path) -> None:
    open_dataset("cifar10")
    home.unlink()
    open_dataset("cifar10")
    assert [path.name for path in own_cache.iterdir()] == [home.name]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_other_sizes_and_channels(home: Path, channels: int) -> None:
    dataset = open_dataset("cifar10", image_size=16, channels=channels)
    image = dataset.fetch([3])[0].float()
    assert image.shape == (channels, 16, 16)
    original = open_dataset("cifar10").fetch([3])[0].float()
    if channels >= 3:
        assert (image[:3].mean((1, 2)) - original.mean((1, 2))).abs().max() < 3
    if channels in (2, 4):
        assert image[-1].unique().tolist() == [255]


def test_a_wrong_archive_is_refused(home: Path, own_cache: Path) -> None:
    home.write_bytes(archive(RECORDS)[:-10])
    with pytest.raises(DataError, match="expected md5"):
        open_dataset("cifar10")
    assert list(own_cache.iterdir()) == []


def test_offline_says_what_to_do(home: Path, own_cache: Path) -> None:
    home.unlink()
    with pytest.raises(DataError, match="put a copy of it at") as caught:
        open_dataset("cifar10")
    assert str(own_cache / home.name) in str(caught.value)


@pytest.mark.parametrize("content", [b"rubbish", b"", archive(RECORDS)[:5000], archive(RECORDS[:, :, :-1])])
def test_a_damaged_archive_in_the_cache(home: Path, own_cache: Path, content: bytes) -> None:
    own_cache.mkdir(parents=True)
    (own_cache / home.name).write_bytes(content)
    with pytest.raises(DataError, match="delete it and start again"):
        open_dataset("cifar10")
