"""The verbs: one file per command, each a ``run(config, ...) -> Result``; only the command line prints."""
