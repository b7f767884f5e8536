"""The noise key as workers find it: in a file, on any file system that Beam knows.

The key itself never enters a DoFn, an option or the job graph; only the path
of the file does.
"""

from apache_beam.io.filesystems import FileSystems

from dpgmm_beam.noise import NoiseKey


def load(key_file: str) -> NoiseKey:
    """Reads the key.

    Raises:
      ConfigError: the file does not hold exactly 32 bytes.
    """
    with FileSystems.open(key_file, "application/octet-stream", compression_type="uncompressed") as file:
        return NoiseKey(file.read())
