"""`ijepa-ds plan`: estimate the memory, traffic and time of a run, without a GPU and without a process group."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ijepa_ds import config, machine
from ijepa_ds.arguments import add_json, add_run
from ijepa_ds.config import Config, ConfigError, deepspeed_json, published
from ijepa_ds.config.batch import capped_by
from ijepa_ds.config.schedules import Schedule, steps_per_epoch
from ijepa_ds.config.sizes import size_of
from ijepa_ds.config.yaml_tree import repeated
from ijepa_ds.durable import write_text
from ijepa_ds.model.work import Work, work_of
from ijepa_ds.plan import report, search
from ijepa_ds.plan.hardware import DEVICES, Device, device_of
from ijepa_ds.plan.host import REVISIONS
from ijepa_ds.plan.spread import Spread, spread_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_run(parser)
    parser.add_argument("--nodes", type=_positive, default=1, help="machines (default 1)")
    parser.add_argument("--gpus-per-node", type=_positive, default=1, help="devices of a machine (default 1)")
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(DEVICES)}, cpu (measured now), or a YAML file of your own")
    parser.add_argument("--images", type=_positive, help="images of the data set, for the length of a run given in epochs")
    parser.add_argument("--decode-rate", type=_rate, default=100.0, help="images a CPU core prepares in a second (default 100)")
    parser.add_argument("--write-gbps", type=_rate, default=1.0, help="10^9 bytes a second a machine writes (default 1)")
    text = "propose the best stage, micro-batch, checkpointing, hpZ, compiled or not"
    parser.add_argument("--search", action="store_true", help=text)
    text = "plan as for the code of this revision; those of the two H100 measurements show the calibration (docs/plan.md)"
    parser.add_argument("--code", choices=REVISIONS, default="now", help=text)
    add_json(parser, "also write JSON; - prints only JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="memory and step time against machines")


def run(args: argparse.Namespace) -> int:
    """Print the plan; return 1 if it, or with --search every candidate, does not fit in memory.

    Raises:
        ValueError: The configuration is invalid; the text lists all problems.
    """
    cfg, _ = published.load_any(args.config, args.overrides, expand=False)
    world = args.nodes * args.gpus_per_node
    batch = config.check(cfg, world)
    ds_config = deepspeed_json.load_deepspeed(args.deepspeed_config, cfg, batch)
    _check_modelled(ds_config, args.deepspeed_config)
    device = device_of(args.gpu, args.gpus_per_node)
    if args.gpu == "cpu" and cfg.model.precision == config.AUTO:
        cfg = config.resolve_auto(cfg, _faster_here(cfg))
    spread, work, steps = spread_of(ds_config, batch, args.nodes, args.gpus_per_node), work_of(cfg), _steps(cfg, args.images)
    plan_of = _planner(args, cfg, device, steps)
    plan = plan_of(work, spread)
    cap, assumed = capped_by(cfg, world), _assumed(args, device)
    if twice := repeated(args.overrides):
        assumed["overrides"] = "; ".join(twice)
    result, fits = report.to_dict(plan) | {"micro_batch_capped_by": cap, "assumed": assumed}, plan.fits
    lines = "\n".join(f"  {what:12} {value}" for what, value in assumed.items())
    text = f"{report.table(plan)}\n\nmicro-batch    {spread.micro_batch}, kept from being larger by {cap}\nassumed\n{lines}"
    gpus = 0 if args.gpu == "cpu" else args.gpus_per_node
    small = list(machine.small_limits(machine.shared_memory_bytes(), machine.locked_memory(), gpus))
    result["small_limits"] = [limit._asdict() for limit in small]
    text += "".join(f"\non this machine: {limit.found}; {limit.advice}" for limit in small)
    if args.search:
        found = search.search(cfg, work, spread, plan_of)
        result["search"] = [{"way": item.name, "reason": item.reason} | report.to_dict(item.plan) for item in found]
        fits = found[0].plan.fits
        text += "\n\n" + search.table(found) + "\n" + _advice(found[0], spread, args.deepspeed_config)
    if str(args.json) == "-":
        print(json.dumps(result, indent=1))
    else:
        print(text)
        if args.json:
            write_text(args.json, json.dumps(result, indent=1) + "\n")
    if args.plot:
        from ijepa_ds.plan import picture

        picture.write(args.plot, cfg, work, spread, plan_of)
    return 0 if fits else 1


# Keys of the JSON that change memory or traffic, and that no formula of the plan has, with DeepSpeed's defaults
_NOT_MODELLED: dict[str, Any] = {
    "communication_data_type": None,
    "zero_optimization.allgather_partitions": True,
    "zero_optimization.leaf_module": None,
    "zero_optimization.memory_efficient_linear": True,
    "zero_optimization.stage3_allgather_sequential": False,
    "zero_optimization.stage3_model_persistence_threshold": None,
    "zero_optimization.stage3_module_granularity_threshold": 0,
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": False,
}


def _check_modelled(ds_config: dict[str, Any], path: Path) -> None:
    """Refuse keys that the plan would ignore, unless they have their default."""
    flat = ds_config | {f"zero_optimization.{key}": value for key, value in ds_config["zero_optimization"].items()}
    wrong = [key for key, default in _NOT_MODELLED.items() if key in flat and flat[key] not in (None, default)]
    if wrong:
        text = "the plan has no formula for it, so its figures would be those of a run without it; leave it out here"
        raise ConfigError([f"{path}: {key}: {text}, and measure it (`ijepa-ds bench fit`)" for key in wrong])


def _assumed(args: argparse.Namespace, device: Device) -> dict[str, str]:
    """What the figures rest on and nobody has measured here."""
    gpu = "measured now" if args.gpu == "cpu" else "data sheet" if args.gpu in DEVICES else "as its file says"
    rates = f"{device.bfloat16_tflops:g} TFLOP/s in bfloat16, {device.memory_gbps:g} GB/s of memory"
    return {
        "device": f"{device.name} ({gpu}; --gpu): {device.memory_gib:g} GiB, {rates}",
        "links": f"{device.link_gbps:g} GB/s and {device.link_us:g} us to a device of the machine (--gpu FILE.yaml)",
        "network": f"{device.network_gbps:g} GB/s and {device.network_us:g} us a device to other machines (--gpu FILE.yaml)",
        "cores": f"each prepares {args.decode_rate:g} images/s (--decode-rate; `ijepa-ds bench data` measures it)",
        "storage": f"a machine writes {args.write_gbps:g} GB/s (--write-gbps; `ijepa-ds bench checkpoint` measures it)",
    }


def _planner(args: argparse.Namespace, cfg: Config, device: Device, steps: int | None) -> Callable[[Work, Spread], report.Plan]:
    """Plans with everything but shapes and distribution filled in: the plan, the search and the picture use the same."""

    def plan_of(work: Work, spread: Spread) -> report.Plan:
        rates = args.decode_rate, args.write_gbps
        return report.plan_of(cfg, work, spread, device, steps, *rates, code=REVISIONS[args.code])

    return plan_of


def _advice(best: search.Candidate, given: Spread, path: Path) -> str:
    """What to start; a candidate of the stage of the JSON at `path`, whose keys are `given`, has its other keys."""
    plan = best.plan
    if not plan.fits:
        return (
            "no candidate fits: use more or larger devices, a smaller model, or offload the optimizer "
            "(ds_configs/zero3_offload.json)"
        )
    own = plan.spread.stage == given.stage
    keys = str(path) if own else f"ds_configs/zero{plan.spread.stage}.json"
    if plan.spread.hpz != (given.hpz if own else 1):
        keys += f' with "zero_hpz_partition_size": {plan.spread.hpz}'
    recompute = plan.work.checkpointing
    extra = "true" if recompute != "none" else "false"
    extra += f" model.recompute={recompute}" if recompute != "none" else ""
    extra += f" model.compile={'true' if plan.work.compiled else 'false'}"
    return f"use {keys} and optimization.max_micro_batch={plan.spread.micro_batch} model.activation_checkpointing={extra}"


def _faster_here(cfg: Config) -> config.Precision:
    from ijepa_ds.model import cpu

    size = size_of(cfg.model)
    return cpu.measure_rates(size.width, size.mlp_hidden).faster


def _steps(cfg: Config, images: int | None) -> int | None:
    """Return the steps of the whole run, or None if the number of images is unknown."""
    if images:
        return Schedule.of(cfg, steps_per_epoch(images, cfg.optimization.batch_size)).total_steps
    return cfg.optimization.steps


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
