"""Model cards in Hugging Face format: what weights were made from, and what they are and are not for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fsmer
from fsmer.backbones.base import Backbone, model_hash
from fsmer.io import write_text

__all__ = ["MISUSE", "write_model_card"]

MISUSE = """Facial movement is not emotion: a micro-expression says that muscles moved, not what a person feels,
thinks or hides. Do not use this model to detect lies, to screen, hire, grade, diagnose, police or profile people,
to watch anyone without their informed consent, or to take any decision about a person. Reading emotions at work and
in education is prohibited by law in some places (in the European Union by Article 5 of the AI Act)."""


def write_model_card(folder: Path, backbone: Backbone, *, recipe: Mapping[str, Any], seed: int, seconds: float) -> Path:
    """Write ``README.md`` beside the weights.

    Parameters
    ----------
    folder : Path
        The weights folder.
    backbone : Backbone
        The trained network.
    recipe : mapping
        Hyper-parameters of the training.
    seed : int
        Its seed.
    seconds : float
        How long it took.
    """
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    return write_text(
        folder / "README.md",
        f"""---
license: apache-2.0
library_name: fsmer
tags:
- micro-expression-recognition
- few-shot
- optical-flow
- facial-action-coding-system
pipeline_tag: image-classification
---

# {backbone.name}

A compact network ({parameters:,} parameters) that turns one optical-flow map of a face (onset to apex:
{backbone.input_spec.describe()}) into a {backbone.embed_dim}-d embedding. It knows action units and emotions from
synthetic motion drawn from the Facial Action Coding System. **No recording of a person was used to train it**, and no
checkpoint was picked: the weights are those after the last step.

## Use

```python
import fsmer

model = fsmer.load_model("{backbone.name}")
recognizer = fsmer.adapt(model, support_set)   # five labelled clips a class
recognizer.predict(clips)
```

## What it is for, and what it must not be used for

For research on micro-expression recognition, and for building recognizers that people consent to and that their makers
evaluate on their own labelled clips.

{MISUSE}

## Limits

- Synthetic faces are a drawing of anatomy, not people: no claim is made about any group of people, and differences
  between groups were not measured.
- Positions, sizes and co-occurrences of action units follow published anatomy. The crop, the strength of head motion
  and the look of estimator noise were set while looking at public flow maps of CASME II and SMIC (MEGC 2019).
- UF1 on these two sets, with their labels, was seen for many variants of the generator, the network, its length of
  training, the smoothing at inference and the default few-shot method while they were designed. Figures on them are
  therefore optimistic; other data sets are the fair test.
- Eats the map described above and nothing else; another crop, size or normalisation is refused.
- Per-map min-max scaling hides how strong a movement is: a face that does not move still gets an answer.

## Training

`fsmer pretrain {backbone.name} --seed {seed}`: {seconds / 60:.0f} minutes on {torch.get_num_threads()} threads
(fsmer {fsmer.__version__}, torch {torch.__version__.split("+")[0]}, numpy {np.__version__}, Python
{platform.python_version()}).

| setting | value |
|---|---|
{rows}
| seed | {seed} |
| hash of the weights | {model_hash(backbone)} |
""",
    )
