"""The job store: one protocol, one database behind it."""
