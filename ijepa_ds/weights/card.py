"""The model card of exported weights: contents, origin and usage."""

from __future__ import annotations

from dataclasses import replace

import ijepa_ds
from ijepa_ds.config.sizes import SIZES
from ijepa_ds.weights.formats import shorter_side, shown_config, timm_model
from ijepa_ds.weights.source import Source

_LIBRARY = {"timm": "timm", "hf": "transformers"}
_WHICH = {
    "target": "The target encoder: the float32 exponential moving average of the context encoder, which the paper evaluates.",
    "context": "The context encoder, which the optimiser trains. The paper evaluates the target encoder instead.",
    "unlabelled": "One encoder; its source did not say whether it is the context or the target encoder.",
    "predictor": "The predictor alone, to inspect predictions or to continue pretraining.",
    "all": "Context encoder, target encoder (its float32 exponential moving average) and predictor: enough to continue "
    "pretraining. Use the target encoder for features.",
}

_PROCESSOR = (
    "**Prepare images with the torchvision transform under Use, not with `AutoImageProcessor`.** The processor crops one pixel "
    "beside it where the resized side minus the crop is odd (it rounds down, torchvision to the nearest), so its features "
    "differ from those of the evaluation. `preprocessor_config.json` is here for tools that require it.",
    "",
)


def model_card(source: Source, format_: str, which: str, dtype: str, file: str) -> str:
    """README.md of an export, with front matter for the Hugging Face hub.

    Args:
        source: what was exported.
        format_: timm, hf, published or safetensors.
        which: part, or all.
        dtype: of the tensors.
        file: name of the weights file.
    """
    size, side = source.size, source.grid * source.patch_size
    row = next((name for name, known in SIZES.items() if known == replace(size, channels=3)), "own size")
    grid = f"{source.grid} x {source.grid}"
    if source.position_grid != source.grid:
        grid += f" (positions learnt on {source.position_grid} x {source.position_grid}, evaluated between them)"
    facts = {
        "network": f"plain ViT, {row}: width {size.width}, depth {size.depth}, {size.heads} heads, mlp {size.mlp_hidden}",
        "input": f"{side} x {side} pixels, patches of {source.patch_size}: {grid}",
        "channels": _channels(source),
        "mean, deviation": f"{list(source.mean)}, {list(source.std)} of pixels in 0 ... 1",
        "values": f"{dtype}",
        "trained": "unknown number of steps" if source.step is None else f"{source.step:,} steps",
        "from": f"{source.kind}: `{source.path.name}`",
        "written by": f"ijepa_ds {ijepa_ds.__version__}",
    }
    if source.predictor and which in ("predictor", "all"):
        heads = source.predictor.heads or "an unknown number of"
        facts["predictor"] = f"width {source.predictor.width}, depth {source.predictor.depth}, {heads} heads"
        facts["predictor"] += f", output {source.predictor.outputs}" if source.predictor.outputs else ""
    lines = [
        "---",
        f"library_name: {_LIBRARY.get(format_, 'ijepa_ds')}",
        *(["pipeline_tag: image-feature-extraction"] if which != "predictor" else []),
        "tags:\n- ijepa\n- self-supervised\n- vision",
        "---",
        f"# I-JEPA {row}/{source.patch_size}, {which if which != 'all' else 'all networks'}",
        "",
        *(_PROCESSOR if format_ == "hf" and _is_rgb(source) else ()),
        _WHICH[which],
        "",
        "| | |\n|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        *_loading(source, format_, which, file),
        *_notes(source),
    ]
    return "\n".join(lines)


def _is_rgb(source: Source) -> bool:
    return source.size.channels == 3 and (source.config is None or source.values.plain)


def _channels(source: Source) -> str:
    """How the numbers of a file become the input, for readers who write their own transform."""
    if _is_rgb(source):
        return "red, green, blue; 8 bits, divided by 255"
    if source.config is None:
        return f"{source.size.channels}; the file does not say which"
    v = source.values
    chosen = "all of the file" if v.chosen is None else f"channels {list(v.chosen)} of the file, the first is 0"
    high = list(v.high) if v.high else [255]
    return f"{v.count}: {chosen}; (value - {list(v.low)}) / ({high} - {list(v.low)}), within 0 ... 1"


def _loading(source: Source, format_: str, which: str, file: str) -> list[str]:
    features = [
        "",
        "The feature of an image is the average of its tokens, taken after the last LayerNorm.",
        "",
    ]
    if which == "predictor":
        return []
    if format_ == "hf" and not _is_rgb(source):
        code = (
            "from transformers import IJepaModel\n\n"
            'model = IJepaModel.from_pretrained(".").eval()\n'
            "tokens = model(images).last_hidden_state  # images [B, C, S, S], normalised as in the table -> [B, N, D]"
        )
    elif format_ == "hf":
        side = source.grid * source.patch_size
        code = (
            "from torchvision import transforms as T\nfrom transformers import IJepaModel\n\n"
            f"resize, crop = T.Resize({shorter_side(side)}, T.InterpolationMode.BICUBIC), T.CenterCrop({side})\n"
            f"normalize = T.Normalize({list(source.mean)}, {list(source.std)})\n"
            "transform = T.Compose([resize, crop, T.ToTensor(), normalize])\n"
            'model = IJepaModel.from_pretrained(".").eval()\n'
            'tokens = model(transform(image.convert("RGB"))[None]).last_hidden_state  # [1, N, D]'
        )
    elif format_ == "timm":
        name, arguments = timm_model(source)
        given = "".join(f", {key}={value!r}" for key, value in arguments.items())
        code = (
            "import timm\n\n"
            f'model = timm.create_model("{name}", checkpoint_path="{file}"{given})\n'
            "tokens = model.forward_features(images)  # [B, N, D]; model(images) is their average\n"
            '# or, with the transform in its configuration: timm.create_model("local-dir:.", pretrained=True)'
        )
    elif not _is_rgb(source):
        code = (
            "import ijepa_ds\n\n"
            f'encoder, transform = ijepa_ds.load_encoder("{file}")\n'
            "tokens = encoder(transform(numbers)[None])  # numbers [H, W, C] of the file's chosen channels -> [1, N, D]"
        )
    else:
        heads = "" if format_ != "published" or source.size in SIZES.values() else f", heads={source.size.heads}"
        code = (
            "import ijepa_ds\n\n"
            f'encoder, transform = ijepa_ds.load_encoder("{file}"{heads})\n'
            "tokens = encoder(transform(image)[None])  # [1, N, D]"
        )
    return ["## Use", "", "```python", code, "```", *features]


def _notes(source: Source) -> list[str]:
    lines = []
    if source.notes:
        lines += ["## Assumed", "", *(f"- {note}" for note in source.notes), ""]
    if source.kind == "published":
        lines += ["Published I-JEPA weights are under a non-commercial licence of their authors (CC BY-NC 4.0).", ""]
    text = shown_config(source)
    if text:
        lines += ["## Configuration of the run", "", "```yaml", text.rstrip(), "```", ""]
    return lines
