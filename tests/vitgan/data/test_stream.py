import multiprocessing
import os
import signal
from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Tensor

from vitgan.data import BatchStream, TensorDataset

# Python 3.12 and later warn of any fork beside threads, which PyTorch's loader does on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def numbered(length: int, *, in_memory: bool = True) -> TensorDataset:
    """Image i holds the number i."""
    dataset = TensorDataset(torch.arange(length, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2))
    dataset.in_memory = in_memory
    return dataset


def take(stream: BatchStream, count: int) -> list[list[int]]:
    return [batch[:, 0, 0, 0].tolist() for batch in islice(stream, count)]


def test_batches_are_bytes_of_the_asked_shape() -> None:
    batch = next(BatchStream(numbered(10), 4, seed=0))
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, 1, 2, 2)


@pytest.mark.parametrize(("length", "batch_size"), [(7, 5), (10, 5), (3, 8), (1, 4), (100, 1)])
def test_every_epoch_shows_every_image_once(length: int, batch_size: int) -> None:
    batches = take(BatchStream(numbered(length), batch_size, seed=3), 2 * length)
    flat = [number for batch in batches for number in batch]
    epochs = [flat[i : i + length] for i in range(0, len(flat), length)]
    assert len(epochs) == 2 * batch_size
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(length))
    if length >= 7:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_seed_decides_the_order() -> None:
    first, again, other = (take(BatchStream(numbered(50), 10, seed=s), 10) for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_stopped(workers: int) -> None:
    dataset = numbered(23)
    whole = take(BatchStream(dataset, 5, seed=9), 30)
    for stop in (0, 1, 4, 5, 17):
        with BatchStream(dataset, 5, seed=9, workers=workers) as stream:
            assert take(stream, stop) == whole[:stop]
            assert stream.position == stop
        with BatchStream(dataset, 5, seed=9, start=stream.position, workers=workers) as stream:
            assert take(stream, 10) == whole[stop : stop + 10]
            assert stream.position == stop + 10


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_batches(workers: int) -> None:
    with BatchStream(numbered(23), 5, seed=4, workers=workers) as stream:
        assert take(stream, 20) == take(BatchStream(numbered(23), 5, seed=4), 20)


def test_workers_end_with_the_stream() -> None:
    with BatchStream(numbered(10, in_memory=False), 2, seed=0) as stream:
        next(stream)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)
    stream.close()


def test_data_in_memory_needs_no_workers() -> None:
    with BatchStream(numbered(10), 2, seed=0) as stream:
        next(stream)
        assert not multiprocessing.active_children()


def test_workers_outlive_ctrl_c() -> None:
    dataset = numbered(10)
    with BatchStream(dataset, 2, seed=0, workers=2) as stream:
        next(stream)
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
        assert take(stream, 10) == take(BatchStream(dataset, 2, seed=0, start=1), 10)


@pytest.mark.parametrize("workers", [0, 1])
def test_random_state_of_the_training_is_left_alone(workers: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with BatchStream(numbered(10), 3, seed=0, workers=workers) as stream:
        take(stream, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_may_be_written_to() -> None:
    dataset = numbered(4)
    for batch in islice(BatchStream(dataset, 4, seed=0), 2):
        batch += 100
    assert sorted(dataset.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        BatchStream(numbered(4), 0, seed=0)
    with pytest.raises(ValueError, match="start"):
        BatchStream(numbered(4), 1, seed=0, start=-1)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(0, 3, 4, 4, dtype=torch.uint8)],
)
def test_only_square_bytes_make_a_data_set(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        TensorDataset(images)
