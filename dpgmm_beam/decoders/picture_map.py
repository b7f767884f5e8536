"""What a decodable release holds of pictures: a value, and its files."""

import dataclasses
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.encoders.dct import PictureForm
from dpgmm_beam.mixture import fixed_size_list, matrix_of, parquet_bytes

PICTURE_MEANS_FILE, PICTURE_DIRECTIONS_FILE = "picture_means.parquet", "picture_directions.parquet"
PICTURE_RESIDUALS_FILE = "picture_residuals.parquet"
"""In the folder of the mixture."""


@dataclasses.dataclass(frozen=True, eq=False)
class PictureMap:
    """What embeddings say of pictures: E[c | x] = means + slopes^T directions (x - centres), in each class.

    Attributes:
      form: of the pictures; p numbers are one.
      classes: C labels.
      means: (C, p) cosine coefficients of each class's mean picture.
      centres: (C, d) mean embedding of each class.
      directions: (r, d), by which an embedding less its centre becomes r numbers of variance 1.
      slopes: (r, p), what a picture gains by each of them.
      residuals: (p,) variance of what is left of a coefficient.
    """

    form: PictureForm
    classes: tuple[str, ...]
    means: np.ndarray
    centres: np.ndarray
    directions: np.ndarray
    slopes: np.ndarray
    residuals: np.ndarray

    def fits(self, form: PictureForm | None, classes: Sequence[str], dimension: int) -> bool:
        """Whether it is of these pictures and embeddings, and of numbers."""
        (count, length), directions = self.means.shape, len(self.directions)
        arrays = self.means, self.centres, self.directions, self.slopes, self.residuals
        shapes = [
            (count, length),
            (count, dimension),
            (directions, dimension),
            (directions, length),
            (length,),
        ]
        return (
            (self.form, self.classes) == (form, tuple(classes))
            and (count, length) == (len(classes), self.form.dimension)
            and [each.shape for each in arrays] == shapes
            and all(np.isfinite(each).all() for each in arrays)
            and bool((self.residuals >= 0).all())
        )

    def save(self, write: Callable[[str, bytes, int], None]) -> None:
        """Writes the map's files; the same map gives the same bytes.

        Args:
          write: called with a file's name, bytes and number of rows.
        """
        about = {"side": self.form.side, "channels": self.form.channels}
        means = pa.table(
            {
                "class": pa.array(self.classes, pa.string()),
                "embedding": fixed_size_list(self.centres),
                "picture": fixed_size_list(self.means),
            }
        ).replace_schema_metadata({"dpgmm.pictures": json.dumps(about)})
        write(PICTURE_MEANS_FILE, parquet_bytes(means), len(means))
        of_directions = pa.table(
            {"direction": fixed_size_list(self.directions), "picture": fixed_size_list(self.slopes)}
        )
        write(PICTURE_DIRECTIONS_FILE, parquet_bytes(of_directions), len(of_directions))
        left = pa.table({"variance": pa.array(self.residuals, pa.float64())})
        write(PICTURE_RESIDUALS_FILE, parquet_bytes(left), len(left))

    @staticmethod
    def load(read: Callable[[str], bytes]) -> "PictureMap":
        """The map that `save` wrote.

        Args:
          read: the bytes of a file by its name.
        """
        names = PICTURE_MEANS_FILE, PICTURE_DIRECTIONS_FILE, PICTURE_RESIDUALS_FILE
        means, directions, left = (pq.read_table(io.BytesIO(read(name))) for name in names)
        about = json.loads(means.schema.metadata[b"dpgmm.pictures"])
        return PictureMap(
            form=PictureForm(about["side"], about["channels"]),
            classes=tuple(means.column("class").to_pylist()),
            means=matrix_of(means.column("picture")),
            centres=matrix_of(means.column("embedding")),
            directions=matrix_of(directions.column("direction")),
            slopes=matrix_of(directions.column("picture")),
            residuals=left.column("variance").to_numpy(),
        )
