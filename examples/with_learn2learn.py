"""MAML of learn2learn on episodes of a fsmer protocol, and an adapted clone as a recognizer (make learn2learn)."""

import learn2learn
import torch

import fsmer
from fsmer.interop.learn2learn import module, recognizer, task_set

torch.manual_seed(0)
clips, protocol = fsmer.synthetic_clips("lab", 90), fsmer.load_protocol("kshot", way=3, shot=5, query=5, episodes=20)
features = module(fsmer.load_model("facs-flow"))
maml = learn2learn.algorithms.MAML(torch.nn.Sequential(features, torch.nn.Linear(features.embed_dim, 3)), lr=0.5)
optimizer, loss = torch.optim.Adam(maml.parameters(), lr=1e-3), torch.nn.CrossEntropyLoss()
for task in task_set(protocol, clips, features.backbone):
    (media, labels), (asked, truth) = task.support, task.query
    learner = maml.clone()
    learner.adapt(loss(learner(media), labels))
    optimizer.zero_grad()
    loss(learner(asked), truth).backward()
    optimizer.step()
adapted = recognizer(learner, clips[task.episode.support], classes=task.episode.classes)
print(adapted, "is right on", adapted.score(clips[task.episode.query]), "of the last query")
