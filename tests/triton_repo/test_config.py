"""`Model` -> `config.pbtxt` and back: every field arrives, and one that would not is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from parure.errors import ServerError
from parure_triton import config as module
from parure_triton.config import read_config, render_config
from parure_triton.model import Accelerator, Backend, Batching, Model, ModelTensor, Placement

LATENTS = ModelTensor("latents", "TYPE_FP16", (4, 64, 64))
TIMESTEP = ModelTensor("timestep", "TYPE_FP16", (1,), scalar=True)
FULL = Model(
    name="unet",
    bundle="b" * 64,
    max_batch=8,
    instances=2,
    inputs=(LATENTS, TIMESTEP),
    outputs=(LATENTS,),
    parameters={"bundle": "b" * 64},
    backend=Backend.TENSORRT,
    decoupled=True,
    batching=Batching((4, 8), 500, 64, 2_000_000),
    placement=Placement((0, 1), rate_limited=True),
    file="unet-b1-4-8.a100.plan",
    file_by_capability={"8.0": "unet-b1-4-8.a100.plan", "9.0": "unet-b1-4-8.h100.plan"},
    accelerator=Accelerator("cuda", {"key": "value"}),
    warmup_batches=(1, 8),
    graph_batches=(1, 4, 8),
)


def parsed(model: Model) -> ModelConfig:
    return text_format.Parse(render_config(model), ModelConfig())


def test_every_field_reaches_triton_and_comes_back() -> None:
    assert read_config(parsed(FULL), FULL.bundle) == FULL


def test_a_model_without_options_leaves_them_to_triton() -> None:
    plain = Model("tryon", "b" * 64, 0, 1, (LATENTS,), (LATENTS,), {})
    config = parsed(plain)
    absent = ("dynamic_batching", "optimization", "model_transaction_policy")
    assert not any(config.HasField(name) for name in absent)
    assert not config.model_warmup and not config.default_model_filename


def test_scalars_lose_their_side_only_where_the_backend_is_tritons_own() -> None:
    timestep = parsed(FULL).input[1]
    assert list(timestep.dims) == [1] and timestep.HasField("reshape") and not timestep.reshape.shape
    assert not parsed(FULL).input[0].HasField("reshape")


def test_a_full_queue_and_a_long_wait_are_refused_not_delayed() -> None:
    policy = parsed(FULL).dynamic_batching.default_queue_policy
    assert (policy.timeout_action, policy.max_queue_size, policy.allow_timeout_override) == (policy.REJECT, 64, True)
    assert policy.default_timeout_microseconds == 2_000_000


def test_a_queue_without_bounds_has_no_policy_which_would_keep_triton_from_preparing_batches() -> None:
    assert not parsed(replace(FULL, batching=Batching(preferred=(8,)))).dynamic_batching.HasField(
        "default_queue_policy"
    )


def test_warm_up_has_the_real_shapes_and_numbers_that_are_finite() -> None:
    one, eight = parsed(FULL).model_warmup
    assert (one.batch_size, eight.batch_size) == (1, 8)
    assert list(eight.inputs["latents"].dims) == [4, 64, 64] and eight.inputs["latents"].zero_data
    assert list(eight.inputs["timestep"].dims) == [1]


def test_only_version_1_is_served() -> None:
    assert list(parsed(FULL).version_policy.specific.versions) == [1]


def test_every_cuda_graph_has_a_batch_size() -> None:
    cuda = parsed(FULL).optimization.cuda
    assert cuda.graphs and [spec.batch_size for spec in cuda.graph_spec] == [1, 4, 8]


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    value=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_names_that_need_quoting_survive(name: str, value: str) -> None:
    tensor = ModelTensor(name, "TYPE_FP32", (2, 3))
    render_config(Model("m", "b" * 64, 1, 1, (tensor,), (tensor,), {name: value}))


@pytest.mark.parametrize("part", ["_tensor", "_batching", "_instances", "_warmup"])
def test_a_configuration_that_reads_back_differently_is_an_error(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {
        "_tensor": {"dims": [9]},
        "_batching": {"preferred_batch_size": [2]},
        "_instances": {"count": 7},
        "_warmup": {"batch_size": 3},
    }
    right = getattr(module, part)
    monkeypatch.setattr(module, part, lambda *given: right(*given) | changed[part])
    with pytest.raises(ServerError, match=r"unet: .* reads back as"):
        render_config(replace(FULL, warmup_batches=(1,)))
