"""Models that do not export as a whole: the refusal names the parts that do, and these can be pruned and put back."""

import json

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

import prune2deploy as p2d
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import ModelError
from prune2deploy.graph.trace import trace
from prune2deploy.surgery.apply import apply_plan


class Selecting(nn.Module):
    """Its head sees as many rows as are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        self.tiny = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.body(x).flatten(1)
        rows = self.head(rows[rows.sum(1) > rows.sum(1).mean() - 1])
        return self.tiny(rows) if len(rows) > 1 else rows


def test_the_refusal_is_one_line_that_names_the_parts_and_what_to_write() -> None:
    model = Selecting()
    with pytest.raises(ModelError) as refused:
        trace(model, torch.rand(1, 3, 8, 8))
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert "the model cannot be exported: a size in it depends on data" in said
    assert "its parts body (89% of the parameters) and head (" in said
    assert "model.body = p2d.prune(model.body, torch.rand(1, 3, 8, 8), flops=0.5).model" in said
    assert "tiny" not in said
    assert "test_parts.py" in said
    assert model.training


def test_a_model_without_such_parts_is_told_to_change_its_line() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="rewrite that line"):
        trace(Nothing(), torch.rand(1, 3))


def detector() -> FasterRCNN:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3, 4, 1))
    body.out_channels = 16
    anchors = AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),))
    return FasterRCNN(
        body,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_test=10,
        box_head=TwoMLPHead(16 * 7 * 7, 16),
        box_predictor=FastRCNNPredictor(16, 3),
    )


def test_the_backbone_of_a_detector_is_pruned_and_the_whole_runs_trains_and_reloads() -> None:
    model, image = detector().eval(), torch.rand(3, 64, 64)
    with pytest.raises(ModelError, match=r"its parts .*backbone .* can be exported and pruned by themselves"):
        p2d.prune(model, ([image],), flops=0.5)
    result = p2d.prune(model.backbone, torch.rand(1, 3, 64, 64), flops=0.5, align=1)
    model.backbone = result.model
    assert model.backbone[0].weight.shape[0] == 16
    assert model.backbone[3].weight.shape[0] == 16, "what the rest of the detector reads stays whole"

    model.train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model([image, image], [target, target])
    sum(losses.values()).backward()
    assert model.backbone[0].weight.grad is not None

    fresh = detector().eval()
    plan = PrunePlan.from_document(json.loads(json.dumps(result.plan.to_document())), where="test")
    apply_plan(fresh.backbone, plan)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        again, once = fresh([image])[0], model.eval()([image])[0]
    for name in ("boxes", "labels", "scores"):
        assert torch.equal(again[name], once[name])
