import multiprocessing
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.vitgan.helpers import assert_same, dataset, everything, trainer
from vitgan.data import BatchStream, DeviceDataset, ImageDataset, Shapes, base, keep_on_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("part", [(0, 1), (0, 2), (1, 2)])
def test_batches_from_a_device_are_those_from_the_host(seed: int, start: int, part: tuple[int, int]) -> None:
    source = Shapes(8, size=30)
    kept = DeviceDataset(Shapes(8, size=30), CPU)
    for one, other in zip(
        islice(BatchStream(source, 4, seed=seed, start=start, part=part), 20),
        islice(BatchStream(kept, 4, seed=seed, start=start, part=part), 20),
        strict=True,
    ):
        assert one.dtype == other.dtype == torch.uint8
        assert torch.equal(one, other)


def test_no_worker_touches_the_device() -> None:
    with BatchStream(DeviceDataset(dataset(), CPU), 4, seed=0, workers=2) as stream:
        next(stream)
        assert multiprocessing.active_children() == []


def test_labels_come_with_them() -> None:
    source = Shapes(8, size=30)
    one, other = BatchStream(source, 4, seed=0), BatchStream(DeviceDataset(source, CPU), 4, seed=0)
    for _ in range(10):
        next(one), next(other)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)
    assert DeviceDataset(source, CPU).class_names == source.class_names


def test_all_chunks_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_CHUNK", 7)
    source = dataset()
    assert torch.equal(DeviceDataset(source, CPU).images, source.images)


def test_a_batch_is_the_caller_s_to_change() -> None:
    kept = DeviceDataset(dataset(), CPU)
    before = kept.images.clone()
    kept.fetch([1, 2]).zero_()
    assert torch.equal(kept.images, before)
    with pytest.raises(IndexError, match="there are 10 images"):
        kept.fetch([10])


def test_nothing_is_read_from_the_device() -> None:
    """A meta tensor has no values: whoever asks for one raises."""
    stream = BatchStream(DeviceDataset(dataset(), torch.device("meta")), 4, seed=0)
    batch = next(stream)
    assert batch.device.type == "meta"
    assert batch.shape == (4, 3, 8, 8)
    with pytest.raises(RuntimeError):
        batch.sum().item()


def test_a_gpu_keeps_what_takes_a_quarter_of_its_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    source = dataset()
    size = source.images.numel()
    gpu = torch.device("cuda")
    monkeypatch.setattr(base, "DeviceDataset", lambda dataset, device: (dataset, device))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * size, 100 * size))
    assert keep_on_device(source, gpu) == (source, gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * size - 1, 100 * size))
    assert keep_on_device(source, gpu) is source
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 * size, 100 * size))
    source.in_memory = False
    assert keep_on_device(source, gpu) is source
    source.in_memory = True
    assert keep_on_device(source, CPU) is source


def test_a_run_from_images_on_its_device_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that goes on from a checkpoint, with images on the device only then."""
    whole, _ = trainer(tmp_path / "whole")
    whole.train()
    first, _ = trainer(tmp_path / "parts", images=20)
    first.train()
    kept: list[DeviceDataset] = []

    def keep(source: ImageDataset, where: torch.device) -> DeviceDataset:
        kept.append(DeviceDataset(source, where))
        return kept[-1]

    monkeypatch.setattr("vitgan.training.loop.keep_on_device", keep)
    second, _ = trainer(tmp_path / "parts")
    second.train()
    assert kept
    assert_same(everything(whole.training), everything(second.training))
