import psutil
import pytest
import torch

from onebasis.kernels.memory import zeros_on_demand

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4), ()])
def test_it_is_what_torch_zeros_gives(dtype, shape):
    table = zeros_on_demand(shape, dtype=dtype, device=CPU)
    assert torch.equal(table, torch.zeros(shape, dtype=dtype))
    assert table.dtype is dtype
    assert table.shape == shape
    assert table.is_contiguous()


def test_rows_can_be_written_and_two_tables_share_nothing():
    first, second = (zeros_on_demand((4, 3), dtype=torch.bfloat16, device=CPU) for _ in range(2))
    first[2] = 1.5
    assert first.sum() == 4.5
    assert second.count_nonzero() == 0


def test_memory_is_taken_when_a_page_is_written():
    size_bytes = 1 << 30
    process = psutil.Process()
    before = process.memory_info().rss
    table = zeros_on_demand((size_bytes // 4,), dtype=torch.float32, device=CPU)
    table[: 1 << 20] = 1.0
    assert process.memory_info().rss - before < size_bytes // 8, "only the pages that were written may count"
