"""What TensorRT makes of attention and group normalisation written in different ways, at SD 1.5's largest size.

`python -m parure_bench.forms` builds a small engine of each form for one GPU and writes RESULTS/forms.json: the
layers that the parser makes of it, and the size of the plan. How fast each runs, only a GPU can tell.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from parure_export.engines.build import installed_version, run_worker
from parure_export.engines.request import BuildRequest, Options, Profile
from parure_export.engines.structure import structure_hash
from parure_export.engines.targets import Flavor, Target, resolve
from parure_export.engines.worker import Job

HEADS, QUERIES, KEYS, SIZE = 8, 4096, 3 * 4096, 40
CHANNELS, SIDE, GROUPS = 320, 64, 32
HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
Nodes = Sequence[onnx.NodeProto]


@dataclass(frozen=True)
class Form:
    """One way to write an operation: its nodes from the inputs to `y`, and the weights that they use."""

    operation: str
    name: str
    inputs: Mapping[str, tuple[int, ...]]
    nodes: Callable[[], Nodes]
    weights: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Seen:
    operation: str
    form: str
    layers: dict[str, int]
    plan_bytes: int
    build_seconds: float


@click.command()
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--target", default="a100", show_default=True)
def main(results: Path, target: str) -> None:
    """Build every form for TARGET with TensorRT-RTX; writes RESULTS/forms.json."""
    resolved = resolve(target, Flavor.TENSORRT_RTX)
    seen = [build(form, resolved) for form in forms()]
    version = installed_version(Flavor.TENSORRT_RTX)
    record = {
        "command": f"python -m parure_bench.forms --target {target}",
        "tensorrt_rtx": version,
        "forms": [asdict(s) for s in seen],
    }
    (results / "forms.json").write_text(json.dumps(record, indent=2) + "\n")
    table = Table("operation", "form", "layers", "plan, kB")
    for s in seen:
        layers = ", ".join(f"{count} {kind.lower()}" for kind, count in s.layers.items())
        table.add_row(s.operation, s.form, layers, f"{s.plan_bytes / 1e3:.0f}")
    Console().print(table)


def build(form: Form, target: Target) -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        graph, plan = Path(folder) / "form.onnx", Path(folder) / "form.plan"
        onnx.save(model(form), graph)
        request = BuildRequest(
            component=form.name,
            graph_sha256="0" * 64,
            structure_sha256=structure_hash(graph),
            flavor=Flavor.TENSORRT_RTX,
            flavor_version=installed_version(Flavor.TENSORRT_RTX),
            capability=target.capability,
            profile=Profile(min=1, opt=1, max=1),
            options=Options(),
        )
        job = Job(request=request, graph=graph, plan=plan, shapes=dict(form.inputs), timing_cache=None)
        done = run_worker(job, form.name)
        return Seen(form.operation, form.name, done["layers"], plan.stat().st_size, done["build_seconds"])


def model(form: Form) -> onnx.ModelProto:
    first = next(iter(form.inputs.values()))
    graph = helper.make_graph(
        form.nodes(),
        form.name,
        [helper.make_tensor_value_info(name, HALF, ["b", *shape]) for name, shape in form.inputs.items()],
        [helper.make_tensor_value_info("y", HALF, ["b", *first])],
        [numpy_helper.from_array(value, name) for name, value in form.weights.items()],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    )


def forms() -> list[Form]:
    attended = {"q": (HEADS, QUERIES, SIZE), "k": (HEADS, KEYS, SIZE), "v": (HEADS, KEYS, SIZE)}
    picture = {"x": (CHANNELS, SIDE, SIDE)}
    affine: dict[str, NDArray[Any]] = {"scale": np.ones(CHANNELS, np.float16), "bias": np.zeros(CHANNELS, np.float16)}
    by_channel = {name: value.reshape(1, -1, 1, 1) for name, value in affine.items()}
    grouped: dict[str, NDArray[Any]] = {
        "groups": np.array([0, GROUPS, -1], np.int64),
        "back": np.array([0, CHANNELS, SIDE, SIDE], np.int64),
        "one": np.ones(GROUPS, np.float16),
        "zero": np.zeros(GROUPS, np.float16),
    }
    axis: dict[str, NDArray[Any]] = {"axis": np.array([2], np.int64), "epsilon": np.array(1e-5, np.float32)}
    root: dict[str, NDArray[Any]] = {"root": np.array(SIZE**-0.25, np.float16)}
    return [
        Form("attention", "Attention", attended, lambda: [node("Attention", "q k v", "y")], {}),
        Form("attention", "MatMul, Softmax in fp32", attended, lambda: spelled_attention(wide=True), root),
        Form("attention", "MatMul, Softmax in fp16", attended, lambda: spelled_attention(wide=False), root),
        Form(
            "group normalisation",
            "GroupNormalization",
            picture,
            lambda: [node("GroupNormalization", "x scale bias", "y", num_groups=GROUPS, stash_type=FULL)],
            affine,
        ),
        Form("group normalisation", "InstanceNormalization", picture, instance_norm, by_channel | grouped),
        Form("group normalisation", "ReduceMean in fp32", picture, reduced_norm, by_channel | grouped | axis),
    ]


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def spelled_attention(*, wide: bool) -> Nodes:
    scores = [
        node("Mul", "q root", "q_"),
        node("Mul", "k root", "k_"),
        node("Transpose", "k_", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q_ kt", "scores"),
    ]
    if wide:
        soft = [
            node("Cast", "scores", "scores32", to=FULL),
            node("Softmax", "scores32", "soft32", axis=-1),
            node("Cast", "soft32", "soft", to=HALF),
        ]
    else:
        soft = [node("Softmax", "scores", "soft", axis=-1)]
    return [*scores, *soft, node("MatMul", "soft v", "y")]


def instance_norm() -> Nodes:
    return [
        node("Reshape", "x groups", "g"),
        node("InstanceNormalization", "g one zero", "n"),
        node("Reshape", "n back", "r"),
        node("Mul", "r scale", "s"),
        node("Add", "s bias", "y"),
    ]


def reduced_norm() -> Nodes:
    return [
        node("Reshape", "x groups", "g"),
        node("Cast", "g", "g32", to=FULL),
        node("ReduceMean", "g32 axis", "mean", keepdims=1),
        node("Sub", "g32 mean", "centred"),
        node("Mul", "centred centred", "squares"),
        node("ReduceMean", "squares axis", "variance", keepdims=1),
        node("Add", "variance epsilon", "safe"),
        node("Sqrt", "safe", "deviation"),
        node("Div", "centred deviation", "normal32"),
        node("Cast", "normal32", "normal", to=HALF),
        node("Reshape", "normal back", "r"),
        node("Mul", "r scale", "s"),
        node("Add", "s bias", "y"),
    ]


if __name__ == "__main__":
    main()
