"""How many consumers each pool should have. Pure: decides on what it is told, and never asks or acts."""
