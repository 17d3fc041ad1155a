"""Products by oneDNN are those of torch, with gradients, names and selective recomputation as before."""

import platform

import pytest
import torch
from torch import nn

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.cpu.linear import Linear, onednn_is_faster, use_onednn
from ijepa_ds.model.vit import Encoder, initialise

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="THIS TORCH HAS NO oneDNN: its products were not tested"
)


@pytest.mark.parametrize("rows", [1, 7, 300])  # the outer product copies either factor
@pytest.mark.parametrize("bias", [True, False])
def test_result_and_gradients_are_those_of_torch(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    plain, fast = (nn.Linear(48, 96, bias=bias) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    use_onednn(fast)
    assert type(fast) is Linear
    x = torch.randn(2, rows, 3, 48)[:, :, 1]  # with gaps between its rows
    results = []
    for module in (plain, fast):
        own = x.clone().requires_grad_()
        y = module(own)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
        results.append([y.detach(), own.grad, *(p.grad for p in module.parameters())])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_network_keeps_its_names_and_values(checkpointing: str) -> None:
    results = []
    for fast in (False, True):
        encoder = Encoder(Size(48, 2, 3, 96), 8, 4, checkpointing)
        initialise(encoder, 0)
        if fast:
            use_onednn(encoder)
        y = encoder(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        y.square().mean().backward()
        results.append({"": y.detach()} | {name: p.grad for name, p in encoder.named_parameters()})
    assert results[0].keys() == results[1].keys()
    for name, theirs in results[0].items():
        torch.testing.assert_close(results[1][name], theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()), msg=name)


def test_other_types_go_the_usual_way() -> None:
    module = nn.Linear(8, 8).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    wanted = module(x)
    use_onednn(module)
    assert torch.equal(module(x), wanted)


def test_autocast_is_heeded() -> None:
    module = nn.Linear(8, 8)
    use_onednn(module)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.ones(3, 8)).dtype == torch.bfloat16


def test_the_choice_is_one_of_the_machine() -> None:
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        assert not onednn_is_faster()
