"""Everything that needs a GPU, in one command of at most nine minutes, in order of worth.

    python -m benchmarks.gpu_session --out results --images /path/to/jpegs --wheels /path/to/wheels

Each part is a process with a time limit of its own. Its result is one line of `results.jsonl`, written when it ends, and its
output is in `PART.log`. Then a table and a list of what is out of bounds are printed. Exit code: 0 if every part ran within
its bounds, 1 if not, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.wheels import install

ROOT = Path(__file__).parents[1]
RUN = ["--config", str(ROOT / "configs/in1k_vith14.yaml")]
# Shapes with which the command is tested on a CPU.
TINY = (
    "model.name=tiny model.width=48 model.depth=2 model.heads=3 model.patch_size=8 model.precision=float32 model.compile=false "
    "model.predictor.depth=1 model.predictor.width=24 model.predictor.heads=3 data.crop_size=48 masks.sampler=unbiased "
    "optimization.epochs=null optimization.steps=1000 optimization.warmup_epochs=null "
    "optimization.warmup_steps=2 data.threads=1"
).split()
TESTS = "tests/dist/test_gpu.py tests/data/test_loader.py tests/data/test_augment.py tests/masks/test_sampler.py".split()


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: In tables, files and `--only`.
        command: Arguments of Python.
        limit: Seconds.
        missing: Why it cannot run here; empty if it can.
        settings: Written beside its result.
    """

    name: str
    command: list[str]
    limit: int
    missing: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def parts(args: argparse.Namespace, gpus: int) -> list[Part]:
    """All parts, in order of worth."""
    small = TINY if args.tiny else []
    sizes = (2, 4) if args.tiny else (128, 256)
    images = "" if args.images else "--images names no folder of JPEGs"

    def run(number: int) -> list[str]:
        source = f"data.source={args.images or 'unused'}"
        group = f"masks.truncation_group={min(number, 128)}"
        return [*small, source, f"run.dir={args.out / 'run'}", f"optimization.batch_size={number}", group, "eval.every=0"]

    def step(stage: int, compiled: bool, number: int, limit: int, narrow: bool = False) -> Part:
        name = f"{'narrow' if narrow else 'step'}-{stage}-{'compiled' if compiled else 'eager'}-{number}"
        types = ["model.residual=bfloat16", "model.precision=bfloat16"] if narrow else []
        ways = [*run(number), *([] if args.tiny else [f"model.compile={str(compiled).lower()}"]), *types]
        settings = {"stage": stage, "compiled": compiled and not args.tiny, "images": number}
        return Part(name, [*bench("step", name, stage), *ways], limit, settings=settings)

    def bench(verb: str, name: str, stage: int, ranks: int = 1) -> list[str]:
        files = [
            *RUN,
            "--deepspeed_config",
            str(ROOT / f"ds_configs/zero{stage}.json"),
            "--json",
            str(args.out / f"{name}.json"),
        ]
        return ["-m", "ijepa_ds.cli", "bench", verb, *files, "--ranks", str(ranks), "--steps", str(args.steps)]

    def own(name: str, limit: int) -> Part:
        files = [*RUN, "--json", str(args.out / f"{name}.json"), "--steps", str(args.steps)]
        return Part(name, ["-m", "benchmarks.gpu_parts", name, *files, *run(sizes[0])], limit, settings={"images": sizes[0]})

    def pytest(name: str, files: list[str], limit: int) -> Part:
        command = ["-m", "pytest", "-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", *files]
        return Part(name, command, limit, "" if gpus else "no GPU")

    few, many = sizes
    decode = ["-m", "ijepa_ds.cli", "bench", "data", str(args.images), "--decoder", "mixed", "--device", "cuda"]
    nccl = [*bench("comm", "nccl", 2, max(gpus, 1)), *run(few * max(gpus, 1))]
    shape = ["--batch-size", str(few), "--batches", "10", "--repeats", "2"]
    return [
        step(2, True, few, 130),
        pytest("tests-first", TESTS[:1], 150),
        step(3, True, few, 100),
        own("plain", 60),
        step(2, False, few, 60),
        step(2, True, many, 80),
        step(2, True, few, 60, narrow=True),
        Part("train", [*bench("train", "train", 2), *run(few)], 90, images, {"stage": 2, "images": few}),
        step(1, True, few, 70),
        step(3, False, few, 60),
        step(3, True, many, 80),
        Part("decode", [*decode, *shape], 60, images or ("" if gpus else "no GPU")),
        own("graph", 60),
        Part("nccl", nccl, 60, "" if gpus > 1 else f"{gpus} GPUs"),
        step(1, False, few, 60),
        step(2, False, many, 60),
        pytest("tests-rest", TESTS[1:], 60),
    ]


def run_part(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run one part for at most `seconds`; its result, with what its records say."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (out / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            state = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            state = f"stopped after {seconds:.0f} s"
        finally:
            _end(process)
    found = {"part": part.name, "state": state, "seconds": round(time.monotonic() - began, 1)} | part.settings
    path = out / f"{part.name}.json"
    return found | (figures(json.loads(path.read_text())) if state == "ok" and path.exists() else {})


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and the ranks that it started: all of its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


NAMES = {
    "in_a_row": "step",
    "images": "images_per_second",
    "mfu": "mfu",
    "matmul_share": "matmul_share",
    "peak_memory": "peak_memory",
    "data_wait": "data_wait",
    "pass": "target_pass",
    "graph": "target_graph",
}


def figures(written: Any) -> dict[str, float]:
    """The figures of a benchmark's JSON that the table shows."""
    found = {}
    for one in written["records"]:
        name = NAMES.get(one["what"].rpartition(".")[2])
        if name:
            found[name] = one["share"] if name == "data_wait" else one["median"]
    return found


def out_of_bounds(results: list[dict[str, Any]]) -> Iterator[str]:
    """What misses the goals for ViT-H/14 on one GPU (docs/performance.md)."""
    by_name = {one["part"]: one for one in results if one["state"] == "ok"}
    two, three = by_name.get("step-2-compiled-128", {}), by_name.get("step-3-compiled-128", {})
    many, train, plain = (by_name.get(name, {}) for name in ("step-2-compiled-256", "train", "plain"))
    for row, least in ((two, 0.50), (many, 0.55)):
        if row.get("matmul_share", 1.0) < least:
            yield f"{row['part']}: {row['matmul_share']:.1%} of the measured product, goal {least:.0%}"
    if two.get("step") and three.get("step", 0) > 1.1 * two["step"]:
        yield f"step-3-compiled-128: {three['step'] / two['step']:.2f} x the time of stage 2, goal 1.10"
    if train.get("data_wait", 0.0) >= 0.02:
        yield f"train: waits for images {train['data_wait']:.1%} of the time, goal 2 %"
    if two and plain and two["images_per_second"] < 1.7 * plain["images_per_second"]:
        yield f"step-2-compiled-128: {two['images_per_second'] / plain['images_per_second']:.2f} x plain's images/s, goal 1.7"


def table(results: list[dict[str, Any]]) -> str:
    """One line a part."""
    columns = {"step": 1e3, "images_per_second": 1, "mfu": 100, "matmul_share": 100, "peak_memory": 2**-30, "data_wait": 100}
    titles = ("step ms", "images/s", "MFU %", "product %", "GiB", "wait %")
    lines = [f"{'part':22}{'s':>7}{''.join(f'{title:>11}' for title in titles)}  state"]
    for one in results:
        values = "".join(f"{one[name] * factor:11.1f}" if name in one else f"{'':11}" for name, factor in columns.items())
        extra = ", ".join(f"{name} {1e3 * one[name]:.2f} ms" for name in ("target_pass", "target_graph") if name in one)
        lines.append(f"{one['part']:22}{one['seconds']:7.1f}{values}  {one['state']}{'; ' if extra else ''}{extra}")
    return "\n".join(lines)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_session", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results, logs and the run")
    parser.add_argument("--images", type=Path, help="folder of JPEGs, for the run with its loader and for decoding")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, whole or split (docs/install.md)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (9)")
    parser.add_argument("--steps", type=int, default=10, help="steps of each measurement (10)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="names, or beginnings of names, of parts")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the command without a GPU")
    args = parser.parse_args(argv)
    for name in ("images", "wheels"):
        path = getattr(args, name)
        if path and not path.is_dir():
            parser.error(f"--{name} {path}: there is no such folder")
        setattr(args, name, path and path.absolute())
    args.out = args.out.absolute()
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the parts until the time is up."""
    args = arguments(argv)
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    import torch

    gpus = torch.cuda.device_count()
    chosen = [p for p in parts(args, gpus) if not args.only or p.name.startswith(tuple(args.only))]
    if not chosen:
        print(
            f"--only {' '.join(args.only)}: no such part; known: {', '.join(p.name for p in parts(args, gpus))}",
            file=sys.stderr,
        )
        return 2
    try:
        failed = install(args.wheels, args.out / "wheels") if args.wheels else ""
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results = [{"part": "wheels", "state": failed or "ok", "seconds": 0.0}] if args.wheels else []
    with (args.out / "results.jsonl").open("a") as file:
        for part in chosen:
            left = end - time.monotonic()
            if part.missing or left < 5:
                found = {"part": part.name, "state": f"skipped: {part.missing or 'no time left'}", "seconds": 0.0}
            else:
                found = run_part(part, args.out, min(part.limit * (10 if args.tiny else 1), left))  # a busy CPU is slow
            results.append(found)
            file.write(json.dumps(found) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(table(results[-1:]).splitlines()[1], flush=True)
    print(f"\n{table(results)}")
    missed = list(out_of_bounds(results)) if gpus and not args.tiny else []
    print("\n".join(["", *(f"out of bounds: {line}" for line in missed)]) if gpus else "\nno GPU: nothing is claimed about one")
    broken = any(not one["state"].startswith(("ok", "skipped")) for one in results)
    return 1 if broken or missed else 0


if __name__ == "__main__":
    sys.exit(main())
