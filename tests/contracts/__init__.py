"""Contracts: each finds every file of a folder and examines it."""
