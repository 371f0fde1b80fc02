import errno
import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vitgan.data.conftest import MakeImages
from vitgan.data import BatchStream, DataError, TensorDataset, decode, open_dataset, user_cache

Pixels = Callable[[int], np.ndarray]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

NAMES = ["cat/10.png", "cat/9.png", "dog/deep/er/a.PNG", "ant/z.png"]


@pytest.fixture
def folder(tmp_path: Path, make_images: MakeImages) -> Path:
    make_images(tmp_path / "animals", NAMES)
    return tmp_path / "animals"


def zip_of(folder: Path, inside: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(folder.rglob("*"), reverse=True):
            out.write(file, inside + str(file.relative_to(folder)))
    return path


def many(root: Path, make_images: MakeImages, count: int = 300) -> Path:
    make_images(root, [f"{i:03d}.png" for i in range(count)])
    return root


def test_a_folder_in_the_order_of_names(folder: Path, pixels: Pixels) -> None:
    dataset = open_dataset(folder, image_size=8)
    expected = [pixels(i) for i in (3, 0, 1, 2)]
    assert dataset.name == "animals"
    assert (len(dataset), dataset.image_size, dataset.channels) == (4, 8, 3)
    assert np.array_equal(dataset.fetch(range(4)), expected)
    assert np.array_equal(dataset.fetch(torch.tensor([2, 0])), [expected[2], expected[0]])
    with pytest.raises(IndexError, match="4 images"):
        dataset.fetch([4])


@pytest.mark.parametrize("inside", ["", "wrapped/twice/"])
def test_a_zip_is_as_good_as_its_folder(folder: Path, inside: str) -> None:
    from_folder = open_dataset(str(folder), image_size=8)
    from_zip = open_dataset(str(zip_of(folder, inside)), image_size=8)
    assert torch.equal(from_zip.fetch(range(4)), from_folder.fetch(range(4)))
    assert from_zip.labels is not None
    assert from_folder.labels is not None
    assert from_zip.labels.tolist() == from_folder.labels.tolist() == [0, 1, 1, 2]
    assert from_zip.class_names == from_folder.class_names == ["ant", "cat", "dog"]


def test_size_and_channels_are_as_asked(folder: Path) -> None:
    for channels in (1, 2, 3, 4):
        dataset = open_dataset(folder, image_size=5, channels=channels)
        assert dataset.fetch([0, 1]).shape == (2, channels, 5, 5)
        assert dataset.fetch([0]).dtype == torch.uint8


def test_rubbish_beside_images_is_passed_over(folder: Path) -> None:
    for name in ("__MACOSX/cat/._9.png", "cat/._9.png", ".DS_Store", "Thumbs.db", ".trash/x.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"rubbish")
    assert len(open_dataset(folder)) == 4
    assert len(open_dataset(zip_of(folder))) == 4


def test_linked_folders_are_followed_once(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    (folder.parent / "outside").mkdir()
    (folder / "cat" / "9.png").rename(folder.parent / "outside" / "x.png")
    (folder / "linked").symlink_to(folder.parent / "outside")
    assert open_dataset(folder).class_names == ["ant", "cat", "dog", "linked"]
    assert len(open_dataset(folder)) == 4


def test_images_outside_folders_have_no_classes(folder: Path, make_images: MakeImages) -> None:
    make_images(folder, ["stray.png"])
    dataset = open_dataset(folder)
    assert dataset.labels is None
    assert dataset.class_names is None


def label(folder: Path, labels: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_listed_labels(folder: Path, zipped: bool) -> None:
    label(folder, [["cat/10.png", 2], ["cat/9.png", 0], ["dog/deep/er/a.PNG", 3], ["ant/z.png", 2], ["gone.png", 9]])
    dataset = open_dataset(zip_of(folder) if zipped else folder)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 1, 0, 2]
    assert dataset.class_names == ["0", "2", "3"], "a class that no image has is none"


def test_listed_labels_are_named_by_folders_where_these_agree(folder: Path) -> None:
    label(folder, [["cat/10.png", 0], ["cat/9.png", 0], ["dog/deep/er/a.PNG", 1], ["ant/z.png", 10**30]])
    assert open_dataset(folder).class_names == ["cat", "dog", "ant"]


@pytest.mark.parametrize("inside", ["animals/", "a/b/", "animals\\"])
def test_labels_listed_inside_an_outer_folder(folder: Path, inside: str) -> None:
    """What a file manager's "Compress" makes of a folder; on Windows perhaps with backslashes."""
    label(folder, [["cat/10.png", 1], ["cat\\9.png", 0], ["dog/deep/er/a.PNG", 2], ["ant/z.png", 1]])
    dataset = open_dataset(zip_of(folder, inside))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 1, 0, 2]
    assert "3 classes: 0 1, 1 2, 2 1" in repr(dataset)


def test_a_list_that_is_not_above_all_images(folder: Path) -> None:
    (folder / "cat/dataset.json").write_text('{"labels": [["9.png", 0], ["10.png", 1]]}')
    with pytest.raises(DataError, match=r"cat/dataset\.json lists .*, and ant/z\.png lies elsewhere: give cat/ alone"):
        open_dataset(folder)


def test_a_zip_with_backslashes(folder: Path, pixels: Pixels) -> None:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as out:
        for name in NAMES:
            out.write(folder / name, "all\\" + name.replace("/", "\\"))
        out.writestr("__MACOSX\\cat\\x.png", b"rubbish")
        out.writestr("all\\cat\\", b"")
    dataset = open_dataset(path, image_size=8)
    assert dataset.class_names == ["ant", "cat", "dog"]
    assert np.array_equal(dataset.fetch([0])[0], pixels(3))


def test_what_is_left_out_is_said(folder: Path) -> None:
    for name in ("cat/a.heic", "cat/b.heic", "notes.txt", "@eaDir/thumb.png", "dog/Thumbs.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    for source in (folder, zip_of(folder)):
        assert repr(open_dataset(source)).endswith("3 classes: ant 1, cat 2, dog 1; left out: 2 .heic, 1 .db, 1 .txt)")


def test_a_class_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"the folder .*/cat cannot be read \(Permission denied\)"):
        open_dataset(folder)


@pytest.mark.parametrize("place", ["ant/pipe.png", "pipe", "pipe.zip", "device.png"])
def test_only_regular_files_are_opened(folder: Path, place: str) -> None:
    if place == "device.png":
        (folder / place).symlink_to("/dev/zero")
    else:
        os.mkfifo(folder / place)
    alone = place.startswith("pipe")
    with pytest.raises(DataError, match=r"a pipe, socket or device, and a file is needed.*: (remove it|give a folder)"):
        open_dataset(folder / place if alone else folder)


def test_a_list_may_say_that_there_are_no_labels(folder: Path) -> None:
    assert open_dataset(label(folder, None)).labels is None


@pytest.mark.parametrize("labels", ["x", [["cat/9.png"]], [["cat/9.png", -1]], [["cat/9.png", 1.5]], 3])
def test_a_list_that_makes_no_sense(folder: Path, labels: object) -> None:
    with pytest.raises(DataError, match=r"dataset\.json cannot be used"):
        open_dataset(label(folder, labels))


def test_a_list_that_is_not_json(folder: Path) -> None:
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json cannot be used"):
        open_dataset(folder)


def test_a_list_that_lacks_images(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no label for 3 of 4 images, such as ant/z\.png"):
        open_dataset(label(folder, [["cat/9.png", 0]]))


@pytest.mark.parametrize("limit", [decode.IN_MEMORY_LIMIT, 0])
def test_all_bad_files_are_named(
    tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(decode, "IN_MEMORY_LIMIT", limit)
    root = many(tmp_path / "many", make_images)
    bad = [*range(0, 240, 20), 299]
    for i in bad:
        path = root / f"{i:03d}.png"
        path.write_bytes(path.read_bytes()[:60] if i else b"")
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{root}: 13 of 300 images cannot be read:"
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [f"{i:03d}.png" for i in bad[:10]]
    assert lines[1] == "  000.png: the file is empty"
    assert lines[11:] == ["  and 3 more", "Replace or remove these files, and start again."]


def test_a_damaged_member_of_a_zip_is_named(folder: Path) -> None:
    path = zip_of(folder)
    with zipfile.ZipFile(path) as opened:
        at = opened.getinfo("cat/9.png").header_offset + 100
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read:\n  cat/9\.png: Bad CRC"):
        open_dataset(path)


def test_what_is_no_data_set(tmp_path: Path, folder: Path) -> None:
    empty, texts, nested = (tmp_path / name for name in ("empty", "texts", "nested"))
    for path in (empty, texts, nested):
        path.mkdir()
    (texts / "a.txt").write_text("a")
    zip_of(folder).rename(nested / "inner.zip")
    future = tmp_path / "future.zip"
    future.write_bytes((nested / "inner.zip").read_bytes().replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff"))
    torn = tmp_path / "torn.zip"
    torn.write_bytes((nested / "inner.zip").read_bytes()[:-30])
    for source, message in (
        (tmp_path / "missing", "no such folder or .zip"),
        ("", "no such folder or .zip"),
        ("~nobody-of-that-name/images", "no such folder or .zip"),
        (future, r"not a zip file that can be read \(zip file version 25.5\)"),
        (folder / "ant/z.png", "a single image; give the folder"),
        (empty, "empty; it needs images"),
        (texts, "none of its 1 files is an image"),
        (zip_of(texts), "none of its 1 files is an image"),
        (nested, r"to use inner\.zip, give its path"),
        (torn, "not a zip file that can be read"),
        (texts / "a.txt", r"neither a folder nor a \.zip"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(source)


def test_an_encrypted_zip(folder: Path) -> None:
    path = zip_of(folder)
    data = bytearray(path.read_bytes())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="the zip is encrypted; unpack it"):
        open_dataset(path)


def test_bad_formats(folder: Path) -> None:
    with pytest.raises(ValueError, match="channels must be"):
        open_dataset(folder, channels=0)
    with pytest.raises(ValueError, match="image_size must be"):
        open_dataset(folder, image_size=0)


@pytest.fixture
def always_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "WORTH_KEEPING_SECONDS", -1.0)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a data set is decoded."""
    made: list[str] = []
    decode_all = decode.decode_all

    def watched(data: decode.ImageFiles, out: torch.Tensor | None) -> None:
        made.append(data.name)
        decode_all(data, out)

    monkeypatch.setattr(decode, "decode_all", watched)
    return made


def test_a_user_without_a_home_has_a_cache_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert user_cache().is_dir()
    assert user_cache() == user_cache()


def test_quick_work_is_not_kept(folder: Path, own_cache: Path) -> None:
    open_dataset(folder)
    assert not own_cache.exists()


@pytest.mark.usefixtures("always_keep")
def test_the_second_start_decodes_nothing(
    folder: Path, own_cache: Path, decodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_dataset(folder, image_size=8)
    second = open_dataset(folder, image_size=8)
    assert len(decodings) == 1
    assert torch.equal(first.fetch(range(4)), second.fetch(range(4)))
    assert second.labels is not None
    assert len(list(own_cache.rglob("*"))) == 2

    for _ in range(2):
        open_dataset(folder, image_size=9)
        open_dataset(folder, image_size=8, channels=1)
        open_dataset(folder, image_size=8)
    assert len(decodings) == 3
    monkeypatch.setattr(decode, "IN_MEMORY_LIMIT", 0)
    open_dataset(folder, image_size=11)
    assert len(decodings) == 4
    open_dataset(folder, image_size=11)
    assert len(decodings) == 4


@pytest.mark.usefixtures("always_keep")
@pytest.mark.parametrize("zipped", [False, True])
def test_changed_files_are_decoded_anew(
    folder: Path, make_images: MakeImages, pixels: Pixels, decodings: list[str], zipped: bool
) -> None:
    open_dataset(zip_of(folder) if zipped else folder, image_size=8)
    (folder / "ant/z.png").write_bytes((folder / "cat/9.png").read_bytes())
    os.utime(folder / "ant/z.png", ns=(2 * 10**18, 2 * 10**18))
    dataset = open_dataset(zip_of(folder) if zipped else folder, image_size=8)
    assert np.array_equal(dataset.fetch([0])[0], pixels(1))
    assert len(decodings) == 2


@pytest.mark.usefixtures("always_keep")
@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_cache_is_made_anew(
    folder: Path, own_cache: Path, decodings: list[str], damage: bytes | None
) -> None:
    images = open_dataset(folder, image_size=8).fetch(range(4))
    [kept] = own_cache.rglob("*.npy")
    kept.write_bytes(kept.read_bytes()[:-1] if damage is None else damage)
    for _ in range(2):
        assert torch.equal(open_dataset(folder, image_size=8).fetch(range(4)), images)
    assert len(decodings) == 2


@pytest.mark.usefixtures("always_keep")
def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept for the next start"):
        dataset = open_dataset(folder, cache=tmp_path / "file")
    assert len(dataset) == 4


@pytest.mark.parametrize("zipped", [False, True])
def test_data_too_large_for_memory_gives_the_same_batches(
    tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    root = many(tmp_path / "many", make_images, 60)
    source = zip_of(root) if zipped else root
    in_memory = open_dataset(source, image_size=8)
    monkeypatch.setattr(decode, "IN_MEMORY_LIMIT", 0)
    on_disk = open_dataset(source, image_size=8)
    assert in_memory.in_memory
    assert not on_disk.in_memory
    assert isinstance(in_memory, TensorDataset)
    assert torch.equal(on_disk.fetch(range(60)), in_memory.images)
    expected = list(islice(BatchStream(in_memory, 16, seed=1), 12))
    for workers in (None, 3):
        with BatchStream(on_disk, 16, seed=1, start=2, workers=workers) as stream:
            for batch, other in zip(islice(stream, 10), expected[2:], strict=True):
                assert torch.equal(batch, other)


@pytest.mark.parametrize("bad", ["tensors in shared memory", "a worker killed"])
def test_workers_in_a_small_container(folder: Path, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode, "IN_MEMORY_LIMIT", 0)
    dataset = open_dataset(folder, image_size=8)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", no_room)
    with BatchStream(dataset, 4, seed=0, workers=1) as stream:
        assert next(stream).shape == (4, 3, 8, 8)
        if bad == "a worker killed":
            for child in multiprocessing.active_children():
                child.kill()
            with pytest.raises(DataError, match=r"was ended from outside .*Fewer --workers"):
                list(islice(stream, 100))


def test_a_file_lost_during_training_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "IN_MEMORY_LIMIT", 0)
    dataset = open_dataset(folder)
    (folder / "ant/z.png").unlink()
    with pytest.raises(DataError, match=r"ant/z\.png"), BatchStream(dataset, 4, seed=0) as stream:
        next(stream)
