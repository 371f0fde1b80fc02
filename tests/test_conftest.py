"""The fixture that all other tests rely on without naming it."""

import torch


def test_unwritten_memory_is_not_a_number() -> None:
    written = torch.zeros(3)
    for unwritten in (torch.empty(3), torch.empty_like(written), written.new_empty(3), torch.empty(3).bfloat16()):
        assert unwritten.isnan().all()
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_random_numbers_repeat() -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
