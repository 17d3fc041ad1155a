"""Hooks of ZeRO-3 with less Python: what is replaced, and when. `tests/dist/test_linear.py` trains with both."""

from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.utils import nvtx
from torch import nn

from ijepa_ds.zero import hooks, linear


@pytest.fixture
def own() -> Any:
    with linear.deepspeeds_own():
        yield


def places() -> list[Any]:
    modules = (parameter_offload, partition_parameters, partitioned_param_coordinator)
    found = [getattr(module, name, None) for module in modules for name in ("print_rank_0", "iter_params")]
    return [*found, Init._partition, nvtx.enable_nvtx]


def test_every_place_is_replaced_and_put_back(own: Any) -> None:
    before = places()
    assert hooks.install() == [] == hooks.install()
    assert not [one for one, other in zip(places(), before, strict=True) if one is not None and one is other]
    assert hooks.remove() and not hooks.remove()
    assert places() == before


def test_an_unknown_source_keeps_deepspeeds_hooks_and_says_so(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = places()
    monkeypatch.setattr(hooks, "KNOWN", ((*hooks.KNOWN[0][:2], "0"), *hooks.KNOWN[1:]))
    monkeypatch.setattr(linear, "_allowed", True)
    note = linear.install(3)
    assert "print_rank_0" in note and "free_param" not in note and "docs/host-time.md" in note and "\n" not in note
    assert places() == before and linear.install(2) == ""


def test_parameters_used_from_elsewhere_are_found_after_the_modules_are_fixed(own: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    for module in model.modules():
        partition_parameters._init_external_params(module)
    hooks.install()
    hooks.fix_modules(model)
    found = parameter_offload.iter_params
    assert list(found(model)) == [] and [*map(id, found(model, recurse=True))] == [*map(id, model.parameters())]
    shared = model[1].weight
    partition_parameters.register_external_parameter(model[0], shared)
    assert [*map(id, found(model[0]))] == [id(p) for p in (model[0].weight, model[0].bias, shared)]
    assert [*map(id, model.modules())] == [id(model), id(model[0]), id(model[1])] == [*map(id, model.modules())]


def test_a_partition_that_is_not_up_to_date_is_written(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a release of a whole parameter whose partition is in memory takes the short way."""
    written: list[Any] = []
    freed: list[Any] = []
    monkeypatch.setattr(hooks, "_deepspeed_partition", lambda self, params, *more: written.append((params[0], *more)))
    monkeypatch.setattr(partition_parameters, "free_param", freed.append)
    status, plain = partition_parameters.ZeroParamStatus, SimpleNamespace(zero_param_process_group=None)
    shard = SimpleNamespace(final_location=None)

    def parameter(state: Any = status.AVAILABLE, tensor: Any = shard) -> Any:
        return SimpleNamespace(ds_status=state, ds_tensor=tensor)

    hooks.partition(plain, [fine := parameter()])
    assert freed == [fine] and not written
    on_disk = SimpleNamespace(final_location=partition_parameters.OffloadDeviceEnum.nvme)
    hooks.partition(plain, others := [parameter(status.NOT_AVAILABLE), parameter(tensor=None), parameter(tensor=on_disk)])
    hooks.partition(plain, [fine], has_been_updated=True)
    hooks.partition(plain, [fine], free_data=False)
    hooks.partition(SimpleNamespace(zero_param_process_group="hpZ"), [fine])
    assert freed == [fine] and [p for p, *_ in written] == [*others, fine, fine, fine]
    assert [more for _, *more in written[3:]] == [[False, True, True], [False, False, False], [False, False, True]]
