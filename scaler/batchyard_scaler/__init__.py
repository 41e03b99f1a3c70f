"""Decides how many consumers each pool has."""
