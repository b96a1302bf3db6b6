"""A method that fsmer does not know, added by one file: class means after whitening by the support.

    fsmer evaluate kshot --episodes 50 --data synthetic:lab --method whitened-means -p shrinkage=0.5 \\
        --import examples/method_from_outside.py

Run by itself, this file checks the method and evaluates it on synthetic clips.
"""

from dataclasses import dataclass

import torch

from fsmer.errors import SupportError
from fsmer.transfer import Head, Method
from fsmer.transfer.heads import class_means, one_hot
from fsmer.transfer.registry import register_method


@register_method("whitened-means")
@dataclass(frozen=True)
class WhitenedMeans(Method):
    """Linear discriminant analysis with a shrunken diagonal variance, one classifier an episode."""

    shrinkage: float = 0.5

    def fit_head(self, embeddings, codes, way, prior=None):
        if codes.shape[1] == 0:
            raise SupportError(f"the method {self.name!r} learns from labelled clips; give at least one shot.")
        members = one_hot(codes, way)
        means, counts = class_means(embeddings, members)
        # What is left of each clip after its class mean; padding (code -1) has no class and counts nothing.
        inside = (members.transpose(1, 2) @ means - embeddings) * members.sum(dim=1)[..., None]
        variance = inside.square().sum(dim=1) / members.sum(dim=(1, 2))[:, None]
        variance = (1 - self.shrinkage) * variance + self.shrinkage * variance.mean(dim=1, keepdim=True)
        weight = means / variance[:, None].clamp_min(1e-6)
        bias = -0.5 * (weight * means).sum(dim=-1)
        return Head("linear", weight, torch.where(counts > 0, bias, -torch.inf))


if __name__ == "__main__":
    import fsmer
    from fsmer.testing import check_method

    check_method("whitened-means")
    clips = fsmer.synthetic_clips("lab", 90)
    protocol = fsmer.load_protocol("kshot", way=3, shot=5, episodes=50)
    print(fsmer.evaluate(protocol, "facs-flow", "whitened-means", clips=clips))
