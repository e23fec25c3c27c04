import pytest
import torch
import torch.nn.functional as F

from onebasis.kernels.packed_linear import PackedLinear, PlainLinear, can_pack, frozen_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 3, 32, 130])
def test_packed_gives_what_the_plain_layer_gives(bias, n_rows):
    torch.manual_seed(0)
    weight = torch.randn(48, 80).to(torch.bfloat16)
    b = torch.randn(48).to(torch.bfloat16) if bias else None
    x = torch.randn(1, n_rows, 80).to(torch.bfloat16)
    got = PackedLinear(weight, b)(x)
    want = F.linear(x.float(), weight.float(), None if b is None else b.float())
    assert got.shape == (1, n_rows, 48)
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=0.1)


def test_float32_is_computed_as_torch_does_it():
    weight, x = torch.randn(7, 5), torch.randn(2, 5)
    layer = frozen_linear(weight, None)
    assert isinstance(layer, PlainLinear)
    assert torch.equal(layer(x), F.linear(x, weight))


def test_bfloat16_on_this_machine_follows_what_the_library_can_do():
    weight = torch.randn(16, 16).to(torch.bfloat16)
    assert isinstance(frozen_linear(weight, None), PackedLinear) == can_pack(weight)
