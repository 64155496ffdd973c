"""Plots of records: what `mapengine plot` and the options `--plot` draw."""
