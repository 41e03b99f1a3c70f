"""From given values to `Settings`: each section, then what must hold between them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from batchyard.configuration.faults import fault, listed, nearest
from batchyard.configuration.schedules import contradictions, schedules
from batchyard.configuration.sources import SECTIONS, Given, Path_
from batchyard.configuration.values import NAME, RULES, Refused, convert
from batchyard.settings import RUNTIMES, HardwareSettings, ModelSettings, PoolSettings, ScheduleSettings, Settings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds every section even after a fault, so that all faults are found in one go."""

    given: Mapping[Path_, Given]
    folder: Path
    """What relative paths of the file start from."""
    faults: list[str]
    refused: set[str] = field(default_factory=set)
    """Settings whose value was refused, as a fault names them."""

    def settings(
        self, *, state_dir: str | os.PathLike[str] | None, default_state: Path, config_path: Path | None
    ) -> Settings:
        sections = {name: self._section(kind, (name,), {}) for name, kind in SECTIONS.items()}
        hardware = self._hardware()
        models = self._models(keep_seconds=sections["retention"].keep_seconds)
        faults_before = len(self.faults)
        pools = self._pools(models, hardware)
        if len(self.faults) == faults_before:
            self.faults.extend(contradictions(pools, sections["budget"]))
        top = self._section(Settings, (), {"state_dir": default_state}, only={"log_level"})
        given_state = self.given.get(("state_dir",))
        if state_dir is not None:
            state = Path(state_dir).expanduser().absolute()
        elif given_state is not None and isinstance(given_state.value, str):
            state = self.folder / Path(given_state.value).expanduser()
        else:
            state = default_state
            if given_state is not None:
                self._fault(("state_dir",), given_state, "a path")
        if state.exists() and not state.is_dir():
            self.faults.append(f"the state folder {state} is not a folder")
        return Settings(
            **sections,
            state_dir=state,
            hardware=hardware,
            models=models,
            pools=pools,
            log_level=top.log_level,
            config_path=config_path,
        )

    def _section(self, kind: type[T], path: Path_, fixed: dict[str, Any], *, only: set[str] | None = None) -> T:
        """One dataclass; a value that is refused leaves the default in its place."""
        hints = get_type_hints(kind)
        values = dict(fixed)
        for known in fields(kind):  # type: ignore[arg-type]  # every kind here is a dataclass
            given = self.given.get((*path, known.name))
            if known.name in fixed or (only is not None and known.name not in only):
                continue
            if known.name == "options":
                values["options"] = self._options(path, given)
            elif known.name == "schedule":
                values["schedule"] = self._schedules((*path, "schedule"), given)
            elif given is not None:
                self._take(values, (*path, known.name), given, hints[known.name])
            elif known.default is MISSING and known.default_factory is MISSING:
                values[known.name] = ()
                if (*path, known.name) not in self.given:
                    self.faults.append(f"{'.'.join((*path, known.name))} is missing{_needed(path)}")
            if known.name not in values and known.default is MISSING and known.default_factory is MISSING:
                values[known.name] = ()
        return kind(**values)

    def _take(self, values: dict[str, Any], path: Path_, given: Given, kind: Any) -> None:
        rule = RULES.get(path[0] + "." + path[-1])
        try:
            value = convert(given.value, kind, is_text=given.is_text)
            values[path[-1]] = rule(value) if rule is not None else value
        except Refused as refused:
            self._fault(path, given, str(refused))

    def _options(self, path: Path_, given: Given | None) -> dict[str, Any]:
        if given is not None:
            self._fault((*path, "options"), given, "a table")
        depth = len(path) + 2
        return {p[-1]: g.value for p, g in self.given.items() if len(p) == depth and p[:-1] == (*path, "options")}

    def _schedules(self, path: Path_, given: Given | None) -> tuple[ScheduleSettings, ...]:
        if given is None:
            return ()
        return schedules(given.value, name=".".join(path), origin=given.origin, faults=self.faults)

    def _names(self, section: str) -> list[str]:
        return list(dict.fromkeys(path[1] for path in self.given if path[0] == section and len(path) > 1))

    def _models(self, *, keep_seconds: float) -> tuple[ModelSettings, ...]:
        models = []
        for label in self._names("models"):
            path = ("models", label)
            name, at, version = label.partition("@")
            if not NAME.fullmatch(name) or (at and not NAME.fullmatch(version)):
                self.faults.append(
                    f'models.{label}: a model is named NAME or "NAME@VERSION", of letters, digits, ".", "-" and "_"'
                )
                continue
            fixed: dict[str, Any] = {"name": name}
            if at:
                fixed["version"] = version
                if (given := self.given.get((*path, "version"))) is not None and given.value != version:
                    self._fault((*path, "version"), given, f'"{version}", as the name of the section says, or left out')
            model = self._section(ModelSettings, path, fixed)
            self._check_cache(path, model, keep_seconds=keep_seconds)
            models.append(self._with_source(path, model))
        seen: set[str] = set()
        for model in models:
            if model.qualified in seen:
                self.faults.append(f"models: {model.qualified} is defined twice")
            seen.add(model.qualified)
        return tuple(models)

    def _check_cache(self, path: Path_, model: ModelSettings, *, keep_seconds: float) -> None:
        """Results are kept with their jobs, so none can serve others any longer."""
        seconds, across = (*path, "cache_seconds"), (*path, "cache_across_tenants")
        if model.cache_across_tenants and seconds not in self.given:
            self._fault(across, self.given[across], "false, unless cache_seconds says for how long results are kept")
        if model.cache_seconds is not None and model.cache_seconds > keep_seconds:
            allowed = f"at most {keep_seconds:g}, as retention.keep_seconds: results are deleted with their jobs"
            self._fault(seconds, self.given[seconds], allowed)

    def _with_source(self, path: Path_, model: ModelSettings) -> ModelSettings:
        """A source that is surely a path is read from the file's folder, wherever the consumer starts."""
        if model.runtime in RUNTIMES and not model.source and (*path, "source") not in self.given:
            self.faults.append(
                f'{".".join(path)}.source is missing: a folder, "package:NAME/folder" or a hub id of the model to load'
            )
        if not model.source.startswith((".", "~")):
            return model
        return replace(model, source=os.path.normpath(self.folder / Path(model.source).expanduser()))

    def _hardware(self) -> tuple[HardwareSettings, ...]:
        names = self._names("hardware")
        for name in names:
            if not NAME.fullmatch(name):
                self.faults.append(f'hardware.{name}: a class is named by letters, digits, ".", "-" and "_"')
        return tuple(self._section(HardwareSettings, ("hardware", name), {"name": name}) for name in names)

    def _pools(
        self, models: tuple[ModelSettings, ...], hardware: tuple[HardwareSettings, ...]
    ) -> tuple[PoolSettings, ...]:
        names = self._names("pools")
        if not names and models:
            return (PoolSettings(name="local", models=tuple(dict.fromkeys(model.name for model in models))),)
        known = sorted({model.name for model in models} | {model.qualified for model in models})
        pools = tuple(self._pool(name, known) for name in names)
        classes = [each.name for each in hardware]
        for pool in pools:
            if pool.hardware and pool.hardware not in classes:
                self._fault(
                    ("pools", pool.name, "hardware"),
                    self.given["pools", pool.name, "hardware"],
                    f'"" or the name of a section [hardware.NAME]{nearest(pool.hardware, classes)}'
                    f" (there are: {listed(classes) or 'none'})",
                )
        return pools

    def _pool(self, name: str, known: list[str]) -> PoolSettings:
        path = ("pools", name)
        if not NAME.fullmatch(name):
            self.faults.append(f'pools.{name}: a pool is named by letters, digits, ".", "-" and "_"')
        faults_before = len(self.faults)
        pool = self._section(PoolSettings, path, {"name": name})
        numbers_hold = len(self.faults) == faults_before
        given = self.given.get((*path, "models"))
        if given is not None and not pool.models:
            self._fault((*path, "models"), given, "a list that names at least one model")
        for model in pool.models:
            if model not in known:
                what = f"known models: {listed(known)}" if known else "the configuration has no models"
                self.faults.append(
                    f'pools.{name}.models names the unknown model "{model}"{nearest(model, known)} ({what})'
                )
        if numbers_hold and pool.min > pool.max:
            origin = (self.given.get((*path, "min")) or self.given[(*path, "max")]).origin
            self.faults.append(
                fault(f"pools.{name}.min", value=pool.min, origin=origin, allowed=f"at most max, which is {pool.max}")
            )
        return pool

    def _fault(self, path: Path_, given: Given, allowed: str) -> None:
        self.refused.add(".".join(path))
        self.faults.append(fault(".".join(path), value=given.value, origin=given.origin, allowed=allowed))


def _needed(path: Path_) -> str:
    if path[0] == "models":
        return ': runtime = "sentence-transformers" or "my_package.my_module:MyModel"'
    return ": name the models that this pool serves"
