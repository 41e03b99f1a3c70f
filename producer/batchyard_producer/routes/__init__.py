"""The calls of the HTTP API by noun; each module offers its `CALLS`."""
