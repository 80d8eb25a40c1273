"""Engines are really built, for GPUs that are not here: what is cached, what is refused, what is left behind."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from parure.bundle import Bundle
from parure.cli import main
from parure.engine import EngineRecord, graph_hash, open_record, plans, verify_plan
from parure.errors import BundleError, ExportError, InputError
from parure.host import gpus
from parure.manifest import Precision
from parure_export.engines import build as build_module
from parure_export.engines import targets
from parure_export.engines.attention import decompose_unfused
from parure_export.engines.build import Built, build_engines
from parure_export.engines.cache import EngineCache, TimingCache
from parure_export.engines.request import BuildRequest, Options, Profile
from parure_export.engines.structure import structure_hash
from parure_export.engines.targets import Flavor, Target, resolve

A100 = Target("a100", (8, 0))
ONE = Profile(min=1, opt=1, max=1)
RTX = Flavor.TENSORRT_RTX


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def build(bundle: Bundle, cache: EngineCache, *parts: str, options: Options = Options()) -> list[Built]:  # noqa: B008
    return list(build_engines(bundle, A100, RTX, [ONE], options=options, cache=cache, components=parts))


def test_every_component_becomes_an_engine_and_the_second_time_none_is_built(
    bundle: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(bundle, cache)
    assert [b.record.component for b in first] == [c.name for c in bundle.manifest.components]
    assert not any(b.from_cache for b in first)
    assert [b.plan for b in sorted(first, key=lambda b: b.plan)] == plans(bundle.root)
    for built in first:
        record = verify_plan(built.plan, bundle)
        assert record == built.record and record.compute_capability == (8, 0) and record.batches.static
        assert record.plan_bytes == built.plan.stat().st_size and record.peak_bytes > 50e6 and record.layers
    monkeypatch.setattr(build_module, "run_worker", None)  # whoever builds now fails
    assert all(b.from_cache for b in build(bundle, cache))


def test_a_change_of_anything_that_an_engine_depends_on_is_another_engine() -> None:
    request = BuildRequest(
        component="unet", graph_sha256="0" * 64, structure_sha256="0" * 64, flavor=RTX, flavor_version="1.7", capability=(8, 0), profile=ONE,
        options=Options(),
    )  # fmt: skip
    changes = [
        {"component": "mask_head"},
        {"graph_sha256": "1" * 64},
        {"flavor": Flavor.TENSORRT},
        {"flavor_version": "1.8"},
        {"capability": (8, 6)},
        {"capability": None},
        {"profile": Profile(min=1, opt=1, max=2)},
        {"options": Options(level=4)},
        {"options": Options(refittable=True)},
        {"revision": 2},
    ]
    keys = {request.key, *(request.model_copy(update=change).key for change in changes)}
    assert len(keys) == len(changes) + 1
    assert request.key == BuildRequest.model_validate_json(request.model_dump_json()).key


def test_a_damaged_entry_of_the_cache_is_built_again(bundle: Bundle, cache: EngineCache) -> None:
    (built,) = build(bundle, cache, "mask_head")
    plan = cache.root / built.record.key / "engine.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    (again,) = build(bundle, cache, "mask_head")
    assert not again.from_cache
    assert build(bundle, cache, "mask_head")[0].from_cache


def test_of_two_builds_of_one_engine_one_builds(bundle: Bundle, cache: EngineCache) -> None:
    built: list[Built] = []
    threads = [threading.Thread(target=lambda: built.extend(build(bundle, cache, "mask_head"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(b.from_cache for b in built) == [False, True]


def test_an_interrupted_build_ends_the_builder_and_leaves_the_cache_whole(bundle: Bundle, cache: EngineCache) -> None:
    def interrupt(engine: str, phase: str, step: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(
            build_engines(
                bundle, A100, RTX, [ONE], options=Options(), cache=cache, components=["vae_encoder"], watch=interrupt
            )
        )
    assert [path.suffix for path in cache.root.iterdir()] == [".lock"]
    assert not plans(bundle.root)
    assert not build(bundle, cache, "vae_encoder")[0].from_cache


def test_a_builder_that_is_killed_is_said_with_the_memory_that_it_had_reached(
    bundle: Bundle, cache: EngineCache
) -> None:
    def kill(engine: str, phase: str, step: int, steps: int) -> None:
        for child in psutil.Process().children():
            child.kill()

    with pytest.raises(
        ExportError, match=r"building vae_encoder 1 was killed, .*memory ran out: it had reached 0\.\d GB"
    ):
        list(
            build_engines(
                bundle, A100, RTX, [ONE], options=Options(), cache=cache, components=["vae_encoder"], watch=kill
            )
        )
    assert not plans(bundle.root)


def test_a_full_disk_is_said_with_what_was_needed(bundle: Bundle, cache: EngineCache) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the builder inherits it
    try:
        with pytest.raises(ExportError, match=r"mask_head 1 could not write its files: .* \d+\.\d MB were needed"):
            build(bundle, cache, "mask_head")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not plans(bundle.root) and not build(bundle, cache, "mask_head")[0].from_cache


def test_a_cache_that_cannot_be_written_is_named(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"engine cache .*file/cache cannot be written .*--cache"):
        build(bundle, EngineCache(tmp_path / "file" / "cache"), "mask_head")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "altered or truncated"),
        (flip, "altered or truncated"),
        (lambda plan: plan.unlink(), "missing"),
        (lambda plan: plan.with_suffix(".json").unlink(), "has no record"),
        (lambda plan: plan.with_suffix(".json").write_text("{"), "JSON"),
    ],
)
def test_a_plan_that_is_not_what_its_record_says_is_refused(
    harm: Callable[[Path], object], words: str, bundle: Bundle, cache: EngineCache
) -> None:
    (built,) = build(bundle, cache, "mask_head")
    harm(built.plan)
    with pytest.raises(BundleError, match=words):
        verify_plan(built.plan, bundle)


def test_a_plan_of_another_graph_is_refused(bundle: Bundle, cache: EngineCache) -> None:
    (built,) = build(bundle, cache, "mask_head")
    record = open_record(built.plan).model_copy(update={"graph_sha256": "0" * 64})
    built.plan.with_suffix(".json").write_text(record.model_dump_json())
    with pytest.raises(BundleError, match=r"built from graph 000000000000\.\.\., the bundle's mask_head is"):
        verify_plan(built.plan, bundle)


def test_an_engine_of_16_bits_that_came_out_in_fp32_is_an_error(bundle: Bundle, cache: EngineCache) -> None:
    (built,) = build(bundle, cache, "mask_head")
    assert {kind for types in built.record.types.values() for kind in types} == {"FLOAT"}
    asked: EngineRecord = built.record.model_copy(update={"precision": Precision.FP16})
    with pytest.raises(ExportError, match="asked for in fp16 and all of its heavy layers came out in fp32"):
        build_module._check_types(asked)


def test_what_tensorrt_says_of_a_graph_it_cannot_build_is_passed_on(bundle: Bundle, cache: EngineCache) -> None:
    graph = onnx.load(bundle.graph("mask_head"))
    node = next(node for node in graph.graph.node if node.op_type == "Sigmoid")
    node.op_type, node.domain = "Frobnicate", "unheard.of"
    graph.opset_import.append(helper.make_opsetid("unheard.of", 1))
    onnx.save(graph, bundle.graph("mask_head"))
    with pytest.raises(ExportError, match=r"TensorRT cannot build mask_head 1: .*Frobnicate"):
        build(bundle, cache, "mask_head")
    assert not plans(bundle.root)


def test_a_graph_of_an_opset_that_the_parser_does_not_know_is_said(bundle: Bundle, cache: EngineCache) -> None:
    graph = onnx.load(bundle.graph("mask_head"))
    next(opset for opset in graph.opset_import if not opset.domain).version = 99
    onnx.save(graph, bundle.graph("mask_head"))
    with pytest.raises(ExportError, match=r"mask_head\.onnx is of ONNX opset 99, TensorRT's parser knows .* up to 24"):
        build(bundle, cache, "mask_head")
    assert not plans(bundle.root)


@pytest.mark.skipif(bool(gpus()), reason="on a GPU the refit succeeds: tests/end_to_end/test_gpu.py shows that")
def test_a_refit_that_cannot_be_is_said_before_the_engine_is_built_anew(
    bundle: Bundle, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a GPU's driver can open a plan: without one the refit is tried, and its failure said."""
    monkeypatch.setattr(build_module, "local_capability", lambda: (8, 0))
    monkeypatch.setattr(build_module, "_check_options", lambda flavor, options: None)
    (other,) = build(bundle, cache, "mask_head")
    refittable = Options(refittable=True)
    request = request_of(bundle, "mask_head", refittable)
    entry = cache.root / other.record.key / "engine.json"
    entry.write_text(other.record.model_copy(update={"family": request.family, "refittable": True}).model_dump_json())

    said: list[str] = []
    building = build_engines(
        bundle, A100, RTX, [ONE], options=refittable, cache=cache, components=["mask_head"], tell=said.append
    )
    with pytest.raises(ExportError, match="TensorRT cannot build mask_head 1"):  # it asks the driver here, too
        list(building)
    assert len(said) == 1
    assert said[0].startswith("mask_head 1: its weights cannot be refitted, so it is built anew: TensorRT cannot open")


def request_of(bundle: Bundle, component: str, options: Options) -> BuildRequest:
    return BuildRequest(
        component=component, graph_sha256=graph_hash(bundle, component),
        structure_sha256=structure_hash(bundle.graph(component)), flavor=RTX,
        flavor_version=build_module.installed_version(RTX), capability=A100.capability, profile=ONE, options=options,
    )  # fmt: skip


def test_engines_of_one_family_differ_in_the_values_of_weights_only(bundle: Bundle) -> None:
    path = bundle.graph("mask_head")
    before = request_of(bundle, "mask_head", Options())
    tuned = onnx.load(path)
    weight = next(t for t in tuned.graph.initializer if t.data_type == TensorProto.FLOAT)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(tuned, path)
    assert structure_hash(path) == before.structure_sha256
    assert before.model_copy(update={"graph_sha256": "0" * 64}).family == before.family
    weight.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), weight.name))
    onnx.save(tuned, path)
    assert structure_hash(path) != before.structure_sha256


@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: b"x" + content, lambda content: b""])
def test_a_damaged_timing_cache_is_removed_and_counts_as_none(harm: Callable[[bytes], bytes], tmp_path: Path) -> None:
    timings = TimingCache(tmp_path / "timing-sm80.cache")
    assert timings.read() is None
    timings.write(b"measured")
    assert timings.read() == b"measured"
    timings.path.write_bytes(harm(timings.path.read_bytes()))
    assert timings.read() is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "capability"),
    [("a100", (8, 0)), ("rtx-ada", (8, 9)), ("sm120", (12, 0)), ("h100", None), ("b200", None), ("portable", None)],
)
def test_targets_are_known_by_name_and_by_capability(name: str, capability: tuple[int, int] | None) -> None:
    assert resolve(name, RTX).capability == capability


@pytest.mark.parametrize(
    ("name", "flavor", "words"),
    [
        ("a1000", RTX, "target 'a1000' is not known; expected one of t4, a100"),
        ("sm70", RTX, "too old for TensorRT-RTX"),
        ("local", RTX, "this machine has no GPU"),
        ("a100", Flavor.TENSORRT, "this machine has none; .*--flavor tensorrt-rtx"),
    ],
)
def test_a_target_out_of_reach_is_refused(
    name: str, flavor: Flavor, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "local_capability", lambda: None)
    with pytest.raises(InputError, match=words):
        resolve(name, flavor)


def test_the_data_centre_flavor_builds_for_the_gpu_at_hand_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "local_capability", lambda: (9, 0))
    assert resolve("h200", Flavor.TENSORRT).capability == (9, 0)
    assert resolve("portable", Flavor.TENSORRT) == Target("portable", None)
    with pytest.raises(InputError, match="target a100 is not this machine's GPU"):
        resolve("a100", Flavor.TENSORRT)
    monkeypatch.setattr(targets, "local_capability", lambda: (7, 5))
    with pytest.raises(InputError, match="target portable is not this machine's GPU"):
        resolve("portable", Flavor.TENSORRT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "a1000"], "a1000"),
        (["--target", "a100", "--batch", "0"], "--batch is '0'"),
        (["--target", "a100", "--batch", "1,x"], "--batch is '1,x'"),
        (["--target", "a100", "--batch", "64"], "batch 64 is more than the bundle's 8; export it with --max-batch 64"),
        (["--target", "a100", "--profile", "4:2:1"], "--profile is '4:2:1'"),
        (["--target", "a100", "--refittable"], "only on a machine with a GPU"),
        (["--target", "a100", "--component", "brain"], "component 'brain' is not in the bundle"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str],
    words: str,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_module, "local_capability", lambda: None)
    with pytest.raises(SystemExit) as exit_:
        main(["build", str(tiny_bundle), "--cache", str(tmp_path / "cache"), *arguments])
    assert exit_.value.code == 2 and words in capsys.readouterr().err


def test_a_flavor_that_is_not_installed_is_named_with_its_install_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_module, "installed", lambda package: None)
    with pytest.raises(SystemExit) as exit_:
        main(["build", str(tiny_bundle), "--target", "a100", "--cache", str(tmp_path / "cache")])
    assert exit_.value.code == 2 and "pip install 'parure[tensorrt-rtx]'" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "dtype"), [(32, TensorProto.FLOAT), (8, TensorProto.FLOAT16)])
def test_attention_without_a_kernel_is_spelled_out_and_computes_the_same(size: int, dtype: int, tmp_path: Path) -> None:
    path = attention_graph(tmp_path / "whole.onnx", size, dtype)
    spelled = decompose_unfused(path, tmp_path / "spelled.onnx")
    ops = [node.op_type for node in ir.load(spelled).graph]
    assert "Attention" not in ops and "Softmax" in ops
    onnx.checker.check_model(str(spelled), full_check=True)
    kind = np.float32 if dtype == TensorProto.FLOAT else np.float16
    generator = np.random.default_rng(0)
    feeds = {
        name: generator.standard_normal((2, 2, tokens, size)).astype(kind)
        for name, tokens in (("q", 5), ("k", 7), ("v", 7))
    }
    whole, ours = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)[0] for p in (path, spelled)
    )
    assert np.abs(whole - ours).max() <= (1e-6 if kind is np.float32 else 3e-3)


def test_attention_with_a_kernel_stays_whole(tmp_path: Path) -> None:
    path = attention_graph(tmp_path / "whole.onnx", 40, TensorProto.FLOAT16)
    assert decompose_unfused(path, tmp_path / "spelled.onnx") == path
    assert not (tmp_path / "spelled.onnx").exists()


def attention_graph(path: Path, size: int, dtype: int) -> Path:
    def info(name: str, tokens: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["b", 2, tokens, size])

    graph = helper.make_graph(
        [helper.make_node("Attention", ["q", "k", "v"], ["o"], name="attend")],
        "attention", [info("q", 5), info("k", 7), info("v", 7)], [info("o", 5)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path
