"""Tests: unit/ mirrors the source, services/ needs real servers, benchmarks/ measures."""
