"""The DeepSpeed JSON: checked strictly, then completed from the run's configuration. Does not import deepspeed."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ijepa_ds.config import deepspeed_keys as keys
from ijepa_ds.config import yaml_tree
from ijepa_ds.config.batch import BatchPlan
from ijepa_ds.config.build import suggest
from ijepa_ds.config.paths import expand_values
from ijepa_ds.config.precision import AUTO
from ijepa_ds.config.schema import Config, ConfigError, Problem

logger = logging.getLogger(__name__)

_NEVER = 10**9  # steps_per_print
_UNKNOWN = "unknown key of DeepSpeed 0.19.8"


def load_deepspeed(path: Path, cfg: Config, plan: BatchPlan) -> dict[str, Any]:
    """Read how a run is distributed over devices, and add what follows from the run itself.

    Args:
        path: JSON file with memory, communication and diagnostic keys of DeepSpeed 0.19.8.
        cfg: the run.
        plan: how its batch is cut.

    Returns:
        The complete dictionary for `deepspeed.initialize`.

    Raises:
        ConfigError: one line for each problem: `zero3.json:4: optimizer: ...`.
    """
    result = read_deepspeed(path, plan, cfg.optimization.clip_grad, cfg.model.precision)
    offload = result["zero_optimization"].get("offload_optimizer", {})
    if offload.get("device") == "nvme":  # two runs on one disk must not share files
        run = Path(cfg.run.dir).absolute()
        folder = Path(offload["nvme_path"]) / f"{run.name}-{zlib.crc32(str(run).encode()):08x}"
        result["zero_optimization"]["offload_optimizer"] = {**offload, "nvme_path": str(folder)}
    return result


def read_deepspeed(path: Path, plan: BatchPlan, clip_grad: float, precision: str) -> dict[str, Any]:
    """The same for a training that has no `Config`; a `clip_grad` of 0 does not clip, precision `auto` is left out."""
    text = yaml_tree.read_text(path)
    try:
        written = json.loads(text, parse_constant=lambda name: _refuse(f"{path}: {name} is not valid JSON; write a number"))
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}: not valid JSON: {error.msg}"]) from error
    except RecursionError:
        raise ConfigError([f"{path}: lists or objects are nested too deep"]) from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path}: holds a number of thousands of digits: write a shorter one"]) from error
    if not isinstance(written, dict):
        _refuse(f"{path}: expected an object {{...}}")
    # JSON is also YAML, except for tabs: that parser gives the lines of keys, and duplicates.
    tree, lines = yaml_tree.parse(text.replace("\t", " "), str(path))
    for problem in _problems(written, plan):
        key, place = problem.keys[0], yaml_tree.where(tree, problem.keys[0])
        lines.append(f"{place}: {key}: {problem.text}")
    made, wrong = expand_values(written, os.environ)
    lines += [f"{yaml_tree.where(tree, key)}: {key}: {text}" for key, text in wrong]
    if lines:
        raise ConfigError(lines)
    return _complete(made, plan, clip_grad, precision)


def add_precision(ds_config: dict[str, Any], precision: str) -> dict[str, Any]:
    """A copy of `ds_config` with the keys for weights in `precision`: "bfloat16" or "float32"."""
    result, accumulation = dict(ds_config), ds_config["gradient_accumulation_steps"]
    if precision == "bfloat16":
        result["bf16"] = {"enabled": True}
        if accumulation > 1 and result["zero_optimization"]["stage"] > 0:
            result["data_types"] = {"grad_accum_dtype": "fp32"}
        elif accumulation > 1:
            text = "ZeRO stage 0 sums the gradients of %d micro-batches in bfloat16; stages 1 to 3 in float32"
            logger.warning(text, accumulation)
    return result


def _refuse(line: str) -> Any:
    raise ConfigError([line])


_AUTO = '"auto" is filled in by Hugging Face\'s trainer, not here; give {} or leave it out'
_WORDS = {
    "": "a value",
    "flag": "true or false",
    "text": "a text",
    "text or null": "a text or null",
    "list": "a list",
    "object": "an object {...}",
    "number": "a number above 0",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "flag": (bool,),
    "text": (str,),
    "text or null": (str, type(None)),
    "list": (list,),
    "object": (dict,),
}


def _values(written: Mapping[str, Any], section: str = "") -> Iterator[Problem]:
    """Values of another type or range than their key takes: texts for numbers, negative sizes, "auto"."""
    for name, value in written.items():
        key = section + name
        kind = keys.KINDS.get(key, "flag" if name == "enabled" else "")
        if key in keys.OWNED or key in keys.REFUSED:
            continue  # reported as such
        if value == "auto":
            yield Problem((key,), _AUTO.format("a number" if kind[:5] == "whole" else _wanted(kind)))
        elif isinstance(value, dict):
            if kind not in ("", "object"):
                yield Problem((key,), f"expected {_wanted(kind)}, found an object")
            yield from _values(value, f"{key}.")
        elif kind and not _fits(kind, value):
            yield Problem((key,), f"expected {_wanted(kind)}, found {json.dumps(value)}")


def _wanted(kind: str) -> str:
    return _WORDS.get(kind) or (kind if kind.startswith("one of") else f"a whole number, at least {kind.partition(' ')[2]}")


def _fits(kind: str, value: Any) -> bool:
    if kind in _TYPES:
        return isinstance(value, _TYPES[kind])
    if kind.startswith("one of "):
        return value in kind.removeprefix("one of ").split(", ")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == "number":
        return 0 < value < float("inf")
    return value == value // 1 and value >= int(kind.partition(" ")[2])  # DeepSpeed takes 5e8 as a whole number


def _keys(section: str, written: Mapping[str, Any], allowed: Collection[str], refused: Mapping[str, str]) -> Iterator[Problem]:
    """Keys of one object that are refused or unknown."""
    for key in written:
        if key not in allowed:
            reason = f"cannot be used here, remove it: {refused[key]}" if key in refused else None
            yield Problem((section + key,), reason or _UNKNOWN + (suggest(key, allowed) or "; remove it"))


def _problems(written: Mapping[str, Any], plan: BatchPlan) -> Iterator[Problem]:
    for key in written:
        if key in keys.OWNED:
            yield Problem((key,), f"belongs to the YAML of the run; remove it here and use {keys.OWNED[key]}")
    yield from _keys("", written, keys.ALLOWED | keys.OWNED.keys(), keys.REFUSED)
    yield from _values(written)
    for section, inner in keys.INNER.items():
        first, _, second = section.partition(".")
        part = written.get(first)
        part = part.get(second) if second and isinstance(part, dict) else part
        if isinstance(part, dict):
            yield from _keys(f"{section}.", part, inner, {})
    name, zero = "zero_optimization", written.get("zero_optimization", {})
    if not isinstance(zero, dict):
        return  # `_values` has said so
    yield from _keys(f"{name}.", zero, keys.ZERO_ALLOWED, keys.ZERO_REFUSED)
    stage = zero.get("stage", 0)
    if stage == "auto":
        return  # `_values` has said so
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        yield Problem((f"{name}.stage",), f"must be 0, 1, 2 or 3, got {stage!r}")
        return
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        if key in zero:
            yield from _offload(key, zero[key])
            least = 3 if isinstance(zero[key], dict) and zero[key].get("device") == "nvme" else least
            if stage < least:
                text = f"needs stage {least}{' or more' if least < 3 else ''}, this is stage {stage}"
                yield Problem((f"{name}.{key}",), text)
    group = zero.get("zero_hpz_partition_size", 1)
    if group == "auto":
        return
    place = (f"{name}.zero_hpz_partition_size",)
    if isinstance(group, bool) or not isinstance(group, int) or group < 1 or plan.world_size % group:
        yield Problem(place, f"{group!r} must be a whole number that divides {plan.world_size} devices")
    elif group > 1 and stage != 3:
        yield Problem(place, f"needs stage 3, this is stage {stage}")


def _offload(block: str, written: Any) -> Iterator[Problem]:
    name = f"zero_optimization.{block}"
    if not isinstance(written, dict):
        yield Problem((name,), 'expected an object such as {"device": "cpu"}')
        return
    yield from _keys(f"{name}.", written, keys.OFFLOAD_ALLOWED[block], keys.OFFLOAD_REFUSED)
    device, path, known = written.get("device", "none"), written.get("nvme_path"), keys.OFFLOAD_DEVICES[block]
    if device != "auto" and device not in known:
        reason = keys.OFFLOAD_REFUSED["nvme_path"] if device == "nvme" else f"must be {' or '.join(known)}"
        yield Problem((f"{name}.device",), f"{device!r}: {reason}")
    if device == "nvme" and not (isinstance(path, str) and path):
        text = "name a folder on a local disk of every host; the ranks of each run store their state there"
        yield Problem((f"{name}.nvme_path",), f"{path!r}: {text}")


# Up to this number of ranks, stages 1 and 2 send one rooted reduce to every owner of a part of a bucket: the least bytes.
# With more ranks `zero.owners` reduces a bucket in two collectives, which send 1 / ranks more.
MOST_OWNERS = 9


def _complete(written: dict[str, Any], plan: BatchPlan, clip_grad: float, precision: str) -> dict[str, Any]:
    """What was written, plus batch, precision, clipping and quiet diagnostics."""
    zero = {"stage": 0, **written.get("zero_optimization", {})}
    if zero["stage"] in (1, 2):
        zero.setdefault("use_multi_rank_bucket_allreduce", plan.world_size > MOST_OWNERS)
    result = {
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # enabled by default: they synchronise the device at every step
        **written,
        "zero_optimization": zero,
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": clip_grad,  # DeepSpeed's default clips at 1
    }
    if zero.get("offload_optimizer", {}).get("device") in ("cpu", "nvme"):
        result["zero_force_ds_cpu_optimizer"] = False  # otherwise it requires its own Adam, which is compiled at start
    return result if precision == AUTO else add_precision(result, precision)
