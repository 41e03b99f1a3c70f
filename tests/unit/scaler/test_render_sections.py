"""Pods read every section that is not for the cluster or a Secret: a limit left out would be no limit there."""

import dataclasses
import tomllib
from pathlib import Path

from batchyard.configuration.sources import SECTIONS
from batchyard.settings import LimitSettings, ModelSettings, Settings
from batchyard_scaler.render.configuration import configuration_text


def test_limits_and_digests_reach_the_pods(tmp_path: Path) -> None:
    model = ModelSettings(name="m", runtime="a:B", digest="sha256:" + "0" * 64)
    settings = Settings(state_dir=tmp_path, limits=LimitSettings(queued_jobs=5, jobs_per_second=2.5), models=(model,))
    read = tomllib.loads(configuration_text(settings))
    assert read["limits"] == {"queued_jobs": 5, "jobs_per_second": 2.5}
    assert read["models"]["m@1"]["digest"] == model.digest


def test_every_section_is_one_of_the_settings() -> None:
    assert set(SECTIONS) <= {field.name for field in dataclasses.fields(Settings)}
