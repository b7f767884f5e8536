"""All that the files of a release are made of, once it has been fitted."""

from collections.abc import Iterator

from dpgmm_beam.decoders.picture_map import PictureMap
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.pictures import picture_map_of
from dpgmm_beam.linalg import one_thread
from dpgmm_beam.mixture import Sampler
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import manifest
from dpgmm_beam.release.card import CARD_FILE, card
from dpgmm_beam.release.class_rows import ClassRows
from dpgmm_beam.release.labels import Labeller
from dpgmm_beam.release.loading import with_labels
from dpgmm_beam.release.row_statement import RowStatement
from dpgmm_beam.release.synthesis import draw_part, generator_of_key


class Fitted:
    """What files of a release are made from; any number of threads may use it.

    Attributes:
      plan: of the release.
      state: digest of the final state: files of two draws must not meet in one release.
      mixture: the released one, with class rows and teacher.

    Args:
      final: the checkpoint after the last stage, with the covariance in it.
      secret: the noise key.

    Raises:
      RuntimeError: the key is another than the fit's.
    """

    def __init__(self, final: Checkpoint, secret: NoiseKey):
        chain.check_key(final, secret)
        self.plan, self.state = final.plan, final.digest().hex()
        self._parts = manifest.parts_of(self.plan.config)
        self._key = chain.release_key(final, secret)
        self._class_rows, self._labeller = ClassRows.of(final), Labeller.of(final)
        self._saved: list[ClassRows | Labeller | PictureMap] = [self._class_rows, self._labeller]
        if self.plan.config.decodable is not None:
            self._saved.append(picture_map_of(self.plan.config, final.state))
        self.mixture = with_labels(chain.released_mixture(final), self._class_rows, self._labeller)
        self._sampler = Sampler(self.mixture)
        self._statement = RowStatement.of(self.plan.config, self.plan.release_id, self.mixture)

    @property
    def parts(self) -> int:
        """How many files of synthetic rows there are."""
        return len(self._parts)

    def files(self) -> Iterator[tuple[str, int, bytes]]:
        """Path, number of rows and bytes of each file but the synthetic rows and the manifest."""
        found: list[tuple[str, int, bytes]] = [(CARD_FILE, 0, card(self.plan))]
        for each in (self.mixture, *self._saved):
            each.save(lambda name, data, rows: found.append((f"{manifest.MIXTURE}/{name}", rows, data)))
        yield from found

    def part(self, part: int) -> tuple[str, int, bytes]:
        """Path, number of rows and bytes of one file of synthetic rows."""
        with one_thread():
            generator = generator_of_key(self._key, part)
            data = draw_part(self._parts, part, self._sampler, self._labeller, generator, self._statement)
        return f"{manifest.SYNTHETIC}/{self._parts.name(part)}", self._parts.rows_of(part), data
