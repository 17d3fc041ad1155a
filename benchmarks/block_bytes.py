"""Bytes and kernels of compiled blocks, counted by the compiler's scheduler. No GPU and no compiler are needed.

    python -m benchmarks.block_bytes --config configs/in1k_vith14.yaml --images 128

Inductor lowers and fuses each graph of a block for this machine's processor; nothing is generated or compiled. A kernel's bytes
are those of the buffers that it reads and writes. Products are matrix products and attention, which no fusion removes.
Bytes are linear in the number of tokens, so two small sizes give those of any batch.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._inductor import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from ijepa_ds.config import load
from ijepa_ds.config.sizes import Size, size_of
from ijepa_ds.model.blocks import make_blocks
from ijepa_ds.model.work import drawn_tokens

FEW = 2, 4  # sequences
LENGTH = 16  # tokens of each


def main() -> None:
    """Count and print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--residual", choices=("float32", "bfloat16"), default="float32", help="type of the residual stream")
    parser.add_argument("--images", type=int, default=128, help="images of a micro-batch (128)")
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
    print("| blocks | pass | kernels a block: products, others | GB a step: products, others |\n|---|---|---|---|")
    for name, shape, count, trained in rows:
        for direction, found in of_block(shape, count, trained, residual).items():
            kernels = f"{found['products', 'kernels']:.0f}, {found['others', 'kernels']:.0f}"
            bytes_ = ", ".join(f"{shape.depth * found[kind, 'bytes'] / 1e9:.1f}" for kind in ("products", "others"))
            print(f"| {shape.depth} of {name} | {direction} | {kernels} | {bytes_} |")


def of_block(
    size: Size, tokens: float, trained: bool, residual: torch.dtype = torch.float32
) -> dict[str, dict[tuple[str, str], float]]:
    """Kernels and bytes of one bfloat16 block on `tokens` tokens: by pass, then by (kind, what)."""
    few, more = (_count(size, number, trained, residual) for number in FEW)
    scale = (tokens - FEW[0] * LENGTH) / (FEW[1] * LENGTH - FEW[0] * LENGTH)
    return {
        direction: {key: value + scale * (more[direction][key] - value) for key, value in found.items()}
        for direction, found in few.items()
    }


def _count(size: Size, sequences: int, trained: bool, residual: torch.dtype) -> dict[str, dict[tuple[str, str], float]]:
    torch._dynamo.reset()
    (block,) = make_blocks(Size(**{**vars(size), "depth": 1}))
    block = block.to(torch.bfloat16).requires_grad_(trained)
    graphs: list[dict[tuple[str, str], float]] = []
    compiled = torch.compile(block, backend=_counting(graphs), dynamic=False)
    x = torch.randn(sequences, LENGTH, size.width, dtype=residual, requires_grad=trained)
    with torch.set_grad_enabled(trained):
        y = compiled(x)
        if trained:
            y.sum().backward()
    return dict(zip(("forward", "backward"), graphs, strict=False))


def _counting(graphs: list[dict[tuple[str, str], float]]) -> Callable[..., Any]:
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


def _lowered(module: torch.fx.GraphModule, inputs: Any, inference: bool) -> dict[tuple[str, str], float]:
    """Kernels and bytes of a graph."""
    graph = GraphLowering(module, example_inputs=inputs, shape_env=V.fake_mode.shape_env, is_inference=inference)
    found = dict.fromkeys([(kind, what) for kind in ("products", "others") for what in ("kernels", "bytes")], 0.0)
    with V.set_graph_handler(graph):
        graph.run(*inputs)
        graph._update_scheduler()
        for node in graph.scheduler.nodes:
            kind = "products" if node.is_extern() else "others"
            found[kind, "kernels"] += 1
            found[kind, "bytes"] += node.get_read_write_buffers_sizes()
    return found


if __name__ == "__main__":
    main()
