"""The EMA on a small network that is not I-JEPA, beside a float64 one. Run on every rank of the pool at once."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.bench.traffic import Traffic

UPDATES = 1000
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Body(nn.Module):
    """Shapes that divide by nothing, so that shards end in the middle of parameters and carry padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 19)
        self.norm = nn.LayerNorm(19)
        self.out = nn.Linear(19, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.embed(x))))


class Pair(nn.Module):
    """Student, head and frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.head, self.teacher = Body(), nn.Linear(11, 11), Body()
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        return F.mse_loss(self.head(self.student(x)).float(), target.float())


def momentum(update: int) -> float:
    """0.9996 at the first update, exactly 1 at the last."""
    return 0.9996 + 0.0004 * update / (UPDATES - 1)


def build(mode: dict[str, Any]) -> tuple[Any, Any]:
    """An engine of a mode, and its EMA."""
    import deepspeed
    from deepspeed import comm as dist
    from deepspeed.utils import groups as process_groups

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.zero.ema import ShardedEMA

    initialise_distributed()
    process_groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, made once a process: these ranks have many lives
    accumulation = mode.get("accumulation", 1)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": 4 * accumulation * dist.get_world_size(),
        "zero_optimization": {"stage": mode["stage"], **mode.get("zero", {})},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "gradient_clipping": 0.0,
    }
    config["bf16"] = {"enabled": mode["dtype"] == "bfloat16"}
    if mode.get("accumulate_in"):
        config["data_types"] = {"grad_accum_dtype": mode["accumulate_in"]}
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=mode["stage"] == 3):
        model = Pair()
    if "spoil" in mode:
        _spoil(model, mode["spoil"])
    groups = [{"params": list(part.parameters())} for part in (model.student, model.head)]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.01)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, ShardedEMA(engine, engine.module.student, engine.module.teacher)


def _spoil(model: Pair, how: str) -> None:
    """What users get wrong."""
    if how == "tied":
        model.student.norm.bias = model.student.norm.weight
    elif how == "missing":
        del model.teacher.norm
    elif how == "copied":
        model.teacher = copy.deepcopy(model.student).requires_grad_(False)
    elif how == "trainable":
        model.teacher.requires_grad_(True)
    elif how == "shared":
        model.teacher.embed = model.student.embed


def refusal(mode: dict[str, Any]) -> str:
    """The message with which the EMA refuses a mode."""
    try:
        build(mode)
    except ValueError as error:
        return str(error)
    return "not refused"


def walk(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Master weights at every update, `[UPDATES + 1, numel]` float32: the same for every stage and world size."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    steps = rng.standard_normal((UPDATES + 1, int(np.prod(shape))), dtype=np.float32)
    steps[1:] *= 0.005
    return np.cumsum(steps, axis=0, dtype=np.float32)


def shapes(ema: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in ema.layout.named.items()}


def shards(ema: Any) -> dict[str, tuple[int, np.ndarray]]:
    """This rank's part of the average: name -> (first element, values)."""
    found = {}
    for piece in ema.pieces:
        values = ema.layout.view(ema.average[piece.slot], piece)
        found[piece.name] = (piece.start, values.cpu().numpy().copy())
    return found


def seen_teacher(engine: Any) -> dict[str, np.ndarray]:
    """The teacher's weights as a forward pass sees them, whole, on every rank."""
    import deepspeed

    result = {}
    for name, parameter in engine.module.teacher.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            result[name] = parameter.detach().float().cpu().numpy().copy()
    return result


def full_master(parameter: Any) -> np.ndarray:
    """The whole float32 master weight by DeepSpeed's own API; collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)
    if master is None:  # stage 0: DeepSpeed's API knows no masters there
        low = getattr(parameter, "_test_master", parameter)
        master = low.detach()
    return master.float().cpu().numpy().copy()


def _mark_stage_zero_masters(engine: Any) -> None:
    """Stage 0 with bfloat16: remember each parameter's float32 copy, found without the code under test."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp16_groups") and hasattr(optimizer, "fp32_groups") and engine.zero_optimization_stage() == 0:
        for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, high in zip(lows, highs, strict=True):
                low._test_master = high


def drive(mode: dict[str, Any]) -> dict[str, Any]:
    """1,000 updates over prescribed master weights; this rank's average, the teacher, and the traffic of the updates."""
    engine, ema = build(mode)
    _mark_stage_zero_masters(engine)
    paths = {name: walk(name, shape) for name, shape in shapes(ema).items()}

    def put(step: int) -> None:
        for piece in ema.pieces:
            values = torch.from_numpy(paths[piece.name][step][piece.start : piece.start + piece.numel])
            ema.layout.view(ema.layout.master(piece.slot), piece).copy_(values)

    put(0)
    for buffer, slot in zip(ema.average, range(ema.layout.num_slots), strict=True):
        buffer.copy_(ema.layout.master(slot))
    traffic = Traffic()
    for update in range(UPDATES):
        put(update + 1)
        with traffic:
            ema.update(momentum(update))
        if update % 250 == 0:  # what was written is what DeepSpeed itself calls the master weights
            for name, parameter in ema.layout.named.items():
                assert (full_master(parameter).ravel() == paths[name][update + 1]).all(), name
    return {
        "shards": shards(ema),
        "teacher": seen_teacher(engine),
        "calls": dict(traffic.calls),
        "bytes": dict(traffic.bytes),
        "kind": ema.layout.kind,
        "state_bytes": sum(a.nbytes for a in ema.average),
        "own_bytes": _apart(ema.average, engine.module.teacher),
        "slots": ema.layout.num_slots,
    }


def _apart(average: list[torch.Tensor], teacher: Any) -> int:
    """Bytes of the average that are not the teacher's weights at the same time."""
    weights = {p.data.untyped_storage().data_ptr() for p in teacher.parameters()}
    return sum(a.nbytes for a in average if a.untyped_storage().data_ptr() not in weights)


def train(mode: dict[str, Any], updates: int, poison: int = -1) -> dict[str, Any]:
    """Real steps, with a float64 EMA of the gathered masters kept alongside; `poison`: a step with a NaN on rank 0."""
    from deepspeed import comm as dist

    engine, ema = build(mode)
    _mark_stage_zero_masters(engine)
    dtype, accumulation = TYPES[mode["dtype"]], mode.get("accumulation", 1)
    start = {name: full_master(p).astype(np.float64) for name, p in ema.layout.named.items()}
    wanted, skipped = {name: value.copy() for name, value in start.items()}, 0
    generator = torch.Generator().manual_seed(dist.get_rank())
    for update in range(updates):
        for _ in range(accumulation):
            x = torch.randn(4, 7, generator=generator)
            if update == poison and dist.get_rank() == 0:
                x[0, 0] = float("nan")
            engine.backward(engine(x.to(dtype)))
            engine.step()
        if engine.was_step_applied():
            m = momentum(update * UPDATES // updates)
            ema.update(m)
            for name, parameter in ema.layout.named.items():
                wanted[name] = m * wanted[name] + (1 - m) * full_master(parameter).astype(np.float64)
        else:
            skipped += 1
    return {"shards": shards(ema), "wanted": wanted, "start": start, "skipped": skipped, "teacher": seen_teacher(engine)}
