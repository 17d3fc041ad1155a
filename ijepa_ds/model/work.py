"""Shapes, tokens and parameters of a run: the input of the FLOP, memory and traffic formulas.

Shapes: B images in a micro-batch, N patches in an image, C contexts and M targets per image, Kc and Kt patches in each,
D encoder width, H its MLP's hidden width, P predictor width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size, size_of
from ijepa_ds.data.values import Values

_STEPS = 32  # steps whose masks are drawn to measure their lengths


@dataclass(frozen=True)
class Parameter:
    """One weight tensor of a training model (`model.flat`).

    Attributes:
        part: "encoder" or "predictor".
        module: Unit that ZeRO-3 gathers: a block, or a layer outside the blocks.
        numel: Number of elements.
        decay: Whether weight decay applies; optimizer groups are part x decay.
    """

    part: str
    module: str
    numel: int
    decay: bool


@dataclass(frozen=True)
class Tokens:
    """Patches in a context and in a target block: averages over steps, and maxima."""

    context: float
    target: float
    most_context: int
    most_target: int


@dataclass(frozen=True)
class Work:
    """The shapes of a run.

    Attributes:
        size: Shape of the encoder.
        predictor: Shape of the predictor.
        patch_size: Pixels along a side of a patch.
        patches: N.
        contexts: C.
        targets: M.
        tokens: Kc and Kt.
        checkpointing: none, selective or full (`blocks.run_blocks`).
        weight_bytes: Bytes of a weight, a matrix product's input, and a gradient: 2 or 4.
        compiled: Whether the blocks go through `torch.compile`.
        residual_bytes: Bytes of a value of the residual stream; 4 unless blocks are compiled: eager norms make float32 copies.
        hidden_targets: K, blocks whose outputs are targets; 0: the encoder's output is.
        target_depth: Blocks that the target encoder runs; None: all.
        outputs: T, values of a prediction; None: D.
        predicts_context: Whether the context's own patches are predicted too.
        pixel_bytes: Bytes of a pixel as the loader returns it.
        projection: Width of the projector of contexts; 0: none.
    """

    size: Size
    predictor: Size
    patch_size: int
    patches: int
    contexts: int
    targets: int
    tokens: Tokens
    checkpointing: str
    weight_bytes: int
    compiled: bool = False
    residual_bytes: int = 4
    hidden_targets: int = 0
    target_depth: int | None = None
    outputs: int | None = None
    predicts_context: bool = False
    pixel_bytes: int = 3
    projection: int = 0

    @property
    def target_size(self) -> Size:
        """Shape of the part of the target encoder that runs in training."""
        return self.size if self.target_depth is None else replace(self.size, depth=self.target_depth)

    @property
    def prediction_width(self) -> int:
        """T."""
        return self.outputs or self.size.width

    def runs_in_target(self, parameter: Parameter) -> bool:
        """Whether the target encoder's copy of a parameter is used in training."""
        if parameter.part != "encoder" or not self.hidden_targets:
            return parameter.part == "encoder"
        name, _, number = parameter.module.partition(".")
        return int(number) < self.target_size.depth if name == "blocks" else name != "norm"

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """All trainable tensors, in module order; a block has two."""
        return (*_encoder(self), *_predictor(self))

    def count(self, part: str | None = None) -> int:
        """Return the number of trainable parameters of a part, or of both."""
        return sum(p.numel for p in self.parameters if part in (None, p.part))

    @property
    def blocks(self) -> int:
        """Blocks with gradients: of the context encoder and the predictor."""
        return self.size.depth + self.predictor.depth

    def tensors(self, a_block: int | None = None) -> int:
        """Return the number of trained tensors, each with a gradient of its own.

        Args:
            a_block: Tensors of one block; None: as many as the current code has.
        """
        outside = sum("blocks." not in p.module for p in self.parameters)
        return len(self.parameters) if a_block is None else outside + a_block * self.blocks


def work_of(cfg: Config, tokens: Tokens | None = None) -> Work:
    """Return the shapes of a configuration.

    Args:
        cfg: The run.
        tokens: Patches of contexts and targets; None: those of the run's first masks (`drawn_tokens`).
    """
    size, model = size_of(cfg.model), cfg.model
    checkpointing = model.recompute if model.activation_checkpointing else "none"
    p = model.predictor
    # auto: compiled blocks, as on a GPU (`compiling.is_compiled`)
    compiled = checkpointing != "selective" if model.compile is None else model.compile
    return Work(
        size=size,
        predictor=Size(p.width, p.depth, p.heads or size.heads, 4 * p.width),
        patch_size=model.patch_size,
        patches=cfg.grid**2,
        contexts=cfg.masks.num_contexts,
        targets=cfg.masks.num_targets,
        tokens=tokens or drawn_tokens(cfg),
        checkpointing=checkpointing,
        weight_bytes=4 if model.precision == "float32" else 2,  # auto: bfloat16, as on a GPU
        compiled=compiled,
        residual_bytes=2 if model.residual == "bfloat16" and compiled else 4,
        hidden_targets=len(cfg.targets.layers or ()),
        target_depth=cfg.targets.depth(size.depth),
        outputs=cfg.targets.width(size.width),
        predicts_context=cfg.objective.context_weight > 0,
        pixel_bytes=Values.of(cfg.data).num_bytes,
        projection=cfg.objective.projection if cfg.objective.spreads else 0,
    )


@lru_cache(maxsize=16)
def drawn_tokens(cfg: Config) -> Tokens:
    """Return the mask lengths of a run's first steps, drawn by its own sampler."""
    from ijepa_ds.masks.sampler import SAMPLERS

    planner = SAMPLERS[cfg.masks.sampler](cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
    count = min(cfg.optimization.batch_size, cfg.masks.truncation_group)
    plans = [planner.plan(step, 0, count) for step in range(_STEPS)]
    contexts = [plan.context_length for plan in plans]
    targets = [plan.target_size[0] * plan.target_size[1] for plan in plans]
    return Tokens(sum(contexts) / _STEPS, sum(targets) / _STEPS, max(contexts), max(targets))


def _linear(part: str, module: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Parameter]:
    yield Parameter(part, module, inputs * outputs, True)
    if bias:
        yield Parameter(part, module, outputs, False)


def _vectors(part: str, module: str, *numels: int) -> Iterator[Parameter]:
    yield from (Parameter(part, module, numel, False) for numel in numels)


def _block(part: str, module: str, size: Size) -> Iterator[Parameter]:
    published = list(_published(part, module, size))
    for decay in (True, False):
        yield Parameter(part, module, sum(p.numel for p in published if p.decay == decay), decay)


def _published(part: str, module: str, size: Size) -> Iterator[Parameter]:
    """The published parameters of a block."""
    d, h = size.width, size.mlp_hidden
    if size.qk_norm:
        yield from _vectors(part, module, *[d // size.heads] * 4)
    if size.parallel:
        yield from _vectors(part, module, d, d)
        yield from _linear(part, module, d, 3 * d + h, size.qkv_bias)
        if not size.qkv_bias:
            yield from _vectors(part, module, h)
    else:
        yield from _vectors(part, module, d, d, d, d)
        yield from _linear(part, module, d, 3 * d, size.qkv_bias)
        for _ in range(2 if size.swiglu else 1):
            yield from _linear(part, module, d, h)
    yield from _linear(part, module, d, d)
    yield from _linear(part, module, h, d)
    if size.layer_scale:
        yield from _vectors(part, module, *[d] * (1 if size.parallel else 2))


def _encoder(work: Work) -> Iterator[Parameter]:
    d = work.size.width
    if work.size.registers:
        yield Parameter("encoder", "reg_token", work.size.registers * d, True)
    yield from _linear("encoder", "patch_embed", work.size.channels * work.patch_size**2, d)
    for i in range(work.size.depth):
        yield from _block("encoder", f"blocks.{i}", work.size)
    yield from _vectors("encoder", "norm", d, d)


def _predictor(work: Work) -> Iterator[Parameter]:
    d, p = work.size.width, work.predictor.width
    yield Parameter("predictor", "mask_token", p, True)
    yield from _linear("predictor", "predictor_embed", d, p)
    for i in range(work.predictor.depth):
        yield from _block("predictor", f"predictor_blocks.{i}", work.predictor)
    yield from _vectors("predictor", "predictor_norm", p, p)
    yield from _linear("predictor", "predictor_proj", p, work.prediction_width)
    if work.projection:
        yield from _linear("predictor", "projector.0", d, work.projection)
        yield from _linear("predictor", "projector.2", work.projection, work.projection, bias=False)
