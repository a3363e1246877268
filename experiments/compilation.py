"""The compilation cache of the programs: what XLA compiled once, the next start reads."""

import importlib
import os
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from experiments.config import Config, ConfigError

OFF = "off"
_CHECKED = "checked"


def keep_programs(config: Config) -> None:
    """Keeps compiled programs in `compile_cache`, before anything is compiled.

    Without an option it is `xla` in the folder of the prepared slices, or where `JAX_COMPILATION_CACHE_DIR` points. Any
    number of processes may share it: an entry is written once, under a name that tells the program, the devices, the
    options and the version of the compiler. Whoever may write there decides what runs here, so it is made for the user
    alone.

    Raises:
      ConfigError: the folder that `compile_cache` names cannot be written to; without the option, programs are then
        compiled each time, and a line says so.
    """
    import jax

    from data_pipeline.prepared import default_cache_dir

    if config.compile_cache == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    given = config.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given and "://" in given:
        folder = given  # a bucket, which JAX knows how to write to
    else:
        path = Path(given or Path(config.data.cache_dir or default_cache_dir()) / "xla").expanduser().absolute()
        folder = str(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_damaged(path)
        except OSError as error:
            message = f"compiled programs cannot be kept in {path}: {error.strerror or error}"
            if config.compile_cache:
                raise ConfigError(f"{message}; name another --compile_cache, or --compile_cache={OFF}") from error
            sys.stderr.write(f"note: {message}\n")
            return
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # An entry that another process is writing this moment is compiled here: no matter for the user.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)


def remove_damaged(folder: Path) -> None:
    """Removes entries that a killed process left half written: JAX would neither use nor replace them.

    Each entry is looked at once: the time of the last look is kept in a file.
    """
    mark = folder / _CHECKED
    checked = mark.stat().st_mtime if mark.exists() else 0.0
    mark.touch()
    for entry in folder.glob("*-cache"):
        try:
            if entry.stat().st_mtime >= checked:
                _decompress(entry.read_bytes())
        except FileNotFoundError:  # another process was faster
            continue
        except ValueError:
            entry.unlink(missing_ok=True)


def _decompress(data: bytes) -> None:
    """Raises ValueError if this is no whole entry; says nothing where no decoder is at hand."""
    try:
        if data[:4] != b"\x28\xb5\x2f\xfd":
            zlib.decompress(data)
        elif decode := _zstandard():
            decode(data)
    except Exception as error:  # whatever a decoder raises on damaged bytes
        raise ValueError(str(error)) from error


def _zstandard() -> Callable[[bytes], bytes] | None:
    """The decoder of either of the two packages that JAX uses, None without them."""
    for name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.decompress
    return None
