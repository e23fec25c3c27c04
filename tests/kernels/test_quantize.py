"""Codes, scales and their order in memory; what is computed from them: tests/model/test_quantized_decoder.py."""

import torch

from onebasis.kernels.cpu.quantize import pack_codes, quantize_rows


def test_a_number_is_off_by_half_a_step_of_its_row_at_most():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 50).unsqueeze(1)
    codes, scales = quantize_rows(weight)
    assert codes.dtype == torch.int8
    error = (codes * scales.unsqueeze(1) - weight).abs() / scales.unsqueeze(1)
    assert 0.49 < float(error.max()) < 0.501
    assert torch.equal(codes.abs().amax(dim=1), torch.full((50,), 127, dtype=torch.int8))


def test_a_row_of_zeros_stays_one():
    codes, scales = quantize_rows(torch.zeros(2, 4))
    assert codes.count_nonzero() == 0
    assert scales.tolist() == [1.0, 1.0]


def test_panels_hold_four_left_and_four_right_columns_in_turns():
    codes = torch.arange(1, 33 * 2 + 1).view(33, 2).to(torch.int8)
    codes[1] = -codes[1]
    packed = pack_codes(codes)
    assert packed.shape == (2, 1, 64)
    left, right = packed[0, 0].view(4, 2, 4, 2).unbind(1)
    assert left.reshape(16, 2).tolist() == [[1, 2], [128 + 3, 128 + 4], *([2 * c + 1, 2 * c + 2] for c in range(2, 16))]
    assert right.reshape(16, 2).tolist() == [[2 * c + 1, 2 * c + 2] for c in range(16, 32)]
    assert packed[1, 0, :2].tolist() == [65, 66]
    assert packed[1, 0, 2:].count_nonzero() == 0
