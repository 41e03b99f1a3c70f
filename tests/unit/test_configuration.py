"""What a configuration may say, which source wins, and how faults read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.configuration import EXAMPLE, load_settings, redacted
from batchyard.errors import ConfigurationError
from batchyard.jobs import Lane
from batchyard.settings import PoolSettings, ScheduleSettings, Settings

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "batchyard.toml"
        path.write_text(text)
        return path

    return write


def load(path: Path, **environ: str) -> Settings:
    return load_settings(path, environ=environ)


def faults_of(path: Path, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(path, **environ)
    return caught.value.faults


def test_nothing_given_is_all_defaults_beside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load_settings(environ={})

    assert settings == Settings(state_dir=tmp_path / ".batchyard")
    assert settings.config_path is None


def test_the_example_is_a_valid_configuration(write: Write) -> None:
    settings = load(write(EXAMPLE))

    assert [model.qualified for model in settings.models] == ["minilm@1"]
    assert settings.pools == (PoolSettings(name="local", models=("minilm",), max=2),)


def test_results_are_kept_for_others_no_longer_than_their_jobs(write: Write) -> None:
    text = '[retention]\nkeep_seconds = 60\n[models.m]\nruntime = "a:B"\n'

    (model,) = load(write(text + "cache_seconds = 60\ncache_across_tenants = true")).models

    assert (model.cache_seconds, model.cache_across_tenants) == (60, True)
    [fault] = faults_of(write(text + "cache_seconds = 61"))
    assert "models.m.cache_seconds" in fault
    assert "at most 60, as retention.keep_seconds" in fault
    [fault] = faults_of(write(text + "cache_seconds = 0"))
    assert "greater than 0" in fault
    [fault] = faults_of(write(text + "cache_across_tenants = true"))
    assert "models.m.cache_across_tenants" in fault
    assert "unless cache_seconds" in fault


def test_flag_beats_environment_beats_file_beats_default(write: Write) -> None:
    path = write('[server]\nbind = "127.0.0.1:1"\nmax_inputs = 7\n[queues]\nmax_failures = 9\n')
    environ = {"BATCHYARD_SERVER__BIND": "127.0.0.1:2", "BATCHYARD_QUEUES__MAX_FAILURES": "5"}

    settings = load_settings(path, overrides={"server.bind": "127.0.0.1:3", "broker.url": None}, environ=environ)

    assert settings.server.bind == "127.0.0.1:3"
    assert settings.queues.max_failures == 5
    assert settings.server.max_inputs == 7
    assert settings.broker.url == "embedded"


def test_the_environment_reaches_models_and_pools_whatever_their_letters(write: Write) -> None:
    path = write('[models."Mini-LM.v2"]\nruntime = "a.b:C"\n[pools.Local]\nmodels = ["Mini-LM.v2"]\n')

    settings = load(
        path,
        BATCHYARD_MODELS__MINI_LM_V2__LANE="tolerant",
        BATCHYARD_POOLS__LOCAL__MAX="4",
        BATCHYARD_POOLS__LOCAL__IDLE_SECONDS="0.5",
        BATCHYARD_MODELS__MINI_LM_V2__OPTIONS__DTYPE="bf16",
    )

    assert settings.models[0].lane is Lane.TOLERANT
    assert settings.models[0].options == {"dtype": "bf16"}
    assert (settings.pools[0].max, settings.pools[0].idle_seconds) == (4, 0.5)


def test_state_is_named_by_argument_environment_file_or_stands_beside_the_file(write: Write, tmp_path: Path) -> None:
    assert load(write("")).state_dir == tmp_path / ".batchyard"
    path = write('state_dir = "from-file"')
    assert load(path).state_dir == tmp_path / "from-file"
    assert load(path, BATCHYARD_STATE="/from-environment").state_dir == Path("/from-environment")
    assert load_settings(path, "/given", environ={"BATCHYARD_STATE": "/x"}).state_dir == Path("/given")


def test_the_environment_names_the_file(write: Write) -> None:
    path = write('log_level = "debug"')

    assert load_settings(environ={"BATCHYARD_CONFIG": str(path)}).log_level == "debug"


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "absent.toml") == [f"the configuration file {tmp_path / 'absent.toml'} does not exist"]


def test_broken_toml_is_one_fault_with_its_place(write: Write) -> None:
    [fault] = faults_of(write("[server\n"))

    assert "batchyard.toml cannot be read" in fault
    assert "line 1" in fault


def test_models_without_pools_get_one_local_pool(write: Write) -> None:
    settings = load(write('[models.a]\nruntime="m:A"\n[models."a@2"]\nruntime="m:A"\n[models.b]\nruntime="m:B"\n'))

    assert [model.qualified for model in settings.models] == ["a@1", "a@2", "b@1"]
    assert settings.pools == (PoolSettings(name="local", models=("a", "b")),)


def test_every_fault_is_reported_at_once(write: Write) -> None:
    faults = faults_of(
        write(
            """
            [server]
            bnd = "x"
            bind = "8080"
            [broker]
            url = "kafka://user:sesame@host"
            [models.minilm]
            runtime = "sentence-transformers"
            lane = "spot"
            [models.custom]
            [pools.local]
            models = ["minlm"]
            min = 3
            max = 2
            [pools.other]
            models = ["minilm"]
            max = "many"
            """
        ),
        BATCHYARD_QUEUES__LEASE_SECONDS="soon",
        BATCHYARD_RETENTION__PAYLOAD_SECONDS="59",
    )

    assert faults == [
        (
            'server.bnd (batchyard.toml) is not a setting; did you mean "bind"? (known: "bind", "max_body_bytes", '
            '"max_payload_bytes", "max_input_bytes", "max_inputs", "require_keys")'
        ),
        'server.bind = "8080" (batchyard.toml): must be HOST:PORT, such as "127.0.0.1:8080"',
        (
            'broker.url = "kafka://user:***@host" (batchyard.toml): must be "embedded", "redis://HOST:PORT/0", '
            '"redis+socket:///PATH" or "amqp://USER:PASSWORD@HOST//"'
        ),
        'queues.lease_seconds = "soon" (environment BATCHYARD_QUEUES__LEASE_SECONDS): must be a number',
        ('retention.payload_seconds = "59" (environment BATCHYARD_RETENTION__PAYLOAD_SECONDS): must be at least 60'),
        'models.minilm.lane = "spot" (batchyard.toml): must be one of "firm", "tolerant"',
        'models.minilm.source is missing: a folder, "package:NAME/folder" or a hub id of the model to load',
        'models.custom.runtime is missing: runtime = "sentence-transformers" or "my_package.my_module:MyModel"',
        (
            'pools.local.models names the unknown model "minlm"; did you mean "minilm"? '
            '(known models: "custom", "custom@1", "minilm", "minilm@1")'
        ),
        "pools.local.min = 3 (batchyard.toml): must be at most max, which is 2",
        'pools.other.max = "many" (batchyard.toml): must be a whole number',
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("server = 3", "server (batchyard.toml) must be a table: [server]"),
        ("models = 3", "models (batchyard.toml) must hold tables, each with a name: [models.NAME]"),
        ("[servr]", "servr (batchyard.toml) is not a section or setting; did you mean"),
        ('log_level = "loud"', 'log_level = "loud" (batchyard.toml): must be one of "debug"'),
        ("[server]\nrequire_keys = 1", "server.require_keys = 1 (batchyard.toml): must be true or false"),
        ("[queues]\nwindow_seconds = nan", "queues.window_seconds = nan (batchyard.toml): must be a finite number"),
        ("[pools.p]\nmodels = []", "pools.p.models = [] (batchyard.toml): must be a list that names at least one"),
        ('[models."a b"]', "models.a b: a model is named NAME"),
        ('[models.a]\nruntime="m:A"\nbatch_budget=0', "models.a.batch_budget = 0 (batchyard.toml): must be at least 1"),
        ('[models.a]\nruntime="m:A"\noptions=3', "models.a.options = 3 (batchyard.toml): must be a table"),
        ('[models.a]\nruntime="m:A"\n[models."a@1"]\nruntime="m:A"', "models: a@1 is defined twice"),
        ('[server]\nbind = "a:b:80"', 'server.bind = "a:b:80" (batchyard.toml): must be HOST:PORT; an IPv6 host'),
    ],
)
def test_a_fault_names_value_and_what_is_allowed(write: Write, text: str, fault: str) -> None:
    assert fault in "\n".join(faults_of(write(text)))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            '[hardware.a]\nresource = "gpu"',
            'hardware.a.resource = "gpu" (batchyard.toml): must be an extended resource',
        ),
        ('[hardware.a]\ntaints = ["a=b"]', "hardware.a.taints = ['a=b'] (batchyard.toml): must be a list of taints"),
        ('[hardware.a]\nnode_labels = ["a"]', "must be a list of labels, each KEY=VALUE"),
        ('[hardware."a/b"]', "hardware.a/b: a class is named by letters"),
        (
            '[kubernetes]\npreset = "karpentr"',
            'must be one of "none", "karpenter", "eks", "gke", "aks"; did you mean "karpenter"?',
        ),
        ('[kubernetes]\nimage = "batchyard"', 'must be an image with "{role}" in it'),
        ('[kubernetes]\nimage = "{role}:{tag}"', 'must be an image with "{role}" in it'),
        ('[kubernetes]\nnamespace = "A"', "must be a namespace"),
        ('[kubernetes]\nvolumes = ["claim:path"]', "must be a list of volumes"),
        ('[kubernetes]\nversion = "2"', "must be a minor version of Kubernetes"),
    ],
)
def test_a_cluster_is_described_in_its_own_words(write: Write, text: str, fault: str) -> None:
    assert fault in faults_of(write(text))[0]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0,1", "cuda:GPU-5d5ba0d6-d33d,MIG-c6d4f1ef-42e4,3"])
def test_a_pool_names_its_devices(write: Write, device: str) -> None:
    models = '[models.m]\nruntime = "a:B"\n'
    [pool] = load(write(models + f'[pools.p]\nmodels = ["m"]\ndevice = "{device}"\nconsumers_per_device = 2')).pools
    assert (pool.device, pool.consumers_per_device) == (device, 2)
    for wrong in ("gpu", "cuda:", "cuda:0,0", "cuda:0, 1", "cpu:0", "cuda:x"):
        [fault] = faults_of(write(models + f'[pools.p]\nmodels = ["m"]\ndevice = "{wrong}"'))
        assert fault.endswith('"cuda:" and GPUs by index or UUID, each once, such as "cuda:0,1"')


def test_a_pool_names_a_class_of_hardware_that_exists(write: Write) -> None:
    models = '[models.m]\nruntime = "a:B"\n[hardware.l4]\n'
    assert load(write(models + '[pools.p]\nmodels = ["m"]\nhardware = "l4"')).pools[0].hardware == "l4"
    [fault] = faults_of(write(models + '[pools.p]\nmodels = ["m"]\nhardware = "l40"'))
    assert fault.startswith('pools.p.hardware = "l40" (batchyard.toml): must be "" or the name of a section')
    assert 'did you mean "l4"?' in fault


def test_what_a_command_finds_is_reported_with_the_rest_but_not_about_refused_values(write: Write) -> None:
    path = write('[server]\nbind = "x"\n[queues]\nmax_failures = 0')
    found = [("server.bind", "never shown"), ("broker.url", "broker.url is embedded")]

    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, environ={}, check=lambda settings: found)

    assert [fault.split(" ")[0] for fault in caught.value.faults] == [
        "server.bind",
        "queues.max_failures",
        "broker.url",
    ]


def test_a_misspelled_variable_is_a_fault_and_a_foreign_one_is_not(write: Write) -> None:
    path = write("")

    assert faults_of(path, BATCHYARD_SERVER_BIND="x") == [
        'environment BATCHYARD_SERVER_BIND is not a setting; did you mean "BATCHYARD_SERVER__BIND"?'
    ]
    assert "did you mean" in faults_of(path, BATCHYARD_SERVER__BND="x")[0]
    load(path, BATCHYARD_API_SERVICE_HOST="10.0.0.1", BATCHYARD_URL="http://x", BATCHYARD_API_KEY="k")


def test_urls_are_brought_to_the_form_that_the_drivers_read(write: Write) -> None:
    settings = load(write('[database]\nurl="postgres://h/d"\n[broker]\nurl="valkey://h:1"'))

    assert settings.database.url == "postgresql+psycopg://h/d"
    assert settings.broker.url == "redis://h:1"


def test_a_relative_source_starts_from_the_file(write: Write, tmp_path: Path) -> None:
    path = write('[models.a]\nruntime="sentence-transformers"\nsource="./weights"\n')

    assert load(path).models[0].source == str(tmp_path / "weights")


def test_loopback_is_told_from_other_addresses(write: Write) -> None:
    for bind, is_loopback in {"127.0.0.1:1": True, "localhost:1": True, "[::1]:1": True, "0.0.0.0:1": False}.items():
        server = load(write(f'[server]\nbind = "{bind}"')).server
        assert (server.is_loopback, server.port) == (is_loopback, 1)


def test_an_unknown_override_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        load_settings(overrides={"server.bnd": 1}, environ={})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@host:1/0", "redis://:***@host:1/0"),
        ("postgresql+psycopg://u:p@h/d?sslpassword=s&x=1", "postgresql+psycopg://u:***@h/d?sslpassword=***&x=1"),
        ("cannot reach amqp://u:p@h// in time", "cannot reach amqp://u:***@h// in time"),
        ("http://h/?token=abc", "http://h/?token=***"),
        ("sqlite", "sqlite"),
    ],
)
def test_secrets_are_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


POOL = '[models.m]\nruntime = "a:B"\n[pools.p]\nmodels = ["m"]\nmax = 4\n'


def test_a_schedule_gives_a_pool_other_limits_at_certain_hours(write: Write) -> None:
    nights = '[[pools.p.schedule]]\nfrom = "22:00"\nto = 06:30:00\ntimezone = "Europe/Berlin"\nmax = 9\n'
    weekend = '[[pools.p.schedule]]\ndays = ["sat", "sun"]\nfrom = "08:00"\nto = "24:00"\nmin = 2\n'

    [pool] = load(write(POOL + nights + weekend)).pools

    assert pool.schedule == (
        ScheduleSettings(from_minute=22 * 60, to_minute=6 * 60 + 30, timezone="Europe/Berlin", max=9),
        ScheduleSettings(days=("sat", "sun"), from_minute=8 * 60, to_minute=24 * 60, min=2),
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('to = "07:00"\nmin = 1', "schedule[1].from is missing"),
        ('from = "7:00"\nto = "08:00"\nmin = 1', 'must be a time of the day as "HH:MM"'),
        ('from = "07:00"\nto = "07:00"\nmin = 1', "must be another time than from"),
        ('from = "07:00"\nto = "08:00"\nmin = 1\ndays = ["monday"]', 'must be a list of "mon"'),
        ('from = "07:00"\nto = "08:00"\nmin = 1\ntimezone = "Mars"', "must be a time zone"),
        ('from = "07:00"\nto = "08:00"', "changes nothing: give it min or max"),
        ('from = "07:00"\nto = "08:00"\nmin = 5', "min 5 is above max 4 in these hours"),
        ('from = "07:00"\nto = "08:00"\nmin = true', "must be a whole number"),
        ('from = "07:00"\nto = "08:00"\nmin = 1\nzone = "UTC"', 'did you mean "timezone"'),
    ],
)
def test_a_schedule_that_cannot_hold_is_refused(write: Write, table: str, words: str) -> None:
    [fault] = faults_of(write(f"{POOL}[[pools.p.schedule]]\n{table}\n"))
    assert words in fault


def test_schedules_that_overlap_are_refused(write: Write) -> None:
    night = '[[pools.p.schedule]]\ndays = ["sun"]\nfrom = "22:00"\nto = "06:00"\nmin = 1\n'
    morning = '[[pools.p.schedule]]\ndays = ["mon"]\nfrom = "05:59"\nto = "08:00"\nmin = 2\n'
    [fault] = faults_of(write(POOL + night + morning))
    assert "1 and 2 overlap" in fault


def test_limits_that_contradict_one_another_are_refused_all_at_once(write: Write) -> None:
    pools = (
        "price_per_hour = 4.0\nmin = 3\n"
        '[pools.other]\nmodels = ["m"]\ncapacity = "spot"\nzones = ["a", "a"]\n'
        "[budget]\nper_hour = 10\nper_month = 5\n"
    )
    faults = faults_of(write(POOL + pools))
    assert [words for words in faults if "zones names a zone twice" in words]
    assert [words for words in faults if "must be at most budget.per_month" in words]
    assert [words for words in faults if 'price_per_hour is needed of every pool; missing of "other"' in words]
    assert [words for words in faults if "must be at least 12" in words]
    assert len(faults) == 4
