"""How clusters label and taint their nodes: which are spot, and which GPU they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What one kind of cluster calls things."""

    capacity_label: str | None
    """On nodes; None where nothing tells spot nodes from others."""
    spot: str
    """Its value on spot nodes."""
    accelerator_label: str = "nvidia.com/gpu.product"
    """Holds the name of the GPU; where the cloud sets none, NVIDIA's feature discovery does."""
    spot_taints: tuple[str, ...] = ()
    gpu_taints: tuple[str, ...] = ()
    """Beside that of the resource's own name."""
    cloud: Literal["auto", "aws", "gcp", "azure"] = "auto"
    """Whose metadata service tells of zones, and of spot machines that are taken back."""
    notice_seconds: float | None = None
    """That a pod has at least once its spot machine is to be taken back; None: not known."""
    notice_needs: str = ""
    """What an administrator has to see to, for pods to hear of it."""


AWS_NEEDS = "the instances' metadata service to answer pods: a hop limit of 2 (httpPutResponseHopLimit)"

PRESETS: Mapping[str, Preset] = {
    "none": Preset(capacity_label=None, spot=""),
    # https://karpenter.sh/docs/concepts/scheduling/#well-known-labels
    "karpenter": Preset(
        capacity_label="karpenter.sh/capacity-type",
        spot="spot",
        accelerator_label="karpenter.k8s.aws/instance-gpu-name",
        cloud="aws",
        notice_seconds=120,
        notice_needs=AWS_NEEDS,
    ),
    # https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html
    "eks": Preset(
        capacity_label="eks.amazonaws.com/capacityType",
        spot="SPOT",
        cloud="aws",
        notice_seconds=120,
        notice_needs=AWS_NEEDS,
    ),
    # https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms
    "gke": Preset(
        capacity_label="cloud.google.com/gke-spot",
        spot="true",
        accelerator_label="cloud.google.com/gke-accelerator",
        spot_taints=("cloud.google.com/gke-spot=true:NoSchedule",),
        cloud="gcp",
        notice_seconds=15,  # of the 30 that the machine has, the kubelet keeps the rest for the system's own pods
    ),
    # https://learn.microsoft.com/azure/aks/spot-node-pool and /azure/aks/use-nvidia-gpu
    "aks": Preset(
        capacity_label="kubernetes.azure.com/scalesetpriority",
        spot="spot",
        spot_taints=("kubernetes.azure.com/scalesetpriority=spot:NoSchedule",),
        gpu_taints=("sku=gpu:NoSchedule",),
        cloud="azure",
        notice_seconds=30,
    ),
}
"""By `kubernetes.preset`."""
