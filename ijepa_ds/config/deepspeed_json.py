"""The DeepSpeed JSON: checked strictly, then completed from the run's configuration. Needs no deepspeed."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ijepa_ds.config import deepspeed_keys as keys
from ijepa_ds.config.batch import BatchPlan
from ijepa_ds.config.build import suggest
from ijepa_ds.config.schema import Config, ConfigError

logger = logging.getLogger(__name__)

_NEVER = 10**9  # steps_per_print


class _Source:
    """The text of a JSON file: strict parsing, and the lines of its keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.duplicates: list[str] = []
        try:
            self.text = path.read_text(encoding="utf-8")
            self.value = json.loads(self.text, object_pairs_hook=self._object, parse_constant=self._constant)
        except FileNotFoundError:
            raise ConfigError([f"{path}: no such file"]) from None
        except json.JSONDecodeError as error:
            raise ConfigError([f"{path}:{error.lineno}: not valid JSON: {error.msg}"]) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path}: cannot be read ({error})"]) from error

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                self.duplicates.append(key)
            result[key] = value
        return result

    def _constant(self, name: str) -> float:
        raise ConfigError([f"{self.path}: {name} is not valid JSON; write a number"])

    def where(self, names: Sequence[str], occurrence: int = 0) -> str:
        """`file.json:4`, the line of a key given by the names that lead to it."""
        start, line = 0, 1
        for depth, name in enumerate(names, start=1):
            found = list(re.compile(rf'"{re.escape(name)}"\s*:').finditer(self.text, start))
            if not found:
                break
            match = found[min(occurrence, len(found) - 1)] if depth == len(names) else found[0]
            start, line = match.end(), self.text.count("\n", 0, match.start()) + 1
        return f"{self.path}:{line}"


def load_deepspeed(path: Path, cfg: Config, plan: BatchPlan) -> dict[str, Any]:
    """Read how a run is spread over devices, and add what follows from the run itself.

    Args:
        path: JSON file with memory, communication and diagnostic keys of DeepSpeed 0.19.8.
        cfg: the run.
        plan: how its batch is cut.

    Returns:
        The complete dictionary for `deepspeed.initialize`.

    Raises:
        ConfigError: one line a problem: `zero3.json:4: optimizer: ...`.
    """
    result = read_deepspeed(path, plan, cfg.optimization.clip_grad, cfg.model.precision)
    if cfg.model.compile and result["zero_optimization"]["stage"] == 3:
        text = "3 does not go with model.compile: compiled blocks cannot be gathered and released. Take stage 2"
        raise ConfigError([f"{_Source(path).where(['zero_optimization', 'stage'])}: zero_optimization.stage: {text}"])
    offload = result["zero_optimization"].get("offload_optimizer", {})
    if offload.get("device") == "nvme":  # two runs on one disk must not share files
        run = Path(cfg.run.dir).absolute()
        folder = Path(offload["nvme_path"]) / f"{run.name}-{zlib.crc32(str(run).encode()):08x}"
        result["zero_optimization"]["offload_optimizer"] = {**offload, "nvme_path": str(folder)}
    return result


def read_deepspeed(path: Path, plan: BatchPlan, clip_grad: float, precision: str) -> dict[str, Any]:
    """The same for a training that has no `Config`; 0 does not clip."""
    source = _Source(path)
    if not isinstance(source.value, dict):
        raise ConfigError([f"{path}: expected an object {{...}}"])
    problems = [f"{source.where([key], 1)}: {key}: given twice in one object; remove one" for key in source.duplicates]
    for key in source.value:
        text = _top_level(key)
        if text:
            problems.append(f"{source.where([key])}: {key}: {text}")
    problems += _zero(source, plan)
    if problems:
        raise ConfigError(problems)
    return _complete(source.value, plan, clip_grad, precision)


def _top_level(key: str) -> str:
    """Why a top-level key is refused; empty when it is not."""
    if key in keys.ALLOWED:
        return ""
    if key in keys.OWNED:
        return f"belongs to the YAML of the run; remove it here and use {keys.OWNED[key]}"
    if key in keys.REFUSED:
        return f"cannot be used here, remove it: {keys.REFUSED[key]}"
    return f"DeepSpeed 0.19.8 knows no such key{suggest(key, keys.ALLOWED) or '; remove it'}"


def _zero(source: _Source, plan: BatchPlan) -> list[str]:
    """Problems of the zero_optimization block."""
    zero = source.value.get("zero_optimization", {})
    if not isinstance(zero, dict):
        return [f"{source.where(['zero_optimization'])}: zero_optimization: expected an object with a stage"]
    problems = []

    def refuse(names: list[str], text: str) -> None:
        problems.append(f"{source.where(['zero_optimization', *names])}: {'.'.join(names)}: {text}")

    for key in zero:
        if key in keys.ZERO_REFUSED:
            refuse([key], f"cannot be used here, remove it: {keys.ZERO_REFUSED[key]}")
        elif key not in keys.ZERO_ALLOWED:
            refuse([key], f"unknown key of zero_optimization{suggest(key, keys.ZERO_ALLOWED) or '; remove it'}")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        refuse(["stage"], f"must be 0, 1, 2 or 3, got {stage!r}")
        return problems
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        if key in zero:
            problems += _offload(source, key, zero[key])
            if isinstance(zero[key], dict) and zero[key].get("device") == "nvme":
                least = 3
            if stage < least:
                refuse([key], f"needs stage {least}{' or more' if least < 3 else ''}, this is stage {stage}")
    group = zero.get("zero_hpz_partition_size", 1)
    if isinstance(group, bool) or not isinstance(group, int) or group < 1 or plan.world_size % group:
        refuse(
            ["zero_hpz_partition_size"],
            f"{group!r} must be a whole number that divides {plan.world_size} devices",
        )
    elif group > 1 and stage != 3:
        refuse(["zero_hpz_partition_size"], f"needs stage 3, this is stage {stage}")
    return problems


def _offload(source: _Source, block: str, value: Any) -> list[str]:
    names = ["zero_optimization", block]
    if not isinstance(value, dict):
        return [f'{source.where(names)}: {block}: expected an object such as {{"device": "cpu"}}']
    problems = []
    for key in value:
        where, allowed = source.where([*names, key]), keys.OFFLOAD_ALLOWED[block]
        if key in allowed:
            continue
        if key in keys.OFFLOAD_REFUSED:
            problems.append(f"{where}: {block}.{key}: cannot be used here, remove it: {keys.OFFLOAD_REFUSED[key]}")
        else:
            problems.append(f"{where}: {block}.{key}: unknown key{suggest(key, allowed) or '; remove it'}")
    device = value.get("device", "none")
    if device not in keys.OFFLOAD_DEVICES[block]:
        known = "must be " + " or ".join(keys.OFFLOAD_DEVICES[block])
        reason = keys.OFFLOAD_REFUSED["nvme_path"] if device == "nvme" else known
        problems.append(f"{source.where([*names, 'device'])}: {block}.device: {device!r}: {reason}")
    path = value.get("nvme_path")
    if device == "nvme" and not (isinstance(path, str) and path):
        problems.append(
            f"{source.where(names)}: {block}.nvme_path: {path!r}: name a folder on a local disk of every host, which each run "
            "fills with the state of its ranks"
        )
    return problems


def _complete(written: dict[str, Any], plan: BatchPlan, clip_grad: float, precision: str) -> dict[str, Any]:
    """What was written, plus batch, precision, clipping and quiet diagnostics."""
    # DeepSpeed's own timers synchronise the device at every step unless told not to.
    quiet = {
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    result = {
        **quiet,
        **written,
        "zero_optimization": {"stage": 0, **written.get("zero_optimization", {})},
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": clip_grad,  # left out, DeepSpeed would clip at 1
    }
    zero = result["zero_optimization"]
    if zero.get("offload_optimizer", {}).get("device") in ("cpu", "nvme"):
        result["zero_force_ds_cpu_optimizer"] = False  # else it insists on its own Adam, which is compiled at start
    if precision == "bfloat16":
        result["bf16"] = {"enabled": True}
        if plan.accumulation > 1 and zero["stage"] > 0:
            result["data_types"] = {"grad_accum_dtype": "fp32"}
        elif plan.accumulation > 1:
            logger.warning(
                "ZeRO stage 0 sums the gradients of %d micro-batches in bfloat16; stages 1 to 3 in float32",
                plan.accumulation,
            )
    return result
