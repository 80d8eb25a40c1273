"""Lower bounds: counted from graphs, equal to sums by hand."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from parure.bundle import Bundle
from parure.cli import main
from parure.errors import InputError
from parure.manifest import FeatureLayer, FeatureLayout, Precision
from parure_bench.devices import DEVICES, Device, device_called, find_device
from parure_bench.record import load_record
from parure_bench.roofline import Cost, Projection, count, ladder
from parure_export.engines.targets import CAPABILITIES
from parure_export.graph_flops import graph_flops

DEVICE = Device("a device", dict.fromkeys(Precision, 1e9), 1e8, "made up")
RAW = FeatureLayout(
    layers=(
        FeatureLayer(layer="a", tokens=16, channels=8, offset=0),
        FeatureLayer(layer="b", tokens=4, channels=32, offset=128),
    ),
    mask_head_layers=("b",),
)
PROJECTED = FeatureLayout(
    form="projected",
    layers=(
        FeatureLayer(layer="a", tokens=16, channels=16, offset=0),
        FeatureLayer(layer="b", tokens=4, channels=64, offset=256),
        FeatureLayer(layer="b/raw", tokens=4, channels=32, offset=512),
    ),
    mask_head_layers=("b/raw",),
)
COSTS = {
    "vae_encoder": Cost(10_000, 100, 10),
    "image_encoder": Cost(1_000, 100, 10),
    "reference_net": Cost(30_000, 1_000, 1_000),
    "mask_head": Cost(100, 10, 2_000),
    "unet": Cost(40_000, 1_000, 2_000),
    "vae_decoder": Cost(20_000, 100, 10),
}


def test_operations_of_a_graph_are_those_counted_by_hand() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Conv", ["i", "k"], ["o"], pads=[1] * 4)]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 7]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [7, 3]),
            helper.make_tensor_value_info("i", TensorProto.FLOAT, ["batch", 2, 6, 6]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, [4, 2, 3, 3]),
        ],
        [
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 5, 3]),
            helper.make_tensor_value_info("o", TensorProto.FLOAT, ["batch", 4, 6, 6]),
        ],
    )
    model = ir.from_proto(helper.make_model(graph))
    assert graph_flops(model.graph) == 2 * 5 * 3 * 7 + 2 * (4 * 6 * 6) * (2 * 3 * 3)


def test_a_component_is_bound_by_the_slower_of_its_operations_and_its_bytes() -> None:
    cost = Cost(flops=1_000_000, weight_bytes=50_000, boundary_bytes=10_000)
    assert cost.seconds(DEVICE, Precision.FP32, 1) == pytest.approx(1e-3)
    assert Cost(1_000, 50_000, 10_000).seconds(DEVICE, Precision.FP32, 4) == pytest.approx((50_000 + 40_000) / 1e8)


def test_projections_are_counted_alike_from_either_form_of_features() -> None:
    flops = 4 * 16 * 8**2 + 4 * 4 * 32**2
    assert Projection.of(RAW) == Projection.of(PROJECTED) == Projection(flops, RAW.length, PROJECTED.length)


def test_every_rung_has_the_operations_that_a_count_by_hand_gives() -> None:
    rungs = ladder(COSTS, RAW, steps=10, guided=True, element=2)
    kv = Projection.of(RAW).flops
    ends, unets = 10_000 + 20_000, 20 * 40_000
    loop = 10 * (100 + 30_000) + unets
    ahead = 10 * (100 + 30_000 + kv) + unets - 20 * 2 * kv
    assert [rung.flops() for rung in rungs] == [
        ends + 10_000 + 1_000 + loop + 10 * 30_000,
        ends + 10_000 + 1_000 + loop + 30_000,
        ends + loop,
        ends + ahead,
        ends + ahead,
        ends + 100 + 30_000 + kv + unets - 20 * 2 * kv,
    ]
    assert [rung.exact for rung in rungs] == [True] * 5 + [False]


def test_a_rung_of_bytes_is_the_sum_by_hand_and_one_batch_reads_weights_once() -> None:
    rungs = ladder(COSTS, RAW, steps=10, guided=True, element=2)
    kept = (100 + 10) * 2 + 10 * (10 + 2_000) + 10 * 2_000 + 20 * 3_000
    assert rungs[2].bytes() == kept
    assert rungs[3].bytes() - rungs[4].bytes() == 10 * 1_000


def test_the_form_that_a_bundle_has_does_not_change_the_ladder() -> None:
    kv, longer = Projection.of(RAW).flops, (PROJECTED.length - RAW.length) * 2
    projected = COSTS | {
        "unet": Cost(40_000 - 2 * kv, 1_000, 2_000 + 2 * longer),
        "reference_net": Cost(30_000 + kv, 1_000, 1_000 + longer),
        "mask_head": Cost(100, 10, 2_000 + 2 * longer),
    }
    from_raw, from_projected = ladder(COSTS, RAW, 4, False, 2), ladder(projected, PROJECTED, 4, False, 2)
    assert [(r.flops(), r.bytes()) for r in from_raw] == [(r.flops(), r.bytes()) for r in from_projected]


def test_pictures_that_run_together_share_the_weights_and_none_gets_slower() -> None:
    rung = ladder(COSTS, RAW, 10, False, 2)[2]
    assert rung.seconds(DEVICE, Precision.FP32, 8) < rung.seconds(DEVICE, Precision.FP32, 1)


def test_costs_of_a_bundle_are_those_of_its_manifest(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    costs, halved = count(bundle, Precision.FP32), count(bundle, Precision.FP16)
    for component in bundle.manifest.components:
        cost = costs[component.name]
        elements = sum(tensor.elements for tensor in (*component.inputs, *component.outputs))
        assert (cost.flops, cost.boundary_bytes) == (component.flops, 4 * elements)
        assert 0.9 < cost.weight_bytes / (4 * component.parameters) < 1.1
        assert abs(halved[component.name].weight_bytes - cost.weight_bytes / 2) <= 1


def test_every_device_has_its_source_and_every_data_centre_target_of_engines_is_known() -> None:
    for device in DEVICES.values():
        assert "NVIDIA" in device.source and device.peak(Precision.FP16) > device.peak(Precision.FP32)
    assert {"a100", "a30", "a10", "l4", "l40s", "h100", "h200", "b200"} <= DEVICES.keys() & CAPABILITIES.keys()
    assert device_called("NVIDIA H200") is DEVICES["h200"] and device_called("Voodoo 2") is None


def test_an_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"'tpu' is not known; known are cpu .* a100, .* h200"):
        find_device("tpu")


def test_this_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parure_bench.devices.MATMUL_SIDE", 64)
    monkeypatch.setattr("parure_bench.devices.COPIED_BYTES", 1 << 16)
    device = find_device("cpu")
    assert min(device.flops.values()) > 0 and device.bandwidth > 0 and "measured here" in device.source


def test_the_command_writes_a_record_with_every_component_and_rung(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "roofline.json"
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "roofline", str(tiny_bundle), "--device", "h200", "--reached", "32%", "--out", str(out)])
    assert exit_.value.code == 0
    record = load_record(out)
    assert record.kind == "roofline" and record.environment.bundle == Bundle.open(tiny_bundle).identity
    assert len(record.find("unet")) == 1 and len(record.find("picture")) == len(record.find("step")) >= 5
    assert all(series.figures["bound_seconds"] > 0 for series in record.series)


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--batch", "0"], ["--precision", "int3"]])
def test_wrong_input_exits_with_2(arguments: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "roofline", str(tiny_bundle), "--out", str(tmp_path / "r.json"), *arguments])
    assert exit_.value.code == 2
    assert not (tmp_path / "r.json").exists()
