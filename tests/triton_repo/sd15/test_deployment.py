"""Image, compose file and chart for a bundle of SD 1.5 size: checked by Helm, hadolint and the published schemas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from parure.bundle import Bundle
from parure.errors import InputError
from parure.manifest import Manifest
from parure_triton.deployment import Deployment, DeploymentOptions, write_deployment
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository

KUBERNETES = ("1.30", "1.34")
ON_GPUS = RepositoryOptions.of(backend="tensorrt", targets=("a100",), gpus=(0, 1), rate_limit=2)
ON_CPU = RepositoryOptions.of(instances=2)
ADMINISTRATION = "shared-memory,model-repository,statistics,trace,logging"


def deploy(bundle: Path, root: Path, options: RepositoryOptions, **chosen: object) -> Path:
    models = write_repository(bundle, root / "models", options=options)
    facts = Deployment(Bundle.open(bundle).manifest, models, options, DeploymentOptions.of(**chosen))
    write_deployment(facts, root / "deploy", root / "models")
    return root / "deploy"


@pytest.fixture(scope="module")
def gpus(sd15_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(sd15_bundle, tmp_path_factory.mktemp("gpus"), ON_GPUS)


@pytest.fixture(scope="module")
def cpu(sd15_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(sd15_bundle, tmp_path_factory.mktemp("cpu"), ON_CPU)


@pytest.fixture(params=["gpus", "cpu"])
def deployment(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def helm() -> Any:
    return pytest.importorskip("helm_python", reason="Helm as a library: its wheel is for x86-64 alone")


def rendered(deployment: Path, **values: object) -> list[dict[str, Any]]:
    """Every object of the chart, as Helm renders it."""
    with helm().Chart.load(deployment / "chart") as chart:
        texts = chart.render(values, name="shop", namespace="prod")
    files = (text for name, text in texts.items() if name.endswith(".yaml"))
    return [found for text in files for found in yaml.safe_load_all(text) if found]


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def pod(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


EVERYTHING = {
    "autoscaling": {"enabled": True},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "modelsClaim": "models",
    "admin": {"existingSecret": "keys"},
    "nodeSelector": {"gpu": "a100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"team": "shop"},
    "service": {"type": "LoadBalancer", "annotations": {"internal": "true"}},
}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as written", "everything on"])
def test_helm_lints_the_chart_without_a_warning(deployment: Path, values: dict[str, Any]) -> None:
    report = helm().lint(deployment / "chart", values, strict=True, kube_version="v1.34.0")
    assert not report["errors"] and all(finding["severity"] <= 1 for finding in report["messages"]), report


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as written", "everything on"])
def test_every_object_is_one_that_kubernetes_takes(deployment: Path, values: dict[str, Any], release: str) -> None:
    objects = rendered(deployment, **values)
    own = [each for each in objects if not each["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"} <= {each["kind"] for each in own}
    for each in own:
        kubernetes_validate.validate(each, release, strict=True)


def test_a_value_that_the_chart_does_not_know_is_refused(cpu: Path) -> None:
    with pytest.raises(helm().HelmError, match="additional properties 'gpu' not allowed"):
        rendered(cpu, gpu=2)


def test_the_pod_is_locked_down(deployment: Path) -> None:
    spec, container = pod(rendered(deployment))
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert (
        own["readOnlyRootFilesystem"]
        and not own["allowPrivilegeEscalation"]
        and own["capabilities"] == {"drop": ["ALL"]}
    )
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert places["/dev/shm"]["medium"] == "Memory" and "/tmp" in places


def test_a_pod_is_ready_while_every_model_really_answers_and_restarted_when_one_does_not(deployment: Path) -> None:
    container = pod(rendered(deployment, probe={"deadlineSeconds": 7, "timeoutSeconds": 20, "periodSeconds": 11}))[1]
    ready, alive = container["readinessProbe"], container["livenessProbe"]
    probed = ["python3", "-m", "parure", "health", "grpc://127.0.0.1:8001", "--deadline", "7"]
    assert ready["exec"]["command"] == alive["exec"]["command"] == probed
    assert (ready["periodSeconds"], ready["timeoutSeconds"]) == (11, 20)
    patience = [probe["periodSeconds"] * probe["failureThreshold"] for probe in (ready, alive)]
    assert 4 * patience[0] < patience[1]  # it leaves the service long before it is started anew
    compose = yaml.safe_load((deployment / "compose.yaml").read_text())["services"]["triton"]["healthcheck"]["test"]
    assert compose[1:-1] == probed[:-1]


def test_a_pod_leaves_the_service_before_it_drains_and_drains_before_it_is_killed(deployment: Path) -> None:
    spec, container = pod(rendered(deployment, drainSeconds=45, deregisterSeconds=15))
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "15"]
    assert "--exit-timeout-secs=45" in container["args"]
    assert spec["terminationGracePeriodSeconds"] > 15 + 45


def test_gpus_are_asked_for_where_the_components_need_them(gpus: Path, cpu: Path) -> None:
    for place, expected in ((gpus, 2), (cpu, None)):
        resources = pod(rendered(place))[1]["resources"]
        assert [resources[side].get("nvidia.com/gpu") for side in ("requests", "limits")] == [expected] * 2
    compose = yaml.safe_load((gpus / "compose.yaml").read_text())["services"]["triton"]
    (device,) = compose["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0", "1"] and device["capabilities"] == ["gpu"]
    assert "deploy" not in yaml.safe_load((cpu / "compose.yaml").read_text())["services"]["triton"]


def test_pods_scale_on_the_ratio_of_waiting_to_computing(deployment: Path) -> None:
    assert not [each for each in rendered(deployment) if each["kind"] == "HorizontalPodAutoscaler"]
    objects = rendered(deployment, autoscaling={"enabled": True, "maxReplicas": 9}, monitoring={"enabled": True})
    scaler = only(objects, "HorizontalPodAutoscaler")["spec"]
    (rule,) = only(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert scaler["maxReplicas"] == 9 and scaler["metrics"][0]["pods"]["metric"]["name"] == rule["record"]
    assert "replicas" not in only(objects, "Deployment")["spec"]  # the scaler's alone


def test_the_key_comes_from_a_secret_and_stands_nowhere_else(deployment: Path) -> None:
    objects = rendered(deployment)
    key = only(objects, "Secret")["data"]["admin-key"]
    assert len(key) >= 48 and sum(key in yaml.safe_dump(each) for each in objects) == 1
    assert only(rendered(deployment), "Secret")["data"]["admin-key"] != key
    given = rendered(deployment, admin={"existingSecret": "keys", "secretKey": "triton"})
    assert not [each for each in given if each["kind"] == "Secret"]
    assert pod(given)[1]["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "triton"}


def commands(deployment: Path) -> dict[str, list[str]]:
    compose = yaml.safe_load((deployment / "compose.yaml").read_text())["services"]["triton"]["command"]
    return {"compose": compose[1:], "chart": pod(rendered(deployment))[1]["args"]}


def test_compose_and_chart_start_the_server_alike_and_closed(deployment: Path) -> None:
    for flags in commands(deployment).values():
        closed = [flag for flag in flags if "restricted" in flag]
        assert len(closed) == 2 and all(f"={ADMINISTRATION}:parure=$" in flag for flag in closed)
        assert {
            "--model-control-mode=none", "--disable-auto-complete-config", "--allow-client-shm=false",
            "--grpc-max-response-pool-size=32", "--strict-readiness=true",
        } <= set(flags)  # fmt: skip
    compose, chart = ([flag.split("$")[0] for flag in flags] for flags in commands(deployment).values())
    assert compose == chart


def test_a_rate_limit_reaches_the_server(gpus: Path, cpu: Path) -> None:
    for flags in commands(gpus).values():
        assert {"--rate-limit=execution_count", "--rate-limit-resource=gpu:2"} <= set(flags)
    assert not [flag for flag in commands(cpu)["chart"] if "rate-limit" in flag]


def test_client_shared_memory_opens_only_when_asked(sd15_bundle: Path, tmp_path: Path) -> None:
    for flags in commands(deploy(sd15_bundle, tmp_path, ON_CPU, client_shm=True)).values():
        assert "--allow-client-shm=true" in flags
        assert all("shared-memory" not in flag for flag in flags if "restricted" in flag)


def test_a_full_batch_fits_into_one_http_request(gpus: Path, sd15_bundle: Path) -> None:
    """46.2 MB of features a sample, eight of them: more than Triton's own limit of 64 MiB."""
    manifest: Manifest = Bundle.open(sd15_bundle).manifest
    (limit,) = (int(f.partition("=")[2]) for f in commands(gpus)["chart"] if f.startswith("--http-max-input-size"))
    assert limit > 2 * 2 * manifest.features.length * manifest.max_batch > 64 * 2**20


def test_compose_keeps_to_its_specification(deployment: Path) -> None:
    file = str(deployment / "compose.yaml")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_compose_is_locked_down(deployment: Path) -> None:
    service = yaml.safe_load((deployment / "compose.yaml").read_text())["services"]["triton"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "1000:1000"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["volumes"] == [
        {"type": "bind", "source": "${PARURE_MODELS:-../models}", "target": "/models", "read_only": True}
    ]


def test_hadolint_has_nothing_to_say_about_the_dockerfile(deployment: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([linter, deployment / "Dockerfile"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_image_is_nvidias_with_the_runtime_and_numpy_1(
    gpus: Path, cpu: Path, sd15_bundle: Path, tmp_path: Path
) -> None:
    for place, requirement in ((gpus, "'parure=="), (cpu, "'parure[cpu]==")):
        dockerfile = (place / "Dockerfile").read_text()
        assert "FROM nvcr.io/nvidia/tritonserver:26.06-py3 " in dockerfile and "USER 1000:1000" in dockerfile
        assert requirement in dockerfile and "'numpy>=1.26,<2'" in dockerfile
    on_gpu = deploy(sd15_bundle, tmp_path, RepositoryOptions.of(gpus=(0,)), container="26.09-py3")
    assert "tritonserver:26.09-py3 " in (on_gpu / "Dockerfile").read_text()
    assert "'parure[gpu]==" in (on_gpu / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"container": "26.05-py3"}, "26.05-py3 is older than 26.06"),
        ({"container": "latest"}, "container is 'latest'; expected tag of NVIDIA's Triton container"),
        ({"drain": 0}, "drain is 0; expected seconds"),
    ],
)
def test_options_that_do_not_do_are_named(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DeploymentOptions.of(**wrong)


def test_a_deployment_never_lies_in_the_repository_nor_around_it(cpu: Path) -> None:
    from parure_triton.deployment import check_places

    models = cpu.parent / "models"
    for place in (models, models / "deploy", cpu.parent):
        with pytest.raises(InputError, match="lie in each other"):
            check_places(place, models, ON_CPU)
    with pytest.raises(InputError, match=r"gpus are \[2, 3\]; a container numbers its GPUs from 0"):
        check_places(cpu, models, RepositoryOptions.of(gpus=(2, 3)))


def test_an_earlier_deployment_is_replaced_and_nothing_else(sd15_bundle: Path, tmp_path: Path) -> None:
    place = deploy(sd15_bundle, tmp_path, ON_CPU)
    (place / "chart" / "stale").touch()
    deploy(sd15_bundle, tmp_path, ON_CPU)
    assert not (place / "chart" / "stale").exists()
    (place / "my.yaml").touch()
    with pytest.raises(InputError, match=r"my\.yaml is not part of a deployment that parure wrote"):
        deploy(sd15_bundle, tmp_path, ON_CPU)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy", "models"]


def test_no_path_of_this_machine_is_written(deployment: Path) -> None:
    for path in deployment.rglob("*"):
        assert not path.is_file() or str(deployment.parent) not in path.read_text()
