"""Checkpoint -> bundle: what is written, what is proven, what is refused, and that a failure leaves nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import parure
from parure.bundle import Bundle
from parure.cli import main
from parure.errors import BundleError, CheckpointError, ExportError, InputError
from parure.image import Pixels
from parure.manifest import Precision
from parure.onnx_executor import OnnxExecutor
from parure_export import export as export_module
from parure_export.export import export_bundle, from_checkpoint
from parure_export.onnx_export import count_flops
from parure_export.parity import capture, check_same_loop, relative_error
from parure_export.reference_loop import LoopState, reference_loop
from parure_export.samples import sample_inputs
from parure_export.solvers import build_scheduler


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def executor(bundle: Bundle) -> Iterator[OnnxExecutor]:
    executor = OnnxExecutor(bundle, threads=1)
    yield executor
    executor.close()


def inputs_of(bundle: Bundle, component: str, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        t.name: generator.random((batch, *t.shape)).astype(t.dtype) for t in bundle.manifest.component(component).inputs
    }


def test_the_manifest_states_parity_below_the_promised_tolerances(bundle: Bundle) -> None:
    parity = bundle.manifest.parity
    assert {p.component for p in parity.components} == {c.name for c in bundle.manifest.components}
    assert all(0 < p.max_relative_error <= 1e-4 and p.samples >= 2 for p in parity.components)
    assert parity.loop_max_relative_error <= 1e-3
    assert len(parity.trajectory) >= 4
    assert json.loads((bundle.root / "reports" / "parity.json").read_text())["trajectory"]


def test_ornament_features_are_found_to_be_cacheable(bundle: Bundle) -> None:
    assert bundle.manifest.loop.ornament_features_cacheable


def test_every_file_but_the_manifest_is_hashed(bundle: Bundle) -> None:
    on_disk = {p.relative_to(bundle.root).as_posix() for p in bundle.root.rglob("*") if p.is_file()}
    assert on_disk == {*bundle.manifest.files, "manifest.json"}


@pytest.mark.parametrize(
    "component", ["vae_encoder", "image_encoder", "reference_net", "mask_head", "unet", "vae_decoder"]
)
def test_the_batch_is_dynamic_and_changes_nothing(bundle: Bundle, executor: OnnxExecutor, component: str) -> None:
    inputs = inputs_of(bundle, component, 3)
    name = bundle.manifest.component(component).outputs[0].name
    together = executor.run(component, inputs)[name]
    for i in range(3):
        alone = executor.run(component, {k: v[i : i + 1] for k, v in inputs.items()})[name]
        assert relative_error(together[i : i + 1], alone) <= 3e-4


def test_timesteps_are_per_sample(bundle: Bundle, executor: OnnxExecutor) -> None:
    inputs = {k: np.repeat(v, 2, axis=0) for k, v in inputs_of(bundle, "unet", 1).items()}
    inputs["timestep"] = np.array([10.0, 900.0], np.float32)
    both = executor.run("unet", inputs)["noise"]
    assert relative_error(both[:1], both[1:]) > 1e-3
    late = {k: v[1:] for k, v in inputs.items()}
    assert relative_error(both[1:], executor.run("unet", late)["noise"]) <= 3e-4


@pytest.mark.parametrize("which", ["ornament_features", "model_features"])
def test_the_unet_looks_at_the_features(bundle: Bundle, executor: OnnxExecutor, which: str) -> None:
    inputs = inputs_of(bundle, "unet", 1)
    other = {**inputs, which: inputs[which][:, ::-1].copy()}
    assert relative_error(executor.run("unet", other)["noise"], executor.run("unet", inputs)["noise"]) > 1e-5


def test_reference_net_stops_after_its_last_feature(bundle: Bundle, tiny_checkpoint: Path) -> None:
    graph = onnx.load(str(bundle.graph("reference_net"))).graph
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    assert not [t.name for t in graph.initializer if t.name not in used]
    assert not [n.name for n in graph.node if not any(o in used for o in n.output)]
    module = from_checkpoint(tiny_checkpoint).components.reference_net
    whole = sum(p.numel() for p in module.parameters())
    assert bundle.manifest.component("reference_net").parameters < whole


def test_fp16_with_projected_features_is_exported_and_runs(
    tiny_checkpoint: Path, tmp_path: Path, photo: Pixels, ornament: Pixels, tiny_bundle: Path
) -> None:
    manifest = export_bundle(
        tiny_checkpoint, tmp_path / "half", precision=Precision.FP16, features="projected", solvers=["ddim"]
    )
    assert manifest.component("unet").outputs[0].dtype == "float16"
    layout, raw = manifest.features, Bundle.open(tiny_bundle).manifest.features
    assert (layout.form, raw.form) == ("projected", "raw") and 2 * raw.length < layout.length < 3 * raw.length
    with parure.open(tmp_path / "half", threads=1) as half, parure.open(tiny_bundle, threads=1) as full:
        a, b = (t(photo, ornament, (30, 40, 70, 75), steps=2, solver="ddim").latents for t in (half, full))
    assert relative_error(a, b) <= 0.1


class Disturbed(nn.Module):
    """A module whose graph is not what PyTorch computed: it changes once it is traced."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, latents: Tensor) -> Tensor:
        picture: Tensor = self.inner(latents)
        return picture * 1.01 if torch.compiler.is_compiling() else picture


class Wandering(nn.Module):
    """A ReferenceNet with a memory: its answer for the ornament changes from call to call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, latents: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        self.calls += 1
        features: Tensor = self.inner(latents, mask, tokens)
        return features + 1e-3 * self.calls


def test_a_graph_that_departs_from_pytorch_fails_the_export_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(folder: Path, *_: str) -> export_module.Exportable:
        model = from_checkpoint(folder)
        return replace(model, components=replace(model.components, vae_decoder=Disturbed(model.components.vae_decoder)))

    monkeypatch.setattr(export_module, "from_checkpoint", disturbed)
    with pytest.raises(ExportError, match="vae_decoder does not keep its parity"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", solvers=["ddim"])
    assert not list(tmp_path.iterdir())


def test_projected_features_save_work_in_the_unet_and_compute_the_same(tiny_checkpoint: Path) -> None:
    model = from_checkpoint(tiny_checkpoint, "projected")
    assert model.raw is not None
    inputs, scheduler = sample_inputs(model.shape, 2), build_scheduler("ddim", model.scheduler_config)
    captured = capture(model.components, inputs, scheduler, 3)
    check_same_loop(captured, reference_loop(model.raw, inputs, scheduler, 3))
    guided = [list(reference_loop(c, inputs, scheduler, 3, guidance=2.0)) for c in (model.components, model.raw)]
    assert relative_error(*(states[-1].latents.numpy() for states in guided)) <= 1e-5
    raw = capture(model.raw, inputs, scheduler, 1).calls["unet"][0].inputs
    flops = count_flops(model.components.unet, captured.calls["unet"][0].inputs), count_flops(model.raw.unet, raw)
    assert flops[0] < flops[1]

    states = [LoopState(s.latents * 1.001, s.mask, s.predicted_mask) for s in captured.states]
    with pytest.raises(ExportError, match="projected features do not compute what raw ones do: at step 0"):
        check_same_loop(captured, states)


@pytest.mark.parametrize("component", ["vae_encoder", "image_encoder", "mask_head", "unet", "vae_decoder"])
def test_operations_counted_from_the_graph_are_those_of_the_module(
    component: str, bundle: Bundle, tiny_checkpoint: Path
) -> None:
    module = dict(from_checkpoint(tiny_checkpoint).components.items())[component]
    inputs = tuple(torch.zeros((1, *tensor.shape)) for tensor in bundle.manifest.component(component).inputs)
    assert bundle.manifest.component(component).flops == count_flops(module, inputs)


def test_features_that_depend_on_the_step_are_found_out(tiny_checkpoint: Path) -> None:
    model = from_checkpoint(tiny_checkpoint)
    inputs, scheduler = sample_inputs(model.shape, 1), build_scheduler("ddim", model.scheduler_config)
    assert capture(model.components, inputs, scheduler, 2).ornament_features_cacheable
    wandering = replace(model.components, reference_net=Wandering(model.components.reference_net))
    assert not capture(wandering, inputs, scheduler, 2).ornament_features_cacheable


def test_an_interrupted_export_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("exporting mask_head"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", solvers=["ddim"], progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_replaced_only_by_force(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--force"):
        export_bundle(tiny_checkpoint, tiny_bundle)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a bundle"):
        export_bundle(tiny_checkpoint, tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--solver", "heun-9"], "heun-9"), (["--max-batch", "0"], "max batch is 0")]
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], words: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(tiny_checkpoint), "--out", str(tmp_path / "b"), *arguments])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry_point", "words"),
    [
        ("no_colon", "module:function"),
        ("no.such.module:f", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json:dumps", "expected parure_export.export.Exportable"),
    ],
)
def test_an_entry_point_that_does_not_fit_is_refused(
    entry_point: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("json.dumps", lambda path: "nonsense")
    with pytest.raises(CheckpointError, match=words):
        export_bundle(tmp_path, tmp_path / "bundle", entry_point=entry_point)


def test_modules_of_the_users_own_classes_are_exported(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Pixels, ornament: Pixels
) -> None:
    (tmp_path / "their_model.py").write_text(
        "from dataclasses import replace\n"
        "from torch import nn\n"
        "from parure_export.export import from_checkpoint\n"
        "class TheirDecoder(nn.Module):\n"
        "    def __init__(self, inner):\n"
        "        super().__init__(); self.inner = inner; self.gain = nn.Parameter(__import__('torch').tensor(0.5))\n"
        "    def forward(self, latents): return self.inner(latents) * self.gain\n"
        "def modules(folder):\n"
        "    model = from_checkpoint(folder)\n"
        "    decoder = TheirDecoder(model.components.vae_decoder).eval()\n"
        "    return replace(model, components=replace(model.components, vae_decoder=decoder))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "bundle"
    export_bundle(tiny_checkpoint, out, entry_point="their_model:modules", solvers=["euler"])
    sys.modules.pop("their_model")
    with parure.open(out, threads=1) as tryon:
        assert tryon(photo, ornament, (30, 40, 70, 75), steps=1).image.size == (128, 96)


def test_any_altered_file_of_a_bundle_is_refused_before_it_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    for name in sorted(Bundle.open(tiny_bundle).manifest.files):
        copy = tmp_path / "copy"
        shutil.copytree(tiny_bundle, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(BundleError, match="altered or truncated") as caught:
            parure.open(copy)
        assert name in str(caught.value)
        for length in (len(content) - 1, 0):
            (copy / name).write_bytes(bytes(content)[:length])
            with pytest.raises(BundleError, match="altered or truncated"):
                parure.open(copy)
        (copy / name).unlink()
        with pytest.raises(BundleError, match="is missing"):
            parure.open(copy)
        (copy / name).symlink_to(tiny_bundle / name)
        with pytest.raises(BundleError, match="symbolic link"):
            parure.open(copy)
        (copy / name).unlink()
        (copy / name).hardlink_to(tiny_bundle / name)
        with pytest.raises(BundleError, match="hard link"):
            parure.open(copy)
        shutil.rmtree(copy)
        (tiny_bundle / name).stat()


@pytest.mark.soak
def test_a_flipped_bit_is_found_wherever_it_is(tiny_bundle: Path, tmp_path: Path) -> None:
    import random
    import shutil

    copy, dice = Path(shutil.copytree(tiny_bundle, tmp_path / "copy")), random.Random(0)
    for name in sorted(Bundle.open(tiny_bundle).manifest.files):
        content = (copy / name).read_bytes()
        for place in (0, len(content) - 1, *(dice.randrange(len(content)) for _ in range(100))):
            flipped = bytearray(content)
            flipped[place] ^= 1 << dice.randrange(8)
            (copy / name).write_bytes(bytes(flipped))
            with pytest.raises(BundleError, match="altered or truncated"):
                Bundle.open(copy)
        (copy / name).write_bytes(content)
    Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema_version=99), "schema version 99"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["files"].update({"../evil": "0" * 64}), "leaves the bundle"),
        (lambda m: m["files"].update({"/etc/passwd": "0" * 64}), "leaves the bundle"),
        (lambda m: m["components"][0].update(graph="../evil.onnx"), "names '../evil.onnx' and no hash of it"),
        (lambda m: m["solvers"][0].update(grid="/tmp/evil.npz"), "names '/tmp/evil.npz' and no hash of it"),
        (lambda m: m["features"]["layers"][1].update(offset=7), "starts at 7"),
        (lambda m: m.pop("geometry"), "geometry"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(
    change: object, words: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)  # type: ignore[operator]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=words):
        parure.open(copy)
