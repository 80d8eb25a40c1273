"""What is generated for a bundle of SD 1.5 size, file by file. `make golden` writes the files anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from parure.bundle import Bundle
from parure.manifest import FeatureLayout
from parure_triton.deployment import Deployment, DeploymentOptions, write_deployment
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    "python": RepositoryOptions.of(backend="python"),
    "onnxruntime": RepositoryOptions.of(backend="onnxruntime", gpus=(0,)),
    "onnxruntime-tensorrt": RepositoryOptions.of(backend="onnxruntime", provider="tensorrt"),
    "tensorrt": RepositoryOptions.of(
        backend="tensorrt", targets=("a100", "h100"), gpus=(0, 1), instances=2, queue_delay=500, rate_limit=2
    ),
}


def compare(folder: Path, found: dict[str, str], renew: bool) -> None:
    """Every file of `folder` is in `found` with the same text, and the other way round."""
    if renew:
        for stale in folder.rglob("*"):
            if stale.is_file():
                stale.unlink()
        for name, text in found.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    expected = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert sorted(found) == sorted(expected), f"files differ from {folder}; `make golden` writes them anew"
    for name, text in found.items():
        assert text == expected[name], f"{name} differs from {folder}; `make golden` writes it anew"


def anonymous(found: dict[str, str], bundle: Path) -> dict[str, str]:
    """Without the bundle's identity, which changes whenever the manifest gains a field."""
    identity = Bundle.open(bundle).identity
    return {name: text.replace(identity, "BUNDLE").replace(identity[:12], "BUNDLE") for name, text in found.items()}


def test_the_bundle_has_the_size_that_the_paper_has(layout: FeatureLayout) -> None:
    assert round(layout.length / 1e6, 2) == 11.55


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configurations_are_those_on_record(
    variant: str, sd15_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_repository(sd15_bundle, tmp_path / "models", options=VARIANTS[variant])
    configs = {f"{path.parent.name}.pbtxt": path.read_text() for path in tmp_path.glob("models/*/config.pbtxt")}
    compare(GOLDEN / variant, anonymous(configs, sd15_bundle), request.config.getoption("--renew-golden"))


def test_the_deployment_files_are_those_on_record(
    sd15_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = VARIANTS["tensorrt"]
    models = write_repository(sd15_bundle, tmp_path / "models", options=options)
    facts = Deployment(Bundle.open(sd15_bundle).manifest, models, options, DeploymentOptions())
    write_deployment(facts, tmp_path / "deploy", tmp_path / "models")
    names = ("Dockerfile", "compose.yaml", "chart/Chart.yaml", "chart/values.yaml")
    found = {name: (tmp_path / "deploy" / name).read_text() for name in names}
    compare(GOLDEN / "deploy", anonymous(found, sd15_bundle), request.config.getoption("--renew-golden"))
