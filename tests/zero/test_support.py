"""Engines whose master weights an EMA cannot follow are refused with the key and the reason, all at once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from ijepa_ds.zero.disk import check_async_io, mapped
from ijepa_ds.zero.support import unsupported

pytestmark = pytest.mark.filterwarnings("ignore")


OPTIMIZER, PARAMETERS = "offload_optimizer", "offload_param"
SUPER = {"device": "cpu", "super_offload": True}
DISK = {"device": "nvme", "nvme_path": "x"}


def engine(zero: dict[str, Any], groups: list | None = None, mpu: Any = None, low: bool = False) -> Any:
    bf16 = SimpleNamespace(bf16_master_weights_and_grads=low)
    config = SimpleNamespace(zero_config=DeepSpeedZeroConfig(**zero), bfloat16_config=bf16)
    optimizer = SimpleNamespace(param_groups=[{}] if groups is None else groups)
    return SimpleNamespace(_config=config, optimizer=optimizer, mpu=mpu)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_plain_stages_are_followed(stage: int) -> None:
    assert unsupported(engine({"stage": stage})) == []
    assert unsupported(engine({"stage": stage, "offload_optimizer": {"device": "cpu"}})) == []
    assert unsupported(engine({"stage": stage, "offload_optimizer": DISK})) == []


@pytest.mark.parametrize(
    ("zero", "key"),
    [
        ({"stage": 3, OPTIMIZER: DISK | {"pipeline_read": True}}, "zero_optimization.offload_optimizer.pipeline_read"),
        ({"stage": 3, PARAMETERS: DISK}, "zero_optimization.offload_param.device nvme"),
        ({"stage": 3, OPTIMIZER: {"device": "cpu", "ratio": 0.5}}, "zero_optimization.offload_optimizer.ratio"),
        ({"stage": 3, OPTIMIZER: SUPER}, "zero_optimization.offload_optimizer.super_offload"),
        ({"stage": 2, "zenflow": {"topk_ratio": 0.1}}, "zero_optimization.zenflow"),
        ({"stage": 1, "round_robin_gradients": True}, "zero_optimization.round_robin_gradients"),
        ({"stage": 3, "zero_quantized_weights": True}, "zero_optimization.zero_quantized_weights"),
        ({"stage": 3, "zero_quantized_gradients": True}, "zero_optimization.zero_quantized_gradients"),
        ({"stage": 3, "zero_quantized_nontrainable_weights": True}, "zero_optimization.zero_quantized_nontrainable_weights"),
    ],
)
def test_what_hides_the_masters_is_named(zero: dict[str, Any], key: str) -> None:
    (reason,) = unsupported(engine(zero))
    assert reason.startswith(key) and len(reason) > len(key) + 20


def test_all_reasons_at_once() -> None:
    mpu = SimpleNamespace(get_model_parallel_world_size=lambda: 2)
    reasons = unsupported(engine({"stage": 1, "round_robin_gradients": True}, groups=[], mpu=mpu, low=True))
    found = ("no optimizer", "bf16_master_weights_and_grads", "round_robin_gradients", "model parallelism")
    assert len(reasons) == 4 and all(word in reason for word, reason in zip(found, reasons, strict=True))


def test_missing_libaio_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: False)
    with pytest.raises(ValueError, match="nvme needs libaio.*apt-get install libaio-dev, dnf install libaio-devel"):
        check_async_io()


def test_a_shortened_file_is_named(tmp_path: Path) -> None:
    mapped(tmp_path / "x", 8, create=True).fill_(3.0)
    assert mapped(tmp_path / "x", 8).tolist() == [3.0] * 8
    with pytest.raises(OSError, match="x is shorter than the 9 float32 numbers"):
        mapped(tmp_path / "x", 9)
