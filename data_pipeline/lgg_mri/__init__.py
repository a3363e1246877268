"""The TFDS dataset `lgg_mri`: any source of slices as ArrayRecord files.

`data_pipeline.lgg_mri.builder` is not imported here: it imports TFDS, which takes more than a second and is not
needed to read what is already written.
"""

NAME = "lgg_mri"
VERSION = "1.0.0"
"""Version of what is written; a new version prepares every dataset again."""
SPLIT = "slices"
"""The one TFDS split: every slice, in the order of the source."""
