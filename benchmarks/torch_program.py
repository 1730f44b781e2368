"""A plain PyTorch and torchvision program of Fast R-CNN, with which the benchmarks compare."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench_inputs import CLASSES, Part
from torch import nn
from torch.nn import functional
from torchvision import ops

from frcnn_jax.data.batches import Batch
from frcnn_jax.models.layers import Conv, Norm
from frcnn_jax.models.networks import Network
from frcnn_jax.models.weights import canonical_arrays


class TorchProgram:
    """A network of `NETWORKS` in PyTorch, in float32, or in the type of an enclosing `torch.autocast`."""

    def __init__(self, network: Network, params: Any, device: str = "cpu"):
        layers: dict[str, nn.Module] = {}
        channels = 3
        for i, layer in enumerate(network.layers):
            if isinstance(layer, Conv):
                options = {"padding": layer.padding, "groups": layer.groups}
                conv = nn.Conv2d(channels, layer.features, layer.kernel, layer.stride, **options)
                layers[layer.name] = conv.requires_grad_(layer.name not in network.frozen)
                layers[f"relu{i}"] = nn.ReLU(inplace=True)
                channels = layer.features
            elif isinstance(layer, Norm):
                layers[f"norm{i}"] = nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
            else:
                layers[f"pool{i}"] = nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=True)
        inputs, (fc6, fc7) = channels * network.roi_size[0] * network.roi_size[1], network.fc
        self.network, self.device, self.backbone = network, device, nn.Sequential(OrderedDict(layers)).to(device)
        widths = {"fc6": (inputs, fc6), "fc7": (fc6, fc7), "cls_score": (fc7, CLASSES + 1)}
        widths |= {"bbox_pred": (fc7, 4 * (CLASSES + 1))}
        self.fc = nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()}).to(device)
        arrays = canonical_arrays(params, roi_size=network.roi_size)
        for name, parameter in [*self.backbone.named_parameters(), *self.fc.named_parameters()]:
            parameter.data = self.tensor(arrays[name].copy())

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def images(self, batch: Batch) -> torch.Tensor:
        """Return the images without their padding, `(B, 3, H, W)`."""
        rows, columns = batch["image_size"][0]
        return self.tensor(batch["image"][:, :rows, :columns].transpose(0, 3, 1, 2))

    def outputs(self, pooled: Any, dropout: float = 0.0) -> tuple[Any, Any]:
        """Return logits `(R, K + 1)` and deltas `(R, K + 1, 4)`."""
        x = pooled.flatten(1)
        for name in ("fc6", "fc7"):
            x = functional.dropout(functional.relu(self.fc[name](x)), dropout)
        return self.fc["cls_score"](x).float(), self.fc["bbox_pred"](x).float().reshape(len(x), -1, 4)

    def parts(self, test: Batch) -> dict[str, Part]:
        """Return the parts of detection, in order."""
        images, size = self.images(test), tuple(test["image_size"][0])
        boxes = self.tensor(test["rois"][test["roi_mask"]])

        def suppress(outputs: tuple[Any, Any]) -> list[Any]:
            scores, found = outputs[0].softmax(1), []
            for k in range(1, CLASSES + 1):
                best, index = scores[:, k].topk(100)
                decoded = ops.clip_boxes_to_image(decode(boxes[index], outputs[1][index, k]), size)
                kept = ops.nms(decoded, best, 0.3)
                found.append((decoded[kept], best[kept]))
            return found

        parts = {
            "convolutions": lambda _: self.backbone(images),
            "RoI pool": lambda maps: self.pool(maps, [boxes]),
            "fc": self.outputs,
            "NMS": suppress,
        }
        return {name: torch.inference_mode()(part) for name, part in parts.items()}

    def pool(self, maps: Any, rois: list[Any]) -> Any:
        return ops.roi_pool(maps.float(), rois, self.network.roi_size, self.network.spatial_scale)

    def step(self, batch: Batch) -> Callable[[], torch.Tensor]:
        """Return a function that takes a training step and returns its loss."""
        trained = [p for module in (self.backbone, self.fc) for p in module.parameters() if p.requires_grad]
        solver = torch.optim.SGD(trained, lr=0.001, momentum=0.9, weight_decay=5e-4)
        images, rois = self.images(batch), list(self.tensor(batch["rois"]))
        labels = self.tensor(batch["labels"].reshape(-1).astype(np.int64))
        targets = self.tensor(batch["box_targets"].reshape(-1, 4))

        def run() -> torch.Tensor:
            solver.zero_grad()
            logits, deltas = self.outputs(self.pool(self.backbone(images), rois), self.network.dropout)
            own = deltas[torch.arange(len(labels), device=self.device), labels]
            box = functional.smooth_l1_loss(own, targets, reduction="none").sum(1)[labels > 0].sum() / len(labels)
            loss = functional.cross_entropy(logits, labels) + box
            loss.backward()
            solver.step()
            return loss.detach()

        return run


def decode(rois: Any, deltas: Any) -> Any:
    size = rois[:, 2:] - rois[:, :2]
    centre, half = rois[:, :2] + size / 2 + deltas[:, :2] * size, deltas[:, 2:].exp() * size / 2
    return torch.cat([centre - half, centre + half], 1)
