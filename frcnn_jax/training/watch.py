"""Warnings of a training that learns nothing, each with its likely reason and at most once."""

from collections.abc import Sequence

import numpy as np

_WINDOW = 100  # steps
_PATIENCE = 500  # steps after which the loss must have fallen
_FALL = 0.98  # of the first steps' loss; below this it has fallen


class Watch:
    """Watches the sampled labels and the losses of a run.

    Args:
        class_names: Names of labels 1 to K.
        objects: `(K + 1,)` number of objects of each label in the training split.
        epoch: Steps in which each image comes once.
        foreground: Maximum number of foreground RoIs per image.
        fresh: Whether the run starts at step 0; the loss of one that resumes may be as low as it gets.
    """

    def __init__(
        self, class_names: Sequence[str], objects: np.ndarray, *, epoch: int, foreground: int, fresh: bool
    ) -> None:
        self._names, self._objects, self._epoch = class_names, objects, epoch
        self._foreground, self._fresh = foreground, fresh
        self._drawn = np.zeros(len(class_names) + 1, int)
        self._steps, self._without, self._first_loss = 0, 0, 0.0
        self._losses: list[float] = []
        self._said: set[str] = set()

    def batch(self, labels: np.ndarray) -> list[str]:
        """Return the warnings after a step's labels, `(B, R)`."""
        self._steps += 1
        self._drawn += np.bincount(labels.ravel(), minlength=len(self._drawn))
        self._without = 0 if labels.any() else self._without + 1
        warnings = []
        if self._without == _WINDOW:
            reason = "their images have no objects"
            if not self._objects.any():
                reason = "the train split has no objects"
            elif not self._foreground:
                reason = "fg_fraction of the RoIs of an image rounds to 0"
            warnings += self._once(f"no foreground RoI in {_WINDOW} steps: {reason}")
        if self._steps == max(self._epoch, _WINDOW) and self._drawn[1:].any():
            never = (self._drawn == 0) & (self._objects > 0)
            for name, objects, missed in zip(self._names, self._objects[1:], never[1:], strict=True):
                if not missed:
                    continue
                reason = "their boxes are those of other classes' objects, or too few foreground RoIs are drawn"
                warnings += self._once(
                    f"class {name!r}: no RoI of its {objects} objects in the first {self._steps} steps: {reason}"
                )
        return warnings

    def loss(self, value: float) -> list[str]:
        """Return the warnings after a step's loss."""
        if not self._fresh or len(self._losses) == _PATIENCE:
            return []
        self._losses.append(value)
        if len(self._losses) < _PATIENCE:
            return []
        first, last = (float(np.mean(part)) for part in (self._losses[: _WINDOW // 5], self._losses[-_WINDOW:]))
        if last < _FALL * first:
            return []
        reason = "lower" if last > first else "change"
        return self._once(
            f"the loss has not fallen in {_PATIENCE} steps, {first:.3f} at first and {last:.3f} now: "
            f"{reason} learning_rate, and see with frcnn check-dataset whether boxes fit their images"
        )

    def _once(self, warning: str) -> list[str]:
        new = {warning} - self._said
        self._said |= new
        return list(new)
