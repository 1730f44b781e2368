"""Linear SVMs on fc7 instead of the softmax (section 5.4), trained as in R-CNN: one per class, on hard negatives.

Shape letters: B images, K foreground classes, C features of fc7, R RoIs of one image, P positives of one class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from frcnn_jax.data.batches import Sizes, TestBatches, prefetch
from frcnn_jax.data.records import Record
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_npz, write_atomic
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.ops import boxes as box_ops

NEGATIVE_IOU = 0.3  # negatives of a class have less IoU with each of its objects
HARD_MARGIN = -1.0001  # negatives with a greater margin are kept ...
EASY_MARGIN = -1.1  # ... until their margin is less than this
REFIT_AFTER = 2000  # new negatives per class
TARGET_NORM = 20.0  # features are scaled to this mean norm ...
NORM_IMAGES = 100  # ... over the proposals of this many images
SAVE_EVERY = 250  # images


def make_features_step(model: FastRCNN) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    """Return the jitted `features(variables, batch)`: fc7 after its ReLU, `(B, R, C)`.

    Batches are those of `data.batches.prepare_test` with one scale.
    """

    @jax.jit
    def features(variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        images = (batch[name] for name in ("image", "image_size", "rois"))
        _, state = model.apply(
            variables, *images, capture_intermediates=lambda module, _: module.name == "fc7", mutable=["intermediates"]
        )
        return nn.relu(state["intermediates"]["head"]["fc7"]["__call__"][0])

    return features


def class_overlaps(rois: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the greatest IoU of each RoI with the objects of each class.

    Args:
        rois: `(R, 4)`.
        gt_boxes: `(G, 4)`.
        gt_labels: `(G,)`, 1 to K.
        num_classes: K.

    Returns:
        `(R, K)` in [0, 1], 0 for a class without objects.
    """
    overlaps = box_ops.iou(rois, gt_boxes)
    best = [overlaps[:, gt_labels == label].max(axis=1, initial=0) for label in range(1, num_classes + 1)]
    return np.stack(best, axis=1)


class HardNegativeSVMs:
    """K linear SVMs and the negatives they keep.

    As in R-CNN: hinge loss, C = 0.001, positives weighted 2, a bias feature of 10.

    Args:
        positives: `(P, C)` scaled features per class.
        seed: Seed of the solver.
    """

    def __init__(self, positives: Sequence[np.ndarray], *, seed: int = 0):
        features = positives[0].shape[1]
        self.positives = list(positives)
        self.negatives = [np.zeros((0, features), np.float32) for _ in positives]
        self.added = np.zeros(len(positives), int)  # negatives since the last fit
        self.weights = np.zeros((len(positives), features), np.float32)
        self.biases = np.zeros(len(positives), np.float32)
        self._seed = seed

    def mine(self, features: np.ndarray, overlaps: np.ndarray) -> None:
        """Add the hard negatives of one image, and fit the classes that have enough new ones.

        Args:
            features: `(R, C)`, scaled.
            overlaps: `(R, K)` from `class_overlaps`.
        """
        hard = (overlaps < NEGATIVE_IOU) & (features @ self.weights.T + self.biases > HARD_MARGIN)
        self.added += hard.sum(axis=0)
        for k in map(int, np.flatnonzero(hard.any(axis=0))):
            self.negatives[k] = np.concatenate([self.negatives[k], features[hard[:, k]]])
            if self.added[k] > REFIT_AFTER:
                self.fit(k)

    def fit(self, k: int) -> None:
        """Fit class k, 0 to K - 1, and drop its easy negatives.

        A class without positives gets the constant margin EASY_MARGIN; one without negatives is unchanged.
        """
        from sklearn.svm import LinearSVC

        self.added[k] = 0
        positives, negatives = self.positives[k], self.negatives[k]
        if not len(positives):
            self.biases[k], self.negatives[k] = EASY_MARGIN, negatives[:0]
        elif len(negatives):
            svm = LinearSVC(
                C=0.001,
                loss="hinge",
                class_weight={1: 2.0},
                intercept_scaling=10,
                max_iter=10_000,
                random_state=self._seed,
            )
            svm.fit(np.concatenate([positives, negatives]), np.repeat([1, 0], [len(positives), len(negatives)]))
            self.weights[k], self.biases[k] = svm.coef_[0], svm.intercept_[0]
            self.negatives[k] = negatives[negatives @ self.weights[k] + self.biases[k] >= EASY_MARGIN]

    def save(self, path: Path, **more: Any) -> None:
        """Write the state and further arrays to a .npz file, atomically."""
        arrays = {f"{name}_{k}": a for name in ("positives", "negatives") for k, a in enumerate(getattr(self, name))}
        arrays |= {name: getattr(self, name) for name in ("added", "weights", "biases")}
        write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays, **more))

    @classmethod
    def load(cls, path: Path, *, seed: int = 0) -> tuple["HardNegativeSVMs", dict[str, np.ndarray]]:
        """Read a state that `save` wrote.

        Returns:
            The SVMs, and the further arrays by name.

        Raises:
            InputError: The file is damaged or was not written by `save`.
        """
        try:
            arrays = read_npz(path)
            classes = range(len(arrays["biases"]))
            svms = cls([arrays.pop(f"positives_{k}") for k in classes], seed=seed)
            svms.negatives = [arrays.pop(f"negatives_{k}") for k in classes]
            for name in ("added", "weights", "biases"):
                fresh = getattr(svms, name)
                if (arrays[name].shape, arrays[name].dtype) != (fresh.shape, fresh.dtype):
                    raise ValueError(f"{name} is {arrays[name].shape} {arrays[name].dtype}")
                setattr(svms, name, arrays.pop(name))
            for own in (*svms.positives, *svms.negatives):
                if own.ndim != 2 or own.shape[1] != svms.weights.shape[1] or own.dtype != np.float32:
                    raise ValueError(f"features are {own.shape} {own.dtype}")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path}: not a state of SVM training ({error}); remove it to start over") from None
        return svms, arrays


def train_svms(
    model: FastRCNN,
    variables: Mapping[str, Any],
    records: Sequence[Record],
    proposals: Mapping[str, np.ndarray],
    *,
    size: Sizes,
    state: Path,
    negative_images: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train one SVM per class and put them into the class layer (section 5.4; R-CNN, section 2.3).

    Positives are the objects; negatives are mined from proposals and objects of other classes, image by image.

    Args:
        model: The network, trained with a softmax.
        variables: Its variables.
        records: The training split.
        proposals: `(N, 4)` boxes by image id.
        size: How images are resized.
        state: A file written every SAVE_EVERY images; if it exists, training resumes from it.
        negative_images: Number of images, from the first, that negatives are mined in; None for all.
        seed: Seed of the solver, and of the sample of images on which the norm of fc7 is measured.

    Returns:
        The parameters of `model`, cls_score replaced; see `write_classifier`.

    Raises:
        InputError: The package scikit-learn is not installed, or `state` is not such a file.
    """
    try:
        import sklearn.svm  # noqa: F401 - fail before the long work
    except ImportError:
        raise InputError("SVMs need the package scikit-learn: pip install 'frcnn_jax[svm]'") from None
    step = make_features_step(model)

    def features(
        records: Sequence[Record],
        boxes: Mapping[str, np.ndarray],
        title: str,
        start: int = 0,
        spatial_scale: float | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the boxes and their features per image."""
        batches = prefetch(TestBatches(records, boxes, [size], model.pixels, spatial_scale), start=start)
        for batch in tqdm(batches, desc=title, unit="image", total=len(records), initial=start, smoothing=0.05):
            mask = batch["roi_mask"][0]
            yield batch["rois"][0, mask] / batch["scale"], jax.device_get(step(variables, batch))[0, mask]

    num_classes = model.num_classes
    if state.exists():
        shape = num_classes, variables["params"]["head"]["cls_score"]["kernel"].shape[0]
        svms, scale, start = _resume(state, seed, shape, len(records))
    else:
        some = [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:NORM_IMAGES]]
        norms = [np.linalg.norm(found, axis=1) for _, found in features(some, proposals, "norm of fc7")]
        scale, start = np.float32(TARGET_NORM / np.concatenate(norms).mean()), 0
        objects = {record.image_id: record.boxes for record in records}
        found = np.concatenate([found for _, found in features(records, objects, "positives")]) * scale
        labels = np.concatenate([record.labels for record in records])
        svms = HardNegativeSVMs([found[labels == label] for label in range(1, num_classes + 1)], seed=seed)
        svms.save(state, scale=scale, images=0)

    records = records[:negative_images]
    candidates = {record.image_id: np.concatenate([record.boxes, proposals[record.image_id]]) for record in records}
    mined = features(records, candidates, "hard negatives", start, model.rounding_scale)
    for i, (boxes, found) in enumerate(mined, start):
        record = records[i]
        svms.mine(found * scale, class_overlaps(boxes, record.boxes, record.labels, num_classes))
        if (i + 1) % SAVE_EVERY == 0:
            svms.save(state, scale=scale, images=i + 1)
    for k in range(num_classes):
        svms.fit(k)
    return write_classifier(variables["params"], svms.weights, svms.biases, scale)


def _resume(state: Path, seed: int, shape: tuple[int, int], images: int) -> tuple[HardNegativeSVMs, np.float32, int]:
    """Return the SVMs of a state, the scale of features and the number of images that negatives were mined in.

    Args:
        state: The file.
        seed: Seed of the solver.
        shape: Number of classes, and of features.
        images: Most images.
    """
    svms, more = HardNegativeSVMs.load(state, seed=seed)
    scale, mined = (more.get(name, np.zeros(0)) for name in ("scale", "images"))
    known = scale.shape == mined.shape == () and scale.dtype.kind == "f" and mined.dtype.kind == "i"
    if not (known and np.isfinite(scale) and 0 <= mined <= images) or svms.weights.shape != shape:
        raise InputError(f"{state}: of another training of SVMs; remove it to start over")
    return svms, np.float32(scale), int(mined)


def write_classifier(
    params: Mapping[str, Any], weights: np.ndarray, biases: np.ndarray, scale: np.float32
) -> dict[str, Any]:
    """Put SVMs into the class layer: logits are then their margins, and 0 for background.

    Args:
        params: Parameters of a `FastRCNN`.
        weights: `(K, C)`, for scaled features.
        biases: `(K,)`.
        scale: Factor of the features that the SVMs were trained on; the class layer takes unscaled features.

    Returns:
        The parameters, cls_score replaced.
    """
    kernel = np.pad((weights * scale).T, ((0, 0), (1, 0))).astype(np.float32)
    bias = np.pad(biases, (1, 0)).astype(np.float32)
    return {**params, "head": {**params["head"], "cls_score": {"kernel": kernel, "bias": bias}}}
