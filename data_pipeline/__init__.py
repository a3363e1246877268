"""Files in, numpy arrays out: the sources of slices, their preparation, splitting and batching."""

from data_pipeline.source import DataError, Record, Source, SourceOptions, UsageError, open_source

__all__ = ["DataError", "Record", "Source", "SourceOptions", "UsageError", "open_source"]
