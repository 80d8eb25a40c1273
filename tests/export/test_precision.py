"""16 bits where it is safe: what is recorded, what is kept in fp32, and what the converted graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import parure
from parure.bundle import Bundle
from parure.errors import InputError
from parure.image import Pixels
from parure.manifest import Precision
from parure_export.export import export_bundle, from_checkpoint
from parure_export.graphs import Graph, write_graph
from parure_export.onnx_export import Call
from parure_export.parity import relative_error
from parure_export.precision import HALF_PRECISION, choose, convert, emulate, record_ranges

X = np.linspace(-2, 2, 2 * 8, dtype=np.float32).reshape(2, 8)


def small_graph(path: Path, factor: float) -> Path:
    """y = softmax(layer_norm((x W) * factor)), and s = (x W) * factor, with W = 3 I."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="project"),
        helper.make_node("Mul", ["h", "factor"], ["s"], name="scale"),
        helper.make_node("LayerNormalization", ["s", "ones"], ["n"], name="norm"),
        helper.make_node("Softmax", ["n"], ["y"], name="soft"),
    ]
    weights = {"W": 3 * np.eye(8), "factor": np.float32(factor), "ones": np.ones(8)}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("s", "y")],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("h", "n")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    return [
        np.asarray(y, np.float32)
        for y in session.run(None, {session.get_inputs()[0].name: x.astype(np.float16) if half else x})
    ]


def test_ranges_are_the_largest_magnitudes_over_all_calls_and_weights(tmp_path: Path) -> None:
    ranges = record_ranges(ir.load(small_graph(tmp_path / "g.onnx", 10)), [{"x": X}, {"x": X * 2}])
    expected = {"x": 4.0, "W": 3.0, "h": 12.0, "factor": 10.0, "s": 120.0}
    assert {name: ranges.largest[name] for name in expected} == pytest.approx(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


def test_a_value_that_is_not_finite_is_beyond_every_limit(tmp_path: Path) -> None:
    ranges = record_ranges(ir.load(small_graph(tmp_path / "g.onnx", 10)), [{"x": np.full((2, 8), np.inf, np.float32)}])
    assert ranges.largest["s"] == np.inf


def test_the_bound_on_attention_scores_is_above_the_scores_and_not_by_much(tmp_path: Path) -> None:
    shape = ["b", 2, 6, 16]
    graph = helper.make_graph(
        [helper.make_node("Attention", ["q", "k", "v"], ["o"], name="attend")],
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    generator = np.random.default_rng(0)
    q, k, v = (generator.standard_normal((1, 2, 6, 16)).astype(np.float32) for _ in range(3))
    scores = np.abs(q @ k.swapaxes(2, 3)).max() / 4
    bound = record_ranges(ir.load(path), [{"q": q, "k": k, "v": v}]).scores["attend"]
    assert scores <= bound <= 6 * scores


@pytest.mark.parametrize(
    ("factor", "kept"),
    [
        (1.0, {"soft": "accumulates"}),
        (1e4, {"scale": "range", "norm": "range", "soft": "accumulates"}),
    ],
)
def test_nodes_are_kept_for_their_range_and_for_what_they_sum(
    factor: float, kept: dict[str, str], tmp_path: Path
) -> None:
    path = small_graph(tmp_path / "g.onnx", factor)
    chosen = choose(ir.load(path).graph, record_ranges(ir.load(path), [{"x": X}]), HALF_PRECISION["fp16"])
    assert {node.node: node.reason for node in chosen} == kept
    chosen = choose(ir.load(path).graph, record_ranges(ir.load(path), [{"x": X}]), HALF_PRECISION["bf16"])
    assert {node.node: node.reason for node in chosen} == {"soft": "accumulates"}


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_the_converted_graph_is_strongly_typed_and_computes_the_same(factor: float, tmp_path: Path) -> None:
    path = small_graph(tmp_path / "g.onnx", factor)
    model = ir.load(path)
    kept = {node.node for node in choose(model.graph, record_ranges(ir.load(path), [{"x": X}]), HALF_PRECISION["fp16"])}
    convert(model, kept, HALF_PRECISION["fp16"], {"s"})
    ir.save(model, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    weights = {t.name: t.data_type for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert weights["W"] == TensorProto.FLOAT16
    for ours, exact in zip(run(tmp_path / "half.onnx", X), run(path, X), strict=True):
        assert np.abs(ours - exact).max() <= 2e-3 * np.abs(exact).max()


def test_emulation_rounds_around_every_node_and_shows_an_overflow(tmp_path: Path) -> None:
    def emulated(kept: set[str]) -> np.ndarray:
        model = ir.load(small_graph(tmp_path / "g.onnx", 2e4))
        convert(model, kept, HALF_PRECISION["fp16"], {"s"} if kept else set())
        emulate(model, HALF_PRECISION["fp16"])
        ir.save(model, tmp_path / "emulated.onnx")
        onnx.checker.check_model(str(tmp_path / "emulated.onnx"), full_check=True)
        return run(tmp_path / "emulated.onnx", X)[0]

    scaled = emulated(set())
    with np.errstate(over="ignore"):
        expected = ((X.astype(np.float16) * np.float16(3)) * np.float16(2e4)).astype(np.float32)
    assert np.array_equal(scaled, expected) and not np.isfinite(scaled).all()
    assert np.isfinite(emulated({"scale", "norm"})).all()


def test_one_weight_for_nodes_of_both_types_is_there_in_both(tmp_path: Path) -> None:
    path = small_graph(tmp_path / "g.onnx", 1.0)
    proto = onnx.load(path)
    proto.graph.node.append(helper.make_node("MatMul", ["n", "W"], ["again"], name="again"))
    proto.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, ["batch", 8]))
    onnx.save(proto, path)
    model = ir.load(path)
    convert(model, {"again"}, HALF_PRECISION["fp16"], {"again"})
    ir.save(model, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    types = {t.name: t.data_type for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert types["W"] == TensorProto.FLOAT16 and types["W.float"] == TensorProto.FLOAT


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_component_that_overflows_fp16_is_found_out_and_exported_right(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = from_checkpoint(tiny_checkpoint).components.vae_decoder
    latents = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoder.vae.decoder.conv_in.weight.mul_(1e6)
        decoder.vae.decoder.conv_in.bias.mul_(1e6)
        calls = [Call((latents,), decoder(latents))]
    picture = calls[0].output.numpy()
    assert np.isfinite(picture).all() and picture.std() > 0.01

    def exported(folder: Path) -> tuple[Graph, float]:
        folder.mkdir()
        graph = write_graph("vae_decoder", decoder, calls, folder, Precision.FP16, 4)
        ours = run(folder / "vae_decoder.onnx", latents.numpy())[0]
        judged = run(graph.judged, latents.numpy())[0]
        return graph, max(relative_error(ours, picture), relative_error(judged, picture))

    graph, error = exported(tmp_path / "careful")
    assert error < 1e-2
    loud = {node.op for node in graph.kept if node.reason == "range"}
    assert {"Conv", "Add", "GroupNormalization"} <= loud
    monkeypatch.setattr("parure_export.graphs.choose", lambda *_: [])
    assert exported(tmp_path / "careless")[1] == float("inf")


def test_bf16_is_judged_by_emulation_and_says_where_it_runs(
    tiny_checkpoint: Path, tmp_path: Path, photo: Pixels
) -> None:
    manifest = export_bundle(tiny_checkpoint, tmp_path / "bf16", precision=Precision.BF16, solvers=["ddim"])
    unet = manifest.component("unet")
    assert {tensor.dtype for tensor in (*unet.inputs, *unet.outputs)} == {"float32"}
    weights = onnx.load(Bundle.open(tmp_path / "bf16").graph("unet")).graph.initializer
    assert TensorProto.BFLOAT16 in {t.data_type for t in weights}
    assert manifest.parity.picture_psnr >= 25 and manifest.parity.mask_iou >= 0.95
    with parure.open(tmp_path / "bf16") as tryon, pytest.raises(InputError, match=r"bf16, .*`parure build`"):
        tryon(photo, photo, (30, 40, 70, 75), steps=1)
