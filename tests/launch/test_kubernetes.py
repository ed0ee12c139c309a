"""launch/kubernetes.yaml against the API's schema, and its environment on two processes."""

import copy
import pathlib
import shutil
import signal
import subprocess

import kubernetes_validate
import pytest
import yaml
from small_process import steps_saved, wait_for
from tiny_run import CONFIG, NUM_STEPS, ROOT, SECONDS, VARIABLES, write_python

SERVICE, JOB = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
# The first version whose Jobs have a podFailurePolicy for good, and a new one.
VERSIONS = ("1.31", "1.37")
HOSTS_FILE = pathlib.Path("/etc/hosts")
ALONE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", [SERVICE, JOB], ids=["service", "job"])
def test_the_schema_holds(resource, version):
    assert kubernetes_validate.validate(resource, version, strict=True) == version


def test_the_schema_finds_a_misspelt_key():
    job = copy.deepcopy(JOB)
    job["spec"]["template"]["spec"]["subDomain"] = "regseg-jax"
    with pytest.raises(kubernetes_validate.ValidationError, match="subDomain"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_names_and_numbers_fit_each_other():
    name, variables = JOB["metadata"]["name"], {x["name"]: x for x in CONTAINER["env"]}
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    host = f"{name}-0.{POD['subdomain']}"  # of an Indexed Job's first pod
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"].rpartition(":")[0] == host
    count = int(variables["JAX_NUM_PROCESSES"]["value"])
    assert count == JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
    assert {x["name"] for x in CONTAINER["volumeMounts"]} == {x["name"] for x in POD["volumes"]}
    on_exit = JOB["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert on_exit["containerName"] == CONTAINER["name"]
    (code,) = on_exit["values"]
    assert f"--stopped_exit_code={code}" in CONTAINER["command"]


def create_environment(index: int) -> dict[str, str]:
    """The variables of a pod: the file's, and what Kubernetes adds that JAX looks at."""
    annotations = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index)}
    variables = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "PATH": "/usr/bin:/bin"}
    for variable in CONTAINER["env"]:
        source = variable.get("valueFrom")
        variables[variable["name"]] = (
            annotations[source["fieldRef"]["fieldPath"]] if source else variable["value"]
        )
    return variables


@pytest.fixture
def start_pods(tmp_path):
    """Starts both pods' command; the job's host name leads here for them alone."""
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("no namespace of one's own, in which the pods' names are known")
    python, hosts = write_python(tmp_path / "python"), tmp_path / "hosts"
    names = [f"{JOB['metadata']['name']}-{i}.{POD['subdomain']}" for i in range(2)]
    hosts.write_text(HOSTS_FILE.read_text() + f"127.0.0.1 {' '.join(names)}\n")
    options = dict(option.split("=", 1) for option in (*CONTAINER["args"], *CONFIG))
    options |= {"--workdir": str(tmp_path / "run")}
    del options["--config.data.data_dir"]
    interpreter, *command = CONTAINER["command"]
    assert interpreter == "python"
    enter = f'mount --bind {hosts} {HOSTS_FILE} && exec "$@"'
    arguments = [*ALONE, "sh", "-c", enter, "sh", python, *command]
    arguments += [f"{key}={value}" for key, value in options.items()]

    started = []

    def start():
        pods = [
            subprocess.Popen(
                arguments,
                cwd=ROOT,
                env=VARIABLES | create_environment(i),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(2)
        ]
        started.extend(pods)
        return pods

    yield start
    for pod in started:  # those that a failed test left
        if pod.poll() is None:
            pod.kill()
            pod.communicate()


@pytest.mark.slow
def test_a_drained_pod_stops_both_and_they_go_on(start_pods, tmp_path):
    pods, workdir = start_pods(), tmp_path / "run"
    wait_for(lambda: steps_saved(workdir), pods[0], SECONDS)
    pods[1].send_signal(signal.SIGTERM)
    logs = [pod.communicate(timeout=SECONDS)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [143, 143], logs
    assert "stopped by request at step" in logs[0]
    assert "Kubernetes environment detected" not in logs[0]  # JAX asks no further
    assert max(steps_saved(workdir)) < NUM_STEPS
    pods = start_pods()
    logs = [pod.communicate(timeout=SECONDS)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], logs
    assert "going on from the checkpoint of step" in logs[0]
    assert max(steps_saved(workdir)) == NUM_STEPS
