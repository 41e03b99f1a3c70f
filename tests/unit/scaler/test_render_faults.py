"""What cannot be rendered is said at once, and nothing is written."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from batchyard.cli.app import root
from batchyard.errors import ConfigurationError, Conflict
from tests.unit.scaler.rendering import FLEET, MODEL, SERVERS, settings_of

KUBERNETES = "[kubernetes]\n"
POOL = '[pools.p]\nmodels = ["m"]\n'


def faults_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        settings_of(folder, text)
    return caught.value.faults


def test_what_runs_on_one_machine_only_is_refused_with_what_to_set(tmp_path: Path) -> None:
    database, broker, storage = faults_of(tmp_path, MODEL)
    assert database.startswith('database.url = "sqlite" is a file on one machine')
    assert 'set "postgresql+psycopg://HOST/NAME"' in database
    assert 'from the Secret "batchyard"' in database
    assert broker.startswith('broker.url = "embedded" is a broker of one machine')
    assert 'set "redis://HOST:PORT/0"' in broker
    assert storage.startswith('storage.url = "file" is a place within one pod')


BAD = {
    SERVERS.replace("postgresql+psycopg://db/batchyard", "sqlite:////data/x.db") + MODEL: "database.url = ",
    SERVERS.replace("redis://cache/0", "redis+socket:///run/x") + MODEL: 'broker.url = "redis+socket:///run/x" is',
    SERVERS.replace("s3://bucket", "file:///shared") + MODEL: "storage.url = ",
    SERVERS.replace("s3://bucket", "file:///a") + MODEL + KUBERNETES + 'volumes = ["c:/b"]': 'volumes = ["CLAIM:/a/',
    SERVERS.replace("s3://bucket", "file:///a") + MODEL + KUBERNETES + 'volumes = ["c:/a:ro"]': "on a read-only volume",
    SERVERS: "models is empty",
    SERVERS + MODEL + '[server]\nbind = "0.0.0.0:0"': 'server.bind = "0.0.0.0:0" leaves the port open',
    SERVERS + MODEL + KUBERNETES + 'volumes = ["a:/x", "b:/x"]': "kubernetes.volumes mounts two claims at /x",
    SERVERS + MODEL + KUBERNETES + 'volumes = ["a:/tmp"]': "kubernetes.volumes mounts a claim at /tmp",
    SERVERS + MODEL + KUBERNETES + 'trigger = "prometheus"': "kubernetes.prometheus_url is not set",
    SERVERS + MODEL + '[pools."a.b"]\nmodels = ["m"]\n[pools.A_b]\nmodels = ["m"]': "pools.A_b and pools.a.b overlap",
    SERVERS + MODEL + f'[pools.{"x" * 40}]\nmodels = ["m"]': 'would name its Deployment "batchyard-worker-xxx',
    SERVERS + MODEL + '[pools."a-"]\nmodels = ["m"]': 'pools.a- would name its Deployment "batchyard-worker-a-"',
    SERVERS + MODEL + 'source = "./weights"': "models.m.source = ",
    SERVERS + MODEL + "p99_batch_seconds = 301": "models.m.p99_batch_seconds = 301 contradicts max_run_seconds = 300",
    SERVERS + MODEL + POOL + 'device = "cuda:1"': 'pools.p.device = "cuda:1": a pod has one device',
    SERVERS + MODEL + POOL + 'device = "cpu"\nhardware = "h"\n[hardware.h]': "contradicts hardware.h.resource",
    SERVERS + MODEL + POOL + 'device = "cuda"\nhardware = "h"\n[hardware.h]\nresource = ""': "name a GPU there",
    SERVERS + MODEL + POOL + 'capacity = "spot"': 'kubernetes.preset = "none" does not tell spot nodes from others',
    SERVERS + MODEL + "memory_gib = 9": "models.m.memory_gib = 9 is more than pools.local has: 8 GiB of memory",
    SERVERS + MODEL + "gpu_memory_gib = 1\n" + POOL + 'device = "cpu"': "has: 0 GiB of GPU memory",
    SERVERS
    + MODEL
    + "gpu_memory_gib = 11\n"
    + POOL
    + 'hardware = "h"\n[hardware.h]\nresource = "nvidia.com/mig-1g.10gb"': 'has: 10 GiB of GPU memory, hardware "h"',
    SERVERS
    + MODEL
    + 'memory_gib = 5\n[models."m@2"]\nruntime = "a:B"\nmemory_gib = 4\n'
    + POOL: "pools.p.models ask together for 9 GiB of memory",
}


@pytest.mark.parametrize(("text", "fault"), BAD.items(), ids=range(len(BAD)))
def test_what_cannot_run_in_a_cluster_is_named(tmp_path: Path, text: str, fault: str) -> None:
    [found] = faults_of(tmp_path, text)
    assert fault in found


GOOD = [
    FLEET + '[kubernetes]\npreset = "eks"',
    FLEET.replace('capacity = "spot"', 'capacity = "spot"\nhardware = "h"')
    + '[hardware.h]\nnode_labels = ["spot=yes"]',
    SERVERS + MODEL + 'source = "/models/weights"\ngpu_memory_gib = 500\n' + POOL,
    SERVERS + MODEL + "gpu_memory_gib = 24\n" + POOL + 'hardware = "h"\n[hardware.h]\ngpu_memory_gib = 24',
    SERVERS.replace("s3://bucket", "file:///a/b") + MODEL + KUBERNETES + 'volumes = ["c:/a"]',
]


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_what_can_is_not(tmp_path: Path, text: str) -> None:
    settings_of(tmp_path, text)


# --- the command ---


def render(folder: Path, text: str, *more: str) -> tuple[int, str]:
    config = folder / "batchyard.toml"
    config.write_text(text)
    result = CliRunner().invoke(root, ["render", "--config", str(config), "--out", str(folder / "out"), *more])
    if isinstance(result.exception, ConfigurationError | Conflict):
        return 2, result.exception.message
    assert result.exception is None, result.exception
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def _no_settings_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.configuration.from_environment", lambda *_: {})


def test_faults_of_every_kind_come_together_and_nothing_is_written(tmp_path: Path) -> None:
    pools = '[pools."a.b"]\nmodels = ["m"]\n[pools.a_b]\nmodels = ["m"]\nhardware = "h"\ncapacity = "spot"\n'
    text = SERVERS + MODEL + "gpu_memory_gib = 80\n" + pools + "[hardware.h]\ngpu_memory_gib = 24\n"

    _, said = render(tmp_path, text + '[kubernetes]\npreset = "gkee"\n')

    assert "the configuration has 3 faults" in said
    assert 'did you mean "gke"?' in said
    assert "pools.a_b and pools.a.b overlap" in said
    assert "models.m.gpu_memory_gib = 80 is more than pools.a_b has: 24 GiB" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_is_filled_and_kept_up_to_date(tmp_path: Path) -> None:
    out = tmp_path / "out"
    preset = '[kubernetes]\npreset = "gke"\n'
    code, said = render(tmp_path, FLEET + preset)
    assert code == 0
    assert "batchyard: BATCHYARD_DATABASE__URL, BATCHYARD_BROKER__URL" in said
    assert "batchyard-scale: token" in said
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "overlay.yaml").write_text("kind: Mine\n")
    (out / "notes.txt").write_text("mine")

    assert render(tmp_path, FLEET + preset)[0] == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.yaml") if path.name in before} == before

    # A pool that is gone takes its file with it, and what others put there stays.
    assert render(tmp_path, SERVERS + MODEL + POOL)[0] == 0
    assert {path.name for path in out.iterdir()} == {
        *("config.yaml", "migrate.yaml", "api.yaml", "scaler.yaml", "pool-p.yaml", "kustomization.yaml"),
        *("overlay.yaml", "notes.txt"),
    }


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "kustomization.yaml").write_text("kind: Kustomization\n")
    _, said = render(tmp_path, SERVERS + MODEL)
    assert "kustomization.yaml of someone else's" in said
    assert [path.name for path in out.iterdir()] == ["kustomization.yaml"]


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere" / "at" / "all" / ("x" * 300))
    _, said = render(tmp_path, SERVERS + MODEL)
    assert said.startswith("cannot write to")


def test_what_a_cloud_gives_spot_machines_is_said_where_it_is_too_little(tmp_path: Path) -> None:
    spot = '[pools.p]\nmodels = ["m"]\ncapacity = "spot"\ndrain_seconds = {drain}\n[kubernetes]\npreset = "{preset}"\n'

    def said(preset: str, drain: int) -> str:
        return render(tmp_path, SERVERS + MODEL + spot.format(preset=preset, drain=drain))[1]

    assert "pods of the pool p are given 15 s" in said("gke", 20)
    assert "pods of the pool p are given 30 s" in said("aks", 31)
    assert "Note" not in said("gke", 15) + said("aks", 30)
    for preset in ("karpenter", "eks"):
        assert "pods of the pool p are given" not in said(preset, 120)
        assert "a hop limit of 2" in said(preset, 120)
    on_demand = SERVERS + MODEL + '[pools.p]\nmodels = ["m"]\n[kubernetes]\npreset = "eks"\n'
    assert "Note" not in render(tmp_path, on_demand)[1]


def test_what_no_document_can_say_is_said_beside_them(tmp_path: Path) -> None:
    _, said = render(tmp_path, SERVERS + MODEL + '[kubernetes]\nversion = "1.30"\n')
    assert "Note: Kubernetes 1.30 with KEDA 2.20 ignores changes" in said
