"""The command line, one file per command; the entry point is ``fewstep.cli.main:main``."""
