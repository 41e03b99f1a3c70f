"""What KEDA asks for: the names of the contract, in one place for those who serve it and for rendered manifests.

Every front end gives out the same number: the replicas of the last decision about a pool, and nothing at all once that
decision is stale (`PoolDecision.is_stale`). Only silence lets KEDA fall back to the replicas that are there.
"""

SCALE_PATH = "/v1/pools/{pool}/scale"
"""Of the API, with a key of the scope `scale`; answers `schemas.PoolScale`, or 503."""

SCALE_VALUE = "replicas"
"""Where the number stands in that answer; a GJSON path for the trigger `metrics-api`."""

DESIRED_REPLICAS = "batchyard_desired_replicas"
"""The gauge of the API's `/metrics`, with the label `pool`; withdrawn while there is no fresh decision."""

EXTERNAL_SCALER_PORT = 9090
"""Where the trigger `external-push` looks for `externalscaler.ExternalScaler`; its metadata name the `pool`."""
