"""The sources of slices, one file each: all are imported when a data set is opened, and register themselves."""
