"""DALI's decoding of single files on the CPU, to compare it with Pillow's."""

from __future__ import annotations

import numpy as np
from nvidia.dali import Pipeline, fn, types


def failure(error: RuntimeError) -> str:
    """Return what a DALI pipeline met, in one line without its traceback."""
    lines = [line.strip() for line in str(error).rpartition("encountered:")[2].splitlines() if line.strip()]
    lines = [line for line in lines if "no longer valid" not in line]
    return f"DALI: {lines[0].rstrip(' :')}" if lines else "DALI: unknown failure"


class DaliDecoder:
    """Decodes one file after another; a failure costs a new pipeline."""

    def __init__(self) -> None:
        """Prepare; the pipeline is built with the first file."""
        self._pipeline: Pipeline | None = None
        self._content = np.zeros(0, dtype=np.uint8)

    def decode(self, content: bytes) -> np.ndarray:
        """Return the pixels, uint8 [H, W, 3].

        Raises:
            RuntimeError: DALI cannot decode the file.
        """
        if not content:
            raise RuntimeError("empty file")  # DALI waits for a batch that is not empty
        self._content = np.frombuffer(content, dtype=np.uint8)
        if self._pipeline is None:
            self._pipeline = self._build()
        try:
            (images,) = self._pipeline.run()
            return np.array(images[0])
        except RuntimeError:
            self._pipeline = None  # a DALI pipeline cannot be used after an error
            raise

    def _build(self) -> Pipeline:
        pipeline = Pipeline(1, 1, None, exec_pipelined=False, exec_async=False, exec_dynamic=False, prefetch_queue_depth=1)
        with pipeline:
            encoded = fn.external_source(lambda: [self._content], batch=True, dtype=types.UINT8, ndim=1)
            decoding = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
            pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", **decoding))
        pipeline.build()
        return pipeline
