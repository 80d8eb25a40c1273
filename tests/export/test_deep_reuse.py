"""A bundle for the reuse of deep features: one more graph, proven equal, and nothing else changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parure
from parure.bundle import Bundle
from parure.cli import main
from parure.errors import ExportError, InputError, RequestError
from parure.image import Pixels
from parure.manifest import Precision
from parure.modes import PRESETS, has_deep
from parure.onnx_executor import OnnxExecutor
from parure_export.engines.build import build_engines
from parure_export.engines.cache import EngineCache
from parure_export.engines.request import Options, Profile
from parure_export.engines.targets import Flavor, Target
from parure_export.evidence import EVIDENCE, load_evidence
from parure_export.export import export_bundle, from_checkpoint
from parure_export.model import ShallowUNet, TryOnUNet
from parure_export.model.geometry import SD15
from parure_export.parity import capture, relative_error
from parure_export.samples import sample_inputs
from parure_export.solvers import build_scheduler
from parure_export.verify import verify

pytestmark = pytest.mark.xdist_group("deep reuse")  # one worker exports the bundle


BOX = (30.0, 40.0, 70.0, 75.0)


def test_the_bundle_holds_the_outer_blocks_and_the_features_that_they_take(deep_bundle: Path) -> None:
    manifest = Bundle.open(deep_bundle).manifest
    unet, shallow = manifest.component("unet"), manifest.component("unet_shallow")
    assert has_deep(manifest) and [t.name for t in unet.outputs] == ["noise", "deep"]
    assert shallow.inputs[-1] == unet.outputs[1] and shallow.outputs == unet.outputs[:1]
    assert shallow.flops < unet.flops / 2 and shallow.parameters < unet.parameters / 2
    assert "tokens" not in {t.name for t in shallow.inputs}  # the outer blocks of this model do not attend
    (parity,) = [p for p in manifest.parity.components if p.component == "unet_shallow"]
    assert 0 < parity.max_relative_error <= 1e-4 and parity.samples >= 2


def test_on_deep_features_of_the_same_step_the_graphs_agree(deep_bundle: Path) -> None:
    evidence = load_evidence(deep_bundle / EVIDENCE)
    executor = OnnxExecutor(Bundle.open(deep_bundle), threads=1)
    inputs = {name: np.repeat(array, 3, axis=0) for name, array in evidence["unet"].inputs.items()}
    inputs["timestep"] = np.array([10.0, 400.0, 900.0], np.float32)
    whole = executor.run("unet", inputs)
    taken = {t.name: (inputs | whole)[t.name] for t in executor.manifest.component("unet_shallow").inputs}
    assert relative_error(executor.run("unet_shallow", taken)["noise"], whole["noise"]) <= 3e-4
    assert set(executor.run("unet", inputs, ("noise",))) == {"noise"}
    executor.close()


@pytest.mark.parametrize("form", ["raw", "projected"])
def test_outer_blocks_that_attend_compute_what_the_whole_does(form: str) -> None:
    """SD 1.5's blocks, thin."""
    from diffusers import UNet2DConditionModel

    thin = SD15.unet | {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 2, "cross_attention_dim": 16}
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=16, in_channels=9, out_channels=4, **thin)
    whole = TryOnUNet(unet, SD15.mask_head_layers, form, give_deep=True).eval()  # type: ignore[arg-type]
    length = whole.layout.length
    inputs = (
        torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.rand(2, 1, 16, 16), torch.tensor([7.0, 700.0]),
        torch.randn(2, 5, 16), torch.randn(2, length), torch.randn(2, length),
    )  # fmt: skip
    with torch.no_grad():
        noise, deep = whole(*inputs)
        assert relative_error(ShallowUNet(whole)(*inputs, deep).numpy(), noise.numpy()) <= 1e-5


def test_the_exact_picture_does_not_change_and_fast_ones_do(
    deep_bundle: Path, tiny_bundle: Path, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(deep_bundle, threads=1) as deep, parure.open(tiny_bundle, threads=1) as plain:
        exact, other = (t(photo, ornament, BOX, steps=6) for t in (deep, plain))
        assert relative_error(exact.latents, other.latents) <= 1e-4
        fast = deep(photo, ornament, BOX, steps=6, mode="deep=3")
        assert fast.calls["unet_shallow"] == 8 and fast.spared == {"unet": 8} and str(fast.mode) == "deep=3"
        assert 0 < relative_error(fast.latents, exact.latents) < 1
        every = [deep(photo, ornament, BOX, steps=6, mode=mode) for mode in PRESETS]
        assert all(np.isfinite(result.latents).all() for result in every)
        assert np.array_equal(every[0].latents, exact.latents) and not every[0].spared


def test_a_bundle_without_the_outer_blocks_says_what_to_do(tiny_bundle: Path, photo: Pixels, ornament: Pixels) -> None:
    with (
        parure.open(tiny_bundle, threads=1) as tryon,
        pytest.raises(RequestError, match=r"no unet_shallow; export it again with `parure export --deep-reuse`"),
    ):
        tryon(photo, ornament, BOX, mode="deep=2")


def test_verify_and_inspect_know_it(deep_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {finding.subject: finding.passed for finding in verify(deep_bundle)}
    assert found["graph unet_shallow"] and found["parity unet_shallow"] and all(found.values())
    with pytest.raises(SystemExit):
        main(["inspect", str(deep_bundle)])
    assert "can be reused" in " ".join(capsys.readouterr().out.split())


def test_fp16_keeps_deep_features_in_16_bits(
    tiny_checkpoint: Path, tmp_path: Path, photo: Pixels, ornament: Pixels
) -> None:
    manifest = export_bundle(
        tiny_checkpoint, tmp_path / "half", precision=Precision.FP16, solvers=["ddim"], deep_reuse=True
    )
    assert (
        manifest.component("unet").outputs[1].dtype == manifest.component("unet_shallow").inputs[-1].dtype == "float16"
    )
    with parure.open(tmp_path / "half", threads=1) as tryon:
        assert tryon(photo, ornament, BOX, steps=4, mode="deep=2").calls["unet_shallow"] == 4


def test_engines_are_built_of_both(deep_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(deep_bundle, tmp_path / "bundle")
    built = build_engines(
        Bundle.open(tmp_path / "bundle"), Target("a100", (8, 0)), Flavor.TENSORRT_RTX, [Profile(min=1, opt=1, max=1)],
        options=Options(), cache=EngineCache(tmp_path / "cache"), components=("unet", "unet_shallow"),
    )  # fmt: skip
    assert [[t.name for t in one.record.outputs] for one in built] == [["noise", "deep"], ["noise"]]


class Wrong(nn.Module):
    """Outer blocks that are not those of the U-Net."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        noise: Tensor = self.inner(*inputs)
        return noise * 1.01


def test_outer_blocks_that_are_not_the_unets_fail_the_export(tiny_checkpoint: Path) -> None:
    model = from_checkpoint(tiny_checkpoint, deep_reuse=True)
    assert model.components.unet_shallow is not None
    inputs, scheduler = sample_inputs(model.shape, 1), build_scheduler("ddim", model.scheduler_config)
    wrong = replace(model.components, unet_shallow=Wrong(model.components.unet_shallow))
    with pytest.raises(ExportError, match=r"outer blocks of the U-Net differ by 1\.\de-02"):
        capture(wrong, inputs, scheduler, 2)
    mute = replace(model.components, unet=from_checkpoint(tiny_checkpoint).components.unet)
    with pytest.raises(ExportError, match="gives no deep features"):
        capture(mute, inputs, scheduler, 2)


def test_an_entry_point_without_outer_blocks_is_told(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_model.py").write_text("from parure_export.export import from_checkpoint as modules\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="returned no unet_shallow"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", entry_point="plain_model:modules", deep_reuse=True)
