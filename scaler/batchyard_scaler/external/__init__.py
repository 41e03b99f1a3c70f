"""KEDA's external scaler: decisions told over gRPC."""
