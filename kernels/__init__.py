"""The few fused operations that every run is made of, each with a plain-torch reference.

Importing this package does nothing and cannot fail; import the modules by name. With the checkout on ``sys.path``
this folder also answers to ``import kernels``, the name of a package that transformers probes for. An empty module
without a ``__version__`` makes the probe come out negative, which is right.
"""
