"""`batchyard render`: the configuration as Kubernetes manifests."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import click

from batchyard.cli.invocation import Invocation
from batchyard.settings import Settings
from batchyard_scaler.render.faults import find_faults
from batchyard_scaler.render.folder import write
from batchyard_scaler.render.keda import SCALE_SECRET
from batchyard_scaler.render.manifests import as_texts, manifests, notes
from batchyard_scaler.render.objects import secret_variables


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("deploy/kubernetes"),
    show_default=True,
    help="The folder to write to; other files in it are left alone.",
)
@click.pass_obj
def render(invocation: Invocation, /, *, out: Path) -> None:
    """Write Kubernetes manifests of this configuration, for `kubectl apply -k`.

    Per pool a Deployment and the ScaledObject by which KEDA sizes it; the API, the scaler and the migration. What they
    need to know of the cluster stands in the sections [kubernetes] and [hardware.NAME]. Secrets are named, not written.
    The same configuration gives the same files.
    """
    settings = invocation.settings(find_faults)
    files = as_texts(manifests(settings, release=metadata.version("batchyard")))
    write(out, files)
    click.echo(_what_next(settings, out, len(files)))
    for note in notes(settings):
        click.echo(f"Note: {note}", err=True)


def _what_next(settings: Settings, out: Path, files: int) -> str:
    kubernetes = settings.kubernetes
    lines = [
        f"{files} files written to {out}. They count on Secrets in the namespace {kubernetes.namespace}:",
        f"  {kubernetes.secret}: {', '.join(secret_variables(settings))}",
        *(f"  {name}: variables of the API and the consumers" for name in kubernetes.env_secrets),
    ]
    if kubernetes.trigger == "metrics-api":
        lines.append(f"  {SCALE_SECRET}: token, an API key that `batchyard keys create --scope scale` makes")
    return "\n".join(lines)
