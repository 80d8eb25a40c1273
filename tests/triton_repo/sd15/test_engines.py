"""Which plan of a bundle is served: the widest from batch 1 on, or the narrowest that is wide enough."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parure.bundle import Bundle
from parure.engine import BatchRange, EngineRecord, engine_folder
from parure.errors import BundleError, InputError
from parure_triton.components import repository_models
from parure_triton.model import Model
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository


def models(bundle: Path, **chosen: object) -> dict[str, Model]:
    options = RepositoryOptions.of(backend="tensorrt", **chosen)
    return {folder.model.name: folder.model for folder in repository_models(Bundle.open(bundle), options)}


@pytest.fixture
def copy(sd15_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd15_bundle, tmp_path / "bundle"))


def test_the_widest_range_is_served_and_decides_the_batches(sd15_bundle: Path) -> None:
    unet = models(sd15_bundle, targets=("a100",))["unet"]
    assert (unet.file, unet.max_batch) == ("unet-b1-4-8.a100.plan", 8)
    assert unet.batching.preferred == (4, 8) and unet.graph_batches == unet.warmup_batches == (1, 4, 8)


def test_a_server_that_never_batches_gets_the_static_plan(sd15_bundle: Path) -> None:
    unet = models(sd15_bundle, targets=("a100",), max_batch=1)["unet"]
    assert (unet.file, unet.max_batch, unet.batching.preferred) == ("unet-b1.a100.plan", 1, ())
    assert unet.graph_batches == (1,)


def test_a_smaller_largest_batch_narrows_what_the_plan_takes(sd15_bundle: Path) -> None:
    unet = models(sd15_bundle, targets=("a100",), max_batch=6)["unet"]
    assert (unet.file, unet.max_batch, unet.batching.preferred) == ("unet-b1-4-8.a100.plan", 6, (4, 6))


def test_plans_of_several_targets_stand_side_by_side(sd15_bundle: Path, tmp_path: Path) -> None:
    unet = models(sd15_bundle, targets=("a100", "h100"))["unet"]
    assert unet.file_by_capability == {"8.0": "unet-b1-4-8.a100.plan", "9.0": "unet-b1-4-8.h100.plan"}
    options = RepositoryOptions.of(backend="tensorrt", targets=("a100", "h100"))
    write_repository(sd15_bundle, tmp_path / "models", options=options)
    placed = sorted(path.name for path in (tmp_path / "models" / "unet" / "1").iterdir())
    assert placed == ["unet-b1-4-8.a100.plan", "unet-b1-4-8.h100.plan"]


def test_a_portable_plan_is_for_the_gpus_that_have_none_of_their_own(copy: Path) -> None:
    folder = engine_folder(copy, "a100", "tensorrt").rename(engine_folder(copy, "portable", "tensorrt"))
    for path in folder.glob("*.json"):
        record = EngineRecord.model_validate_json(path.read_bytes())
        portable = record.model_copy(update={"target": "portable", "compute_capability": None})
        path.write_text(portable.model_dump_json())
    unet = models(copy, targets=("h100", "portable"))["unet"]
    assert unet.file == "unet-b1-4-8.portable.plan" and unet.file_by_capability == {"9.0": "unet-b1-4-8.h100.plan"}


def test_preferred_sizes_and_graphs_are_the_users_to_choose(sd15_bundle: Path) -> None:
    unet = models(sd15_bundle, targets=("a100",), preferred=(2, 8), cuda_graphs=False, warmup=False)["unet"]
    assert (unet.batching.preferred, unet.graph_batches, unet.warmup_batches) == ((2, 8), (), ())
    with pytest.raises(InputError, match="preferred batch size 9 is more than vae_encoder takes, which is 8"):
        models(sd15_bundle, targets=("a100",), preferred=(9,))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "plans for a100, h100; say with --target"),
        ({"targets": ("b200",)}, r"no plans for target 'b200'; expected one of a100, h100"),
        ({"targets": ("a100",), "max_batch": 9}, r"no plan with its weights .* from 1 to 9; there are .*b1-4-8\.plan"),
    ],
)
def test_what_cannot_be_served_is_named_with_what_there_is(
    sd15_bundle: Path, chosen: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        models(sd15_bundle, **chosen)


def test_plans_that_triton_could_not_tell_apart_are_refused(copy: Path) -> None:
    shutil.copytree(engine_folder(copy, "a100", "tensorrt"), engine_folder(copy, "a30", "tensorrt"))
    with pytest.raises(InputError, match=r"a100, a30 share a compute capability \(8\.0\)"):
        models(copy, targets=("a100", "a30"))


def test_targets_with_other_largest_batches_need_one_that_both_take(copy: Path) -> None:
    (engine_folder(copy, "h100", "tensorrt") / "unet-b1-4-8.plan").unlink()
    with pytest.raises(InputError, match=r"unet: the plans take different batches \(a100 1 to 8, h100 1 to 1\)"):
        models(copy, targets=("a100", "h100"))
    assert models(copy, targets=("a100", "h100"), max_batch=1)["unet"].max_batch == 1


def test_plans_of_tensorrt_rtx_are_refused_since_tritons_backend_cannot_load_them(copy: Path) -> None:
    for target in ("a100", "h100"):
        engine_folder(copy, target, "tensorrt").rename(engine_folder(copy, target, "tensorrt-rtx"))
    with pytest.raises(InputError, match=r"no plans of flavor tensorrt.*it has a100-tensorrt-rtx.*cannot load"):
        models(copy)


def test_a_bundle_without_plans_says_how_to_get_them(copy: Path) -> None:
    shutil.rmtree(copy / "engines")
    with pytest.raises(InputError, match=r"parure build .* --flavor tensorrt .* or use --backend onnxruntime"):
        models(copy)


def test_a_plan_that_was_altered_is_refused(copy: Path, tmp_path: Path) -> None:
    (engine_folder(copy, "a100", "tensorrt") / "unet-b1-4-8.plan").write_text("altered")
    with pytest.raises(BundleError, match=r"unet-b1-4-8\.plan has sha256 .* altered"):
        models(copy, targets=("a100",))


def test_a_stripped_plan_is_not_served(copy: Path) -> None:
    folder = engine_folder(copy, "a100", "tensorrt")
    for record in folder.glob("unet*.json"):
        record.write_text(record.read_text().replace('"stripped":false', '"stripped":true'))
    with pytest.raises(InputError, match=r"unet: .* no plan with its weights .*stripped"):
        models(copy, targets=("a100",))


def test_only_plans_from_batch_1_on_are_served(copy: Path) -> None:
    folder = engine_folder(copy, "a100", "tensorrt")
    for record in folder.glob("vae_decoder*.json"):
        own = BatchRange(min=2, opt=4, max=8).model_dump_json()
        text = record.read_text()
        start = text.index('"batches":') + len('"batches":')
        record.write_text(text[:start] + own + text[text.index("}", start) + 1 :])
    with pytest.raises(InputError, match=r"vae_decoder: .* takes every batch from 1 to 1"):
        models(copy, targets=("a100",))
