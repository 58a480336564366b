"""Guidance policies: which branches a tick evaluates and how their outputs are weighed.

Importing this package does nothing and cannot fail; import the modules by name.
"""
