"""The `kaggle_3m` tree of the LGG segmentation data set, as a folder or inside the zip that Kaggle serves."""

import os
import zipfile
from pathlib import Path, PurePosixPath

from data_pipeline.files import Tree, in_threads, open_archive, open_folder, some
from data_pipeline.source import DEFAULTS, DataError, SourceOptions, register
from data_pipeline.sources.pairs import TCGA_NAME, PairSource, check_paired, parse_name

URL = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
EXPECTS = f"the kaggle_3m folder (or zip) of {URL}, with slices named TCGA_<site>_<patient>_<date>_<n>.tif"
CITATION = """\
@article{buda2019association,
  title={Association of genomic subtypes of lower-grade gliomas with shape features automatically extracted by a deep
    learning algorithm},
  author={Buda, Mateusz and Saha, Ashirbani and Mazurowski, Maciej A.},
  journal={Computers in Biology and Medicine},
  volume={109},
  year={2019}
}"""


def is_kaggle(root: Path | None) -> bool:
    """Whether a root is a zip file, or a folder with a slice named as in `kaggle_3m` at any depth."""
    if root is None or root.is_file():
        # A damaged zip keeps its name, and the message should say that it is damaged.
        return root is not None and (root.suffix.lower() == ".zip" or zipfile.is_zipfile(root))
    names = (PurePosixPath(name) for _, _, files in os.walk(root) for name in files)
    return any(_is_tiff(name) and TCGA_NAME.fullmatch(name.stem) for name in names)


@register("kaggle_3m", opens=is_kaggle, expects=EXPECTS, rank=2, homepage=URL, citation=CITATION)
def open_kaggle(root: str | Path, options: SourceOptions = DEFAULTS) -> PairSource:
    """Opens the `kaggle_3m` tree: lists it and pairs it by name; nothing is decoded yet.

    Kaggle's archive holds the tree twice (`kaggle_3m` and `lgg-mri-segmentation/kaggle_3m`): a second copy of a slice
    with the same bytes is left out, and a note says so.

    Args:
      root: the `kaggle_3m` folder, a folder that holds it, or Kaggle's zip (which is read without extraction).
      options: slices of another size are refused unless `resize` is set.

    Raises:
      DataError: root is missing or holds no slices; a TIFF with another name; an image without mask or a mask without
        image; two files for one slice with different bytes.
    """
    root = Path(root)
    tree = open_archive(root) if root.is_file() else open_folder(root)
    notes = [f"{tree.hidden} hidden files ignored"] if tree.hidden else []
    found: dict[str, str] = {}  # stem -> name in the tree
    copies: list[tuple[str, str]] = []
    odd = []
    others = 0
    # The outermost tree counts, in whatever order the file system lists them.
    for name in sorted(tree.names, key=lambda name: (name.count("/"), name)):
        path = PurePosixPath(name)
        if not _is_tiff(path):
            others += path.suffix.lower() not in (".csv", ".md", ".txt")
        elif not TCGA_NAME.fullmatch(path.stem):
            odd.append(name)
        elif path.stem in found:
            copies.append((found[path.stem], name))
        else:
            found[path.stem] = name
    if not found:
        content = some(sorted({name.split("/")[0] for name in tree.names}), 5) or "nothing"
        raise DataError(f"no slices below {root} (holds {content}); expected {EXPECTS}")
    if odd:
        raise DataError(
            f"{len(odd)} TIFF files in {root} are not named TCGA_<site>_<patient>_<date>_<n>[_mask].tif: {some(odd)}; "
            "move them away"
        )
    if others:
        notes.append(f"{others} files that are not TIFF ignored")
    if copies:
        notes.append(_check_copies(tree, copies))
    stems = [stem for stem in found if not stem.endswith("_mask")]
    check_paired(stems, [stem.removesuffix("_mask") for stem in found if stem.endswith("_mask")], str(root))
    return PairSource(
        kind="kaggle_3m",
        title="LGG MRI slices, kaggle_3m tree (real data)",
        notes=notes,
        slices=[(parse_name(stem), (tree, found[stem]), (tree, found[f"{stem}_mask"])) for stem in stems],
        options=options,
        resize=False,
    )


def _is_tiff(name: PurePosixPath) -> bool:
    return name.suffix.lower() in (".tif", ".tiff")


def _check_copies(tree: Tree, copies: list[tuple[str, str]]) -> str:
    for (first, second), equal in zip(copies, in_threads(lambda pair: tree.same(*pair), copies), strict=True):
        if not equal:
            raise DataError(
                f"duplicate slice {PurePosixPath(first).stem} differs: {tree.path(first)} and {tree.path(second)} "
                "have the same name but other bytes; remove one of them"
            )
    folders = sorted({_tree_folder(second) for _, second in copies})
    return f"ignored duplicate tree {some(folders, 3)}: {len(copies)} files with the same names and bytes"


def _tree_folder(name: str) -> str:
    parent = PurePosixPath(name).parent
    return str(parent.parent if parent.name.startswith("TCGA_") else parent)
