"""Seconds of one training step, ours against PyTorch's (where torch is installed), in one process run:

    python scripts/bench_step.py [--network alexnet] [--steps 5] [--rows 608 --columns 800]

Two images, 128 RoIs, float32, the same threads. The peer is a plain program of the same network: its RoI pooling is
torchvision's where that is installed, else `adaptive_max_pool2d` of each RoI's cells (the same bins within the map).
"""

import argparse
import time

import jax
import numpy as np

from frcnn_jax.models import Conv, FastRCNN, Norm, get_network
from frcnn_jax.solver import caffe_sgd, step_schedule
from frcnn_jax.train import create_state, initial_variables, make_train_step, replicate

CLASSES = 20


def make_batch(rows: int, columns: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (2, 64, 2, 2)), axis=2).reshape(2, 64, 4)
    return {
        "image": rng.normal(0, 50, (2, rows, columns, 3)).astype(np.float32),
        "image_size": np.array([[rows, columns]] * 2, np.int32),
        "rois": (corners * [columns, rows, columns, rows]).astype(np.float32),
        "roi_mask": np.ones((2, 64), bool),
        "labels": np.where(np.arange(64) < 16, rng.integers(1, CLASSES + 1, (2, 64)), 0).astype(np.int32),
        "box_targets": rng.normal(0, 1, (2, 64, 4)).astype(np.float32),
        "index": np.arange(2, dtype=np.int32),
    }


def our_step(name: str, batch: dict[str, np.ndarray]):
    model, optimizer = FastRCNN(get_network(name), CLASSES), caffe_sgd(step_schedule(0.001, ()))
    key = jax.random.key(0)
    state = create_state(initial_variables(model, key, ""), model.network.frozen, optimizer)
    state, key = replicate((state, key))
    step = make_train_step(model, optimizer)

    def run():
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return run


def torch_step(name: str, batch: dict[str, np.ndarray]):
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import nn

    try:
        from torchvision.ops import roi_pool
    except ImportError:
        roi_pool = None
    network = get_network(name)
    layers, channels = [], 3
    for layer in network.layers:
        if isinstance(layer, Conv):
            conv = nn.Conv2d(channels, layer.features, layer.kernel, layer.stride, layer.padding, groups=layer.groups)
            conv.requires_grad_(layer.name not in network.frozen)
            layers += [conv, nn.ReLU()]
            channels = layer.features
        elif isinstance(layer, Norm):
            layers.append(nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k))
        else:
            layers.append(nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=True))
    features = nn.Sequential(*layers)
    rows, columns = network.roi_size
    head = nn.Sequential(
        nn.Linear(channels * rows * columns, network.fc[0]), nn.ReLU(), nn.Dropout(),
        nn.Linear(network.fc[0], network.fc[1]), nn.ReLU(), nn.Dropout(),
    )  # fmt: skip
    outputs = nn.Linear(network.fc[1], 5 * (CLASSES + 1))
    trained = [p for m in (features, head, outputs) for p in m.parameters() if p.requires_grad]
    solver = torch.optim.SGD(trained, lr=0.001, momentum=0.9, weight_decay=5e-4)
    images = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(batch["labels"].reshape(-1).astype(np.int64))
    targets = torch.from_numpy(batch["box_targets"].reshape(-1, 4))
    rois = torch.from_numpy(batch["rois"])

    def pool(maps):
        if roi_pool:
            return roi_pool(maps, list(rois), network.roi_size, network.spatial_scale)
        cells = torch.round(rois * network.spatial_scale).int()
        pooled = []
        for image, boxes in enumerate(cells.tolist()):
            for x1, y1, x2, y2 in boxes:
                part = maps[image, :, min(y1, maps.shape[2] - 1) : y2 + 1, min(x1, maps.shape[3] - 1) : x2 + 1]
                pooled.append(F.adaptive_max_pool2d(part, network.roi_size))
        return torch.stack(pooled)

    def run():
        solver.zero_grad()
        out = outputs(head(pool(features(images)).flatten(1)))
        deltas = out[:, CLASSES + 1 :].reshape(-1, CLASSES + 1, 4)[torch.arange(len(labels)), labels]
        box = F.smooth_l1_loss(deltas, targets, reduction="none").sum(1)[labels > 0].sum() / len(labels)
        loss = F.cross_entropy(out[:, : CLASSES + 1], labels) + box
        loss.backward()
        solver.step()
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="alexnet")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=608)
    parser.add_argument("--columns", type=int, default=800)
    args = parser.parse_args()
    batch = make_batch(args.rows, args.columns)
    runs = {"ours": our_step(args.network, batch)}
    try:
        runs["torch"] = torch_step(args.network, batch)
    except ImportError:
        print("torch is not installed: ours alone")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(args.steps + 1):  # in turn, so that a noisy machine disturbs both alike; the first compiles
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - begin)
    for name, seconds in times.items():
        print(f"{name:6} {args.network} {args.rows}x{args.columns}: {np.median(seconds):.3f} s a step (median)")
    if "torch" in times:
        print(f"ratio ours / torch: {np.median(times['ours']) / np.median(times['torch']):.2f}")


if __name__ == "__main__":
    main()
