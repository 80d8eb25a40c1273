"""Export of the full-size U-Net alone, in fp16: what `parure export` does for this one component."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from parure.manifest import Precision
from parure_export.checkpoint import load_module
from parure_export.graphs import write_graph
from parure_export.model import TryOnUNet
from parure_export.model.geometry import SD15
from parure_export.onnx_export import Call

TOKENS = 257


def main(checkpoint: Path, out: Path) -> None:
    module = TryOnUNet(load_module(checkpoint, "unet"), SD15.mask_head_layers)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn((1, *shape), generator=generator)

    side, length = SD15.latent_size, module.layout.length
    inputs = (
        draw(4, side, side), draw(4, side, side), torch.rand((1, 1, side, side), generator=generator),
        torch.tensor([500.0]), draw(TOKENS, SD15.unet["cross_attention_dim"]), draw(length), draw(length),
    )  # fmt: skip
    call = Call(inputs, torch.zeros(1, 4, side, side))  # of the output, only the shape is needed here
    out.mkdir(parents=True)
    modules = [module]
    del module
    graph = write_graph("unet", modules.pop(), [call], out, Precision.FP16, 1)
    print(f"{graph.component.parameters / 1e6:.0f} M parameters, {len(graph.kept)} nodes in fp32")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
