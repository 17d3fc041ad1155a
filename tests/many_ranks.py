"""What the control plane costs a rank, over the number of ranks: real runs, counted, with fitted exponents.

    OMP_NUM_THREADS=1 python -m tests.many_ranks --ranks 4 8 16 32

For each number of ranks, a run of a tiny model starts from tar shards, trains, saves, evaluates, meets unreadable images, and
a second command resumes it. Every rank counts opens and stats of files, messages and bytes that it writes (sockets and files),
and requests to rank 0's store, by part (`tests/dist/many_rank.py`). The table shows rank 0 and the largest of the other ranks,
the exponent p of a fit cost = a * ranks**p, and the costs at 512 and 4,096 ranks by a + b * f with f = log2(ranks), ranks or
ranks**2. Exit code 1 if a cost of the other ranks grows faster than log N, unless `KNOWN` names it, which docs/scaling.md
explains.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.dist.launched import REPOSITORY, TINY, finished
from tests.dist.many_rank import COSTS

SHARDS, A_SHARD, BATCH, STEPS = 64, 4, 32, 4
BROKEN = (5, 77)  # images whose pixels are damaged: found while training
LARGE = (512, 4096)
RESUMED = ", resumed"
# costs of ranks other than 0 that may grow faster than log N: part: cost -> reason (docs/scaling.md)
KNOWN = {
    "DeepSpeed's engine: messages": "DeepSpeed's collectives, on CPUs by gloo's rings",
    "DeepSpeed's engine: bytes": "DeepSpeed's collectives, on CPUs by gloo's rings",
    "evaluation: messages": "the weights' collectives, on CPUs by gloo's rings",
    "evaluation: bytes": "the weights' collectives, on CPUs by gloo's rings",
    "first group: messages": "gloo's rendezvous",
    "first group: bytes": "gloo's rendezvous",
    "find a checkpoint: bytes": "the manifest has an entry for every file",
}
SLACK = {"opens": 1, "stats": 1, "messages": 4, "bytes": 1000, "requests": 4, "request bytes": 200}


def prepare(place: Path) -> None:
    """Shards with two damaged images, images of evaluations, and the configuration."""
    for shard in range(SHARDS):
        (place / "shards").mkdir(exist_ok=True, parents=True)
        with tarfile.open(place / "shards" / f"{shard:03d}.tar", "w") as tar:
            for number in range(A_SHARD * shard, A_SHARD * (shard + 1)):
                content = _picture(number, broken=number in BROKEN)
                info = tarfile.TarInfo(f"{number:04d}.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for part, count in (("votes", 40), ("scored", 20)):
        for number in range(count):
            folder = place / part / ("ant", "bee")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(_picture(1000 + number))
    (place / "run.yaml").write_text("run: {dir: out}\noptimization: {batch_size: 8, steps: 6, warmup_steps: 1}\n")
    for stage in (2, 3):
        shutil.copy(REPOSITORY / "ds_configs" / f"zero{stage}.json", place)


def _picture(number: int, broken: bool = False) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    content = file.getvalue()
    return content[:200] + bytes(400) + content[600:] if broken else content


def measure(ranks: int, stage: int) -> dict[str, dict[str, list[float]]]:
    """Part -> cost -> of each rank, of one call."""
    place = Path(tempfile.mkdtemp(prefix=f"ranks-{ranks}-"))
    prepare(place)
    arguments = ["--config", "run.yaml", "--deepspeed_config", f"zero{stage}.json", *TINY, f"optimization.steps={STEPS}"]
    arguments += ["data.source=shards/*.tar", f"optimization.batch_size={BATCH}", "data.threads=1", "run.checkpoint_every=2"]
    arguments += ["eval.every=2", "eval.train=votes", "eval.test=scored", "eval.k=3", "eval.max_train=16", "run.keep_last=2"]
    parts: dict[str, dict[str, list[float]]] = {}
    for suffix in ("", RESUMED):
        counts = place / "counts"
        counts.mkdir()
        done = finished(place, arguments, ranks, timeout=1200, program="tests.dist.many_rank")
        if done.returncode:
            raise SystemExit(f"{ranks} ranks failed, in {place}:\n{done.stdout}\n{done.stderr}")
        for rank in range(ranks):
            read = json.loads((counts / f"counts-{rank}.json").read_text())
            for part, found in read["parts"].items():
                for cost in COSTS:
                    row = parts.setdefault(part + suffix, {}).setdefault(cost, [0.0] * ranks)
                    row[rank] = found.get(cost, 0) / max(1, read["calls"].get(part, 1))
        shutil.rmtree(counts)
        shutil.rmtree(place / "out" / "checkpoints" / f"step_{STEPS:08d}")  # the second command continues from the first half
        for name in ("last_checkpoint.json", "completed.json"):
            (place / "out" / name).unlink()
    shutil.rmtree(place)
    return parts


def exponent(ranks: list[int], costs: list[float]) -> float:
    """p of costs = a * ranks**p, by least squares of logarithms; costs of 0 count as a tenth."""
    return float(np.polyfit(np.log(ranks), np.log(np.maximum(costs, 0.1)), 1)[0])


def extrapolate(ranks: list[int], costs: list[float], large: int) -> float:
    """The cost at a larger number of ranks: a + b * f(N) with f = log2(N) or N, whichever fits better; N**2 above p = 1.4."""
    laws = []
    for law in (np.square,) if exponent(ranks, costs) > 1.4 else (np.log2, np.asarray):
        (b, a), residual, *_ = np.polyfit(law(np.array(ranks)), costs, 1, full=True)
        laws.append((float(residual.sum()), max(0.0, float(a + b * law(np.array(large))))))
    return min(laws)[1]


def grows_too_fast(ranks: list[int], costs: list[float], slack: float) -> bool:
    """Whether costs grow faster than log N: the last doubling of N adds more than those before it, by half and `slack`."""
    steps = [(b - a) / math.log2(n / m) for a, b, m, n in zip(costs, costs[1:], ranks, ranks[1:], strict=False)]
    return steps[-1] > 1.5 * max(0.0, *steps[:-1]) + slack


def table(ranks: list[int], found: list[dict[str, dict[str, list[float]]]], stage: int) -> list[str]:
    """Print the costs; the parts of ranks other than 0 that grow faster than log N, with their costs."""
    fast = []
    print(f"\nZeRO-{stage}: cost of one call, rank 0 and the largest of the other ranks\n")
    heads = " | ".join(f"N={n}: 0 | others" for n in ranks)
    large = " | ".join(f"{who} at {n:,}" for who in ("0", "others") for n in LARGE)
    print(f"| part | cost | {heads} | p: 0 | others | {large} |")
    print("|---" * (8 + 2 * len(ranks)) + "|")
    for part in found[0]:
        for cost in COSTS:
            first = [run[part][cost][0] for run in found]
            others = [max(run[part][cost][1:]) for run in found]
            if max(*first, *others) == 0:
                continue
            cells = [f"{a:.0f} | {b:.0f}" for a, b in zip(first, others, strict=True)]
            cells += [f"{exponent(ranks, first):.2f}", f"{exponent(ranks, others):.2f}"]
            cells += [f"{extrapolate(ranks, costs, n):,.0f}" for costs in (first, others) for n in LARGE]
            print(f"| {part} | {cost} | {' | '.join(cells)} |")
            if grows_too_fast(ranks, others, SLACK[cost]):
                fast.append(f"{part}: {cost}")
    return fast


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--stage", type=int, choices=(2, 3), default=3)
    args = parser.parse_args()
    if len(args.ranks) < 3:
        parser.error("--ranks: a growth needs at least three numbers")
    found = []
    for ranks in args.ranks:
        began = time.monotonic()
        found.append(measure(ranks, args.stage))
        print(f"{ranks} ranks: {time.monotonic() - began:.0f} s", flush=True)
    reasons = {name: KNOWN.get(name.replace(RESUMED, "")) for name in table(args.ranks, found, args.stage)}
    for name, reason in reasons.items():
        print(f"grows faster than log N: {name} ({reason or 'NOT KNOWN'})")
    print("PASSED" if all(reasons.values()) else "FAILED")
    return 0 if all(reasons.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
