"""From a configuration to Kubernetes manifests. Pure, but for `command` and `folder`."""
