"""The server loop seen from outside: cache, metrics, dashboard, trace context, log, health, curl."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import parure
import parure_triton
from parure.bundle import Bundle
from parure.cli import main
from parure.errors import ServerError
from parure.health import probe
from parure.image import Pixels
from parure.preflight import examine_server
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

BOX = (30.0, 40.0, 70.0, 75.0)
DASHBOARD = Path(parure_triton.__file__).parent / "deploy" / "grafana-dashboard.json"
TUTORIAL = Path(__file__).parents[2] / "docs" / "serving.md"
COMPONENTS = {"unet", "reference_net", "mask_head", "vae_encoder", "vae_decoder", "image_encoder"}


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen") / "models"
    write_repository(tiny_bundle, folder, threads=1)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository, log=repository.parent / "triton.log") as running:
        running.wait_ready()
        yield running


def metrics(server: EmbeddedServer) -> dict[str, float]:
    """Name and labels -> value, as Prometheus would read them."""
    with urllib.request.urlopen(server.addresses.metrics, timeout=30) as reply:
        lines = [line for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def log_lines(server: EmbeddedServer) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def test_a_warm_ornament_skips_its_encoders_and_gives_the_same_picture(
    server: EmbeddedServer, photo: Pixels, ornament: Pixels
) -> None:
    ornament = ornament // 2  # that no other test uses
    before = metrics(server)
    with parure.open(server.addresses.grpc) as tryon:
        cold, warm = (tryon(photo, ornament, BOX, steps=2, seed=3) for _ in range(2))
    after = metrics(server)
    assert (cold.calls["vae_encoder"], cold.calls["image_encoder"]) == (2, 1)
    assert warm.calls["vae_encoder"] == 1 and "image_encoder" not in warm.calls
    assert cold.calls["reference_net"] == warm.calls["reference_net"] + 1
    assert np.array_equal(cold.latents, warm.latents)
    for result in ("hit", "miss"):
        name = f'parure_ornament_cache_total{{model="tryon",result="{result}"}}'
        assert after[name] == before[name] + 1
    assert after['parure_ornament_cache_bytes{model="tryon"}'] > before['parure_ornament_cache_bytes{model="tryon"}']


def test_every_part_of_a_picture_is_counted(server: EmbeddedServer, photo: Pixels, ornament: Pixels) -> None:
    before = metrics(server)
    with parure.open(server.addresses.http) as tryon:
        result = tryon(photo, ornament, BOX, steps=3)
    after = metrics(server)

    def rise(name: str, labels: str = "") -> float:
        key = f'{name}{{model="tryon_unary"{labels}}}'
        return after[key] - before[key]

    assert rise("parure_pictures_total", ',outcome="made"') == 1
    assert rise("parure_steps_total") == 3
    assert rise("parure_mask_refreshes_total") == result.calls["mask_head"]
    for component in COMPONENTS & set(result.calls):
        assert rise("parure_part_seconds_count", f',part="{component}"') == result.calls[component]


def test_every_metric_of_the_dashboard_is_at_the_server(server: EmbeddedServer) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    named = set(re.findall(r"\b(?:parure|nv)_[a-z_]+", shown))
    served = {re.split(r"[{ ]", key)[0] for key in metrics(server)}
    assert len(named) > 10 and not named - served
    ours = {name for name in served if name.startswith("parure_")}
    assert not ours - named - {f"{stem}_{part}" for stem in ("parure_picture_seconds",) for part in ("sum", "count")}


def test_the_trace_context_and_the_request_id_reach_the_log(
    server: EmbeddedServer, photo: Pixels, ornament: Pixels
) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the OpenTelemetry SDK")
    tracer = trace.TracerProvider().get_tracer("test")
    seen = []
    for url in (server.addresses.grpc, server.addresses.http):
        with tracer.start_as_current_span("shop") as span, parure.open(url) as tryon:
            tryon(photo, ornament, BOX, steps=1)
            seen.append(f"{span.get_span_context().trace_id:032x}")
    for trace_id, line in zip(seen, log_lines(server)[-2:], strict=True):
        assert trace_id in str(line["traceparent"]) and line["outcome"] == "made"
        assert re.fullmatch(r"[0-9a-f]{32}", str(line["request_id"]))
        assert line["event"] == "picture" and line["steps"] == 1 and "unet" in line["parts"]  # type: ignore[operator]


def test_the_curl_lines_of_the_documentation_work(
    server: EmbeddedServer, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(ornament).save(tmp_path / "ornament.png")
    found = re.search(r"```bash\n(# one picture with curl.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert found, "docs/serving.md has no curl example"
    script = found[1].replace("http://127.0.0.1:8000", server.addresses.http).replace("182,172,262,240", "30,40,70,75")
    done = subprocess.run(["bash", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with parure.open(server.addresses.http) as tryon:
        expected = tryon(photo, ornament, BOX, steps=20, seed=7)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), np.asarray(expected.image))


def test_a_healthy_server_answers_for_every_model(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    findings = {finding.subject: finding for finding in probe(server.addresses.grpc, 10)}
    assert set(findings) == {"server", "manifest", "tryon", "tryon_unary"} | COMPONENTS
    assert all(finding.passed for finding in findings.values()), findings
    with pytest.raises(SystemExit) as exit_:
        main(["health", server.addresses.http, "--json"])
    assert exit_.value.code == 0
    assert {f["subject"] for f in json.loads(capsys.readouterr().out)} == set(findings)


@pytest.mark.parametrize("model", ["unet", "tryon", "tryon_unary"])
def test_a_dead_stub_makes_its_model_unready_though_triton_says_ready(
    model: str, repository: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Path, photo: Pixels, ornament: Pixels
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(repository))
        server.wait_ready()
        tryon = stack.enter_context(
            parure.open(server.addresses.http if model == "tryon_unary" else server.addresses.grpc)
        )
        stubs = [p for p in psutil.Process(server.pid).children() if any(f"/{model}/" in a for a in p.cmdline())]
        assert stubs, "the model has no stub"
        for stub in stubs:
            os.kill(stub.pid, signal.SIGKILL)
        with pytest.raises(ServerError) as refused:  # at once, by the first call, and as what is not worth a retry
            tryon(photo, ornament, BOX, steps=1)
        assert type(refused.value) is ServerError
        for path in ("/v2/health/ready", f"/v2/models/{model}/ready"):
            assert urllib.request.urlopen(server.addresses.http + path, timeout=30).status == 200
        findings = {finding.subject: finding for finding in probe(server.addresses.grpc, 10)}
        assert findings[model].passed is False and "unready" in findings[model].found
        assert all(f.passed for name, f in findings.items() if name != model), findings
        with pytest.raises(SystemExit) as exit_:
            main(["health", server.addresses.grpc])
        assert exit_.value.code == 1 and "FAILED" in capsys.readouterr().out
        preflight = list(examine_server(Bundle.open(tiny_bundle), server.addresses.grpc, 10))
        assert any(f.subject == model and f.passed is False for f in preflight)
        server.kill()  # a drain would wait for the dead


def test_the_health_of_what_is_no_server_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for url, code in (("ftp://somewhere", 2), ("grpc://127.0.0.1:9", 1)):
        with pytest.raises(SystemExit) as exit_:
            main(["health", url, "--deadline", "2"])
        assert exit_.value.code == code
        assert "Traceback" not in capsys.readouterr().err
