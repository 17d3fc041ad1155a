"""Bytes and kernels of compiled blocks and of the loss, counted by the compiler's scheduler. No GPU, no compiler are needed.

    python -m benchmarks.block_bytes --config configs/in1k_vith14.yaml --images 128 [--kernels]

Inductor lowers and fuses each graph for this machine's processor; nothing is generated or compiled. A kernel's bytes
are those of the buffers that it reads and writes. Products are matrix products and attention, which no fusion removes.
Bytes are linear in the number of tokens, so two small sizes give those of any batch. The loss is also counted eagerly,
operation by operation.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._inductor import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ijepa_ds.config import Config, load
from ijepa_ds.config.sizes import Size, size_of
from ijepa_ds.model.blocks import make_blocks
from ijepa_ds.model.objective import compare
from ijepa_ds.model.work import Tokens, drawn_tokens

Counts = dict[
    tuple[str, str], float
]  # by kind and what: ("products", "bytes"); of single kernels ("others: add, mul", "bytes")

FEW = 2, 4  # sequences
LENGTH = 16  # tokens of each


def main() -> None:
    """Count and print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--residual", choices=("float32", "bfloat16"), default="float32", help="type of the residual stream")
    parser.add_argument("--images", type=int, default=128, help="images of a micro-batch (128)")
    parser.add_argument("--kernels", action="store_true", help="a row for each kind of kernel that is no product")
    args = parser.parse_args()
    cfg, residual = load(args.config), getattr(torch, args.residual)
    size, p, tokens = size_of(cfg.model), cfg.model.predictor, drawn_tokens(cfg)
    narrow = Size(p.width, p.depth, p.heads or size.heads, 4 * p.width)
    contexts = args.images * cfg.masks.num_contexts
    rows = (
        ("target", size, args.images * cfg.grid**2, False),
        ("context", size, contexts * tokens.context, True),
        ("predictor", narrow, contexts * cfg.masks.num_targets * (tokens.context + tokens.target), True),
    )
    print("| what | pass | kernels of one: products, others | GB a step: products, others |\n|---|---|---|---|")
    for name, shape, count, trained in rows:
        for direction, found in of_block(shape, count, trained, residual).items():
            _print(f"{shape.depth} blocks of {name}", direction, shape.depth, found, args.kernels)
    for way, passes in of_loss(cfg, tokens, args.images).items():
        for direction, found in passes.items():
            _print(f"loss, {way}", direction, 1, found, args.kernels)


def _print(name: str, direction: str, times: int, found: Counts, kernels: bool) -> None:
    counts = ", ".join(f"{found[kind, 'kernels']:.0f}" for kind in ("products", "others"))
    bytes_ = ", ".join(f"{times * found[kind, 'bytes'] / 1e9:.1f}" for kind in ("products", "others"))
    print(f"| {name} | {direction} | {counts} | {bytes_} |")
    single = {kind: value for (kind, what), value in found.items() if what == "bytes" and ":" in kind}
    for kind, value in sorted(single.items(), key=lambda item: -item[1]) if kernels else ():
        print(f"| {name} | {direction} | {kind} ({found[kind, 'kernels']:.0f}) | {times * value / 1e9:.2f} |")


def of_block(size: Size, tokens: float, trained: bool, residual: torch.dtype = torch.float32) -> dict[str, Counts]:
    """Kernels and bytes of one bfloat16 block on `tokens` tokens: by pass, then by (kind, what)."""

    def count(sequences: int) -> list[Counts]:
        (block,) = make_blocks(Size(**{**vars(size), "depth": 1}))
        block = block.to(torch.bfloat16).requires_grad_(trained)
        x = torch.randn(sequences, LENGTH, size.width, dtype=residual, requires_grad=trained)
        return _compiled(lambda: block(x), trained)

    few, more = map(count, FEW)
    return _extrapolated(few, more, (tokens - FEW[0] * LENGTH) / (FEW[1] * LENGTH - FEW[0] * LENGTH))


def of_loss(cfg: Config, tokens: Tokens, images: int) -> dict[str, dict[str, Counts]]:
    """Kernels and bytes of targets and loss (`objective.compare`): eager and compiled, by pass, then by (kind, what)."""
    c, m, k, width = cfg.masks.num_contexts, cfg.masks.num_targets, round(tokens.target), size_of(cfg.model).width

    def function(number: int) -> Callable[[], torch.Tensor]:
        layers = [len(cfg.targets.layers)] if cfg.targets.layers else []
        outputs = torch.randn(number, cfg.grid**2, *layers, width)
        prediction = torch.randn(number, c, m, k, cfg.targets.width(width), dtype=torch.bfloat16, requires_grad=True)
        patches = torch.randint(cfg.grid**2, (number, m, k))
        return lambda: compare(outputs, prediction, patches, cfg.targets)[0]

    scale = (images - FEW[0]) / (FEW[1] - FEW[0])
    return {
        way: _extrapolated(*(count(function(number)) for number in FEW), scale)
        for way, count in (("eager", _eager), ("compiled", lambda one: _compiled(one, True)))
    }


def _extrapolated(few: list[Counts], more: list[Counts], scale: float) -> dict[str, Counts]:
    """Counts by pass; kernels do not grow, bytes do."""
    return {
        direction: {key: one[key] + scale * (other[key] - one[key]) for key in one}
        for direction, one, other in zip(("forward", "backward"), few, more, strict=False)
    }


def _empty() -> Counts:
    return defaultdict(float, {(kind, what): 0.0 for kind in ("products", "others") for what in ("kernels", "bytes")})


class _Moved(TorchDispatchMode):
    """Counts what eager operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.found = _empty()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in str(function):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            moved = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
            for kind in ("others", f"others: {function.overloadpacket.__name__}"):
                self.found[kind, "kernels"] += 1
                self.found[kind, "bytes"] += moved
        return result


def _eager(function: Callable[[], torch.Tensor]) -> list[Counts]:
    """Counts of the forward and the backward pass of a scalar."""
    with _Moved() as forward:
        loss = function()
    with _Moved() as backward:
        loss.backward()
    return [forward.found, backward.found]


def _compiled(function: Callable[[], torch.Tensor], trained: bool) -> list[Counts]:
    """Counts of the graphs of a function: the forward pass and, with `trained`, the backward pass."""
    torch._dynamo.reset()
    graphs: list[Counts] = []
    with torch.set_grad_enabled(trained):
        result = torch.compile(function, backend=_counting(graphs), dynamic=False)()
        if trained:
            result.sum().backward()
    return graphs


def _counting(graphs: list[Counts]) -> Callable[..., Any]:
    """A backend that counts each graph and then runs it without compiling it."""

    def inner(module: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        run, inference = make_boxed_func(copy.deepcopy(module).forward), options.get("is_inference", False)
        compile_fx.view_to_reshape(module)
        with DebugContext(), V.set_fake_mode(compile_fx.fake_tensor_prop(module, inputs)):
            compile_fx.record_original_output_strides(module)
            compile_fx._recursive_post_grad_passes(module, is_inference=inference)
            graphs.append(_lowered(module, inputs, inference))
        return run

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        return compile_fx.compile_fx(module, inputs, inner_compile=inner)

    return backend


def _lowered(module: torch.fx.GraphModule, inputs: Any, inference: bool) -> Counts:
    """Kernels and bytes of a graph."""
    graph = GraphLowering(module, example_inputs=inputs, shape_env=V.fake_mode.shape_env, is_inference=inference)
    found = _empty()
    with V.set_graph_handler(graph):
        graph.run(*inputs)
        graph._update_scheduler()
        for node in graph.scheduler.nodes:
            kind = "products" if node.is_extern() else "others"
            for name in (kind, f"{kind}: {_operations(node)}") if kind == "others" else (kind,):
                found[name, "kernels"] += 1
                found[name, "bytes"] += node.get_read_write_buffers_sizes()
    return found


def _operations(node: Any) -> str:
    """Operations of a fused kernel that compute or convert, in alphabetical order."""
    origins = {origin.target for one in node.get_nodes() if one.node is not None for origin in one.node.origins}
    names = {target.overloadpacket.__name__ for target in origins if hasattr(target, "overloadpacket") and not target.is_view}
    return ", ".join(sorted(name.replace("convert_element_type", "convert") for name in names))


if __name__ == "__main__":
    main()
