"""A plain PyTorch and torchvision program of Fast R-CNN, with which the benchmarks compare speed and results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench_inputs import Part
from torch import nn
from torch.nn import functional
from torch_backbones import stage, torch_backbone
from torchvision import ops

from frcnn_jax.data.batches import Batch
from frcnn_jax.models.networks import AnyNetwork
from frcnn_jax.models.parameters import flatten, matches
from frcnn_jax.models.pools import RoIAlign
from frcnn_jax.models.resnet import ResNetHead
from frcnn_jax.models.weights import canonical_arrays, canonical_names


class TorchProgram:
    """A network of `NETWORKS` in PyTorch, in the type of its variables, or in that of an enclosing `torch.autocast`.

    Its solver decays no biases and trains them at twice the rate. As PyTorch applies the rate outside the momentum, it
    is Caffe's solver as long as the rate is constant.
    """

    def __init__(self, network: AnyNetwork, variables: Any, device: str = "cpu"):
        outputs = len(variables["box_stats"]["mean"])
        self.model, self.device = network.build(outputs - 1), device
        self.backbone = torch_backbone(self.model.backbone).to(device)
        params = variables["params"]
        arrays = canonical_arrays(params, roi_size=self.model.roi_size)
        self.dtype = torch.from_numpy(np.zeros_like(arrays["cls_score.bias"])).dtype
        kernels = {name: layer["kernel"].shape for name, layer in params["head"].items() if "kernel" in layer}
        self.fc = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in kernels.items()})
        if isinstance(self.model.head, ResNetHead):
            self.fc["layer4"] = stage(self.model.head.depth, 4, self.model.head.stride_in_1x1)
        self.fc.to(device)
        self.box_mean, self.box_std = (self.tensor(np.array(variables["box_stats"][name])) for name in ("mean", "std"))
        paths = dict(zip(canonical_names(params), flatten(params), strict=True))
        for name, parameter in self.parameters().items():
            parameter.data = self.tensor(arrays[name].copy())
            parameter.requires_grad_(not matches(paths[name], network.frozen))

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict([*self.backbone.named_parameters(), *self.fc.named_parameters()])

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def image(self, batch: Batch, i: int) -> torch.Tensor:
        """Return an image without its padding, `(1, 3, H, W)`."""
        rows, columns = batch["image_size"][i]
        return self.tensor(batch["image"][i : i + 1, :rows, :columns].transpose(0, 3, 1, 2))

    def outputs(self, pooled: Any, dropout: float = 0.0) -> tuple[Any, Any]:
        """Return logits `(R, K + 1)` and deltas `(R, K + 1, 4)`."""
        if "layer4" in self.fc:
            x = self.fc["layer4"](pooled).mean((2, 3))
        else:
            if "reduce" in self.fc:
                pooled = functional.relu(self.fc["reduce"](pooled.movedim(1, 3))).movedim(3, 1)
            x = pooled.flatten(1)
            for name in ("fc6", "fc7"):
                x = functional.dropout(functional.relu(self.fc[name](x)), dropout)
        return self.fc["cls_score"](x).to(self.dtype), self.fc["bbox_pred"](x).to(self.dtype).reshape(len(x), -1, 4)

    def parts(self, test: Batch) -> dict[str, Part]:
        """Return the parts of detection, in order."""
        image, scale, (rows, columns) = self.image(test, 0), float(test["scale"][0]), test["original_size"][0]
        boxes, pixel = self.tensor(test["rois"][test["roi_mask"]]), self.tensor(np.array([0, 0, 1, 1], np.float32))

        def suppress(outputs: tuple[Any, Any]) -> list[Any]:
            scores, deltas, found = outputs[0].softmax(1), outputs[1] * self.box_std + self.box_mean, []
            for k in range(1, scores.shape[1]):
                best, index = scores[:, k].topk(min(100, len(boxes)))
                decoded = decode(boxes[index], deltas[index, k]) / scale
                decoded = ops.clip_boxes_to_image(decoded, (rows - 1, columns - 1))
                kept = ops.nms(decoded + pixel, best, 0.3)  # its boxes exclude their last row and column
                found.append((decoded[kept], best[kept]))
            return found

        parts = {
            "convolutions": lambda _: self.backbone(image),
            "RoI pool": lambda maps: self.pool(maps, [boxes]),
            "fc": self.outputs,
            "NMS": suppress,
        }
        return {name: torch.inference_mode()(part) for name, part in parts.items()}

    def pool(self, maps: Any, rois: list[Any]) -> Any:
        """Pool in float32, or in float64 with the bins of float32; torchvision's float64 bins differ."""
        scale, size = self.model.pool.spatial_scale, self.model.roi_size  # type: ignore[attr-defined]
        if isinstance(self.model.pool, RoIAlign):
            pixel, shift = self.tensor(np.array([0, 0, 1, 1], np.float32)), self.model.pool.shift
            edges = [own + pixel - shift for own in rois]
            return ops.roi_align(maps, edges, size, scale, self.model.pool.sampling_ratio, aligned=True)
        if self.dtype == torch.float32:
            return ops.roi_pool(maps.float(), rois, size, scale)
        ranks = maps.detach().flatten(2).argsort().argsort().reshape(maps.shape).float()
        boxes = torch.cat([functional.pad(own.float(), (1, 0), value=i) for i, own in enumerate(rois)])
        rows, columns = size
        _, cells = torch.ops.torchvision.roi_pool(ranks, boxes, scale, rows, columns)  # -1 in empty bins
        image, channel = boxes[:, 0].long()[:, None, None, None], torch.arange(maps.shape[1])[:, None, None]
        return maps.flatten(2)[image, channel, cells.clamp(0).long()].where(cells >= 0, 0)

    def solver(self, rate: float = 0.001) -> torch.optim.SGD:
        trained = {name: p for name, p in self.parameters().items() if p.requires_grad}
        weights, biases = ([p for name, p in trained.items() if name.endswith(end)] for end in ("weight", "bias"))
        groups = [{"params": weights, "weight_decay": 5e-4}, {"params": biases, "lr": 2 * rate}]
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)

    def step(self, batch: Batch, solver: torch.optim.SGD | None = None) -> Callable[[], torch.Tensor]:
        """Return a function that takes a training step and returns its loss.

        Images run together if they are of one size, else each runs alone.
        """
        solver, mask = solver or self.solver(), batch["roi_mask"]
        images = [self.image(batch, i) for i in range(len(mask))]
        rois = [self.tensor(own[valid]) for own, valid in zip(batch["rois"], mask, strict=True)]
        if len({image.shape for image in images}) == 1:
            images, rois = [torch.cat(images)], [rois]
        else:
            rois = [[own] for own in rois]
        labels, targets = self.tensor(batch["labels"][mask].astype(np.int64)), self.tensor(batch["box_targets"][mask])

        def run() -> torch.Tensor:
            solver.zero_grad()
            pooled = torch.cat([self.pool(self.backbone(x), own) for x, own in zip(images, rois, strict=True)])
            logits, deltas = self.outputs(pooled, getattr(self.model.head, "dropout", 0.0))
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
