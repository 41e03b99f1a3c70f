"""KEDA end to end without a cluster: its client, the autoscaler, a Deployment, and consumers as its pods."""

FACTOR = 15.0
"""By which every time of KEDA and Kubernetes is shortened."""
