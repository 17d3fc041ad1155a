"""Weights in every format, small, made without the code under test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ijepa_ds import config
from ijepa_ds.checkpoint.folder import checksum, folder_name
from ijepa_ds.config import Config
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.model.vit import initialise, sincos_position_embedding

DATA = Path(__file__).parent / "recorded"


def images(size: int) -> torch.Tensor:
    """Two normal random images."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def random_timm_model(name: str, **arguments: object) -> torch.nn.Module:
    """A timm model of random weights, with I-JEPA's positions."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    model.pos_embed.data.copy_(sincos_position_embedding(model.embed_dim, model.patch_embed.grid_size[0]))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def hugging_face_model(**arguments: object) -> torch.nn.Module:
    """The same of transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    settings |= {"image_size": 48, "patch_size": 8, "layer_norm_eps": 1e-6}
    model = transformers.IJepaModel(transformers.IJepaConfig(**(settings | arguments))).eval()
    table = model.embeddings.position_embeddings
    table.data.copy_(sincos_position_embedding(table.shape[2], round(table.shape[1] ** 0.5)))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def oracle_tensors() -> dict[str, dict[str, Tensor]]:
    """The weights of the recorded published run with two contexts: {encoder, predictor, target_encoder} by name."""
    tensors, parts = load_file(DATA / "oracle-two-contexts.safetensors"), {}
    for part in ("encoder", "predictor", "target_encoder"):
        prefix = f"final/{part}/"
        parts[part] = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    return parts


def write_published(path: Path, parts: dict[str, dict[str, Tensor]] | None = None) -> Path:
    """A file as the published code writes it."""
    state: dict = {
        part: {"module." + name: value for name, value in tensors.items()}
        for part, tensors in (parts or oracle_tensors()).items()
    }
    state |= {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 3, "loss": 0.45, "batch_size": 3, "lr": 1e-3}
    torch.save(state | {"world_size": 1}, path)
    return path


def small_config(folder: Path) -> Config:
    """A run of a few thousand parameters, 6 x 6 patches."""
    text = f"""
run: {{dir: {folder}, seed: 3}}
data: {{source: {folder}/images, crop_size: 48, mean: [0.4, 0.5, 0.6], std: [0.2, 0.25, 0.3]}}
model:
  {{name: tiny, width: 48, depth: 2, heads: 3, patch_size: 8, precision: float32, predictor: {{depth: 2, width: 24, heads: 2}}}}
masks: {{min_keep: 1, sampler: unbiased}}
optimization: {{batch_size: 8, steps: 20, warmup_steps: 2}}
"""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "written.yaml").write_text(text)
    return config.load(folder.parent / "written.yaml", [])


def write_run(folder: Path, cfg: Config | None = None, step: int = 20, ranks: int = 2) -> IJEPA:
    """A run directory with one checkpoint, as `ranks` ranks under ZeRO write it; the networks that are in it."""
    cfg = cfg or small_config(folder)
    model = build(cfg)
    for seed, part in enumerate((model.encoder, model.predictor, model.target_encoder)):
        initialise(part, seed + step)
        for parameter in part.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    values = {f"master/{n}": p.detach().flatten() for n, p in model.named_parameters() if not n.startswith("target_")}
    values |= {f"ema/encoder.{n}": p.detach().flatten() for n, p in model.target_encoder.named_parameters()}
    values |= {f"exp_avg/{n.removeprefix('master/')}": v * 0 for n, v in values.items() if n.startswith("master/")}
    checkpoint = folder / "checkpoints" / folder_name(step)
    checkpoint.mkdir(parents=True)
    config.save_resolved(cfg, folder / "config.yaml")
    files = []
    for rank in range(ranks):
        cuts = {k: (v.numel() * rank // ranks, v.numel() * (rank + 1) // ranks) for k, v in values.items()}
        shard = {k: values[k][a:b].clone() for k, (a, b) in cuts.items() if b > a}
        path = checkpoint / f"shard_{rank:05d}_of_{ranks:05d}.safetensors"
        save_file(shard, path, metadata={"starts": json.dumps({k: cuts[k][0] for k in shard})})
        files.append({"file": path.name, "bytes": path.stat().st_size, "sha256": checksum(path)})
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "step": step, "adam_step": step, "files": files}))
    return model.eval()
