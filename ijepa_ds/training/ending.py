"""What a finished run says last: where everything is, and the next commands."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from ijepa_ds.checkpoint.folder import find_steps, folder_name
from ijepa_ds.config import Config
from ijepa_ds.config.sizes import size_of
from ijepa_ds.errors import UserError
from ijepa_ds.telemetry import health, metrics_file


def last_words(cfg: Config, steps: int, loss: float = math.nan) -> str:
    """A few lines for the terminal.

    Args:
        cfg: the run, with its directory as it is on the disk.
        steps: done.
        loss: of the last point; NaN if this process has made none.
    """
    out = Path(cfg.run.dir)
    named = shlex.quote(str(out))
    saved = find_steps(out)
    newest = f"checkpoints/{folder_name(max(saved))}" if saved else "no checkpoint"
    files = [name for name in (metrics_file.NAME, "logs", "bad_samples.jsonl") if (out / name).exists()]
    train, test = (
        shlex.quote(source) if source else word for source, word in ((cfg.eval.train, "TRAIN"), (cfg.eval.test, "TEST"))
    )
    labels = f" --labels {shlex.quote(cfg.eval.labels)}" if cfg.eval.labels else ""
    form = "safetensors" if size_of(cfg.model).only_ours else "hf"
    shown = "" if math.isnan(loss) else f", loss {loss:.4f}"
    lines = [
        f"done: {steps:,} steps{shown}{_alarms(out)}",
        f"  run directory  {out}: config.yaml, {newest}{''.join(f', {name}' for name in files)}",
        f"  curves         tensorboard --logdir {named}",
        f"  next           ijepa-ds eval {cfg.eval.task}{labels} --checkpoint {named} --train {train} --test {test} "
        f"--baseline untrained --out {shlex.quote(str(out / 'eval'))}",
        f"                 ijepa-ds report {named} --out {shlex.quote(str(out / 'report'))}",
        f"                 ijepa-ds export --run {named} --format {form} --out {shlex.quote(str(out / 'export'))}",
    ]
    return "\n".join(lines)


def _alarms(out: Path) -> str:
    try:
        names = sorted({alarm.name for alarm in health.read_alarms(out)})
    except UserError:
        return f"; {health.FILE} is damaged"
    return f"; ALARMS: {', '.join(names)} ({health.FILE})" if names else ""
