"""A backbone of fsmer inside a method of easyfsl, on the episodes of a protocol (pip install 'fsmer[easyfsl]')."""

from easyfsl.methods import PrototypicalNetworks
from easyfsl.utils import evaluate

import fsmer
from fsmer.interop.easyfsl import episode_loader

backbone = fsmer.load_model("facs-flow")
protocol = fsmer.load_protocol("kshot", way=3, shot=5, query=5, episodes=20)
loader = episode_loader(protocol, fsmer.synthetic_clips("lab", 90), backbone)
accuracy = evaluate(PrototypicalNetworks(backbone), loader, device="cpu", use_tqdm=False)
print(f"easyfsl's prototypes are right on {accuracy:.2f} of the queries")
