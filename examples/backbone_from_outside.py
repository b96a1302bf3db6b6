"""A backbone that fsmer does not know, added by one file.

    fsmer evaluate kshot --episodes 50 --data synthetic:lab --model pooled-flow --method protonet \\
        --import examples/backbone_from_outside.py

Run by itself, this file checks the backbone and evaluates it on synthetic clips.
"""

import torch
from torch import nn

from fsmer.backbones import Backbone, register_backbone
from fsmer.data import InputSpec


@register_backbone("pooled-flow")
class PooledFlow(Backbone):
    """Two convolutions over the flow map, averaged over a grid of 4 x 4."""

    def __init__(self, width: int = 16) -> None:
        spec = InputSpec(kind="flow", size=(28, 28), channels=("u", "v", "strain"), normalisation="minmax")
        super().__init__(input_spec=spec, embed_dim=16 * width, config={"width": width})
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


if __name__ == "__main__":
    import fsmer
    from fsmer.testing import check_backbone

    check_backbone("pooled-flow")
    clips = fsmer.synthetic_clips("lab", 90)
    protocol = fsmer.load_protocol("kshot", way=3, shot=5, episodes=50)
    print(fsmer.evaluate(protocol, fsmer.create_model("pooled-flow").eval(), "protonet", clips=clips))
