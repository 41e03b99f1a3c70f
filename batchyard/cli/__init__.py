"""The `batchyard` command. Files are named by noun; the other components' commands come by entry points."""

from batchyard.cli.app import main

__all__ = ["main"]
